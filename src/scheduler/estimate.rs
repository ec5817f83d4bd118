//! Learns how long executions take, by row count and by the size of a row.
//!
//! The instances report every execution, warm-up included; planning asks. Durations are arguments, no clock is read.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Curve;

/// The size of one row, as the binary logarithm of its bytes: requests of one class take about the same time.
///
/// A model with fixed shapes has one class; a model with variable lengths has one for each doubling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SizeClass(u32);

impl SizeClass {
    /// The class of rows of `bytes`.
    pub fn of_row(bytes: usize) -> Self {
        Self(bytes.next_power_of_two().trailing_zeros())
    }
}

/// One row count's run time: a moving mean and the mean distance from it.
#[derive(Clone, Copy, Debug)]
struct RunTime {
    mean_s: f64,
    deviation_s: f64,
    samples: u32,
}

/// Weight of a new sample; as for round-trip times in TCP (RFC 6298), where the same estimator is used.
const WEIGHT: f64 = 1.0 / 8.0;
/// A cautious run time lies this many mean deviations above the mean.
const CAUTION: f64 = 3.0;
/// After this many samples an outlier counts no more than [`OUTLIER_MAX`] times the mean.
const TRUSTED_SAMPLES: u32 = 8;
const OUTLIER_MAX: f64 = 4.0;

impl RunTime {
    fn first(seconds: f64) -> Self {
        Self { mean_s: seconds, deviation_s: seconds / 4.0, samples: 1 }
    }

    fn add(&mut self, seconds: f64) {
        let trusted = self.samples >= TRUSTED_SAMPLES;
        let seconds = if trusted { seconds.min(self.mean_s * OUTLIER_MAX) } else { seconds };
        let distance = (seconds - self.mean_s).abs();
        self.deviation_s += (distance - self.deviation_s) * WEIGHT;
        self.mean_s += (seconds - self.mean_s) * WEIGHT;
        self.samples = self.samples.saturating_add(1);
    }

    fn cautious_s(&self) -> f64 {
        self.mean_s + CAUTION * self.deviation_s
    }
}

/// The run times of one model version on its devices.
#[derive(Clone, Debug, Default)]
pub struct Estimates {
    classes: BTreeMap<SizeClass, BTreeMap<usize, RunTime>>,
}

impl Estimates {
    /// Records one execution.
    pub fn record(&mut self, class: SizeClass, rows: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        let by_rows = self.classes.entry(class).or_default();
        by_rows.entry(rows).and_modify(|time| time.add(seconds)).or_insert_with(|| RunTime::first(seconds));
    }

    /// What is known about rows of `class`.
    pub fn curve(&self, class: SizeClass) -> ClassCurve<'_> {
        if let Some(by_rows) = self.classes.get(&class) {
            return ClassCurve { by_rows: Some(by_rows), scale: 1.0, exact: true };
        }
        if let Some((known, by_rows)) = self.classes.range(..class).next_back() {
            let doublings = (class.0 - known.0).min(16);
            return ClassCurve { by_rows: Some(by_rows), scale: f64::from(1u32 << doublings), exact: false };
        }
        let by_rows = self.classes.range(class..).next().map(|(_, by_rows)| by_rows);
        ClassCurve { by_rows, scale: 1.0, exact: false }
    }

    /// The best number of rows per second seen for `class`; `None` if nothing is known.
    pub fn rate_max(&self, class: SizeClass) -> Option<f64> {
        let curve = self.curve(class);
        let rates = curve.by_rows?.iter().map(|(&rows, time)| rows as f64 / (time.mean_s * curve.scale).max(1e-9));
        rates.fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |best| best.max(rate))))
    }
}

/// The run times of one size class; those of the nearest class, scaled up, if it was not seen itself.
#[derive(Clone, Copy, Debug)]
pub struct ClassCurve<'a> {
    by_rows: Option<&'a BTreeMap<usize, RunTime>>,
    scale: f64,
    exact: bool,
}

impl Curve for ClassCurve<'_> {
    fn cautious(&self, rows: usize) -> Option<Duration> {
        let by_rows = self.by_rows?;
        let below = by_rows.range(..=rows).next_back();
        let above = by_rows.range(rows..).next();
        let seconds = match (below, above) {
            (Some((&known, time)), _) if known == rows => time.cautious_s(),
            (Some((&low, low_time)), Some((&high, high_time))) => {
                let part = (rows - low) as f64 / (high - low) as f64;
                low_time.cautious_s() + part * (high_time.cautious_s() - low_time.cautious_s())
            }
            (Some((&low, time)), None) => time.cautious_s() * rows as f64 / low as f64,
            (None, Some((_, time))) => time.cautious_s(),
            (None, None) => return None,
        };
        Some(Duration::from_secs_f64(seconds * self.scale))
    }

    fn usual(&self, rows: usize) -> Option<Duration> {
        let time = self.by_rows?.get(&rows).filter(|_| self.exact)?;
        Some(Duration::from_secs_f64(time.mean_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn class() -> SizeClass {
        SizeClass::of_row(64)
    }

    fn learned(samples: &[(usize, u32)]) -> Estimates {
        let mut estimates = Estimates::default();
        for &(rows, ms) in samples {
            for _ in 0..64 {
                estimates.record(class(), rows, ms * MS);
            }
        }
        estimates
    }

    fn close(got: Option<Duration>, ms: u32) -> bool {
        got.is_some_and(|got| {
            got.as_secs_f64() > 0.99 * f64::from(ms) / 1e3 && got.as_secs_f64() < 1.01 * f64::from(ms) / 1e3
        })
    }

    #[test]
    fn steady_times_are_learned_and_filled_in_between() {
        let estimates = learned(&[(1, 10), (4, 40), (8, 60)]);
        let curve = estimates.curve(class());
        assert!(close(curve.cautious(1), 10));
        assert!(close(curve.cautious(6), 50));
        assert!(close(curve.cautious(16), 120));
        assert_eq!(curve.usual(6), None);
        assert!(close(curve.usual(8), 60));
    }

    #[test]
    fn nothing_known_is_none() {
        assert_eq!(Estimates::default().curve(class()).cautious(1), None);
        assert_eq!(Estimates::default().rate_max(class()), None);
    }

    #[test]
    fn a_varying_time_is_treated_cautiously() {
        let mut estimates = Estimates::default();
        for index in 0..100 {
            estimates.record(class(), 1, (10 + index % 2 * 10) * MS);
        }
        let cautious = estimates.curve(class()).cautious(1).expect("known");
        assert!(cautious > 25 * MS && cautious < 40 * MS, "{cautious:?}");
    }

    #[test]
    fn larger_rows_of_an_unseen_class_scale_up() {
        let estimates = learned(&[(1, 10)]);
        assert!(close(estimates.curve(SizeClass::of_row(256)).cautious(1), 40));
        assert!(close(estimates.curve(SizeClass::of_row(8)).cautious(1), 10));
        assert_eq!(estimates.curve(SizeClass::of_row(256)).usual(1), None);
    }

    #[test]
    fn one_hiccup_does_not_spoil_a_trusted_estimate() {
        let mut estimates = learned(&[(1, 10)]);
        estimates.record(class(), 1, 10_000 * MS);
        assert!(estimates.curve(class()).cautious(1).expect("known") < 40 * MS);
    }

    #[test]
    fn the_best_rate_is_that_of_the_best_row_count() {
        let rate = learned(&[(1, 10), (8, 40)]).rate_max(class()).expect("known");
        assert!((rate - 200.0).abs() < 1.0);
    }
}
