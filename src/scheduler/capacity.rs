//! Learns how many rows an execution has memory for, from those that ran out of it.
//!
//! Half of what was too much is tried first. After some executions that succeed at the limit it moves half the way
//! towards the fewest rows that were too much, so that it ends just below. Larger rows never have a higher limit than
//! smaller ones.

use std::collections::BTreeMap;

use super::estimate::SizeClass;

/// After so many executions at the limit it grows.
const GROWS_AFTER: u32 = 16;

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
}

/// How many rows fit, for one model version.
#[derive(Clone, Debug, Default)]
pub struct Capacity {
    classes: BTreeMap<SizeClass, Fit>,
}

impl Capacity {
    /// So many rows were too much.
    pub fn ran_out(&mut self, class: SizeClass, rows: usize) {
        let half = (rows / 2).max(1);
        let fit = self.classes.entry(class).or_insert(Fit { rows_max: half, good: 0, failed: rows, fitted: 0 });
        fit.failed = fit.failed.min(rows);
        fit.fitted = 0;
        if fit.good >= rows {
            fit.good = 0;
        }
        fit.rows_max = if fit.good > 0 { fit.good } else { fit.rows_max.min(half) };
    }

    /// So many rows were not too much.
    pub fn fitted(&mut self, class: SizeClass, rows: usize) {
        let Some(fit) = self.classes.get_mut(&class).filter(|fit| rows >= fit.rows_max) else { return };
        fit.good = fit.good.max(rows);
        // What was too much once may not be any more.
        fit.failed = fit.failed.max(rows + 1);
        fit.fitted += 1;
        if fit.fitted >= GROWS_AFTER {
            fit.fitted = 0;
            fit.rows_max = fit.good.midpoint(fit.failed);
        }
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
        (0..100).for_each(|_| capacity.fitted(class(64), 1));
        assert_eq!(capacity.rows_max(class(64)), 1);
    }

    proptest! {
        #[test]
        fn the_limit_ends_at_what_fits(fits in 1usize..200, first in 1usize..400) {
            let (mut capacity, size) = (Capacity::default(), class(64));
            let mut failures = 0;
            for step in 0..20_000 {
                let rows = if step == 0 { first } else { capacity.rows_max(size).min(400) };
                if rows > fits {
                    failures += 1;
                    capacity.ran_out(size, rows);
                } else {
                    capacity.fitted(size, rows);
                }
            }
            let limit = capacity.rows_max(size);
            prop_assert_eq!(limit.min(400), if first > fits { fits } else { 400.min(limit) });
            prop_assert!(failures <= 20, "{}", failures);
        }
    }
}
