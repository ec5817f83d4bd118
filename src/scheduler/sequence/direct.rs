//! Decides the next batch of the strategy `direct`, where each sequence has its place in the batch: pure.
//!
//! Begin with [`seat`]. Knows slots and times; no table, no thread and no clock.

use std::time::Duration;

use crate::infer::Instant;

/// A request that could run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The slot of its sequence.
    pub(super) slot: usize,
    pub(super) arrived: Instant,
    /// When its response is due; `None` for whenever.
    pub(super) due: Option<Instant>,
    /// Whether it may share a batch with the oldest.
    pub(super) fits: bool,
}

/// What the configuration says about batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirectLimits {
    /// The slots of an instance; at least 1.
    pub(super) slots: usize,
    /// How long the oldest request may wait for others although the instance is idle.
    pub(super) delay_max: Duration,
    /// The share of slots, from 0 to 1, whose requests are enough to run at once; 0 for any.
    pub(super) utilization_min: f32,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seating {
    /// Run these: for each place in the batch the candidate, or none where a slot between used ones has no request.
    Run(Vec<Option<usize>>),
    /// Nothing yet: more slots may get a request until then.
    Wait(Instant),
}

/// What a wait leaves of the time until a batch must run.
const RESERVE: Duration = Duration::from_millis(2);

/// Seats the candidates, which are not empty and stand in the order of their age; each slot has at most one.
///
/// The batch reaches up to the highest slot that is used. Requests that do not fit to the oldest one wait for the next
/// batch. `time` is the cautious run time of so many rows; the wait ends early enough for what is due.
pub(super) fn seat(
    candidates: &[Candidate],
    limits: &DirectLimits,
    time: impl Fn(usize) -> Option<Duration>,
    now: Instant,
) -> Seating {
    let top = candidates.iter().filter(|candidate| candidate.fits).map(|candidate| candidate.slot).max().unwrap_or(0);
    if let Some(until) = wait_until(candidates, limits, time(top + 1), now) {
        return Seating::Wait(until);
    }
    let mut places = vec![None; top + 1];
    for (index, candidate) in candidates.iter().enumerate().filter(|(_, candidate)| candidate.fits) {
        places[candidate.slot] = Some(index);
    }
    Seating::Run(places)
}

fn wait_until(
    candidates: &[Candidate],
    limits: &DirectLimits,
    time: Option<Duration>,
    now: Instant,
) -> Option<Instant> {
    let used = candidates.len() as f32 / limits.slots as f32;
    if limits.delay_max.is_zero() || limits.utilization_min <= 0.0 || used >= limits.utilization_min {
        return None;
    }
    let mut until = candidates.iter().map(|candidate| candidate.arrived).min()? + limits.delay_max;
    if let Some(due) = candidates.iter().filter_map(|candidate| candidate.due).min() {
        let left = due.saturating_duration_since(now);
        until = until.min(now + left.saturating_sub(time.unwrap_or(left / 2)).saturating_sub(RESERVE.max(left / 8)));
    }
    (until > now).then_some(until)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(slot: usize, arrived: Instant) -> Candidate {
        Candidate { slot, arrived, due: None, fits: true }
    }

    fn limits(delay_max: Duration, utilization_min: f32) -> DirectLimits {
        DirectLimits { slots: 4, delay_max, utilization_min }
    }

    #[test]
    fn slots_below_the_highest_used_one_are_filled_with_nothing() {
        let now = Instant::now();
        let seated = seat(&[at(3, now), at(1, now)], &limits(Duration::ZERO, 0.0), |_| None, now);
        assert_eq!(seated, Seating::Run(vec![None, Some(1), None, Some(0)]));
    }

    #[test]
    fn what_does_not_fit_to_the_oldest_waits_for_the_next_batch() {
        let now = Instant::now();
        let other = Candidate { fits: false, ..at(3, now) };
        let seated = seat(&[at(1, now), other, at(0, now)], &limits(Duration::ZERO, 0.0), |_| None, now);
        assert_eq!(seated, Seating::Run(vec![Some(2), Some(0)]));
    }

    #[test]
    fn too_few_used_slots_wait_for_the_delay_and_enough_do_not() {
        let now = Instant::now();
        let limits = limits(10 * MS, 0.5);
        assert_eq!(seat(&[at(0, now)], &limits, |_| None, now), Seating::Wait(now + 10 * MS));
        assert_eq!(seat(&[at(0, now), at(1, now)], &limits, |_| None, now), Seating::Run(vec![Some(0), Some(1)]));
        assert_eq!(seat(&[at(0, now)], &limits, |_| None, now + 10 * MS), Seating::Run(vec![Some(0)]));
        assert_eq!(seat(&[at(0, now)], &self::limits(10 * MS, 0.0), |_| None, now), Seating::Run(vec![Some(0)]));
    }

    #[test]
    fn the_wait_ends_in_time_for_what_is_due() {
        let now = Instant::now();
        let due = Candidate { due: Some(now + 40 * MS), ..at(0, now) };
        let seated = seat(&[due], &limits(100 * MS, 1.0), |_| Some(10 * MS), now);
        assert_eq!(seated, Seating::Wait(now + 25 * MS));
    }

    proptest! {
        #[test]
        fn every_fitting_candidate_is_at_its_slot_and_the_last_place_is_used(
            slots in proptest::collection::btree_set(0usize..8, 1..8),
            fits in proptest::collection::vec(any::<bool>(), 8),
        ) {
            let now = Instant::now();
            let candidates: Vec<Candidate> = slots
                .iter()
                .enumerate()
                .map(|(index, slot)| Candidate { fits: index == 0 || fits[index], ..at(*slot, now) })
                .collect();
            let limits = DirectLimits { slots: 8, delay_max: Duration::ZERO, utilization_min: 0.0 };
            let Seating::Run(places) = seat(&candidates, &limits, |_| None, now) else { panic!("nothing to wait for") };
            prop_assert!(places.last().is_some_and(Option::is_some));
            for (index, candidate) in candidates.iter().enumerate() {
                let seated = places.get(candidate.slot) == Some(&Some(index));
                prop_assert_eq!(seated, candidate.fits);
            }
            prop_assert_eq!(places.iter().flatten().count(), candidates.iter().filter(|each| each.fits).count());
        }
    }
}
