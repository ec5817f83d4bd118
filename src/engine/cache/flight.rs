//! One execution that several equal requests wait for.
//!
//! It is the request of the caller that came first, which leads. Whoever of the callers is awake drives it, so that no
//! caller waits for another that has stopped reading; who leads can be cancelled at any time, and then another must lead.
//! Begin with [`Flight::poll`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use parking_lot::Mutex;

use super::entry::Entry;
use crate::error::{Kind, Result};
use crate::infer::{Response, Responses};

/// What an execution comes to for those who did not lead it.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An answer for all.
    Answered(Arc<Entry>),
    /// The leader did not get to its answer for a reason of its own; another should lead.
    Open,
    /// There is no answer to share; each goes on alone.
    Apart,
}

/// What it comes to for the leader.
#[derive(Default)]
pub struct Share {
    /// The first element of its responses.
    pub first: Option<Result<Response>>,
    /// What follows, if there was no answer to share.
    pub rest: Option<Responses>,
}

/// One execution and those who wait for it.
#[derive(Default)]
pub struct Flight {
    /// Held while the leader's request is polled, and never across an await.
    run: Mutex<Run>,
    wakers: Arc<Wakers>,
    tokens: AtomicU64,
}

#[derive(Default)]
struct Run {
    /// The leader's request, from its start to the first element.
    responses: Option<Responses>,
    /// How long the leader had looked for an answer.
    looked: Duration,
    outcome: Option<Outcome>,
    /// Taken by the leader.
    share: Share,
}

impl Flight {
    /// What a caller is known by.
    pub fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Relaxed)
    }

    /// Begins: the leader's request runs.
    pub fn begin(&self, responses: Responses, looked: Duration) {
        let mut run = self.run.lock();
        (run.responses, run.looked) = (Some(responses), looked);
        drop(run);
        self.wakers.wake_all();
    }

    /// Waits for the outcome. The first who sees an answer calls `land` with it, and with how long the leader had looked
    /// for one; `None` if there is no answer to share.
    pub fn poll(
        &self,
        token: u64,
        ctx: &mut Context<'_>,
        land: impl FnOnce(Option<&Response>, Duration) -> Option<Arc<Entry>>,
    ) -> Poll<Outcome> {
        let mut run = self.run.lock();
        if let Some(outcome) = &run.outcome {
            return Poll::Ready(outcome.clone());
        }
        self.wakers.register(token, ctx.waker());
        // Between the place of a flight and its begin there is a moment.
        let Some(responses) = run.responses.as_mut() else { return Poll::Pending };
        let waker = Waker::from(self.wakers.clone());
        let first = ready!(responses.as_mut().poll_next(&mut Context::from_waker(&waker)));
        let whole = first.as_ref().and_then(|first| first.as_ref().ok()).filter(|response| response.last);
        let outcome = match (land(whole, run.looked), &first) {
            (Some(entry), _) => Outcome::Answered(entry),
            (None, Some(Err(error))) if is_of_caller(error.kind()) => Outcome::Open,
            (None, _) => Outcome::Apart,
        };
        run.share = Share { first, rest: run.responses.take() };
        run.outcome = Some(outcome.clone());
        drop(run);
        self.wakers.wake_all();
        Poll::Ready(outcome)
    }

    /// What the leader gets, once there is an outcome.
    pub fn share(&self) -> Share {
        std::mem::take(&mut self.run.lock().share)
    }

    /// The leader is gone. Gives how long it had looked, unless there is an outcome already.
    pub fn abandon(&self) -> Option<Duration> {
        let mut run = self.run.lock();
        // Dropping them is the cancellation, which is no business of the others.
        let (responses, share) = (run.responses.take(), std::mem::take(&mut run.share));
        let abandoned = run.outcome.is_none().then_some(run.looked);
        run.outcome.get_or_insert(Outcome::Open);
        drop(run);
        drop((responses, share));
        self.wakers.wake_all();
        abandoned
    }

    /// A caller waits no longer.
    pub fn leave(&self, token: u64) {
        self.wakers.waiting.lock().retain(|(each, _)| *each != token);
    }
}

/// Whether an error has to do with the caller that got it, and none with an equal request of another.
fn is_of_caller(kind: Kind) -> bool {
    match kind {
        Kind::Cancelled | Kind::DeadlineExceeded | Kind::TimedOut | Kind::BudgetExceeded => true,
        Kind::InvalidArgument
        | Kind::NotFound
        | Kind::AlreadyExists
        | Kind::Unimplemented
        | Kind::Unavailable
        | Kind::QueueFull
        | Kind::Backend
        | Kind::OutOfMemory
        | Kind::DeviceLost
        | Kind::Internal => false,
    }
}

/// The callers that sleep. Wakes all of them: one drives the request on, and all see the outcome.
#[derive(Default)]
struct Wakers {
    waiting: Mutex<Vec<(u64, Waker)>>,
}

impl Wakers {
    fn register(&self, token: u64, waker: &Waker) {
        let mut waiting = self.waiting.lock();
        match waiting.iter_mut().find(|(each, _)| *each == token) {
            Some((_, there)) => there.clone_from(waker),
            None => waiting.push((token, waker.clone())),
        }
    }

    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }
}
