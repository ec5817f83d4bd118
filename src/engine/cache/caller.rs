//! One request to a model that uses the cache: finds its answer, waits for that of an equal request, or leads.
//!
//! Each caller has its own deadline and outcome, whatever becomes of the others. Begin with [`Caller::new`].

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::time::Sleep;

use super::flight::{Flight, Outcome};
use super::key::Search;
use super::store::Key;
use super::{FlightKey, ModelCache, timeout};
use crate::error::{Error, Kind, Result};
use crate::infer::{Instant, Request, Response, Responses, round};
use crate::scheduler::queue_full;
use crate::telemetry::metrics::InFlight;
use crate::telemetry::stats::CacheHit;

/// A request that was not started, and the way to start it.
pub struct Own<F> {
    /// The request.
    pub request: Request,
    /// Counts it as in flight until its outcome.
    pub in_flight: InFlight,
    /// Starts it.
    pub start: F,
}

impl<F> Own<F> {
    /// Its outcome without a start.
    fn ended(&self, cache: &ModelCache, kind: Kind) {
        cache.stats.request_failed(kind, Instant::now().saturating_duration_since(self.request.arrived));
    }
}

impl<F: FnOnce(Request, InFlight) -> Responses> Own<F> {
    fn start(self) -> Responses {
        (self.start)(self.request, self.in_flight)
    }
}

/// The responses of one request.
pub struct Caller<F> {
    cache: Arc<ModelCache>,
    stage: Stage<F>,
}

enum Stage<F> {
    /// The outcome is there.
    Done(Result<Response>),
    /// It is read for what it may have in common with others.
    Looks { search: Box<Search>, own: Own<F>, began: Instant },
    /// An equal request is under way.
    Waits(Waits<F>),
    /// Its own request is under way, and others may wait for it.
    Leads { key: FlightKey, flight: Arc<Flight>, token: u64 },
    /// Its own request is under way for itself.
    Alone(Responses),
    /// The outcome was given.
    Ended,
}

struct Waits<F> {
    key: FlightKey,
    flight: Arc<Flight>,
    token: u64,
    own: Own<F>,
    since: Instant,
    /// How long it had looked.
    looked: Duration,
    /// When and why it waits no longer.
    give_up: Option<(Pin<Box<Sleep>>, Kind)>,
}

impl<F: FnOnce(Request, InFlight) -> Responses + Unpin> Caller<F> {
    /// Looks for an answer to a request, and if there is none begins to wait or to lead.
    pub fn new(cache: Arc<ModelCache>, mut own: Own<F>) -> Self {
        let began = Instant::now();
        if own.request.inputs_shared {
            // The caller can change the bytes between this look at them and the model's, and others would get the answer.
            for input in &mut own.request.inputs {
                input.tensor.data = Bytes::copy_from_slice(&input.tensor.data);
            }
            own.request.inputs_shared = false;
        }
        let mut search = Search::new(cache.owner, &own.request);
        let stage = match search.step(&own.request) {
            Some(key) => enter(&cache, key, own, began),
            None => Stage::Looks { search: Box::new(search), own, began },
        };
        Self { cache, stage }
    }

    /// Reads on, and looks for the answer once all was read; else asks to be polled again, when others had their turn.
    fn look(&mut self, ctx: &mut Context<'_>) -> Poll<()> {
        let Stage::Looks { search, own, .. } = &mut self.stage else { return Poll::Ready(()) };
        let Some(key) = search.step(&own.request) else {
            return round::another_turn(ctx);
        };
        if let Stage::Looks { own, began, .. } = std::mem::replace(&mut self.stage, Stage::Ended) {
            self.stage = enter(&self.cache, key, own, began);
        }
        Poll::Ready(())
    }

    /// Has its own request under way, for itself and for others.
    fn lead(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Result<Response>>> {
        let Stage::Leads { key, flight, token } = &self.stage else { return Poll::Ready(None) };
        ready!(self.cache.poll(key, flight, *token, ctx));
        let share = flight.share();
        // What is behind an answer that was shared is nothing.
        self.stage = match share.rest {
            Some(rest) if !matches!(&share.first, Some(Ok(first)) if first.last) => Stage::Alone(rest),
            _ => Stage::Ended,
        };
        Poll::Ready(share.first)
    }

    /// Waits for the request of another, as long as its own time allows.
    fn wait(&mut self, ctx: &mut Context<'_>) -> Poll<()> {
        let Stage::Waits(waits) = &mut self.stage else { return Poll::Ready(()) };
        let outcome = match self.cache.poll(&waits.key, &waits.flight, waits.token, ctx) {
            Poll::Ready(outcome) => Ok(outcome),
            Poll::Pending => Err(ready!(waits.poll_give_up(ctx))),
        };
        if let Stage::Waits(waits) = std::mem::replace(&mut self.stage, Stage::Ended) {
            self.stage = match outcome {
                Ok(outcome) => landed(&self.cache, waits, outcome),
                Err(kind) => Stage::Done(Err(waits.given_up(&self.cache, kind))),
            };
        }
        Poll::Ready(())
    }
}

/// Finds the answer, or begins to wait or to lead.
fn enter<F>(cache: &Arc<ModelCache>, key: Key, own: Own<F>, began: Instant) -> Stage<F>
where
    F: FnOnce(Request, InFlight) -> Responses,
{
    let (level, policy) = cache.level(own.request.priority);
    let flight_key = (key, level);
    let mut flights = cache.flights.lock();
    if let Some(flight) = flights.get(&flight_key).cloned() {
        if cache.waiting.fetch_add(1, Relaxed) >= policy.requests_max {
            cache.waiting.fetch_sub(1, Relaxed);
            drop(flights);
            cache.stats.request_refused(Kind::QueueFull);
            return Stage::Done(Err(queue_full()));
        }
        drop(flights);
        let start_by = timeout(policy, own.request.timeout).map(|timeout| own.request.arrived + timeout);
        return Stage::Waits(Waits::new((flight_key, flight), own, began, start_by));
    }
    let now = Instant::now();
    if let Some(entry) = cache.cache.find(&key, now) {
        drop(flights);
        let (lookup, total) = (now - began, now.saturating_duration_since(own.request.arrived));
        cache.stats.cache_hit(&CacheHit { lookup, total, waited: Duration::ZERO, shared: false });
        return Stage::Done(Ok(entry.answer(own.request.id)));
    }
    let flight = Arc::new(Flight::default());
    flights.insert(flight_key, flight.clone());
    drop(flights);
    let looked = began.elapsed();
    flight.begin(own.start(), looked);
    Stage::Leads { key: flight_key, token: flight.token(), flight }
}

/// What a caller that waited does with the outcome.
fn landed<F>(cache: &Arc<ModelCache>, waits: Waits<F>, outcome: Outcome) -> Stage<F>
where
    F: FnOnce(Request, InFlight) -> Responses,
{
    cache.waiting.fetch_sub(1, Relaxed);
    let Waits { key: (key, _), own, since, looked, .. } = waits;
    match outcome {
        Outcome::Answered(entry) => {
            let now = Instant::now();
            cache.stats.cache_hit(&CacheHit {
                lookup: looked,
                waited: now - since,
                total: now.saturating_duration_since(own.request.arrived),
                shared: true,
            });
            Stage::Done(Ok(entry.answer(own.request.id)))
        }
        Outcome::Open => enter(cache, key, own, Instant::now()),
        Outcome::Apart => {
            cache.stats.cache_missed(looked);
            Stage::Alone(own.start())
        }
    }
}

impl<F> Waits<F> {
    fn new((key, flight): (FlightKey, Arc<Flight>), own: Own<F>, began: Instant, start_by: Option<Instant>) -> Self {
        let since = Instant::now();
        let deadline = own.request.deadline.map(|at| (at, Kind::DeadlineExceeded));
        let timeout = start_by.map(|at| (at, Kind::TimedOut));
        let give_up = [deadline, timeout].into_iter().flatten().min_by_key(|(at, _)| *at);
        let give_up = give_up.map(|(at, kind)| (Box::pin(tokio::time::sleep_until(at)), kind));
        Self { key, token: flight.token(), flight, own, since, looked: since - began, give_up }
    }

    /// Why it waits no longer, if its time is up.
    fn poll_give_up(&mut self, ctx: &mut Context<'_>) -> Poll<Kind> {
        match &mut self.give_up {
            None => Poll::Pending,
            Some((timer, kind)) => timer.as_mut().poll(ctx).map(|()| *kind),
        }
    }

    /// It waits no longer, and its request was never started.
    fn given_up(self, cache: &ModelCache, kind: Kind) -> Error {
        cache.waiting.fetch_sub(1, Relaxed);
        self.flight.leave(self.token);
        self.own.ended(cache, kind);
        match kind {
            Kind::TimedOut => Error::new(kind, "Request timeout expired"),
            Kind::DeadlineExceeded => Error::new(kind, "the deadline passed while an equal request was executed"),
            _ => Error::new(kind, "the caller is gone"),
        }
    }
}

impl<F: FnOnce(Request, InFlight) -> Responses + Unpin> Stream for Caller<F> {
    type Item = Result<Response>;

    fn poll_next(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Ended => return Poll::Ready(None),
                Stage::Alone(responses) => return responses.as_mut().poll_next(ctx),
                Stage::Looks { .. } => ready!(this.look(ctx)),
                Stage::Leads { .. } => return this.lead(ctx),
                Stage::Waits(_) => ready!(this.wait(ctx)),
                Stage::Done(_) => {
                    let Stage::Done(outcome) = std::mem::replace(&mut this.stage, Stage::Ended) else { continue };
                    return Poll::Ready(Some(outcome));
                }
            }
        }
    }
}

impl<F> Drop for Caller<F> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Looks { own, .. } => own.ended(&self.cache, Kind::Cancelled),
            Stage::Leads { key, flight, .. } => self.cache.abandon(&key, &flight),
            Stage::Waits(waits) => drop(waits.given_up(&self.cache, Kind::Cancelled)),
            // A request of its own is cancelled by dropping it.
            Stage::Alone(_) | Stage::Done(_) | Stage::Ended => {}
        }
    }
}
