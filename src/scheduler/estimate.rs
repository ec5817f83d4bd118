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

/// Weight of a new sample; as for round-trip times in TCP (RFC 6298), where the same kind of estimator is used.
const WEIGHT: f64 = 1.0 / 8.0;
/// A cautious run time lies this many relative deviations above the mean. With fewer, more answers are late; with more,
/// requests are refused that would have been in time, and batches are smaller than they could be: in the simulation of
/// overload with run times that vary by 30 %, 3 instead of 2 cost 1 to 7 of 100 answers in time, and made 4 in 1000
/// requests fewer late.
const CAUTION: f64 = 2.0;
/// However much run times vary, caution asks for no more than this many means: on a noisy machine it would refuse far
/// more requests that would be in time than it spares those that would not.
const CAUTION_MAX: f64 = 2.0;
/// The relative deviation that is assumed before any was seen.
const FIRST_DEVIATION: f64 = 0.1;
/// From this many samples on a row count's time is believed: one that was measured once, in a bad moment, would otherwise
/// never be tried again. Then an outlier counts no more than [`OUTLIER_MAX`] times the mean.
const TRUSTED_SAMPLES: u32 = 8;
const OUTLIER_MAX: f64 = 4.0;
/// A sample below this part of the mean shows that the mean is out of date, such as after somebody else used the
/// processors: it counts as much as all before it, and is no sign of variation.
const OUTDATED: f64 = 0.5;
/// How far throughput may lie below the best for fewer rows to count as just as good.
pub(super) const KNEE_TOLERANCE: f64 = 0.97;

/// One row count's run time.
#[derive(Clone, Copy, Debug)]
struct RunTime {
    mean_s: f64,
    samples: u32,
}

/// The run times of one size class.
#[derive(Clone, Debug)]
struct ClassTimes {
    by_rows: BTreeMap<usize, RunTime>,
    /// The mean distance of a sample from its mean, in parts of the mean; shared by all row counts, so that a row
    /// count that was seen seldom is not treated as worse than its neighbours.
    deviation: f64,
}

impl ClassTimes {
    fn record(&mut self, rows: usize, seconds: f64) {
        let Some(time) = self.by_rows.get_mut(&rows) else {
            self.by_rows.insert(rows, RunTime { mean_s: seconds, samples: 1 });
            return;
        };
        let trusted = time.samples >= TRUSTED_SAMPLES;
        let seconds = if trusted { seconds.min(time.mean_s * OUTLIER_MAX) } else { seconds };
        time.samples = time.samples.saturating_add(1);
        if seconds < time.mean_s * OUTDATED {
            time.mean_s = (time.mean_s + seconds) / 2.0;
            return;
        }
        let distance = (seconds - time.mean_s).abs() / time.mean_s.max(1e-9);
        self.deviation += (distance - self.deviation) * WEIGHT;
        time.mean_s += (seconds - time.mean_s) * WEIGHT;
    }

    fn mean_s(&self, rows: usize) -> Option<f64> {
        let below = self.by_rows.range(..=rows).next_back();
        let above = self.by_rows.range(rows..).next();
        match (below, above) {
            (Some((&known, time)), _) if known == rows => Some(time.mean_s),
            (Some((&low, low_time)), Some((&high, high_time))) => {
                let part = (rows - low) as f64 / (high - low) as f64;
                Some(low_time.mean_s + part * (high_time.mean_s - low_time.mean_s))
            }
            (Some((&low, time)), None) => Some(time.mean_s * rows as f64 / low as f64),
            (None, above) => above.map(|(_, time)| time.mean_s),
        }
    }
}

/// The run times of one model version on its devices.
#[derive(Clone, Debug, Default)]
pub struct Estimates {
    classes: BTreeMap<SizeClass, ClassTimes>,
}

impl Estimates {
    /// Whether nothing was recorded.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Records one execution.
    pub fn record(&mut self, class: SizeClass, rows: usize, took: Duration) {
        let fresh = || ClassTimes { by_rows: BTreeMap::new(), deviation: FIRST_DEVIATION };
        self.classes.entry(class).or_insert_with(fresh).record(rows, took.as_secs_f64());
    }

    /// What is known about rows of `class`.
    pub fn curve(&self, class: SizeClass) -> ClassCurve<'_> {
        if let Some(times) = self.classes.get(&class) {
            return ClassCurve { times: Some(times), scale: 1.0, exact: true };
        }
        if let Some((known, times)) = self.classes.range(..class).next_back() {
            let doublings = (class.0 - known.0).min(16);
            return ClassCurve { times: Some(times), scale: f64::from(1u32 << doublings), exact: false };
        }
        let times = self.classes.range(class..).next().map(|(_, times)| times);
        ClassCurve { times, scale: 1.0, exact: false }
    }
}

/// The run times of one size class; those of the nearest class, scaled up, if it was not seen itself.
#[derive(Clone, Copy, Debug)]
pub struct ClassCurve<'a> {
    times: Option<&'a ClassTimes>,
    scale: f64,
    exact: bool,
}

impl ClassCurve<'_> {
    /// The mean run time of an execution of `rows`, filled in where this row count was not seen; `None` if nothing is
    /// known.
    pub fn mean(&self, rows: usize) -> Option<Duration> {
        Some(Duration::from_secs_f64(self.times?.mean_s(rows)? * self.scale))
    }

    /// The smallest row count with nearly the best throughput seen among those that take at most `time_max`, or the
    /// smallest seen if all take longer; `None` if nothing is known.
    pub fn best_rows(&self, time_max: Duration) -> Option<usize> {
        let times = self.times?;
        let short = |(_, time): &(&usize, &RunTime)| time.mean_s * self.scale <= time_max.as_secs_f64();
        let rate = |(&rows, time): (&usize, &RunTime)| rows as f64 / time.mean_s.max(1e-9);
        let best = times.by_rows.iter().filter(short).map(rate).fold(0.0, f64::max);
        let found = times.by_rows.iter().filter(short).find(|&each| rate(each) >= best * KNEE_TOLERANCE);
        found.or_else(|| times.by_rows.first_key_value()).map(|(&rows, _)| rows)
    }
}

impl Curve for ClassCurve<'_> {
    fn cautious(&self, rows: usize) -> Option<Duration> {
        let caution = (1.0 + CAUTION * self.times?.deviation).min(CAUTION_MAX);
        Some(self.mean(rows)?.mul_f64(caution))
    }

    fn usual(&self, rows: usize) -> Option<Duration> {
        let time = self.times?.by_rows.get(&rows).filter(|time| self.exact && time.samples >= TRUSTED_SAMPLES)?;
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
    fn a_row_count_is_worth_a_try_until_it_was_seen_often() {
        let mut estimates = learned(&[(1, 10)]);
        for _ in 1..TRUSTED_SAMPLES {
            estimates.record(class(), 8, 200 * MS);
            assert_eq!(estimates.curve(class()).usual(8), None);
        }
        estimates.record(class(), 8, 200 * MS);
        assert!(close(estimates.curve(class()).usual(8), 200));
    }

    #[test]
    fn nothing_known_is_none() {
        assert_eq!(Estimates::default().curve(class()).cautious(1), None);
        assert_eq!(Estimates::default().curve(class()).best_rows(MS), None);
    }

    #[test]
    fn a_varying_time_is_treated_cautiously() {
        let mut estimates = Estimates::default();
        for index in 0..100 {
            estimates.record(class(), 1, (10 + index % 2 * 10) * MS);
        }
        let cautious = estimates.curve(class()).cautious(1).expect("known");
        assert!(cautious > 20 * MS && cautious < 30 * MS, "{cautious:?}");
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
    fn a_noisy_time_leaves_caution_bounded_and_is_soon_forgotten() {
        let mut estimates = learned(&[(1, 10)]);
        for index in 0..100 {
            estimates.record(class(), 1, (10 + index % 3 * 60) * MS);
        }
        let curve = estimates.curve(class());
        assert!(curve.cautious(1).expect("known") <= 2 * curve.mean(1).expect("known"));
        for _ in 0..4 {
            estimates.record(class(), 1, 10 * MS);
        }
        assert!(estimates.curve(class()).mean(1).expect("known") < 20 * MS);
    }

    #[test]
    fn the_best_row_count_is_the_smallest_with_nearly_the_best_rate() {
        assert_eq!(learned(&[(1, 10), (4, 20), (8, 40)]).curve(class()).best_rows(1000 * MS), Some(4));
        assert_eq!(learned(&[(1, 10), (4, 20), (8, 30)]).curve(class()).best_rows(25 * MS), Some(4));
        assert_eq!(learned(&[(1, 10), (4, 20), (8, 30)]).curve(class()).best_rows(5 * MS), Some(1));
        assert_eq!(learned(&[(1, 10), (4, 20), (8, 30)]).curve(class()).best_rows(1000 * MS), Some(8));
    }

    #[test]
    fn a_row_count_seen_once_is_as_trusted_as_its_neighbours() {
        let mut estimates = learned(&[(1, 10)]);
        estimates.record(class(), 8, 10 * MS);
        assert!(close(estimates.curve(class()).cautious(8), 10));
    }
}
