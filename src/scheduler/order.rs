//! Lets answers out in the order in which their requests were taken in, for models that preserve it.
//!
//! A request gets its [`Turn`] when it is taken in. What an instance gave it, an answer or a failure, is kept until
//! every earlier request has its outcome; the instance goes on meanwhile. A request that leaves without having run, or
//! whose turn is dropped, holds nobody back.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::reply::Answer;
use super::responses::given_up;
use super::sync::Mutex;
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::telemetry::stats::{BatchTimes, ModelStats, RequestTimes};

/// The order of one queue's answers.
#[derive(Debug)]
pub(super) struct Order {
    stats: Arc<ModelStats>,
    /// Held while answers are sent, too, or two instances could send in the wrong order; sending wakes, and runs nothing.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next place.
    next: u64,
    /// Of the requests that have not left: as many as wait, run and are held.
    places: BTreeMap<u64, Place>,
    held: usize,
}

#[derive(Debug)]
enum Place {
    /// The request waits or runs.
    Open,
    /// To be sent when its turn comes.
    Held(oneshot::Sender<Result<Answer>>, Given),
}

/// What an instance gave a request.
#[derive(Debug)]
pub(super) enum Given {
    /// An answer, and what is recorded when it is sent.
    Answer(Box<(Answer, Record)>),
    /// A failure, which is recorded when it is sent.
    Failure(Failed),
}

/// A failed execution of a request.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) arrived: Instant,
    pub(super) deadline: Option<Instant>,
}

/// What is recorded of an answered request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) batch: BatchTimes,
    pub(super) times: RequestTimes,
    pub(super) arrived: Instant,
    pub(super) deadline: Option<Instant>,
}

/// A request's place in the order, and the way to who waits for it.
#[derive(Debug)]
pub(super) struct Turn {
    order: Arc<Order>,
    place: u64,
    /// Taken when it is used.
    reply: Option<oneshot::Sender<Result<Answer>>>,
}

impl Order {
    /// An order whose answers are recorded in `stats` when they are sent.
    pub(super) fn new(stats: Arc<ModelStats>) -> Self {
        Self { stats, state: Mutex::default() }
    }

    /// The last place, for the request with this way back.
    pub(super) fn enter(self: &Arc<Self>, reply: oneshot::Sender<Result<Answer>>) -> Turn {
        let mut state = self.state.lock();
        let place = state.next;
        state.next += 1;
        state.places.insert(place, Place::Open);
        Turn { order: self.clone(), place, reply: Some(reply) }
    }

    /// How many answers wait for their turn.
    pub(super) fn held(&self) -> usize {
        self.state.lock().held
    }

    /// Fills a place, or with `None` leaves it, and sends what nobody is before any more.
    fn put(&self, place: u64, what: Option<Place>) {
        let mut state = self.state.lock();
        match what {
            Some(what) => {
                state.held += 1;
                state.places.insert(place, what);
            }
            None => drop(state.places.remove(&place)),
        }
        while let Some(first) = state.places.first_entry()
            && matches!(first.get(), Place::Held(..))
            && let Place::Held(reply, given) = first.remove()
        {
            state.held -= 1;
            self.send(reply, given);
        }
    }

    fn send(&self, reply: oneshot::Sender<Result<Answer>>, given: Given) {
        let answer = match given {
            Given::Failure(Failed { arrived, deadline, .. }) if reply.is_closed() => {
                return self.left(arrived, deadline);
            }
            Given::Failure(Failed { error, arrived, .. }) => {
                self.stats.request_failed(error.kind(), Instant::now().saturating_duration_since(arrived));
                Err(error)
            }
            Given::Answer(given) if reply.is_closed() => return self.left(given.1.arrived, given.1.deadline),
            Given::Answer(given) => {
                let (answer, record) = *given;
                let total = Instant::now().saturating_duration_since(record.arrived);
                self.stats.request_answered(&record.batch, RequestTimes { total, ..record.times });
                Ok(answer)
            }
        };
        // Whoever waited may have gone.
        let _ = reply.send(answer);
    }

    /// Records a request whose caller did not wait for its turn.
    fn left(&self, arrived: Instant, deadline: Option<Instant>) {
        let now = Instant::now();
        self.stats.request_failed(given_up(deadline, now).kind(), now.saturating_duration_since(arrived));
    }
}

impl Turn {
    /// Whether nobody waits for an answer any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Sends this when the turn comes.
    pub(super) fn give(mut self, given: Given) {
        if let Some(reply) = self.reply.take() {
            self.order.put(self.place, Some(Place::Held(reply, given)));
        }
    }

    /// Sends this at once and leaves the order.
    pub(super) fn pass(mut self, answer: Result<Answer>) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(answer);
            self.order.put(self.place, None);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.reply.take().is_some() {
            self.order.put(self.place, None);
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
