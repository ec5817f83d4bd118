//! What a request in an ensemble waits for: a place in a step, or a step's next response.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::values::Lineage;
use crate::error::Result;
use crate::infer::{Follow, Instant, Response, Responses, Times};
use crate::tensor::NamedTensor;

/// A step that has its inputs.
pub(super) struct Start {
    pub(super) step: usize,
    /// The number of the values that it has taken.
    pub(super) number: u64,
    pub(super) inputs: Vec<NamedTensor>,
    /// The rows of its batch, if its model batches.
    pub(super) rows: Option<usize>,
    /// How long the request has waited in queues until here.
    pub(super) queued: Duration,
    pub(super) lineage: Option<Arc<Lineage>>,
    /// When it had its inputs.
    pub(super) since: Instant,
}

/// A step that runs.
pub(super) struct Running {
    pub(super) step: usize,
    /// The number of the values that it has taken.
    pub(super) number: u64,
    pub(super) responses: Responses,
    /// The rows of its batch, if its model batches.
    pub(super) rows: Option<usize>,
    /// How long the request has waited in queues until here.
    pub(super) queued: Duration,
    pub(super) lineage: Option<Arc<Lineage>>,
    /// How many of its responses are under way behind it.
    pub(super) under_way: Arc<AtomicUsize>,
    /// Of its latest response.
    pub(super) times: Option<Times>,
    pub(super) follow: Option<Arc<dyn Follow>>,
    /// Its place in the step.
    pub(super) _permit: Option<OwnedSemaphorePermit>,
}

/// What has happened.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and moves once")]
pub(super) enum Event {
    /// A start has its place, or the ensemble is being unloaded.
    Permitted(Start, Result<OwnedSemaphorePermit, AcquireError>),
    /// A step has answered; `None` if it gives no more.
    Answered(Running, Option<Result<Response>>),
}

type Permit = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// A wait for one event.
pub(super) struct Task(Option<Waiting>);

enum Waiting {
    Place(Start, Permit),
    Response(Running),
}

impl Task {
    /// Waits for a place in a step.
    pub(super) fn wait(start: Start, step: Arc<Semaphore>) -> Self {
        Self(Some(Waiting::Place(start, Box::pin(step.acquire_owned()))))
    }

    /// Waits for the next response of a step.
    pub(super) fn run(running: Running) -> Self {
        Self(Some(Waiting::Response(running)))
    }
}

impl Future for Task {
    type Output = Event;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Event> {
        match self.0.take() {
            Some(Waiting::Place(start, mut permit)) => match permit.as_mut().poll(ctx) {
                Poll::Ready(permit) => return Poll::Ready(Event::Permitted(start, permit)),
                Poll::Pending => self.0 = Some(Waiting::Place(start, permit)),
            },
            Some(Waiting::Response(mut running)) => match running.responses.as_mut().poll_next(ctx) {
                Poll::Ready(response) => return Poll::Ready(Event::Answered(running, response)),
                Poll::Pending => self.0 = Some(Waiting::Response(running)),
            },
            None => {}
        }
        Poll::Pending
    }
}
