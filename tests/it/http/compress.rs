//! Compression, both ways.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use nereid::engine::Control;
use nereid::protocol::http::Settings;
use tower::ServiceExt as _;
use tower_http::compression::Compression;
use tower_http::decompression::Decompression;

use super::{Answer, Served, request};

const PATH: &str = "/v2/models/free/infer";

/// A request whose JSON is long enough to be worth it.
fn body() -> String {
    let data = vec!["1.5"; 1000].join(",");
    format!(r#"{{"inputs": [{{"name": "INPUT0", "shape": [1000], "datatype": "FP32", "data": [{data}]}}]}}"#)
}

pub(super) async fn compressed(encoding: &str, body: String) -> Bytes {
    let plain = tower::service_fn(move |_: Request<()>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body.clone())))))
    });
    let asked = Request::builder().header(header::ACCEPT_ENCODING, encoding).body(()).expect("well formed");
    let response = Compression::new(plain).oneshot(asked).await.expect("it cannot fail");
    assert_eq!(response.headers()[header::CONTENT_ENCODING], encoding);
    response.into_body().collect().await.expect("it compresses").to_bytes()
}

async fn decompressed(answer: Answer) -> serde_json::Value {
    let received = tower::service_fn(move |_: Request<()>| {
        let mut response = Response::new(Full::new(answer.body.clone()));
        *response.headers_mut() = answer.headers.clone();
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let response = Decompression::new(received).oneshot(Request::new(())).await.expect("it cannot fail");
    let plain = response.into_body().collect().await.expect("it was compressed").to_bytes();
    serde_json::from_slice(&plain).expect("JSON")
}

pub(super) fn post(path: &str, headers: &[(header::HeaderName, &str)], body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = request(Method::POST, path, body);
    for (name, value) in headers {
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    request
}

#[tokio::test]
async fn requests_may_be_compressed_and_answers_are_if_wanted() {
    let served = Served::start().await;
    for encoding in ["gzip", "deflate", "zstd"] {
        let small = compressed(encoding, body()).await;
        assert!(small.len() < body().len() / 4, "{encoding}");
        let asked = post(PATH, &[(header::CONTENT_ENCODING, encoding), (header::ACCEPT_ENCODING, encoding)], small);
        let answer = served.send(asked).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers[header::CONTENT_ENCODING], encoding);
        assert_eq!(decompressed(answer).await["outputs"][0]["data"][999], 1.5, "{encoding}");
    }
    served.stop().await;
}

#[tokio::test]
async fn the_encoding_of_the_greatest_weight_is_taken() {
    let served = Served::start().await;
    for (wanted, encoding) in [
        ("gzip;q=0.5, zstd;q=0.8, deflate;q=0.1", Some("zstd")),
        ("gzip, zstd;q=0.1", Some("gzip")),
        ("br", None),
        ("gzip;q=0", None),
        ("identity", None),
    ] {
        let answer = served.send(post(PATH, &[(header::ACCEPT_ENCODING, wanted)], body())).await;
        let found = answer.headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().expect("a text"));
        assert_eq!(found, encoding, "{wanted}");
    }
    served.stop().await;
}

#[tokio::test]
async fn an_unknown_encoding_is_answered_with_those_that_are_known() {
    let served = Served::start().await;
    for path in [PATH, "/v2/repository/index"] {
        let answer = served.send(post(path, &[(header::CONTENT_ENCODING, "br")], "x")).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
        assert_eq!(answer.headers[header::ACCEPT_ENCODING], "gzip, deflate, zstd");
        assert!(answer.error().contains("\"br\" is not supported"), "{}", answer.error());
    }
    let outcomes = served.engine.metrics().outcomes().expect("metrics are on");
    assert_eq!((outcomes.received, outcomes.refused), (1, 1));
    served.stop().await;
}

#[tokio::test]
async fn the_limit_holds_for_what_was_compressed() {
    let served = Served::with(Control::None, Settings { request_bytes_max: 4000, ..Settings::default() }).await;
    let small = compressed("gzip", body()).await;
    assert!(small.len() < 1000 && body().len() > 4000);
    let answer = served.send(post(PATH, &[(header::CONTENT_ENCODING, "gzip")], small)).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().contains("maximum allowed input size of 4000 bytes"), "{}", answer.error());
    let broken = served.send(post(PATH, &[(header::CONTENT_ENCODING, "gzip")], "not gzip")).await;
    assert!(broken.error().starts_with("the request body could not be read"), "{}", broken.error());
    served.stop().await;
}

#[tokio::test]
async fn only_what_infer_answers_is_compressed() {
    let served = Served::start().await;
    let wanted = [(header::ACCEPT_ENCODING, "gzip")];
    let mut metadata = request(Method::GET, "/v2/models/stats", "");
    metadata.headers_mut().insert(header::ACCEPT_ENCODING, "gzip".parse().expect("a value"));
    let plain = served.send(metadata).await;
    assert!(!plain.headers.contains_key(header::CONTENT_ENCODING) && plain.json()["model_stats"].is_array());
    let refused = served.send(post(PATH, &wanted, "{".repeat(1000))).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.error().contains("failed to parse the request JSON"), "{}", refused.error());
    served.stop().await;
}
