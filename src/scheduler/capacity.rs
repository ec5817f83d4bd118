//! Learns how many rows an execution has memory for, from those that ran out of it.
//!
//! Half of what was too much is tried first. After some executions that succeed at the limit it moves half the way
//! towards the fewest rows that were too much, so that it ends just below. These are tried again, too, ever more seldom:
//! others may have had the memory. Larger rows never have a higher limit than smaller ones.

use std::collections::BTreeMap;

use super::estimate::SizeClass;

/// After so many executions at the limit it grows.
const GROWS_AFTER: u32 = 16;
/// So often at most the wait for the next trial of what was too much doubles.
const DOUBLED_MAX: u32 = 16;

/// What is known about one size of rows.
#[derive(Clone, Copy, Debug)]
struct Fit {
    rows_max: usize,
    /// The most rows that were not too much; 0 if none is known.
    good: usize,
    /// The fewest rows that were too much, as far as is known.
    failed: usize,
    /// Executions at the limit since it last changed.
    fitted: u32,
    /// How often what was too much was tried again, and was too much still.
    trials: u32,
}

impl Fit {
    fn ran_out(&mut self, rows: usize) {
        let half = (rows / 2).max(1);
        self.failed = self.failed.min(rows);
        self.fitted = 0;
        if self.good >= rows {
            self.good = 0;
        }
        self.rows_max = if self.good > 0 { self.good } else { self.rows_max.min(half) };
    }

    fn fitted(&mut self, rows: usize) {
        self.good = self.good.max(rows);
        self.fitted += 1;
        let is_settled = self.good + 1 == self.failed;
        if self.fitted < if is_settled { GROWS_AFTER << self.trials } else { GROWS_AFTER } {
            return;
        }
        self.fitted = 0;
        if is_settled {
            self.rows_max = self.failed;
            self.trials = (self.trials + 1).min(DOUBLED_MAX);
            return;
        }
        if self.good >= self.failed {
            // What was too much once is not any more.
            self.failed = self.good.saturating_mul(2).max(self.good + 2);
            self.trials = 0;
        }
        self.rows_max = self.good.midpoint(self.failed);
    }
}

/// How many rows fit, for one model version.
#[derive(Clone, Debug, Default)]
pub struct Capacity {
    classes: BTreeMap<SizeClass, Fit>,
}

impl Capacity {
    /// So many rows were too much.
    pub fn ran_out(&mut self, class: SizeClass, rows: usize) {
        let unknown = Fit { rows_max: usize::MAX, good: 0, failed: rows, fitted: 0, trials: 0 };
        self.classes.entry(class).or_insert(unknown).ran_out(rows);
    }

    /// So many rows were not too much, and as many smaller ones would not have been.
    pub fn fitted(&mut self, class: SizeClass, rows: usize) {
        let fits = self.classes.range_mut(..=class).map(|(_, fit)| fit);
        fits.filter(|fit| rows >= fit.rows_max).for_each(|fit| fit.fitted(rows));
    }

    /// The most rows that should be tried; at least 1.
    pub fn rows_max(&self, class: SizeClass) -> usize {
        self.classes.range(..=class).map(|(_, fit)| fit.rows_max).min().unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(bytes: usize) -> SizeClass {
        SizeClass::of_row(bytes)
    }

    #[test]
    fn half_of_what_is_too_much_is_the_limit_for_rows_of_that_size_and_larger_ones() {
        let mut capacity = Capacity::default();
        assert_eq!(capacity.rows_max(class(64)), usize::MAX);
        capacity.ran_out(class(64), 32);
        let limits = [32, 64, 256].map(|bytes| capacity.rows_max(class(bytes)));
        assert_eq!(limits, [usize::MAX, 16, 16]);
    }

    #[test]
    fn a_single_row_is_always_tried() {
        let mut capacity = Capacity::default();
        capacity.ran_out(class(64), 1);
        assert_eq!(capacity.rows_max(class(64)), 1);
    }

    #[test]
    fn what_was_too_much_is_tried_again_after_twice_as_many_executions_each_time() {
        let (mut capacity, size) = (Capacity::default(), class(64));
        capacity.ran_out(size, 2);
        for trial in 0..4 {
            for _ in 0..GROWS_AFTER << trial {
                assert_eq!(capacity.rows_max(size), 1);
                capacity.fitted(size, 1);
            }
            assert_eq!(capacity.rows_max(size), 2);
            capacity.ran_out(size, 2);
        }
    }

    #[test]
    fn larger_rows_raise_the_limit_that_smaller_ones_have_set() {
        let (mut capacity, small, large) = (Capacity::default(), class(64), class(4096));
        capacity.ran_out(small, 32);
        (0..GROWS_AFTER).for_each(|_| capacity.fitted(large, 16));
        assert_eq!([small, large].map(|size| capacity.rows_max(size)), [24, 24]);
        capacity.ran_out(large, 24);
        assert_eq!([small, large].map(|size| capacity.rows_max(size)), [24, 12]);
        (0..GROWS_AFTER).for_each(|_| capacity.fitted(small, 16));
        assert_eq!(capacity.rows_max(small), 24, "that is below its limit");
    }

    /// Executes as many rows as the limit allows, at most `wanted`, where so many fit. Gives those that failed, and how
    /// many rows fitted last.
    fn steps(capacity: &mut Capacity, (steps, wanted, fits): (usize, usize, usize)) -> (usize, usize) {
        let (mut failures, mut fitted) = (0, 0);
        for _ in 0..steps {
            let rows = capacity.rows_max(class(64)).min(wanted);
            if rows > fits {
                failures += 1;
                capacity.ran_out(class(64), rows);
            } else {
                fitted = rows;
                capacity.fitted(class(64), rows);
            }
        }
        (failures, fitted)
    }

    proptest! {
        #[test]
        fn the_limit_ends_at_what_fits(fits in 1usize..200, wanted in 1usize..400) {
            let (failures, fitted) = steps(&mut Capacity::default(), (4_000, wanted, fits));
            prop_assert_eq!(fitted, fits.min(wanted));
            prop_assert!(failures <= 24, "{}", failures);
        }

        #[test]
        fn a_shortage_that_is_over_is_made_up_for(low in 1usize..20, shortage in 1usize..1_000, fits in 20usize..400) {
            let mut capacity = Capacity::default();
            steps(&mut capacity, (shortage, 400, low));
            // As long as the shortage again until the next trial, and a few steps from each double to the next.
            let (failures, fitted) = steps(&mut capacity, (2 * shortage + 1_000, 400, fits));
            prop_assert_eq!(fitted, fits);
            prop_assert!(failures <= 30, "{}", failures);
        }
    }
}
