//! The `Infer` seam: one request in, a stream of responses out.
//!
//! The engine implements it; upstreams and test puppets do too. Nothing here knows how a request is executed.

mod follow;
mod request;
mod response;
pub mod round;

use std::pin::Pin;

use futures_core::Stream;

pub use follow::Follow;
pub use request::{CorrelationId, ParameterValue, Parameters, Request, RequestedOutput, Sequence};
pub use response::{Output, Response, Times};

use crate::error::Result;

/// The instant of the clock that requests are timed with: tokio's, so that tests can make time virtual.
pub type Instant = tokio::time::Instant;

/// The responses to one request: exactly one element unless the model is decoupled; an error is the last element.
///
/// Dropping it cancels the request: if it still waits it leaves the queue, if it runs its result is discarded.
pub type Responses = Pin<Box<dyn Stream<Item = Result<Response>> + Send>>;

/// Answers requests.
pub trait Infer: Send + Sync {
    /// Starts one request. A refusal is the first and only element of the stream.
    fn infer(&self, request: Request) -> Responses;
}

/// The answer to a request that has exactly one: the first element of its responses.
///
/// # Errors
/// The request's own error; [`crate::error::Kind::Internal`] if there is no response at all.
pub async fn only(mut responses: Responses) -> Result<Response> {
    match std::future::poll_fn(|ctx| responses.as_mut().poll_next(ctx)).await {
        Some(response) => response,
        None => Err(crate::error::Error::internal("the request ended without a response")),
    }
}
