//! `generate` and `generate_stream`: plain values in, objects or events out.

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::{Served, request};
use crate::support::{until, within};

/// What the events of a stream say.
fn events(body: &[u8]) -> Vec<Value> {
    let body = std::str::from_utf8(body).expect("text");
    let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("an event")).expect("JSON");
    assert!(body.is_empty() || body.ends_with("\n\n"), "{body}");
    body.split_terminator("\n\n").map(event).collect()
}

/// A request for `repeat_int32` that is answered once for each delay, in milliseconds.
fn repeat(delays: &[u32]) -> String {
    json!({"IN": (0..delays.len()).collect::<Vec<_>>(), "DELAY": delays, "WAIT": 0}).to_string()
}

#[tokio::test]
async fn values_become_tensors_and_one_element_comes_back_as_a_value() {
    let served = Served::start().await;
    let text = served.post("/v2/models/text/generate", r#"{"INPUT0": "grüezi", "id": 7, "beam": 0.5}"#).await.json();
    assert_eq!(text, json!({"model_name": "text", "model_version": "1", "id": "7", "OUTPUT0": "grüezi"}));
    let body = r#"{"INPUT0": [1, 2, 3, 4.5], "parameters": {"INPUT1": [5, 6, 7, -8], "mine": true}}"#;
    let pair = served.post("/v2/models/pair/versions/1/generate", body).await.json();
    assert_eq!((&pair["OUTPUT0"], &pair["OUTPUT1"]), (&json!([1.0, 2.0, 3.0, 4.5]), &json!([5, 6, 7, -8])));
    let rows = served.post("/v2/models/pair/generate", r#"{"INPUT0": [1,2,3,4,5,6,7,8], "INPUT1": [1,2,3,4,5,6,7,8]}"#);
    assert_eq!(rows.await.json()["OUTPUT1"], json!([1, 2, 3, 4, 5, 6, 7, 8]), "two rows of four");
    served.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_is_executed() {
    let served = Served::start().await;
    for (model, body, status, expected) in [
        ("nobody", "{}", StatusCode::NOT_FOUND, "unknown model: 'nobody'"),
        ("pair/versions/x", "{}", StatusCode::BAD_REQUEST, "version string 'x'"),
        ("text", "[]", StatusCode::BAD_REQUEST, "failed to parse the generate request"),
        ("text", "{}", StatusCode::BAD_REQUEST, "expected 1 inputs but got 0 inputs"),
        ("text", r#"{"INPUT0": 1}"#, StatusCode::BAD_REQUEST, "INPUT0"),
        ("text", r#"{"INPUT0": "x", "id": 0.5}"#, StatusCode::BAD_REQUEST, "'id'"),
        ("text", r#"{"INPUT0": "x", "parameters": 1}"#, StatusCode::BAD_REQUEST, "'parameters'"),
        ("text", r#"{"INPUT0": "x", "mine": [1]}"#, StatusCode::BAD_REQUEST, "mine"),
        ("text", r#"{"INPUT0": "x", "priority": "high"}"#, StatusCode::BAD_REQUEST, "'priority'"),
        ("pair", r#"{"INPUT0": [1, 2, 3]}"#, StatusCode::BAD_REQUEST, "can not convert input 'INPUT0' to tensor"),
    ] {
        for route in ["generate", "generate_stream"] {
            let answer = served.post(&format!("/v2/models/{model}/{route}"), body).await;
            assert_eq!(answer.status, status, "{model} {body}");
            assert!(answer.error().contains(expected), "{model} {body}: {}", answer.error());
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn a_stream_has_an_event_for_each_response() {
    let served = Served::start().await;
    let answer = served.post("/v2/models/repeat_int32/generate_stream", &repeat(&[0; 4])).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let values: Vec<_> = events(&answer.body).into_iter().map(|event| event["OUT"].clone()).collect();
    assert_eq!(values, [0, 1, 2, 3].map(Value::from));
    let one = served.post("/v2/models/text/generate_stream", r#"{"INPUT0": "x"}"#).await;
    assert_eq!(events(&one.body), [json!({"model_name": "text", "model_version": "1", "OUTPUT0": "x"})]);
    served.stop().await;
}

#[tokio::test]
async fn a_stream_without_responses_is_empty() {
    let served = Served::start().await;
    let answer = served.post("/v2/models/repeat_int32/generate_stream", &repeat(&[])).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0), "{:?}", answer.body);
    served.stop().await;
}

#[tokio::test]
async fn generate_wants_exactly_one_response() {
    let served = Served::start().await;
    let one = served.post("/v2/models/repeat_int32/generate", &repeat(&[0])).await.json();
    assert_eq!((&one["OUT"], &one["IDX"]), (&json!(0), &json!(0)));
    for delays in [&[][..], &[0, 0]] {
        let answer = served.post("/v2/models/repeat_int32/generate", &repeat(delays)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().starts_with("generate expects model to produce exactly 1 response"));
    }
    served.stop().await;
}

#[tokio::test]
async fn an_error_before_the_first_response_has_its_status() {
    let served = Served::start().await;
    let body = r#"{"IN": [1, 2], "DELAY": [0], "WAIT": 0}"#;
    let answer = served.post("/v2/models/repeat_int32/generate_stream", body).await;
    assert_ne!(answer.status, StatusCode::OK);
    assert!(answer.error().contains("expected as many elements of DELAY as of IN"), "{}", answer.error());
    served.stop().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_inference() {
    let served = Served::start().await;
    let asked = request(Method::POST, "/v2/models/repeat_int32/generate_stream", repeat(&[0, 3_600_000]));
    let (response, connection) = served.begin(asked).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let first = within(body.frame()).await.expect("an event").expect("it is well").into_data().expect("data");
    assert_eq!(events(&first)[0]["OUT"], json!(0));
    drop(body);
    connection.abort();
    let metrics = served.engine.metrics().clone();
    until(|| metrics.outcomes().is_some_and(|outcomes| outcomes.received == outcomes.answered + outcomes.refused))
        .await;
    within(served.stop()).await;
}
