//! Server-sent events: each response of an inference as `data: <object>`, with an empty line behind it.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use futures_util::StreamExt as _;
use http::{HeaderValue, header};

use crate::error::Result;
use crate::protocol::status;

/// The response whose body is `events`; an error is an event as well. `kept` is dropped with the body.
pub fn response(events: impl Stream<Item = Result<Vec<u8>>> + Send + 'static, kept: impl Send + 'static) -> Response {
    let events = events.map(move |event| {
        let _until_the_end = &kept;
        let data = event.unwrap_or_else(|error| {
            serde_json::json!({ "error": status::shorten(error.message()) }).to_string().into_bytes()
        });
        Ok::<_, std::convert::Infallible>(Bytes::from([b"data: ", &data[..], b"\n\n"].concat()))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;
    use crate::error::Error;

    #[tokio::test]
    async fn each_event_ends_with_an_empty_line_and_an_error_is_one() {
        let events = [Ok(b"{\"n\":1}".to_vec()), Err(Error::internal("it \"broke\"\n"))];
        let response = response(futures_util::stream::iter(events), ());
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream; charset=utf-8");
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("it ends well");
        assert_eq!(body, "data: {\"n\":1}\n\ndata: {\"error\":\"it \\\"broke\\\"\\n\"}\n\n");
    }
}
