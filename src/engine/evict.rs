//! Which models leave when memory is short. Pure.
//!
//! The least valuable idle ones: what a model is worth is what it would cost to have it back (the time of its load),
//! times how likely that is (the longer it was not used, or usually is not, the less), for each byte that it frees. Of
//! equal models that is the least recently used one, or one that is used seldom. Begin with [`evict`].

use std::time::Duration;

use crate::model::{Device, Footprint, Residency};

/// A model that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate<K> {
    /// Which model.
    pub key: K,
    /// How firmly it is there, what is made of it included.
    pub residency: Residency,
    /// What it holds.
    pub bytes: Footprint,
    /// What it takes to have it back.
    pub reload: Duration,
    /// How long it was not used, and the usual time between two uses besides; `None` while it has requests.
    pub unused: Option<Duration>,
}

/// What is to be done for a load that lacks memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<K> {
    /// These leave, the least valuable first.
    Evict(Vec<K>),
    /// Some that could leave have requests; later perhaps.
    Wait,
    /// Whatever leaves, it is not enough.
    Never,
}

/// What leaves so that at least the `lacking` bytes become free, for a load of a model that is `by` so firmly there.
///
/// Never what has requests, and never what the load may not displace. Nothing leaves without need: without any one of
/// those that leave, it would not be enough.
pub fn evict<K: Clone + Ord>(lacking: &Footprint, by: Residency, candidates: &[Candidate<K>]) -> Verdict<K> {
    let mut helpful: Vec<(&Candidate<K>, u64)> = candidates
        .iter()
        .filter(|candidate| by.displaces(candidate.residency))
        .map(|candidate| (candidate, freed(lacking, candidate)))
        .filter(|(_, freed)| *freed > 0)
        .collect();
    if !covers(lacking, helpful.iter().map(|(candidate, _)| *candidate)) {
        return Verdict::Never;
    }
    helpful.retain(|(candidate, _)| candidate.unused.is_some());
    helpful.sort_by(|(one, one_freed), (other, other_freed)| {
        let worth = worth(one, *one_freed).total_cmp(&worth(other, *other_freed));
        one.residency.cmp(&other.residency).then(worth).then(one.key.cmp(&other.key))
    });
    let mut leaving: Vec<&Candidate<K>> = Vec::new();
    for (candidate, _) in helpful {
        if covers(lacking, leaving.iter().copied()) {
            break;
        }
        leaving.push(candidate);
    }
    if !covers(lacking, leaving.iter().copied()) {
        return Verdict::Wait;
    }
    // A large one that came last may make small ones before it needless; the most valuable of them stay first.
    for at in (0..leaving.len()).rev() {
        let others = leaving.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, candidate)| *candidate);
        if covers(lacking, others) {
            leaving.remove(at);
        }
    }
    Verdict::Evict(leaving.into_iter().map(|candidate| candidate.key.clone()).collect())
}

/// The same where some models are `paged` out already, and hold little each. They go only if nothing else is enough, or
/// together they hold too much of what is lacking: half of a device's `limit`.
pub fn evict_with_paged<K: Clone + Ord>(
    (lacking, by): (&Footprint, Residency),
    candidates: &[Candidate<K>],
    paged: &[Candidate<K>],
    limit: impl Fn(Device) -> u64,
) -> Verdict<K> {
    let held = |device: Device| paged.iter().map(|candidate| candidate.bytes.of(device)).sum::<u64>();
    if lacking.bytes.keys().all(|device| held(*device) <= limit(*device) / PAGED_PART) {
        let verdict = evict(lacking, by, candidates);
        if verdict != Verdict::Never {
            return verdict;
        }
    }
    evict(lacking, by, &[candidates, paged].concat())
}

/// The part of a device that models may hold that are paged out, before they go like those that are there: for each byte
/// they save far more time, a load and not a way back.
const PAGED_PART: u64 = 2;

/// What a byte that it frees is worth.
fn worth<K>(candidate: &Candidate<K>, freed: u64) -> f64 {
    // What was used a moment ago has a worth, too, and what loads in no time has not none.
    let unused = candidate.unused.unwrap_or_default().as_secs_f64() + 1e-6;
    let reload = candidate.reload.as_secs_f64() + 1e-6;
    reload / (unused * freed as f64)
}

/// The bytes of what is lacking that it would free.
fn freed<K>(lacking: &Footprint, candidate: &Candidate<K>) -> u64 {
    lacking.bytes.iter().map(|(device, bytes)| candidate.bytes.of(*device).min(*bytes)).sum()
}

fn covers<'a, K: 'a>(lacking: &Footprint, leaving: impl Iterator<Item = &'a Candidate<K>>) -> bool {
    let mut freed = Footprint::default();
    leaving.for_each(|candidate| freed.add(&candidate.bytes));
    lacking.bytes.iter().all(|(device, bytes)| freed.of(*device) >= *bytes)
}

#[cfg(test)]
#[path = "evict_tests.rs"]
mod tests;
