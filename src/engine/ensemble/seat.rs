//! A run where others than its caller reach it: who polls it no more loses it.
//!
//! A run goes on only when its caller polls it. A client that has stopped reading does not, as long as its connection
//! lives, while others may wait for the run's places in steps, and an unload for its end. So these may give up a run that
//! has had something to do for too long. Begin with [`Caller`].

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_core::Stream;
use parking_lot::Mutex;

use super::run::Run;
use crate::error::{Error, Result};
use crate::infer::{Instant, Response};
use crate::scheduler::stalled;

/// The caller's end of a run: the stream of the request's responses. Dropping it cancels the run.
pub(super) struct Caller(Arc<Seat>);

/// A run, or what is left of it.
pub(super) struct Seat {
    /// Held while the run is polled, or taken away.
    state: Mutex<State>,
    pulse: Arc<Pulse>,
    /// Wakes the caller by way of the pulse.
    waker: Waker,
    /// The longest that a run which has something to do is not polled.
    stall_max: Duration,
}

#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and lies where the seat does")]
enum State {
    Going(Run),
    /// With what the caller has not heard yet.
    Over(Option<Error>),
}

/// Knows whether the run has something to do.
struct Pulse(Mutex<Beat>);

struct Beat {
    /// Since when the run has had something to do; `None` if it waits for others.
    due: Option<Instant>,
    caller: Option<Waker>,
}

impl Wake for Pulse {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let caller = {
            let mut beat = self.0.lock();
            beat.due.get_or_insert_with(Instant::now);
            beat.caller.take()
        };
        caller.into_iter().for_each(Waker::wake);
    }
}

impl Caller {
    /// The stream of the responses of `run`, which is given up after `stall_max` if somebody asks for that.
    pub(super) fn new(run: Run, stall_max: Duration) -> Self {
        let pulse = Arc::new(Pulse(Mutex::new(Beat { due: Some(Instant::now()), caller: None })));
        let waker = Waker::from(pulse.clone());
        Self(Arc::new_cyclic(|seat: &Weak<Seat>| {
            run.pass().takes(seat.clone());
            Seat { state: Mutex::new(State::Going(run)), pulse, waker, stall_max }
        }))
    }
}

impl Stream for Caller {
    type Item = Result<Response>;

    fn poll_next(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let seat = &*self.0;
        let mut state = seat.state.lock();
        let run = match &mut *state {
            State::Going(run) => run,
            State::Over(error) => return Poll::Ready(error.take().map(Err)),
        };
        *seat.pulse.0.lock() = Beat { due: None, caller: Some(ctx.waker().clone()) };
        let polled = run.poll(&mut Context::from_waker(&seat.waker));
        if run.is_over() {
            let over = std::mem::replace(&mut *state, State::Over(None));
            drop(state);
            drop(over);
        } else if polled.is_ready() {
            seat.pulse.0.lock().due.get_or_insert_with(Instant::now);
        }
        polled
    }
}

impl Seat {
    /// Takes the run away if it should have been polled too long ago. When that will be, if it has something to do.
    pub(super) fn give_up(&self, now: Instant) -> Option<Instant> {
        // Who has the lock polls the run.
        let mut state = self.state.try_lock()?;
        let State::Going(run) = &mut *state else { return None };
        let until = self.pulse.0.lock().due? + self.stall_max;
        if now < until {
            return Some(until);
        }
        let error = run.fail(&stalled(self.stall_max));
        let run = std::mem::replace(&mut *state, State::Over(Some(error)));
        drop(state);
        drop(run);
        None
    }
}
