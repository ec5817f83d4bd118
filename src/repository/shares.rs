//! The parameters by which priority levels share a model, as they are written.

use std::time::Duration;

/// A larger weight is a mistake.
pub(super) const WEIGHT_MAX: u32 = 1_000_000;

/// A longer interval is a mistake in the unit: one hour.
const AGEING_MICROSECONDS_MAX: u64 = 3_600_000_000;

/// Weights with commas between them, such as `8,2,1`; `None` if they are not positive integers.
pub(super) fn weights(text: &str) -> Option<Vec<u32>> {
    let weight = |text: &str| text.trim().parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
    text.split(',').map(weight).collect()
}

/// The interval; `None` if it is no positive integer of microseconds up to an hour.
pub(super) fn ageing(text: &str) -> Option<Duration> {
    let micros = text.trim().parse().ok().filter(|micros| (1..=AGEING_MICROSECONDS_MAX).contains(micros))?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_positive_integers_with_commas() {
        assert_eq!(weights("8, 2,1"), Some(vec![8, 2, 1]));
        for wrong in ["", "8,", "0,1", "-1", "1.5", "8;2", "1000001"] {
            assert_eq!(weights(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_interval_is_at_least_a_microsecond_and_at_most_an_hour() {
        assert_eq!(ageing("50000"), Some(Duration::from_millis(50)));
        for wrong in ["", "0", "-1", "1.5", "3600000001"] {
            assert_eq!(ageing(wrong), None, "{wrong}");
        }
    }
}
