//! What a front end is to the transport: requests in, responses out.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};

use super::body::Body;
use super::peer::Call;

/// Answers the calls of every connection of a port.
pub trait Service: Send + Sync + 'static {
    /// The body of an answer.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;

    /// Answers one call. Dropping the future, or the body of its answer, cancels the call.
    fn call(&self, request: Request<Body>) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Resolves once nothing is in flight that the transport cannot see, such as the requests within a stream.
    fn ended(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The body of an answer; its call is over when this is dropped.
#[derive(Debug)]
pub struct Answer<B> {
    /// As the front end made it.
    pub body: B,
    /// Kept for its end.
    pub _call: Call,
}

impl<B: http_body::Body + Unpin> http_body::Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(ctx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
