//! The way of a decoupled model's responses: from the instance, which blocks, to the waiter, which is polled.
//!
//! It is bounded: an instance that is faster than its caller waits for room, but never for ever. It goes on when the
//! caller takes a response, and stops when the caller is gone, its deadline passed, or it took nothing for too long.
//! Begin with [`channel`].

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::reply::Answer;
use super::sync::{Condvar, Mutex};
use crate::error::{Error, Kind, Result};
use crate::infer::Instant;

/// What the responses of one request to a decoupled model may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseLimits {
    /// The most responses that wait for the caller; at least one.
    pub waiting_max: usize,
    /// The longest that the instance waits for the caller to take one of them.
    pub stall_max: Duration,
}

impl Default for ResponseLimits {
    fn default() -> Self {
        Self { waiting_max: 64, stall_max: Duration::from_secs(60) }
    }
}

/// The two ends for one request.
pub(super) fn channel(limits: ResponseLimits) -> (Sender, Receiver) {
    let shared = Arc::new(Shared { limits, state: Mutex::default(), changed: Condvar::new() });
    (Sender(Outlet(shared.clone())), Receiver(shared))
}

#[derive(Debug)]
struct Shared {
    limits: ResponseLimits,
    /// Held for a few moves only; the instance and the waiter of one request contend for it.
    state: Mutex<State>,
    /// The instance waits here until a response was taken or nobody takes any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Result<Answer>>,
    /// No other response will be sent.
    complete: bool,
    /// No other response will be taken.
    abandoned: bool,
    waker: Option<Waker>,
    /// Who waits for room but not in a thread of its own.
    room_waker: Option<Waker>,
}

/// The request's own end; dropping it ends the responses.
#[derive(Debug)]
pub(super) struct Sender(Outlet);

impl Deref for Sender {
    type Target = Outlet;

    fn deref(&self) -> &Outlet {
        &self.0
    }
}

/// The instance's end, for as long as it executes; the only one that sends, so that room found stays room. After the
/// responses were ended by whoever has the request, it sends nothing.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Shared>);

impl Outlet {
    /// Blocks until another response has room.
    ///
    /// # Errors
    /// [`Kind::DeadlineExceeded`] or [`Kind::Cancelled`] once nobody takes a response any more.
    pub(super) fn wait_for_room(&self, deadline: Option<Instant>) -> Result<()> {
        let limits = self.0.limits;
        let until = Instant::now() + limits.stall_max;
        let in_time = self.wait(deadline, until, |state| state.waiting.len() < limits.waiting_max)?;
        if in_time { Ok(()) } else { Err(stalled(limits.stall_max)) }
    }

    /// Whether another response has room, or nobody takes any more; if not, `waker` is woken when one of it is true.
    pub(super) fn has_room(&self, waker: impl FnOnce() -> Waker) -> bool {
        let mut state = self.0.state.lock();
        let room = state.abandoned || state.waiting.len() < self.0.limits.waiting_max;
        if !room && state.room_waker.is_none() {
            state.room_waker = Some(waker());
        }
        room
    }

    /// Blocks for `time`.
    ///
    /// # Errors
    /// As [`Outlet::wait_for_room`], at once when it comes true.
    pub(super) fn pause(&self, time: Duration, deadline: Option<Instant>) -> Result<()> {
        self.wait(deadline, Instant::now() + time, |_| false).map(|_| ())
    }

    /// Blocks until `ready`, which gives true, or until the time given, which gives false.
    fn wait(&self, deadline: Option<Instant>, until: Instant, ready: impl Fn(&State) -> bool) -> Result<bool> {
        let mut state = self.0.state.lock();
        loop {
            let now = Instant::now();
            if state.abandoned || state.complete || deadline.is_some_and(|deadline| deadline <= now) {
                return Err(given_up(deadline, now));
            }
            if ready(&state) {
                return Ok(true);
            }
            if until <= now {
                return Ok(false);
            }
            let next = deadline.map_or(until, |deadline| deadline.min(until));
            self.0.changed.wait_for(&mut state, next - now);
        }
    }

    /// Sends without looking for room.
    pub(super) fn push(&self, answer: Result<Answer>) {
        self.change(|state| {
            if !state.abandoned && !state.complete {
                state.waiting.push_back(answer);
            }
        });
    }

    /// Sends nothing more.
    pub(super) fn complete(&self) {
        self.change(|state| state.complete = true);
    }

    /// Whether nobody takes a response any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.0.state.lock().abandoned
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state.lock();
        change(&mut state);
        let waker = state.waker.take();
        // The waiter may run at once, so it is woken without the lock.
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.0.0.state.lock().complete {
            self.push(Err(Error::internal("the instance ended without a response")));
            self.complete();
        }
    }
}

/// The waiter's end.
#[derive(Debug)]
pub(super) struct Receiver(Arc<Shared>);

impl Receiver {
    /// The next response; `None` after the last.
    pub(super) fn poll(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Result<Answer>>> {
        let mut state = self.0.state.lock();
        if let Some(answer) = state.waiting.pop_front() {
            let room_waker = state.room_waker.take();
            drop(state);
            self.0.changed.notify_one();
            room_waker.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(answer));
        }
        if state.complete {
            return Poll::Ready(None);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(ctx.waker())) {
            state.waker = Some(ctx.waker().clone());
        }
        Poll::Pending
    }

    /// Takes no more, unless everything was sent by now: then this is the next.
    pub(super) fn close(&mut self) -> Option<Result<Answer>> {
        let mut state = self.0.state.lock();
        if state.complete {
            return state.waiting.pop_front();
        }
        state.abandoned = true;
        let unread = std::mem::take(&mut state.waiting);
        let room_waker = state.room_waker.take();
        // The tensors are freed only after the lock is released.
        drop(state);
        drop(unread);
        self.0.changed.notify_one();
        room_waker.into_iter().for_each(Waker::wake);
        None
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.close();
    }
}

/// Why a caller that took no response for so long gets no more.
pub fn stalled(time: Duration) -> Error {
    Error::new(Kind::Cancelled, format!("the caller has taken no response for {} s", time.as_secs_f64()))
}

/// Why nobody takes the answer to a running request any more.
pub(super) fn given_up(deadline: Option<Instant>, now: Instant) -> Error {
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Error::new(Kind::DeadlineExceeded, "the deadline passed while the request was executed");
    }
    Error::new(Kind::Cancelled, "the caller is gone")
}
