//! What became of a request, for its trace and for the log.
//!
//! Begin with [`Observer::outcome`], which sees each response and each error of every request, once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::context::Context as RequestContext;
use crate::error::{Error, Kind, Result};
use crate::gateway::Handle;
use crate::gateway::request_memory::Portion;
use crate::infer::{Instant, Response, Responses};

/// Sees what a request is answered with.
pub struct Observer {
    /// The request's id and trace.
    pub context: RequestContext,
    /// The version that it is for, once that is known.
    pub handle: Option<Arc<Handle>>,
    /// When it had been read.
    pub arrived: Instant,
    /// The memory that it holds until it is answered.
    pub _portion: Portion,
}

impl Observer {
    /// Notes a response or an error.
    pub fn outcome(&self, outcome: &Result<Response>) {
        match outcome {
            Ok(response) => {
                if let Some(trace) = self.context.trace() {
                    trace.responded(response);
                }
                if response.last {
                    self.log(None);
                }
            }
            Err(error) => self.failed(error),
        }
    }

    /// Notes that the request is refused, or has failed.
    pub fn failed(&self, error: &Error) {
        if let Some(trace) = self.context.trace() {
            trace.failed(error);
        }
        match error.kind() {
            // What is not the caller's doing concerns the operator.
            Kind::Backend | Kind::OutOfMemory | Kind::DeviceLost | Kind::Internal => {
                let (id, trace_id) = (self.context.request_id(), self.trace_id());
                let model = self.handle.as_ref().map(|handle| &*handle.config.name);
                tracing::error!(request_id = id, trace_id, model, %error, "request failed");
            }
            _ => self.log(Some(error)),
        }
    }

    /// The same responses, each of them seen; the answer to a request begins with its last one.
    pub fn around(self, responses: Responses) -> Responses {
        Box::pin(Observed { responses, observer: self, ended: false })
    }

    /// The line of the access log.
    fn log(&self, error: Option<&Error>) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (id, trace_id) = (self.context.request_id(), self.trace_id());
        let model = self.handle.as_ref().map(|handle| &*handle.config.name);
        let version = self.handle.as_ref().map(|handle| handle.version);
        let microseconds = self.arrived.elapsed().as_micros() as u64;
        match error {
            None => tracing::debug!(request_id = id, trace_id, model, version, microseconds, "request answered"),
            Some(error) => {
                let kind = error.kind();
                tracing::debug!(request_id = id, trace_id, model, version, microseconds, ?kind, %error, "request refused");
            }
        }
    }

    fn trace_id(&self) -> Option<String> {
        self.context.trace()?.id().map(|id| id.to_string())
    }
}

/// Responses on their way past an observer.
struct Observed {
    responses: Responses,
    observer: Observer,
    /// The last response, an error or the end was seen.
    ended: bool,
}

impl Stream for Observed {
    type Item = Result<Response>;

    fn poll_next(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.responses.as_mut().poll_next(ctx));
        let ends = match &next {
            Some(outcome) => {
                self.observer.outcome(outcome);
                outcome.as_ref().map_or(true, |response| response.last)
            }
            None => true,
        };
        if ends && !self.ended {
            // A decoupled model may end without a last response.
            if next.is_none() {
                self.observer.log(None);
            }
            self.observer.context.sending();
            self.ended = true;
        }
        Poll::Ready(next)
    }
}
