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
use super::piece::Piece;
use crate::gateway::request_memory::Portion;

/// Answers the calls of every connection of a port.
pub trait Service: Send + Sync + 'static {
    /// The body of an answer.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;

    /// Answers one call. Dropping the future, or the body of its answer, cancels the call.
    fn call(&self, request: Request<Body>) -> impl Future<Output = Response<Self::Body>> + Send;

    /// What counts the memory of an answer; by default nothing does.
    fn portion(&self) -> Portion {
        Portion::default()
    }

    /// Resolves once nothing is in flight that the transport cannot see, such as the requests within a stream.
    fn ended(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The body of an answer; its call is over when this is dropped, and the last of it has left when its pieces are, too.
#[derive(Debug)]
pub struct Answer<B> {
    body: B,
    call: Call,
    /// What of the body is known to be there and was not taken yet.
    portion: Portion,
}

impl<B: http_body::Body> Answer<B> {
    /// The answer to `call`, as the front end made it, whose memory is counted by `portion`, which is empty.
    pub fn begin(body: B, call: Call, mut portion: Portion) -> Self {
        portion.owe(usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX));
        Self { body, call, portion }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Answer<B> {
    type Data = Piece;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, B::Error>>> {
        let Self { body, call, portion } = self.get_mut();
        let frame = Pin::new(body).poll_frame(ctx);
        frame.map_ok(|frame| {
            frame.map_data(|bytes| {
                let length = bytes.len();
                portion.owe(length.saturating_sub(portion.bytes()));
                Piece::new(bytes, call.answer(), portion.split(length))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A service that answers nothing.
    pub struct Silent;

    impl Service for Silent {
        type Body = http_body_util::Empty<Bytes>;

        async fn call(&self, _: Request<Body>) -> Response<Self::Body> {
            std::future::pending().await
        }
    }
}
