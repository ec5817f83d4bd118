//! The priority levels of a queue: which level a request has, and what that level's policy says. Pure.
//!
//! Level 1 is the highest. Whose turn it is among them is decided in `turns`.

use super::lanes::Level;
use crate::model::{Priorities, QueuePolicy, Scheduling, TimeoutAction};

/// The levels of one queue, each with its policy.
#[derive(Clone, Debug)]
pub struct Levels {
    priorities: Priorities,
    /// Of the levels that have none of their own.
    policy: QueuePolicy,
    delay: bool,
}

impl Levels {
    /// These levels; `policy` is that of each that has none of its own.
    pub fn new(priorities: Priorities, policy: QueuePolicy) -> Self {
        let delays = |policy: &QueuePolicy| policy.timeout_action == TimeoutAction::Delay;
        let delay = delays(&policy) || priorities.policies.values().any(delays);
        Self { priorities, policy, delay }
    }

    /// Those of a model.
    pub fn of(scheduling: &Scheduling) -> Self {
        match scheduling {
            Scheduling::Single(policy) => Self::one(policy.clone()),
            Scheduling::Dynamic(batching) => Self::new(batching.priorities.clone(), batching.queue.clone()),
            Scheduling::Sequence(batching) => Self::one(batching.queue.clone()),
            Scheduling::Ensemble(ensemble) => Self::one(ensemble.queue.clone()),
        }
    }

    /// A single level.
    pub fn one(policy: QueuePolicy) -> Self {
        Self::new(Priorities::default(), policy)
    }

    /// The level of a request that asks for `priority`: one that does not exist is the default, as is 0.
    pub fn level(&self, priority: u64) -> u64 {
        let Priorities { levels, default_level, .. } = self.priorities;
        if (1..=levels).contains(&priority) { priority } else { default_level }
    }

    /// How the levels share the instances.
    pub(super) fn priorities(&self) -> &Priorities {
        &self.priorities
    }

    /// The limits of one level.
    pub fn policy(&self, level: u64) -> &QueuePolicy {
        self.priorities.policies.get(&level).unwrap_or(&self.policy)
    }

    /// Whether a request may be delayed when its time is up.
    pub(super) fn delay(&self) -> bool {
        self.delay
    }

    /// The most requests that wait in all levels together. Levels with a bound of their own may fill it; those that have
    /// none share what one of them may hold, at least `shared_min`.
    pub fn requests_max(&self, shared_min: usize) -> usize {
        if self.priorities.levels <= 1 {
            return self.policy(1).requests_max;
        }
        let own = self.priorities.policies.values().map(|policy| policy.requests_max);
        own.fold(self.policy.requests_max.max(shared_min), usize::saturating_add)
    }
}

/// How many of the rows that wait are ahead of another request of `level`: those of its own level and of higher ones or,
/// where levels have shares, as many as are worked off while its own level's are.
pub(super) fn rows_ahead(priorities: &Priorities, waiting: &[Level], level: u64) -> usize {
    let rows_to = |last: u64| waiting.iter().filter(|at| at.level <= last).map(|at| at.rows).sum();
    if priorities.weights.is_empty() {
        return rows_to(level);
    }
    let weight = |level: u64| {
        let index = usize::try_from(level - 1).unwrap_or(usize::MAX);
        u64::from(priorities.weights.get(index).copied().unwrap_or(1))
    };
    let own: usize = waiting.iter().filter(|at| at.level == level).map(|at| at.rows).sum();
    let others: u64 = waiting.iter().filter(|at| at.level != level && at.rows > 0).map(|at| weight(at.level)).sum();
    let share = weight(level) as f64 / (weight(level) + others) as f64;
    rows_to(u64::MAX).min((own as f64 / share) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn policy(requests_max: usize) -> QueuePolicy {
        QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: None,
            allow_timeout_override: false,
            requests_max,
        }
    }

    fn levels(count: u64, default_level: u64, policies: &[(u64, usize)]) -> Levels {
        let policies: BTreeMap<_, _> = policies.iter().map(|(level, max)| (*level, policy(*max))).collect();
        Levels::new(Priorities { levels: count, default_level, policies, ..Priorities::default() }, policy(10))
    }

    #[test]
    fn a_level_that_does_not_exist_is_the_default() {
        let levels = levels(3, 2, &[]);
        assert_eq!([0, 1, 2, 3, 4, u64::MAX].map(|priority| levels.level(priority)), [2, 1, 2, 3, 2, 2]);
        let one = Levels::one(policy(1));
        assert_eq!([0, 1, 2, u64::MAX].map(|priority| one.level(priority)), [1; 4]);
    }

    #[test]
    fn a_level_has_its_own_policy_or_the_default_one() {
        let levels = levels(3, 1, &[(2, 5)]);
        assert_eq!([1, 2, 3].map(|level| levels.policy(level).requests_max), [10, 5, 10]);
        assert!(!levels.delay());
        let delayed = QueuePolicy { timeout_action: TimeoutAction::Delay, ..policy(1) };
        assert!(Levels::one(delayed).delay());
    }

    #[test]
    fn all_levels_together_are_bounded() {
        assert_eq!(Levels::one(policy(3)).requests_max(1000), 3);
        assert_eq!(levels(3, 1, &[(2, 5)]).requests_max(1000), 1005);
        assert_eq!(levels(3, 1, &[(2, 5)]).requests_max(7), 15);
        assert_eq!(levels(2, 1, &[(1, usize::MAX), (2, 5)]).requests_max(7), usize::MAX);
    }

    #[test]
    fn a_request_can_only_shorten_a_default_that_may_be_overridden() {
        let [short, long] = [1, 9].map(Duration::from_millis);
        let with = |timeout, allow_timeout_override| QueuePolicy { timeout, allow_timeout_override, ..policy(1) };
        assert_eq!(with(None, false).wait_max(Some(short)), Some(short));
        assert_eq!(with(Some(long), true).wait_max(Some(short)), Some(short));
        assert_eq!(with(Some(short), true).wait_max(Some(long)), Some(short));
        assert_eq!(with(Some(long), false).wait_max(Some(short)), Some(long));
        assert_eq!(with(Some(long), true).wait_max(None), Some(long));
        assert_eq!(with(None, true).wait_max(None), None);
    }
}
