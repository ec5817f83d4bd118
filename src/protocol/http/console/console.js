// Asks the server for its state every two seconds, keeps a few samples, and lets the operator load and unload.

import { figures, trim } from "./figures.js";
import { keyOf, parse } from "./samples.js";
import { Table, TRENDS, say, showOverview } from "./view.js";

const INTERVAL_MS = 2000;
const ANSWER_MS = 8000;
const SLOTS = 150;
const SECRETS = "nereid.secrets";
const byId = (id) => document.getElementById(id);

/** Refused for lack of a header's value; a restricted group of the server's settings. */
class Restricted extends Error {
  constructor(message) {
    super(message);
    this.header = /expecting header '([^']+)'/.exec(message)?.[1] ?? "";
  }
}

const state = { samples: [], trends: {}, rates: new Map(), server: undefined, answered: undefined, secrets: secrets() };
const table = new Table(SLOTS, act);

function secrets() {
  try {
    return JSON.parse(sessionStorage.getItem(SECRETS)) ?? {};
  } catch {
    return {};
  }
}

/** Asks for a path below this page. */
async function ask(path, { method = "GET", body, timeout = ANSWER_MS } = {}) {
  const headers = { ...state.secrets, ...(body !== undefined && { "content-type": "application/json" }) };
  const signal = timeout ? AbortSignal.timeout(timeout) : undefined;
  const response = await fetch(path, { method, body, headers, signal, cache: "no-store", credentials: "same-origin", redirect: "error" });
  if (response.ok || (path === "v2/health/ready" && response.status !== 403)) return response;
  const text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error ?? text;
  } catch { /* a proxy's page, not the server's */ }
  throw response.status === 403 ? new Restricted(message) : Object.assign(new Error(message || `status ${response.status}`), { answered: true });
}

/** One look at everything; a source that refuses is left out, and the others are shown. */
async function look() {
  const json = (path, options) => ask(path, options).then((response) => response.json());
  const sources = {
    ready: ask("v2/health/ready").then((response) => response.ok),
    index: json("v2/repository/index", { method: "POST", body: "{}" }),
    stats: json("v2/models/stats").then(({ model_stats: all }) => new Map((all ?? []).map((each) => [keyOf({ model: each.name, version: each.version }), each]))),
    series: ask("console/metrics").then((response) => response.text()).then((text) => (text ? parse(text) : undefined)),
    ...(!state.server && { server: json("console/status") }),
  };
  const settled = await Promise.allSettled(Object.values(sources));
  const sample = { at: performance.now(), refused: [], failed: [] };
  Object.keys(sources).forEach((name, at) => {
    const { value, reason } = settled[at];
    if (!reason) sample[name] = value;
    else (reason instanceof Restricted ? sample.refused : sample.failed).push(reason);
  });
  // An answer that is an error is an answer.
  sample.silent = sample.failed.length === settled.length && !sample.failed.some((error) => error.answered);
  return sample;
}

function keep(sample) {
  state.samples.push(sample);
  trim(state.samples);
  const now = figures(state.samples);
  for (const name of TRENDS) push((state.trends[name] ??= []), now.overview[name]);
  const present = new Set(now.versions.map((each) => each.key));
  for (const key of state.rates.keys()) if (!present.has(key)) state.rates.delete(key);
  for (const { key, rate } of now.versions) {
    if (!state.rates.has(key)) state.rates.set(key, []);
    push(state.rates.get(key), rate);
  }
  return now;
}

function push(values, value) {
  if (value !== undefined || values.length) values.push(value);
  if (values.length > SLOTS) values.shift();
}

async function tick() {
  const sample = await look();
  document.body.classList.toggle("stale", sample.silent);
  showReadiness(sample);
  if (sample.silent) {
    // What is counted may have begun anew when it answers again, by another version of the server.
    Object.assign(state, { samples: [], server: undefined });
    notify(`No answer from the server${state.answered ? ` since ${state.answered}` : ""}. Trying again.`, true, "silence");
    return;
  }
  state.answered = new Date().toLocaleTimeString();
  if (sample.failed.length) notify(sample.failed[0].message, true, "source");
  else quiet(["silence", "source"]);
  state.server ??= sample.server;
  if (state.server) showServer(state.server, sample.series || sample.refused.length || sample.failed.length);
  showAccess(sample.refused);
  const now = keep(sample);
  showOverview(now.overview, state.trends, SLOTS);
  table.update(now.versions, state.rates, state.server?.model_control_mode === "explicit");
}

function showReadiness({ silent, ready }) {
  const [kind, words] = silent ? ["gone", "No answer"] : ready ? ["ready", "Ready"] : ready === false ? ["unready", "Not ready"] : ["off", "Readiness not shown"];
  byId("readiness").dataset.state = kind;
  say(byId("readiness"), words);
}

function showServer({ name, version, model_control_mode: mode }, metrics) {
  document.title = `${name} \u00b7 Nereid`;
  say(byId("name"), name);
  say(byId("version"), `Nereid ${version}`);
  const control = { none: "Models are loaded at the start only.", poll: "Models are loaded and unloaded as their directories change." }[mode] ?? "";
  say(byId("source"), `${control}${metrics ? "" : " Metrics are switched off, so there are no percentiles and no figures of the host."}`);
}

/** Asks for the value of a header that a restricted group wants, one at a time. */
function showAccess(refused) {
  const header = refused[0]?.header;
  const form = byId("access");
  form.hidden = !header;
  if (!header || form.dataset.header === header) return;
  form.dataset.header = header;
  say(byId("access-why"), header in state.secrets ? "The value was not accepted." : "A part of this server's API is restricted.");
  say(byId("access-header"), header);
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = byId("access");
  const secrets = { ...state.secrets, [form.dataset.header]: byId("access-value").value };
  byId("access-value").value = "";
  try {
    new Headers(secrets);
  } catch {
    say(byId("access-why"), "This cannot be the value of a header.");
    return;
  }
  state.secrets = secrets;
  sessionStorage.setItem(SECRETS, JSON.stringify(secrets));
  form.dataset.header = "";
  run();
});

function notify(text, bad, about) {
  const notice = byId("notice");
  notice.dataset.about = about;
  notice.classList.toggle("bad", bad);
  notice.hidden = false;
  say(notice, text);
}

function quiet(subjects) {
  if (subjects.includes(byId("notice").dataset.about)) byId("notice").hidden = true;
}

/** Loads, reloads or unloads a model. */
async function act(verb, name) {
  if (verb === "Unload" && !(await confirmed(name))) return;
  table.busy.set(name, verb);
  table.render();
  try {
    const call = verb === "Unload" ? "unload" : "load";
    await ask(`v2/repository/models/${encodeURIComponent(name)}/${call}`, { method: "POST", body: "{}", timeout: 0 });
    notify(`${name}: ${call}ed`, false, "action");
  } catch (error) {
    notify(`${name}: ${error.message}`, true, "action");
  }
  table.busy.delete(name);
  run();
}

function confirmed(name) {
  const dialog = byId("confirm");
  say(byId("confirm-title"), `Unload ${name}?`);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
byId("confirm-no").addEventListener("click", () => byId("confirm").close("no"));

const THEMES = ["system", "light", "dark"];
function theme(name) {
  document.documentElement.dataset.theme = name;
  say(byId("theme"), `Theme: ${name}`);
}
theme(THEMES.find((name) => name === localStorage.getItem("nereid.theme")) ?? "system");
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  localStorage.setItem("nereid.theme", next);
  theme(next);
});

// One look at a time; none while nobody sees the page.
let timer;
let looking = false;
async function run() {
  clearTimeout(timer);
  if (looking || document.hidden) return;
  looking = true;
  try {
    await tick();
  } finally {
    looking = false;
    timer = setTimeout(run, INTERVAL_MS);
  }
}
document.addEventListener("visibilitychange", run);
run();
