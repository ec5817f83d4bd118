//! How many requests an ensemble has, and how many each of its steps has: bounds, and the wait for the end of all.
//!
//! Each version that is loaded has its own: one that takes over, such as after a member's reload, begins with none.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use crate::error::Result;
use crate::scheduler::{queue_full, stopping};

/// The bounds of one version of an ensemble, and what is under way within them.
#[derive(Debug)]
pub(in crate::engine) struct Gate {
    requests_max: usize,
    /// One for each step; empty if steps have no bound.
    steps: Vec<Arc<Semaphore>>,
    state: Mutex<State>,
    /// The last request has ended.
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: usize,
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
pub(in crate::engine) struct Pass(Arc<Gate>);

impl Gate {
    /// A gate for `requests_max` requests, and `step_requests_max` in each of so many steps.
    pub(super) fn new(requests_max: usize, step_requests_max: Option<usize>, steps: usize) -> Arc<Self> {
        let permits = step_requests_max.map(|max| max.min(Semaphore::MAX_PERMITS));
        let steps = permits.into_iter().flat_map(|max| (0..steps).map(move |_| Arc::new(Semaphore::new(max))));
        Arc::new(Self { requests_max, steps: steps.collect(), state: Mutex::default(), left: Condvar::new() })
    }

    /// Lets a request in; `None` after [`Gate::close`].
    ///
    /// # Errors
    /// [`crate::error::Kind::QueueFull`] at the bound, [`crate::error::Kind::Unavailable`] after [`Gate::abort`].
    pub(in crate::engine) fn enter(self: &Arc<Self>) -> Result<Option<Pass>> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Open if state.requests >= self.requests_max => Err(queue_full()),
            Phase::Open => {
                state.requests += 1;
                Ok(Some(Pass(self.clone())))
            }
            Phase::Closed => Ok(None),
            Phase::Aborted => Err(stopping()),
        }
    }

    /// Whether no request is under way.
    pub(in crate::engine) fn is_idle(&self) -> bool {
        self.state.lock().requests == 0
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

    /// Lets no more requests in and blocks until none is under way.
    pub(in crate::engine) fn drain(&self) {
        self.close();
        let mut state = self.state.lock();
        while state.requests > 0 {
            self.left.wait(&mut state);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.requests -= 1;
        if state.requests == 0 {
            self.0.left.notify_all();
        }
    }
}
