//! How many requests an ensemble has, and how many each of its steps has: bounds, and the wait for the end of all.
//!
//! Each version that is loaded has its own: one that takes over, such as after a member's reload, begins with none.
//! Whoever waits here for a request to end waits no longer than its caller may take: see [`Gate::give_up`].

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Semaphore;

use super::seat::Seat;
use crate::error::Result;
use crate::infer::Instant;
use crate::scheduler::{queue_full, stopping};

/// While there is no room, requests to give up are looked for so often.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// The bounds of one version of an ensemble, and what is under way within them.
#[derive(Debug)]
pub(in crate::engine) struct Gate {
    requests_max: usize,
    /// The longest that a run which has something to do is not polled.
    pub(super) stall_max: Duration,
    /// One for each step; empty if steps have no bound.
    steps: Vec<Arc<Semaphore>>,
    state: Mutex<State>,
    /// The last request has ended.
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: usize,
    /// Those that have begun, by their numbers.
    runs: BTreeMap<u64, Weak<Seat>>,
    next: u64,
    /// When those to give up were last looked for since there was no room.
    looked: Option<Instant>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Requests are for what has taken this version's place.
    Closed,
    Aborted,
}

/// A request that is under way; dropping it ends it.
#[derive(Debug)]
pub(in crate::engine) struct Pass {
    gate: Arc<Gate>,
    number: u64,
}

impl Gate {
    /// A gate for `requests_max` requests, and `step_requests_max` in each of so many steps. Callers may leave them alone
    /// for `stall_max`.
    pub(super) fn new(
        requests_max: usize,
        step_requests_max: Option<usize>,
        steps: usize,
        stall_max: Duration,
    ) -> Arc<Self> {
        let permits = step_requests_max.map(|max| max.min(Semaphore::MAX_PERMITS));
        let steps = permits.into_iter().flat_map(|max| (0..steps).map(move |_| Arc::new(Semaphore::new(max))));
        let (steps, state) = (steps.collect(), Mutex::default());
        Arc::new(Self { requests_max, stall_max, steps, state, left: Condvar::new() })
    }

    /// Lets a request in; `None` after [`Gate::close`].
    ///
    /// # Errors
    /// [`crate::error::Kind::QueueFull`] at the bound, [`crate::error::Kind::Unavailable`] after [`Gate::abort`].
    pub(in crate::engine) fn enter(self: &Arc<Self>) -> Result<Option<Pass>> {
        let mut state = self.state.lock();
        if state.requests >= self.requests_max {
            let now = Instant::now();
            if state.looked.is_none_or(|looked| looked + LOOKS_EVERY <= now) {
                state.looked = Some(now);
                MutexGuard::unlocked(&mut state, || self.give_up(now));
            }
        }
        match state.phase {
            Phase::Open if state.requests >= self.requests_max => Err(queue_full()),
            Phase::Open => {
                state.requests += 1;
                state.next += 1;
                Ok(Some(Pass { gate: self.clone(), number: state.next }))
            }
            Phase::Closed => Ok(None),
            Phase::Aborted => Err(stopping()),
        }
    }

    /// Whether no request is under way that somebody waits for.
    pub(in crate::engine) fn is_idle(&self) -> bool {
        self.give_up(Instant::now());
        self.state.lock().requests == 0
    }

    /// Ends the requests whose callers have left them alone for too long. When the next one will be to be ended, as far
    /// as is known.
    pub(super) fn give_up(&self, now: Instant) -> Option<Instant> {
        let seats: Vec<_> = self.state.lock().runs.values().filter_map(Weak::upgrade).collect();
        seats.iter().filter_map(|seat| seat.give_up(now)).min()
    }

    /// The bound of one step, if it has one.
    pub(super) fn step(&self, index: usize) -> Option<&Arc<Semaphore>> {
        self.steps.get(index)
    }

    /// Lets no more requests in; those that are under way go on.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closed;
        }
    }

    /// Refuses requests from now on, and lets none into another step with a bound.
    pub(in crate::engine) fn abort(&self) {
        self.state.lock().phase = Phase::Aborted;
        self.steps.iter().for_each(|step| step.close());
    }

    /// Lets no more requests in and blocks until none is under way. Those that nobody polls are ended in time.
    pub(in crate::engine) fn drain(&self) {
        self.close();
        loop {
            let now = Instant::now();
            let next = self.give_up(now);
            let mut state = self.state.lock();
            if state.requests == 0 {
                return;
            }
            self.left.wait_for(&mut state, next.map_or(self.stall_max, |next| next - now));
        }
    }
}

impl Pass {
    /// The request begins as this run.
    pub(super) fn takes(&self, seat: Weak<Seat>) {
        self.gate.state.lock().runs.insert(self.number, seat);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.runs.remove(&self.number);
        state.requests -= 1;
        if state.requests == 0 {
            self.gate.left.notify_all();
        }
    }
}
