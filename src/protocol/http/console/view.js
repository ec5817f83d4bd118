// The page: tiles, table, details. Writes what it is given, and changes only what differs.

import { number, percentile } from "./figures.js";

const SHOWN_MAX = 200;
const NONE = "\u2013";
const byId = (id) => document.getElementById(id);

/** An element with text or children. */
function element(tag, { text, children, ...attributes } = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  if (children) made.append(...children);
  return made;
}

/** Sets a node's text if it differs, so that a selection in it outlives the next sample. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const digits = (value, most) => value.toLocaleString("en", { maximumFractionDigits: most }).replaceAll(",", "\u202f");
const show = (value, write) => (value === undefined || Number.isNaN(value) ? NONE : write(value));
const rounded = (value) => show(value, (it) => digits(it, it >= 100 || it === 0 ? 0 : it >= 10 ? 1 : 2));
const percent = (part) => show(part, (it) => `${(it * 100).toFixed(it && it < 0.095 ? 1 : 0)}\u00a0%`);
const whole = (value) => show(value, (it) => digits(it, 0));
function duration(seconds) {
  return show(seconds, (it) => {
    const [size, unit] = it >= 1 ? [it, "s"] : it >= 1e-3 ? [it * 1e3, "ms"] : [it * 1e6, "\u00b5s"];
    return `${size >= 100 ? size.toFixed(0) : size.toPrecision(3).replace(/\.?0+$/, "")}\u00a0${unit}`;
  });
}
function bytes(value) {
  return show(value, (it) => {
    const power = Math.min(4, Math.floor(Math.log2(Math.max(it, 1)) / 10));
    const size = it / 1024 ** power;
    return `${size >= 100 || power === 0 ? size.toFixed(0) : size.toPrecision(3)}\u00a0${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
  });
}

/** A line through `values`, 0 at the bottom. Points that are not known interrupt nothing: they count as 0. */
function draw(svg, values, most) {
  const points = values.map((value) => value ?? 0);
  const top = Math.max(most ?? 0, ...points) || 1;
  const at = (value, index) => `${((index + svg.slots - points.length) * 100) / (svg.slots - 1)},${(23 - (value / top) * 21).toFixed(2)}`;
  const line = points.map(at).join(" ");
  svg.firstChild.setAttribute("points", points.length ? `${at(0, 0)} ${line} 100,23` : "");
  svg.lastChild.setAttribute("points", line);
}
function chart(slots) {
  const part = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const svg = part("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(part("polygon", { class: "area" }), part("polyline", { class: "curve" }));
  svg.slots = slots;
  return svg;
}

const ofDevice = ([device, { held, limit }]) => `${device}: ${bytes(held)}${limit === undefined ? "" : ` of ${bytes(limit)}`}`;

const TILES = {
  rate: { title: "Requests per second", figure: (all) => rounded(all.rate), detail: (all) => (all.received === undefined ? "" : `${whole(all.received)} since the start`) },
  p99: { title: "Latency, median", figure: (all) => duration(all.p50), detail: (all) => `99 %: ${duration(all.p99)}` },
  failed: { title: "Failures per second", figure: (all) => rounded(all.failed), detail: (all) => (all.failed ? `${percent(all.failed / (all.failed + all.rate))} of all requests` : ""), bad: (all) => all.failed > 0 },
  inFlight: { title: "In flight", figure: (all) => whole(all.inFlight), detail: (all) => `${whole(all.pending)} waiting` },
  cpu: { title: "Processors of the host", figure: (all) => percent(all.cpu), detail: (all) => `server: ${whole(all.threads)} threads`, most: 1 },
  resident: { title: "Memory of the server", figure: (all) => bytes(all.resident), detail: (all) => `host: ${bytes(all.hostUsed)} in use` },
  devices: { title: "Memory of the models", figure: (all) => bytes([...all.devices.values()].reduce((sum, each) => sum + each.held, 0)),
    detail: (all) => [...all.devices].map(ofDevice).concat(all.paged ? [`${whole(all.paged)} paged out (${bytes(all.spilled)} in files)`] : []).join(", ") || "none holds weights" },
};

/** What has a line in the overview. */
export const TRENDS = ["rate", "p99", "failed", "inFlight", "cpu", "resident"];

/** Writes the overview; `trends` holds the earlier values of each of [`TRENDS`]. */
export function showOverview(all, trends, slots) {
  const tiles = byId("tiles");
  for (const [name, { title, figure, detail, bad, most }] of Object.entries(TILES)) {
    let tile = tiles.querySelector(`[data-tile="${name}"]`);
    if (!tile) {
      tile = element("div", { "data-tile": name, children: [element("dt", { text: title }), element("dd", { class: "figure" }), element("dd", { class: "detail" })] });
      if (TRENDS.includes(name)) tile.append(element("dd", { class: "chart", children: [chart(slots)] }));
      tiles.append(tile);
    }
    say(tile.children[1], figure(all));
    tile.children[1].classList.toggle("bad", Boolean(bad?.(all)));
    say(tile.children[2], detail(all));
    if (tile.children[3]) draw(tile.children[3].firstChild, trends[name] ?? [], most);
  }
}

const STATES = { READY: ["ready", "Ready"], LOADING: ["loading", "Loading"], UNLOADING: ["unloading", "Unloading"], UNAVAILABLE: ["failed", "Failed"], "": ["off", "Not loaded"] };
// Reasons of versions that are not there and do not lack anything: a request brings those back that are on demand.
const AWAY = { unloaded: "Unloaded", "on demand": "On demand", evicted: "Evicted", "paged out": "Paged out" };
const away = ({ state, reason }) => (state === "UNAVAILABLE" ? AWAY[reason.split(":")[0]] : undefined);
const stateOf = (version) => (away(version) ? ["off", away(version)] : (STATES[version.state] ?? ["off", version.state]));

// A figure is left out for a version that serves nothing; `wide` takes a whole line of a card.
const figure = (title, name, write) => ({ title, name, figure: true, label: title, sort: (each) => each[name], write: (each) => write(each[name]) });
const COLUMNS = [
  { title: "Model", name: "model", text: true, sort: (each) => each.name },
  { title: "Version", name: "number", label: "Version", write: (each) => each.version || NONE },
  { title: "State", name: "status", text: true, wide: true, sort: (each) => stateOf(each)[1] },
  figure("Requests/s", "rate", rounded),
  { title: "5 minutes", name: "trend", figure: true },
  figure("Failed/s", "failed", rounded),
  figure("Median", "p50", duration),
  figure("99 %", "p99", duration),
  figure("Waited", "queue", duration),
  figure("Batch rows", "batch", rounded),
  figure("Waiting", "pending", whole),
  figure("Memory", "memory", bytes),
];

/** The table of versions: sorted, filtered, each with details on demand. */
export class Table {
  constructor(slots, act) {
    Object.assign(this, { slots, act, rows: new Map(), open: new Set(), order: { column: COLUMNS[0], down: false }, busy: new Map(), versions: [], trends: new Map() });
    this.actions = element("th", { role: "columnheader", scope: "col", hidden: "", children: [element("span", { class: "unseen", text: "Actions" })] });
    byId("columns").append(...COLUMNS.map((column) => this.heading(column)), this.actions);
    byId("filter").addEventListener("input", () => this.render());
  }

  heading(column) {
    const made = element("th", { role: "columnheader", scope: "col", class: column.text ? "text" : "" });
    if (!column.sort) return Object.assign(made, { textContent: column.title });
    const button = element("button", { type: "button", text: column.title });
    button.addEventListener("click", () => {
      this.order = { column, down: this.order.column === column ? !this.order.down : !column.text };
      this.render();
    });
    column.heading = made;
    made.append(button);
    return made;
  }

  /** Shows `versions`; `trends` holds the earlier rates by key, `control` whether models may be loaded by request. */
  update(versions, trends, control) {
    Object.assign(this, { versions, trends, control });
    this.actions.hidden = !control;
    this.render();
  }

  render() {
    const { column, down } = this.order;
    for (const each of COLUMNS) {
      each.heading?.[each === column ? "setAttribute" : "removeAttribute"]("aria-sort", down ? "descending" : "ascending");
    }
    const wanted = byId("filter").value.trim().toLowerCase();
    const found = this.versions.filter((each) => each.name.toLowerCase().includes(wanted)).sort((a, b) => this.compare(a, b));
    const ready = this.versions.filter((each) => each.state === "READY").length;
    say(byId("count"), `${ready} of ${this.versions.length} versions ready`);
    const shown = found.slice(0, SHOWN_MAX);
    say(byId("more"), `${found.length - shown.length} more versions match; a longer filter shows them`);
    byId("more").hidden = found.length === shown.length;
    this.place(shown.flatMap((version) => this.row(version)), wanted);
  }

  compare(a, b) {
    const { column, down } = this.order;
    const [one, other] = [column.sort(a), column.sort(b)];
    const unknown = (one === undefined) - (other === undefined);
    const differ = column.text ? one.localeCompare(other) : (one ?? 0) - (other ?? 0);
    return unknown || (down ? -differ : differ) || a.name.localeCompare(b.name) || a.version - b.version;
  }

  /** Puts the rows in order, touching only those that are elsewhere, so that the focus stays where it is. */
  place(rows, wanted) {
    if (!rows.length) {
      const text = wanted ? "No model has this in its name" : "No model is served";
      rows = [element("tr", { class: "empty", role: "row", children: [element("td", { colspan: COLUMNS.length + 1, role: "cell", text })] })];
    }
    const body = byId("rows");
    const kept = new Set(rows);
    for (const old of [...body.children]) if (!kept.has(old)) old.remove();
    rows.forEach((row, at) => {
      if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
    });
    const present = new Set(this.versions.map((each) => each.key));
    for (const key of this.rows.keys()) if (!present.has(key)) this.rows.delete(key);
  }

  row(version) {
    if (!this.rows.has(version.key)) this.rows.set(version.key, this.newRow(version));
    const { row, details, cells, toggle, state, reason, trend } = this.rows.get(version.key);
    const [kind, words] = stateOf(version);
    state.dataset.state = kind;
    say(state, words);
    say(reason, away(version) ? version.reason.split(": ").slice(1).join(": ") : version.reason);
    for (const { name, write } of COLUMNS) if (write) say(cells[name], write(version));
    // A version that does not serve has no figures; the reason gets their place.
    for (const each of COLUMNS) if (each.figure) cells[each.name].hidden = !version.stat;
    cells.status.colSpan = version.stat ? 1 : COLUMNS.length - 2;
    cells.failed.classList.toggle("bad", version.failed > 0);
    draw(trend, this.trends.get(version.key) ?? []);
    this.offer(version, cells.actions);
    const open = this.open.has(version.key);
    toggle.setAttribute("aria-expanded", open);
    if (open) details.firstChild.replaceChildren(facts(version));
    return open ? [row, details] : [row];
  }

  newRow(version) {
    const cells = {};
    const row = element("tr", { class: "version", role: "row" });
    for (const { name, text, wide, label } of [...COLUMNS, { name: "actions", wide: true }]) {
      const classes = [name, text && "text", wide && "wide"].filter(Boolean).join(" ");
      cells[name] = element("td", { role: "cell", class: classes, ...(label && { "data-label": label }) });
      row.append(cells[name]);
    }
    const details = element("tr", { class: "details", role: "row", children: [element("td", { role: "cell", colspan: COLUMNS.length + 1 })] });
    const toggle = element("button", { type: "button", text: version.name });
    toggle.addEventListener("click", () => {
      if (!this.open.delete(version.key)) this.open.add(version.key);
      this.render();
    });
    const [state, reason, trend] = [element("span", { class: "state" }), element("span", { class: "reason" }), chart(this.slots)];
    cells.model.append(toggle);
    cells.status.append(state, reason);
    cells.trend.append(trend);
    return { row, details, cells, toggle, state, reason, trend };
  }

  /** The buttons that fit the state, if models may be loaded by request. */
  offer({ name, state }, cell) {
    cell.hidden = !this.control;
    const busy = this.busy.get(name) ?? (state.endsWith("LOADING") ? "" : undefined);
    const verbs = state === "READY" ? ["Reload", "Unload"] : ["Load"];
    if (!this.control || cell.dataset.offer === `${verbs}${busy}`) return;
    cell.dataset.offer = `${verbs}${busy}`;
    cell.replaceChildren(...verbs.flatMap((verb) => {
      const button = element("button", { type: "button", text: busy === verb ? `${verb}ing\u2026` : verb, "aria-label": `${verb} ${name}` });
      button.disabled = busy !== undefined;
      button.addEventListener("click", () => this.act(verb, name));
      return [button, " "];
    }));
  }
}

/** What else is known of a version. */
function facts(version) {
  const { latency, batches, reasons, stat, places } = version;
  const parts = [];
  if (latency.whole) {
    const line = (title, histogram) => [title, ...[0.5, 0.9, 0.99].map((q) => duration(percentile(histogram, q)))];
    const lines = [line("Request", latency.whole), line("Waiting", latency.queue), line("Execution", latency.compute)];
    parts.push(block("Latency", list(lines, ["", "50 %", "90 %", "99 %"])));
  }
  if (batches.counts.size) {
    const all = [...batches.counts.values()].reduce((sum, each) => sum + each, 0);
    const most = Math.max(...batches.counts.values());
    const lines = [...batches.counts].sort(([a], [b]) => a - b).slice(0, 32).map(([rows, count]) => {
      const bar = element("i");
      bar.style.width = `${(100 * count) / most}%`;
      return [`${rows} ${rows === 1 ? "row" : "rows"}`, bar, percent(count / all)];
    });
    parts.push(block(batches.recent ? "Batch sizes" : "Batch sizes since the load", list(lines, undefined, "rows")));
  }
  if (stat) {
    const { success, fail } = stat.inference_stats;
    parts.push(block("Since the load", list([
      ["Answered requests", whole(number(success.count))],
      ["Failed requests", whole(number(fail.count))],
      ["Rows", whole(number(stat.inference_count))],
      ["Executions", whole(number(stat.execution_count))],
      ["Mean latency", duration(number(success.count) ? number(success.ns) / number(success.count) / 1e9 : undefined)],
      ["Last request", number(stat.last_inference) ? new Date(number(stat.last_inference)).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "none"],
      ["The load took", duration(version.loadSeconds)],
    ])));
  }
  if (places.size) parts.push(block("Memory", list([...places].map(([device, held]) => [device, bytes(held)]))));
  const failed = reasons.filter((each) => each.value > 0).map((each) => [each.labels.reason.replaceAll("_", " "), whole(each.value)]);
  if (failed.length) parts.push(block("Failures since the server's start", list(failed)));
  if (!parts.length) parts.push(element("p", { class: "hint", text: "There are no statistics of a version that is not loaded." }));
  return element("div", { class: "facts", children: parts });
}

function block(title, content) {
  return element("div", { children: [element("h3", { text: title }), content] });
}

function list(lines, headings, kind = "") {
  const cell = (content, at) => {
    const made = element(at ? "td" : "th", at ? {} : { scope: "row" });
    made.append(content);
    return made;
  };
  const body = lines.map((line) => element("tr", { children: line.map(cell) }));
  if (headings) body.unshift(element("tr", { children: headings.map((text) => element("td", { text })) }));
  return element("table", { class: kind, children: body });
}
