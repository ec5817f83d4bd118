//! Whose turn it is among the requests at the heads of the levels' lines: a pure function of who waits since when.
//!
//! By default the order is strict: a lower level runs only if all higher ones are empty. With ageing, a request counts as
//! one level higher for each interval that it has waited. With weights, each level that waits gets its share of the rows,
//! by stride scheduling. Begin with [`Turns::rank`].

use smallvec::SmallVec;

use crate::infer::Instant;
use crate::model::Priorities;

/// The head of a line, as far as its turn is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// Its own level.
    pub(super) level: u64,
    /// Whether its time is up, so that it goes behind all of its level that are in time.
    pub(super) delayed: bool,
    /// When it arrived, or was delayed.
    pub(super) since: Instant,
    /// Its number in the order of arrival.
    pub(super) seq: u64,
}

/// Its place among others; the smallest is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pass: u128,
    level: u64,
    /// Since when it is behind those that are in time; `None` comes first.
    delayed: Option<Instant>,
    seq: u64,
}

/// What each level has had, for weighted shares; empty without weights.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// By level: the rows that it was given, each divided by its weight.
    passes: SmallVec<[u128; 4]>,
    /// The pass of the last level that had its turn: who waited for nothing meanwhile has saved up nothing.
    floor: u128,
}

/// One row of a level of weight 1.
const ROW: u128 = 1 << 32;

/// Ranks claims at one moment.
#[derive(Debug)]
pub(super) struct Turns<'a> {
    priorities: &'a Priorities,
    tally: Tally,
    now: Instant,
}

impl<'a> Turns<'a> {
    pub(super) fn new(priorities: &'a Priorities, tally: &Tally, now: Instant) -> Self {
        Self { priorities, tally: tally.clone(), now }
    }

    /// Whether the own level alone decides.
    pub(super) fn is_strict(&self) -> bool {
        self.priorities.ageing.is_none() && !self.is_weighted()
    }

    /// Whether who is served changes whose turn is next.
    pub(super) fn is_weighted(&self) -> bool {
        !self.priorities.weights.is_empty()
    }

    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }

    /// The place of a claim now.
    pub(super) fn rank(&self, claim: Claim) -> Rank {
        let (level, delayed) = self.aged(claim);
        let delayed = delayed.then_some(claim.since);
        let pass = if self.is_weighted() { self.pass(level) } else { 0 };
        Rank { pass, level, delayed, seq: claim.seq }
    }

    /// Notes that the claim of this rank is served; `opens` says whether it is the first of its batch. Those behind it
    /// fill the batch, and may be there only because their shape fits: they must not take from others' savings.
    pub(super) fn serve(&mut self, rank: Rank, rows: usize, opens: bool) {
        if !self.is_weighted() {
            return;
        }
        if opens {
            self.tally.floor = self.tally.floor.max(rank.pass);
        }
        let levels = self.priorities.weights.len();
        self.tally.passes.resize(levels, 0);
        let index = index(rank.level, levels);
        let weight = u128::from(self.priorities.weights[index].max(1));
        self.tally.passes[index] = rank.pass + ROW * rows as u128 / weight;
    }

    /// The level that a claim counts for, and whether it is behind those that are in time there. A delayed request is one
    /// interval from its level's end.
    fn aged(&self, claim: Claim) -> (u64, bool) {
        let ageing = self.priorities.ageing.map_or(0, |ageing| ageing.as_nanos());
        let waited = self.now.saturating_duration_since(claim.since).as_nanos();
        let steps = waited.checked_div(ageing).unwrap_or(0);
        if steps == 0 {
            return (claim.level, claim.delayed);
        }
        let steps = u64::try_from(steps).unwrap_or(u64::MAX) - u64::from(claim.delayed);
        (claim.level.saturating_sub(steps).max(1), false)
    }

    fn pass(&self, level: u64) -> u128 {
        let index = index(level, self.priorities.weights.len());
        self.tally.passes.get(index).copied().unwrap_or_default().max(self.tally.floor)
    }
}

fn index(level: u64, levels: usize) -> usize {
    usize::try_from(level - 1).unwrap_or(usize::MAX).min(levels - 1)
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
