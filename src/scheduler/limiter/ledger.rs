//! Who holds what of the rate limiter's resources, and who is next. Pure: no lock, no thread, no time.
//!
//! Each instance has a claim. One that wants to execute stands in line until it gets all that it needs at once, so that
//! nobody holds one resource and waits for another. The line is in the order of turns: each execution moves a claim's
//! next turn back by its weight. What is free is kept for those further ahead, so that small claims never starve a large
//! one. Begin with [`Ledger::ask`].

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::model::{Amount, Device, Place, RateLimit};

/// What a claim is known by.
pub(super) type ClaimId = u64;

/// A resource: its name in lower case, and where it is.
pub(super) type Key = (String, Place);

/// The books of one rate limiter.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// What the operator says there is; of the rest there is the most that any claim needs.
    amounts: Vec<Amount>,
    claims: BTreeMap<ClaimId, Claim>,
    next_id: ClaimId,
    /// The latest turn that was had: who comes late or was idle does not get turns from the past.
    turn: u64,
    next_ticket: u64,
}

#[derive(Debug)]
struct Claim {
    /// What it needs, each resource once.
    needs: BTreeMap<Key, u64>,
    weight: u64,
    /// When it is its turn again.
    turn: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// With its place behind others of the same turn.
    Waiting(u64),
    Holding,
}

/// How much there is of a resource, and how much of that is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stock {
    pub(super) total: u64,
    pub(super) used: u64,
}

impl Ledger {
    pub(super) fn new(amounts: Vec<Amount>) -> Self {
        Self { amounts, ..Self::default() }
    }

    /// Makes a claim for an instance on this device.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if it needs more than there is, or something that is global for one model
    /// and of each device for another.
    pub(super) fn register(&mut self, device: Device, limit: &RateLimit) -> Result<ClaimId> {
        let mut needs: BTreeMap<Key, u64> = BTreeMap::new();
        for resource in &limit.resources {
            let place = if resource.global { Place::Global } else { Place::On(device) };
            *needs.entry((resource.name.to_ascii_lowercase(), place)).or_default() += u64::from(resource.count);
        }
        for ((name, place), count) in &needs {
            let as_written = limit.resources.iter().find(|resource| resource.name.eq_ignore_ascii_case(name));
            let shown = as_written.map_or(name.as_str(), |resource| &resource.name);
            self.check((name, shown), *place, *count)?;
        }
        let id = self.next_id;
        self.next_id += 1;
        let weight = u64::from(limit.priority.max(1));
        self.claims.insert(id, Claim { needs, weight, turn: self.turn, state: State::Idle });
        Ok(id)
    }

    fn check(&self, (name, shown): (&str, &str), place: Place, count: u64) -> Result<()> {
        if let Some(amount) = Amount::find(&self.amounts, name, place).map(u64::from).filter(|amount| *amount < count) {
            return Err(Error::invalid(format!(
                "Resource count for \"{shown}\" is limited to {amount} which will prevent scheduling of one or more \
                 model instances, the minimum required count is {count}"
            )));
        }
        let mut known = self.claims.values().flat_map(|claim| claim.needs.keys()).filter(|(other, _)| other == name);
        if known.any(|(_, other)| (*other == Place::Global) != (place == Place::Global)) {
            return Err(Error::invalid(format!(
                "Resource \"{shown}\" is present as both global and device-specific resource in the model configuration."
            )));
        }
        Ok(())
    }

    /// Ends a claim, whatever it holds.
    pub(super) fn withdraw(&mut self, id: ClaimId) {
        self.claims.remove(&id);
        self.deal();
    }

    /// Puts a claim in line.
    pub(super) fn ask(&mut self, id: ClaimId) {
        self.enter(id);
        self.deal();
    }

    fn enter(&mut self, id: ClaimId) {
        let (turn, ticket) = (self.turn, self.next_ticket);
        if let Some(claim) = self.claims.get_mut(&id).filter(|claim| claim.state == State::Idle) {
            self.next_ticket += 1;
            claim.turn = claim.turn.max(turn);
            claim.state = State::Waiting(ticket);
        }
    }

    /// Takes a claim that waits out of the line. `false` if it holds what it needs by now.
    pub(super) fn leave(&mut self, id: ClaimId) -> bool {
        let Some(claim) = self.claims.get_mut(&id) else { return true };
        if claim.state == State::Holding {
            return false;
        }
        claim.state = State::Idle;
        // Something may have been kept for it.
        self.deal();
        true
    }

    /// Takes back what a claim holds; a turn that it made no use of is still its own. One that asks again stands in line
    /// before anybody is given anything: otherwise the others would always come first, whatever the weights.
    pub(super) fn give_back(&mut self, id: ClaimId, used: bool, again: bool) {
        if let Some(claim) = self.claims.get_mut(&id).filter(|claim| claim.state == State::Holding) {
            claim.state = State::Idle;
            if !used {
                claim.turn = claim.turn.saturating_sub(claim.weight);
            }
            if again {
                self.enter(id);
            }
        }
        self.deal();
    }

    /// Whether a claim holds what it needs.
    pub(super) fn holds(&self, id: ClaimId) -> bool {
        self.claims.get(&id).is_some_and(|claim| claim.state == State::Holding)
    }

    /// How many stand in line.
    pub(super) fn waiting(&self) -> usize {
        self.claims.values().filter(|claim| matches!(claim.state, State::Waiting(_))).count()
    }

    /// Every resource that a claim needs.
    pub(super) fn stocks(&self) -> BTreeMap<Key, Stock> {
        let mut stocks: BTreeMap<Key, Stock> = BTreeMap::new();
        for claim in self.claims.values() {
            for (key, count) in &claim.needs {
                let given = Amount::find(&self.amounts, &key.0, key.1).map(u64::from);
                let stock = stocks.entry(key.clone()).or_default();
                stock.total = given.unwrap_or(stock.total.max(*count));
                stock.used += if claim.state == State::Holding { *count } else { 0 };
            }
        }
        stocks
    }

    /// Gives what is free to those in line whose turn it is.
    fn deal(&mut self) {
        let mut line: Vec<(u64, u64, ClaimId)> = Vec::new();
        for (id, claim) in &self.claims {
            if let State::Waiting(ticket) = claim.state {
                line.push((claim.turn, ticket, *id));
            }
        }
        if line.is_empty() {
            return;
        }
        line.sort_unstable();
        let stocks = self.stocks();
        let mut free: BTreeMap<Key, u64> =
            stocks.into_iter().map(|(key, stock)| (key, stock.total.saturating_sub(stock.used))).collect();
        for (_, _, id) in line {
            let Some(claim) = self.claims.get_mut(&id) else { continue };
            let of = |free: &BTreeMap<Key, u64>, key| free.get(key).copied().unwrap_or_default();
            let granted = claim.needs.iter().all(|(key, count)| of(&free, key) >= *count);
            for (key, count) in &claim.needs {
                let left = of(&free, key).saturating_sub(*count);
                free.insert(key.clone(), left);
            }
            if granted {
                self.turn = self.turn.max(claim.turn);
                claim.turn += claim.weight;
                claim.state = State::Holding;
            }
        }
    }
}
