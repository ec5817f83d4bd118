// What the page shows, computed from the latest samples. Knows neither the network nor the page.

import { byVersion, growth, histograms, merge, quantile, since, total } from "./samples.js";

const WINDOW_MS = 10_000;
const LATENCY = "nereid_request_duration_seconds";
const QUEUE = "nereid_queue_duration_seconds";
const COMPUTE = "nereid_compute_duration_seconds";

/** The samples that figures are made of: the newest, and the oldest of the last ten seconds. */
export function trim(samples) {
  const newest = samples.at(-1);
  while (samples.length > 2 && newest.at - samples[0].at > WINDOW_MS) samples.shift();
  return samples;
}

/** Everything that is shown of the samples. */
export function figures(samples) {
  const now = samples.at(-1);
  const before = samples.length > 1 ? samples[0] : undefined;
  const span = { now, before, seconds: before && (now.at - before.at) / 1000 };
  const latency = latencies(span);
  const versions = versionsOf(now).map((version) => ({ ...version, ...versionFigures(version.key, span, latency) }));
  return { versions, overview: overview(span, versions, latency.whole) };
}

/** Every version that the index or the statistics name. */
function versionsOf({ index, stats }) {
  const found = new Map();
  for (const { name, version = "", state = "", reason = "" } of index ?? []) {
    const key = `${name}/${version}`;
    found.set(key, { key, name, version, state, reason });
  }
  for (const { name, version } of stats?.values() ?? []) {
    const key = `${name}/${version}`;
    if (!found.has(key)) found.set(key, { key, name, version, state: "READY", reason: "" });
  }
  return [...found.values()];
}

function latencies({ now, before }) {
  const of = (name) => {
    const all = histograms(now.series ?? new Map(), name);
    const old = before?.series && histograms(before.series, name);
    return new Map([...all].map(([key, each]) => [key, old ? since(each, old.get(key)) : { bounds: [], counts: [] }]));
  };
  return { whole: of(LATENCY), queue: of(QUEUE), compute: of(COMPUTE) };
}

function versionFigures(key, { now, before, seconds }, latency) {
  const stat = now.stats?.get(key);
  const old = before?.stats?.get(key);
  const known = stat && before?.stats;
  const grown = (read) => (known ? growth(read(stat), old && read(old)) : undefined);
  const perSecond = (read) => (known ? grown(read) / seconds : undefined);
  const answered = grown((each) => number(each.inference_stats.success.count));
  const executed = grown((each) => number(each.execution_count));
  const queued = grown((each) => number(each.inference_stats.queue.ns));
  const shown = ({ whole, queue, compute }) => ({ whole: whole.get(key), queue: queue.get(key), compute: compute.get(key) });
  return {
    rate: perSecond((each) => number(each.inference_stats.success.count)),
    failed: perSecond((each) => number(each.inference_stats.fail.count)),
    queue: answered ? queued / answered / 1e9 : undefined,
    batch: executed ? grown((each) => number(each.inference_count)) / executed : undefined,
    p50: percentile(latency.whole.get(key), 0.5),
    p99: percentile(latency.whole.get(key), 0.99),
    pending: gauge(now, "nv_inference_pending_request_count", key),
    loadSeconds: gauge(now, "nv_model_load_duration_secs", key),
    memory: usage(stat).reduce((sum, each) => sum + each.bytes, 0) || undefined,
    places: places(stat, now, key),
    latency: shown(latency),
    batches: batches(stat, old, known),
    reasons: (now.series && byVersion(now.series, "nereid_request_failures_total").get(key)) ?? [],
    stat,
  };
}

/** Executions by rows: of the window, or since the load if there were none in the window. */
function batches(stat, old, known) {
  const counts = (each) => new Map((each?.batch_stats ?? []).map((size) => [number(size.batch_size), number(size.compute_infer.count)]));
  const all = counts(stat);
  const earlier = counts(old);
  const recent = known ? new Map([...all].map(([rows, count]) => [rows, growth(count, earlier.get(rows))]).filter(([, count]) => count)) : new Map();
  return { recent: recent.size > 0, counts: recent.size > 0 ? recent : all };
}

function overview({ now, before, seconds }, versions, whole) {
  const series = now.series;
  const sum = (read) => versions.reduce((total, each) => total + (read(each) ?? 0), 0);
  const all = merge(whole.values());
  const perSecond = (name) => series && before?.series && growth(total(series, name) ?? 0, total(before.series, name)) / seconds;
  const unrouted = perSecond("nereid_unrouted_requests_total");
  const known = before?.stats && now.stats;
  return {
    rate: known && sum((each) => each.rate),
    failed: known && sum((each) => each.failed) + (unrouted ?? 0),
    received: series && total(series, "nereid_requests_received_total"),
    p50: percentile(all, 0.5),
    p99: percentile(all, 0.99),
    inFlight: series && total(series, "nereid_requests_in_flight"),
    pending: series && total(series, "nv_inference_pending_request_count"),
    cpu: series && total(series, "nv_cpu_utilization"),
    hostUsed: series && total(series, "nv_cpu_memory_used_bytes"),
    resident: series && total(series, "process_resident_memory_bytes"),
    threads: series && total(series, "process_threads"),
    devices: devices(now),
    paged: series && total(series, "nereid_paged_models"),
    spilled: series && total(series, "nereid_spill_bytes"),
  };
}

/** Bytes that a version holds, by device; one that is paged out may still hold its compiled module. */
function places(stat, { series }, key) {
  const held = new Map();
  for (const { labels, value } of (series && byVersion(series, "nereid_model_memory_bytes").get(key)) ?? []) {
    if (value) held.set(labels.device, value);
  }
  if (!held.size) for (const { device, bytes } of usage(stat)) if (bytes) held.set(device, bytes);
  return held;
}

/** Bytes that models hold of each device, and how many they may hold where that is known. */
function devices({ stats, series }) {
  const found = new Map();
  const at = (device) => found.get(device) ?? found.set(device, { held: 0 }).get(device);
  for (const stat of stats?.values() ?? []) for (const { device, bytes } of usage(stat)) at(device).held += bytes;
  for (const { labels, value } of series?.get("nereid_memory_used_bytes") ?? []) at(labels.device).held = value;
  for (const { labels, value } of series?.get("nereid_memory_limit_bytes") ?? []) at(labels.device).limit = value;
  return found;
}

const usage = (stat) => (stat?.memory_usage ?? []).map(({ type, id, byte_size: bytes }) => ({ device: type === "CPU" ? "cpu" : `cuda:${id ?? 0}`, bytes: number(bytes) }));

/** A percentile of a histogram that may not be there. */
export const percentile = (histogram, q) => (histogram ? quantile(histogram, q) : undefined);

const gauge = ({ series }, name, key) => series && byVersion(series, name).get(key)?.[0].value;

/** Numbers of 64 bits may be written as text. */
export const number = (value) => Number(value ?? 0);
