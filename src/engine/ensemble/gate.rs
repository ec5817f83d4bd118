//! How many requests an ensemble has, and how many each of its steps has: bounds, and the wait for the end of all.
//!
//! Shared by all plans that an ensemble has in its life, so that a member's reload changes no count.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use crate::error::{Error, Kind, Result};

/// The bounds of one version of an ensemble, and what is under way within them.
#[derive(Debug)]
pub(in crate::engine) struct Gate {
    requests_max: usize,
    /// One for each step; empty if steps have no bound.
    steps: Vec<Arc<Semaphore>>,
    state: Mutex<State>,
    /// A request has ended.
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: usize,
    closed: bool,
}

/// A request that is under way; dropping it ends it.
#[derive(Debug)]
pub(super) struct Pass(Arc<Gate>);

impl Gate {
    /// A gate for `requests_max` requests, and `step_requests_max` in each of so many steps.
    pub(super) fn new(requests_max: usize, step_requests_max: Option<usize>, steps: usize) -> Arc<Self> {
        let permits = step_requests_max.map(|max| max.min(Semaphore::MAX_PERMITS));
        let steps = permits.into_iter().flat_map(|max| (0..steps).map(move |_| Arc::new(Semaphore::new(max))));
        Arc::new(Self { requests_max, steps: steps.collect(), state: Mutex::default(), left: Condvar::new() })
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// [`Kind::QueueFull`] at the bound, [`Kind::Unavailable`] after [`Gate::close`].
    pub(super) fn enter(self: &Arc<Self>) -> Result<Pass> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(stopping());
        }
        if state.requests >= self.requests_max {
            return Err(Error::new(Kind::QueueFull, "Exceeds maximum queue size"));
        }
        state.requests += 1;
        Ok(Pass(self.clone()))
    }

    /// The bound of one step, if it has one.
    pub(super) fn step(&self, index: usize) -> Option<&Arc<Semaphore>> {
        self.steps.get(index)
    }

    /// Lets no more requests in; those that are under way go on.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Lets no more requests in, and no request into another step with a bound.
    pub(in crate::engine) fn abort(&self) {
        self.close();
        self.steps.iter().for_each(|step| step.close());
    }

    /// Lets no more requests in and blocks until none is under way.
    pub(in crate::engine) fn drain(&self) {
        self.close();
        let mut state = self.state.lock();
        while state.requests > 0 {
            self.left.wait_for(&mut state, Duration::from_secs(1));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.state.lock().requests -= 1;
        self.0.left.notify_all();
    }
}

/// The refusal of an ensemble that is being unloaded.
pub(super) fn stopping() -> Error {
    Error::unavailable("Server is stopping, scheduler for model has stopped accepting new inference requests")
}
