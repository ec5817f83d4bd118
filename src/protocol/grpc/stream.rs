//! ModelStreamInfer: many requests and their responses on one stream.
//!
//! Responses of ordinary models leave in the order of their requests; those of decoupled models as they come. A failed
//! request is a message with its id, and the stream goes on, unless the caller asked for the true status. One that cannot
//! be read has no id, and ends the stream once those before it are answered. The stream also ends when the caller has
//! half-closed it, or the server drains, and all requests are answered; a caller that might have sent more hears that the
//! server stops. Dropping it cancels all of them. Begin with [`Infers`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::StreamExt as _;
use futures_util::stream::{FuturesOrdered, SelectAll};
use prost::Message as _;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Code, Status};

use super::messages::Message;
use super::{dispatch, encode, framing};
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use crate::gateway::request_memory::Portion;
use crate::infer::{Instant, Parameters, Response, Responses, only};
use crate::model::Version;
use crate::protocol::status;
use crate::protocol::v2::context::Context as RequestContext;
use crate::protocol::v2::decode::Arrival;
use crate::protocol::v2::infer::{self, Rpc, Started};
use crate::protocol::v2::wire::{InferParameter, ModelInferRequest, ModelStreamInferResponse};

/// What a stream needs to know beside its requests.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most requests in flight; more are not read.
    pub requests_max: usize,
    /// The most bytes of one response.
    pub response_bytes_max: usize,
    /// End the stream with the true status at the first error (`triton_grpc_error`).
    pub end_at_error: bool,
    /// When the caller stops waiting for all of it.
    pub deadline: Option<Instant>,
    /// The call's id, and whether its requests may be traced.
    pub context: RequestContext,
    /// The parameters that the call's headers add to each request.
    pub forwarded: Vec<(String, InferParameter)>,
}

/// One response or error, with what a message needs.
type Outcome = std::result::Result<Response, Failure>;

struct Failure {
    id: String,
    error: Error,
    /// Whether the request has no further response.
    last: bool,
}

impl Failure {
    /// The end of a request.
    fn new(id: String, error: Error) -> Self {
        Self { id, error, last: true }
    }
}

type Ordered = FuturesOrdered<Pin<Box<dyn Future<Output = Outcome> + Send>>>;
type Unordered = SelectAll<Pin<Box<dyn Stream<Item = Outcome> + Send>>>;

/// The response side of one stream; polling it reads requests.
pub struct Infers<S> {
    gateway: Arc<Gateway>,
    options: Options,
    /// `None` once no more requests are read.
    requests: Option<S>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The server drains: no more requests are read, whether there are any or not.
    drained: bool,
    ordered: Ordered,
    unordered: Unordered,
    /// Whose turn it is, so that neither keeps the other waiting.
    unordered_first: bool,
    /// What the stream ends with once all requests in flight are answered: nothing could be read behind them.
    failure: Option<Status>,
    /// The end of the stream was sent.
    ended: bool,
}

impl<S> Infers<S>
where
    S: Stream<Item = Result<Message, Status>> + Send + Unpin,
{
    /// Answers `requests` through `gateway`.
    pub fn new(gateway: Arc<Gateway>, requests: S, options: Options) -> Self {
        let draining = Box::pin(gateway.drain_token().cancelled_owned());
        Self {
            gateway,
            options,
            requests: Some(requests),
            draining,
            drained: false,
            ordered: Ordered::new(),
            unordered: Unordered::new(),
            unordered_first: false,
            failure: None,
            ended: false,
        }
    }

    /// Reads what has arrived, as far as the limit allows.
    ///
    /// # Errors
    /// The status that the transport ended the stream with.
    fn poll_requests(&mut self, ctx: &mut Context<'_>) -> Result<(), Status> {
        self.drained = self.drained || self.draining.as_mut().poll(ctx).is_ready();
        while !self.drained && self.ordered.len() + self.unordered.len() < self.options.requests_max {
            let Some(requests) = &mut self.requests else { return Ok(()) };
            match requests.poll_next_unpin(ctx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(message)) => {
                    match message.and_then(framing::request) {
                        Ok((request, portion)) => self.start(request, portion),
                        // The caller went away, and waits for nothing.
                        Err(status) if status.code() == Code::Cancelled => return Err(status),
                        Err(status) => {
                            self.gateway.refused(dispatch::kind(status.code()));
                            self.requests = None;
                            self.failure = Some(status);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, mut request: ModelInferRequest, portion: Portion) {
        request.parameters.extend(self.options.forwarded.iter().cloned());
        let context = self.options.context.another();
        let arrival = Arrival { at: Instant::now(), deadline: self.options.deadline, context, portion };
        let id = request.id.clone();
        let model = request.model_name.clone();
        match infer::start(&self.gateway, request, arrival, Rpc::Stream) {
            Err(error) => self.ordered.push_back(Box::pin(std::future::ready(Err(Failure::new(id, error))))),
            Ok(Started { responses, decoupled: false, .. }) => {
                self.ordered
                    .push_back(Box::pin(async move { only(responses).await.map_err(|error| Failure::new(id, error)) }));
            }
            Ok(Started { responses, version, empty_final_response, .. }) => {
                let closing = empty_final_response.then(|| empty_final(&model, version, &id));
                self.unordered.push(Box::pin(decoupled(responses, id, closing)));
            }
        }
    }

    /// The next response of any request; `None` if there is no request in flight.
    fn poll_outcome(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        self.unordered_first = !self.unordered_first;
        for unordered in [self.unordered_first, !self.unordered_first] {
            let next = if unordered { self.unordered.poll_next_unpin(ctx) } else { self.ordered.poll_next_unpin(ctx) };
            if let Poll::Ready(Some(outcome)) = next {
                return Poll::Ready(Some(outcome));
            }
        }
        if self.ordered.is_empty() && self.unordered.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }

    /// What a stream ends with that its caller has not ended: something may be on its way that nobody will answer.
    fn cut_off(&mut self, ctx: &mut Context<'_>) -> Option<Status> {
        let requests = self.requests.as_mut()?;
        let is_ended = matches!(requests.poll_next_unpin(ctx), Poll::Ready(None));
        (!is_ended).then(stopping)
    }

    fn message(&self, outcome: Outcome) -> Result<ModelStreamInferResponse, Status> {
        let failure = match outcome {
            Ok(response) => {
                let (id, last) = (response.id.clone(), response.last);
                let message = encode::stream_response(response);
                let length = message.encoded_len();
                if length <= self.options.response_bytes_max {
                    return Ok(message);
                }
                let refusal = framing::response_too_large(length, self.options.response_bytes_max);
                Failure { id, error: Error::invalid(refusal.message().to_owned()), last }
            }
            Err(failure) => failure,
        };
        if self.options.end_at_error {
            return Err(status::grpc(&failure.error));
        }
        Ok(encode::stream_error(&failure.error, failure.id, failure.last))
    }
}

impl<S> Stream for Infers<S>
where
    S: Stream<Item = Result<Message, Status>> + Send + Unpin,
{
    type Item = Result<ModelStreamInferResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let item = match this.poll_requests(ctx) {
            Err(status) => Err(status),
            Ok(()) => match ready!(this.poll_outcome(ctx)) {
                Some(outcome) => this.message(outcome),
                None if this.requests.is_some() && !this.drained => return Poll::Pending,
                None => {
                    this.ended = true;
                    return Poll::Ready(this.failure.take().or_else(|| this.cut_off(ctx)).map(Err));
                }
            },
        };
        if item.is_err() {
            // All that is in flight is cancelled now, not when the transport has done with the stream.
            this.ended = true;
            this.requests = None;
            this.ordered.clear();
            this.unordered.clear();
        }
        Poll::Ready(Some(item))
    }
}

/// The refusal of a stream while the server stops.
pub fn stopping() -> Status {
    Status::unavailable("GRPC server is shutting down and has stopped accepting new requests.")
}

/// The message without data that ends a request.
fn empty_final(model: &str, version: Version, id: &str) -> Response {
    Response {
        model: model.into(),
        version,
        id: id.to_owned(),
        outputs: Vec::new(),
        parameters: Parameters::new(),
        last: true,
        times: None,
    }
}

/// The responses of a decoupled model, with `closing` behind them if none of them was the last.
fn decoupled(responses: Responses, id: String, closing: Option<Response>) -> impl Stream<Item = Outcome> + Send {
    let state = (Some(responses), closing);
    futures_util::stream::unfold(state, move |(responses, closing)| {
        let id = id.clone();
        async move {
            let mut responses = responses?;
            match responses.next().await {
                Some(Ok(response)) => {
                    let rest = (!response.last).then_some(responses);
                    Some((Ok(response), (rest, closing)))
                }
                Some(Err(error)) => Some((Err(Failure::new(id, error)), (None, None))),
                None => closing.map(|closing| (Ok(closing), (None, None))),
            }
        }
    })
}
