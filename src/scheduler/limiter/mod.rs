//! The rate limiter: how many instances of all models execute at the same time, by resources that they hold meanwhile.
//!
//! An instance asks before it takes a batch out of its scheduler, so that what waits for resources is still in the
//! queue: the batch grows, and deadlines and cancellation act as ever. `ledger` decides, [`Limiter`] lets threads wait
//! for the decision. Knows no models and no requests.

mod ledger;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use self::ledger::{ClaimId, Key, Ledger};
use crate::error::Result;
use crate::infer::Instant;
use crate::model::{Amount, Device, RateLimit};
use crate::telemetry::metrics::{LimiterMetrics, Metrics, ResourceMetrics};

/// How often an instance that waits for resources looks whether it still has something to do with them.
const WANTED_EVERY: Duration = Duration::from_millis(50);

/// The rate limiter of one server.
#[derive(Debug)]
pub struct Limiter {
    /// Held for a few moves at the beginning and the end of executions that need resources.
    ledger: Mutex<Ledger>,
    /// The line has moved.
    moved: Condvar,
    metrics: LimiterMetrics,
    /// What is told of each resource.
    told: Mutex<BTreeMap<Key, ResourceMetrics>>,
}

impl Limiter {
    /// A limiter of what the operator says there is; of the rest there is the most that any instance needs.
    pub fn new(amounts: Vec<Amount>, metrics: &Metrics) -> Self {
        let ledger = Mutex::new(Ledger::new(amounts));
        Self { ledger, moved: Condvar::new(), metrics: metrics.limiter(), told: Mutex::default() }
    }

    /// The claim of an instance; `None` if it needs nothing.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if it needs more than there is, or something that is global for one model
    /// and of each device for another.
    pub fn claim(self: &Arc<Self>, device: Device, limit: &RateLimit) -> Result<Option<Claim>> {
        if limit.resources.is_empty() {
            return Ok(None);
        }
        let id = self.ledger.lock().register(device, limit)?;
        self.tell();
        Ok(Some(Claim { limiter: self.clone(), id }))
    }

    /// Changes the books, and tells who waits.
    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let result = change(&mut self.ledger.lock());
        self.moved.notify_all();
        self.tell();
        result
    }

    fn tell(&self) {
        let mut told = self.told.lock();
        let ledger = self.ledger.lock();
        let (stocks, waiting) = (ledger.stocks(), ledger.waiting());
        drop(ledger);
        for (key, stock) in &stocks {
            let new = || self.metrics.resource(&key.0, &key.1.to_string());
            told.entry(key.clone()).or_insert_with(new).stock(stock.total, stock.used);
        }
        for (_, gone) in told.iter().filter(|(key, _)| !stocks.contains_key(key)) {
            gone.stock(0, 0);
        }
        self.metrics.waiting(waiting);
    }
}

/// What an instance may ask for; dropping it ends the claim.
#[derive(Debug)]
pub struct Claim {
    limiter: Arc<Limiter>,
    id: ClaimId,
}

impl Claim {
    /// Blocks until the resources are held. `None` if they are not `wanted` any more by then.
    pub(super) fn acquire(&self, wanted: impl Fn() -> bool) -> Option<Permit> {
        let limiter = &self.limiter;
        self.ask();
        let mut next_look = Instant::now() + WANTED_EVERY;
        let mut ledger = limiter.ledger.lock();
        while !ledger.holds(self.id) {
            // The line may move so often that no wait ever ends by itself.
            let left = next_look.saturating_duration_since(Instant::now());
            if limiter.moved.wait_for(&mut ledger, left).timed_out() || Instant::now() >= next_look {
                drop(ledger);
                if !wanted() && self.leave() {
                    return None;
                }
                next_look = Instant::now() + WANTED_EVERY;
                ledger = limiter.ledger.lock();
            }
        }
        drop(ledger);
        Some(self.permit())
    }

    /// Stands in line; does not block.
    pub fn ask(&self) {
        self.limiter.change(|ledger| ledger.ask(self.id));
    }

    /// The resources, if they are held by now, once for each time that it asked; does not block.
    pub fn held(&self) -> Option<Permit> {
        let holds = self.limiter.ledger.lock().holds(self.id);
        holds.then(|| self.permit())
    }

    /// Leaves the line. `false` if the resources are held by now; [`Claim::held`] must follow.
    pub fn leave(&self) -> bool {
        self.limiter.change(|ledger| ledger.leave(self.id))
    }

    fn permit(&self) -> Permit {
        self.limiter.tell();
        Permit { limiter: self.limiter.clone(), id: self.id, used: false, again: false }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.limiter.change(|ledger| ledger.withdraw(self.id));
    }
}

/// Resources that are held; dropping it gives them back.
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<Limiter>,
    id: ClaimId,
    used: bool,
    again: bool,
}

impl Permit {
    /// Counts as a turn.
    pub(super) fn used(&mut self) {
        self.used = true;
    }

    /// Gives the resources back and asks for them again at once; [`Claim::acquire`] must follow.
    pub(super) fn renew(mut self) {
        self.again = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.change(|ledger| ledger.give_back(self.id, self.used, self.again));
    }
}

#[cfg(test)]
mod tests;
