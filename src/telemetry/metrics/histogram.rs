//! Histograms whose bounds may differ from series to series of one family, as a model's configuration can say.
//!
//! Recording is two additions, and what is held does not grow, whether anybody scrapes or not. Begin with [`Histograms`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics::Label;
use parking_lot::Mutex;

use super::Family;

/// One series. Cloning shares it; the default counts nowhere.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Option<Arc<Buckets>>);

#[derive(Debug)]
struct Buckets {
    /// Upper bounds, ascending.
    bounds: Box<[f64]>,
    /// Samples by bucket, not cumulative; the last is for what is above all bounds.
    counts: Box<[AtomicU64]>,
    /// The bits of the sum of all samples.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Some(Arc::new(Buckets { bounds: bounds.into(), counts, sum: AtomicU64::new(0) })))
    }

    /// Counts a sample.
    pub fn record(&self, sample: f64) {
        let Some(buckets) = &self.0 else { return };
        let at = buckets.bounds.partition_point(|bound| *bound < sample);
        buckets.counts[at].fetch_add(1, Relaxed);
        let add = |sum: u64| Some((f64::from_bits(sum) + sample).to_bits());
        let _ = buckets.sum.fetch_update(Relaxed, Relaxed, add);
    }
}

/// All series of one registry, by family and labels.
#[derive(Debug, Default)]
pub(super) struct Histograms {
    /// Held to register and to render, never to record.
    families: Mutex<BTreeMap<&'static str, Rendered>>,
}

#[derive(Debug)]
struct Rendered {
    help: &'static str,
    /// By the labels as they are written.
    series: BTreeMap<String, Histogram>,
}

impl Histograms {
    /// The series of `family` with these labels: the one that is there, unless its bounds are others.
    pub(super) fn register(&self, family: &Family, labels: &[Label], bounds: &[f64]) -> Histogram {
        let mut families = self.families.lock();
        let rendered = families.entry(family.0).or_insert_with(|| Rendered { help: family.1, series: BTreeMap::new() });
        let labels = write_labels(labels);
        let there = rendered.series.get(&labels);
        let same = there.filter(|there| there.0.as_ref().is_some_and(|there| *there.bounds == *bounds));
        if let Some(same) = same {
            return same.clone();
        }
        let fresh = Histogram::new(bounds);
        rendered.series.insert(labels, fresh.clone());
        fresh
    }

    /// Appends all series in the Prometheus text format.
    pub(super) fn render(&self, text: &mut String) {
        for (name, family) in self.families.lock().iter() {
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} histogram", family.help);
            for (labels, series) in &family.series {
                let Some(buckets) = &series.0 else { continue };
                render_series(text, name, labels, buckets);
            }
            text.push('\n');
        }
    }
}

fn render_series(text: &mut String, name: &str, labels: &str, buckets: &Buckets) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut count = 0;
    let bounds = buckets.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    for (bound, samples) in bounds.zip(&buckets.counts) {
        count += samples.load(Relaxed);
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
    }
    let sum = f64::from_bits(buckets.sum.load(Relaxed));
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _ = writeln!(text, "{name}_sum{braced} {sum}\n{name}_count{braced} {count}");
}

/// `name="value",…` with what the format escapes in values.
fn write_labels(labels: &[Label]) -> String {
    let mut text = String::new();
    for label in labels {
        let comma = if text.is_empty() { "" } else { "," };
        let value = label.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{comma}{}=\"{value}\"", label.key());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: Family = Family("f", "Help");

    fn rendered(histograms: &Histograms) -> String {
        let mut text = String::new();
        histograms.render(&mut text);
        text
    }

    #[test]
    fn a_sample_is_in_the_bucket_of_its_bound_and_in_all_above() {
        let histograms = Histograms::default();
        let series = histograms.register(&FAMILY, &[Label::new("m", "a\"b")], &[1.0, 2.5]);
        [0.5, 1.0, 2.0, 9.0].into_iter().for_each(|sample| series.record(sample));
        let expected = "# HELP f Help\n# TYPE f histogram\nf_bucket{m=\"a\\\"b\",le=\"1\"} 2\nf_bucket{m=\"a\\\"b\",le=\"2.5\"} 3\n\
                        f_bucket{m=\"a\\\"b\",le=\"+Inf\"} 4\nf_sum{m=\"a\\\"b\"} 12.5\nf_count{m=\"a\\\"b\"} 4\n\n";
        assert_eq!(rendered(&histograms), expected);
    }

    #[test]
    fn a_series_goes_on_unless_its_bounds_change() {
        let histograms = Histograms::default();
        let register = |bounds: &[f64]| histograms.register(&FAMILY, &[], bounds);
        register(&[1.0]).record(0.5);
        register(&[1.0]).record(0.5);
        assert!(rendered(&histograms).contains("f_count 2\n"));
        register(&[2.0]).record(0.5);
        assert!(rendered(&histograms).contains("f_bucket{le=\"2\"} 1\n"));
    }
}
