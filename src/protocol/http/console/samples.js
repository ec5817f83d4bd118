// Reads the text of /metrics, and makes rates and percentiles of the difference between two samples.

/** The series of a Prometheus text by name: each has its labels and its value. */
export function parse(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, escaped) => (escaped === "n" ? "\n" : escaped));
    }
    if (!series.has(found[1])) series.set(found[1], []);
    series.get(found[1]).push({ labels, value: found[3] === "+Inf" ? Infinity : Number(found[3]) });
  }
  return series;
}

/** The sum of a metric's series. `undefined` if there is none. */
export function total(series, name) {
  return series.get(name)?.reduce((sum, each) => sum + each.value, 0);
}

/** One name for a model version. */
export const keyOf = (labels) => `${labels.model}/${labels.version}`;

/** The series of one metric by model version, each with its own labels. */
export function byVersion(series, name) {
  const found = new Map();
  for (const each of series.get(name) ?? []) {
    const key = keyOf(each.labels);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(each);
  }
  return found;
}

/** The histograms of one metric by model version: upper bounds, and how many samples lie in each bucket. */
export function histograms(series, name) {
  const found = new Map();
  for (const [key, buckets] of byVersion(series, `${name}_bucket`)) {
    const sorted = buckets.map(({ labels, value }) => ({ bound: bound(labels.le), value })).sort((a, b) => a.bound - b.bound);
    const counts = sorted.map((each, at) => each.value - (at ? sorted[at - 1].value : 0));
    found.set(key, { bounds: sorted.map((each) => each.bound), counts });
  }
  return found;
}

const bound = (text) => (text === "+Inf" ? Infinity : Number(text));

/** How much a counter grew; one that went back began anew. */
export const growth = (now, before = 0) => (now >= before ? now - before : now);

/** What came into a histogram since `before`. */
export function since(now, before) {
  if (!before || before.counts.some((count, at) => count > now.counts[at])) return now;
  return { bounds: now.bounds, counts: now.counts.map((count, at) => count - before.counts[at]) };
}

/** One histogram of all. */
export function merge(all) {
  const merged = { bounds: [], counts: [] };
  for (const { bounds, counts } of all) {
    merged.bounds = bounds;
    counts.forEach((count, at) => (merged.counts[at] = (merged.counts[at] ?? 0) + count));
  }
  return merged;
}

/** The value below which the part `q` of the samples lies, straight inside a bucket; `undefined` without samples. */
export function quantile({ bounds, counts }, q) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!all) return undefined;
  let below = 0;
  for (const [at, count] of counts.entries()) {
    if (count && below + count >= q * all) {
      const low = at ? bounds[at - 1] : 0;
      return bounds[at] === Infinity ? low : low + ((bounds[at] - low) * (q * all - below)) / count;
    }
    below += count;
  }
  return bounds.at(-2);
}
