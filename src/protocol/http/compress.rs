//! Undoes the compression of requests, and compresses what is answered if the client wants that.
//!
//! The bound of a request's size holds for what it is when decompressed: it is counted as it is read. Begin with
//! [`both_ways`].

use std::convert::Infallible;
use std::future::Ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderValue, StatusCode};
use http_body::Frame;
use tower::{Service, ServiceExt as _};
use tower_http::CompressionLevel;
use tower_http::compression::Compression;
use tower_http::decompression::Decompression;

use super::counted::Counted;
use super::{App, reply};
use crate::error::Kind;
use crate::infer::round;
use crate::protocol::v2::TURN_BYTES;

/// What a request may be compressed with.
const ACCEPTED: &str = "gzip, deflate, zstd";

/// What the middleware knows of a route.
#[derive(Clone)]
pub struct Coded {
    /// The front end.
    pub app: Arc<App>,
    /// Its place in the table.
    pub route: Counted,
    /// Whether its requests are counted as inference.
    pub inference: bool,
    /// Whether its answers may be compressed.
    pub answers: bool,
}

/// Lets a route read what the sender has written, and answer what the client reads.
pub async fn both_ways(State(coded): State<Coded>, request: Request, next: Next) -> Response {
    let mut response = coded_ways(&coded, request, next).await;
    coded.route.count(&coded.app.answers, &mut response);
    response
}

async fn coded_ways(coded: &Coded, request: Request, next: Next) -> Response {
    let wanted = request.headers().get(ACCEPT_ENCODING).filter(|_| coded.answers).cloned();
    let request = match request.headers().get(CONTENT_ENCODING) {
        None => request,
        Some(encoding) if known(encoding) => decompressed(request).await,
        Some(encoding) => {
            if coded.inference {
                coded.app.gateway.refused(Kind::Unimplemented);
            }
            return unknown(encoding);
        }
    };
    let answer = next.run(request).await;
    match wanted {
        // Clients read the message of an error as it comes.
        Some(wanted) if answer.status().is_success() => compressed(wanted, answer).await,
        _ => answer,
    }
}

fn known(encoding: &HeaderValue) -> bool {
    matches!(encoding.as_bytes(), b"gzip" | b"deflate" | b"zstd" | b"identity")
}

fn unknown(encoding: &HeaderValue) -> Response {
    let message = format!("Content-Encoding {encoding:?} is not supported, use one of: {ACCEPTED}");
    let mut response = reply::error(StatusCode::NOT_IMPLEMENTED, &message);
    response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED));
    response
}

/// `request` with the body that was compressed.
async fn decompressed(request: Request) -> Request {
    let (mut head, body) = request.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    // The library undoes what a client receives; the body does not know in which direction it goes.
    let mut received = Response::new(body);
    if let Some(encoding) = head.headers.remove(CONTENT_ENCODING) {
        received.headers_mut().insert(CONTENT_ENCODING, encoding);
    }
    match Decompression::new(given(received)).oneshot(http::Request::new(())).await {
        Ok(plain) => Request::from_parts(head, Body::new(InTurns::new(plain.into_body()))),
        Err(never) => match never {},
    }
}

/// A body that lets the thread's other tasks run from time to time, as one does that waits for the network: what is
/// compressed a thousandfold need not.
struct InTurns<B> {
    body: B,
    /// How much came in this turn.
    bytes: usize,
}

impl<B> InTurns<B> {
    fn new(body: B) -> Self {
        Self { body, bytes: 0 }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for InTurns<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if this.bytes >= TURN_BYTES {
            this.bytes = 0;
            return round::another_turn(ctx);
        }
        let frame = Pin::new(&mut this.body).poll_frame(ctx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            this.bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        frame
    }
}

/// `answer` compressed as the client prefers, or as it is.
async fn compressed(wanted: HeaderValue, answer: Response) -> Response {
    let mut request = http::Request::new(());
    request.headers_mut().insert(ACCEPT_ENCODING, wanted);
    let compression = Compression::new(given(answer)).quality(CompressionLevel::Fastest);
    match compression.oneshot(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(never) => match never {},
    }
}

/// A service that answers one request with `response`.
fn given(
    response: Response,
) -> impl Service<http::Request<()>, Response = Response, Error = Infallible, Future = Ready<Result<Response, Infallible>>>
+ Send {
    let mut response = Some(response);
    tower::service_fn(move |_| std::future::ready(Ok(response.take().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn others_have_their_turn_while_a_body_is_read() {
        let pieces = std::iter::repeat_n(Ok::<_, Infallible>(Bytes::from(vec![7; 1000])), 1000);
        let mut body = InTurns::new(Body::from_stream(futures_util::stream::iter(pieces)));
        let (mut bytes, mut turns) = (0, 1);
        round::begin();
        round::put_off(|| Waker::noop().clone());
        loop {
            match body.frame().now_or_never() {
                None => turns += 1,
                Some(None) => break,
                Some(Some(frame)) => bytes += frame.expect("it is there").into_data().expect("no trailers").len(),
            }
        }
        assert_eq!((bytes, turns), (1_000_000, 1_000_000_usize.div_ceil(TURN_BYTES)));
        assert!(!round::has_put_off(), "other threads have their turn, too");
    }
}
