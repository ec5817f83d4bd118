//! Inference: JSON and binary tensors both ways, what is refused, and what is counted.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nereid::engine::Control;
use nereid::protocol::http::Settings;
use nereid::telemetry::metrics::Outcomes;
use serde_json::json;
use tokio::net::TcpStream;

use super::{Answer, Served, request};
use crate::support::{until, within};

const LENGTH: &str = "inference-header-content-length";

const FREE: &str = "/v2/models/free/infer";

const PAIR: &str = r#"{"id": "42", "inputs": [
    {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [[1, 0.5, -2, 1e10]]},
    {"name": "INPUT1", "shape": [1, 4], "datatype": "INT32", "data": [1, 2, 3, -4]}]}"#;

const SLOW: &str = r#"{"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}"#;

/// A body of JSON and what follows it, with the header that says where it does.
fn with_binary(path: &str, json: &str, blobs: &[u8]) -> Request<Full<Bytes>> {
    let mut request = request(Method::POST, path, [json.as_bytes(), blobs].concat());
    request.headers_mut().insert(LENGTH, json.len().into());
    request
}

/// The JSON of a binary answer, and what follows it.
fn split(answer: &Answer) -> (serde_json::Value, Bytes) {
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    let length = answer.headers[LENGTH].to_str().expect("a text").parse().expect("a number");
    let json = serde_json::from_slice(&answer.body[..length]).expect("JSON");
    (json, answer.body.slice(length..))
}

fn outcomes(served: &Served) -> (u64, u64, u64) {
    let Outcomes { received, answered, refused } = served.engine.metrics().outcomes().expect("metrics are on");
    (received, answered, refused)
}

#[tokio::test]
async fn json_in_json_out_with_id_name_version_and_times() {
    let served = Served::start().await;
    let answer = served.post("/v2/models/pair/versions/1/infer", PAIR).await;
    assert_eq!(
        answer.json(),
        json!({"id": "42", "model_name": "pair", "model_version": "1", "outputs": [
            {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 0.5, -2.0, 1e10]},
            {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, -4]}]})
    );
    let timing = answer.headers["server-timing"].to_str().expect("a text");
    assert!(timing.starts_with("queue;dur=") && timing.contains(", compute;dur="), "{timing}");
    served.stop().await;
}

#[tokio::test]
async fn binary_in_and_out_by_output() {
    let served = Served::start().await;
    let json = r#"{"inputs": [
        {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
        {"name": "INPUT1", "shape": [1, 4], "datatype": "INT32", "data": [1, 2, 3, 4]}],
        "outputs": [{"name": "OUTPUT1"}, {"name": "OUTPUT0", "parameters": {"binary_data": true}}]}"#;
    let floats: Vec<u8> = [1f32, f32::NAN, f32::INFINITY, -0.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let (json, blobs) = split(&served.send(with_binary("/v2/models/pair/infer", json, &floats)).await);
    assert_eq!(json["outputs"][0]["data"], json!([1, 2, 3, 4]));
    assert_eq!(json["outputs"][1]["parameters"], json!({"binary_data_size": 16}));
    assert_eq!(blobs, floats);
    served.stop().await;
}

#[tokio::test]
async fn a_large_tensor_comes_back_whole() {
    let served = Served::start().await;
    let data: Vec<u8> = (0..1_000_000u32).flat_map(|value| (value as f32).to_le_bytes()).collect();
    let json = r#"{"parameters": {"binary_data_output": true}, "inputs": [{"name": "INPUT0", "shape": [1000000],
        "datatype": "FP32", "parameters": {"binary_data_size": 4000000}}]}"#;
    let (_, blobs) = split(&served.send(with_binary(FREE, json, &data)).await);
    assert!(blobs == data);
    served.stop().await;
}

#[tokio::test]
async fn a_large_tensor_comes_back_whole_as_a_text() {
    let served = Served::start().await;
    let data: Vec<u32> = (0..100_000).collect();
    let asked = json!({"inputs": [{"name": "INPUT0", "shape": [100_000], "datatype": "FP32", "data": data}]});
    let answer = served.post(FREE, &asked.to_string()).await.json();
    let floats: Vec<f64> = data.iter().map(|&value| value.into()).collect();
    assert!(answer["outputs"][0]["data"] == json!(floats));
    let generated = served.post("/v2/models/free/generate", &json!({"INPUT0": data}).to_string()).await.json();
    assert!(generated["OUTPUT0"] == json!(floats));
    let broken = served.post(FREE, &asked.to_string().replace("99999", "nought")).await;
    assert_eq!(broken.status, StatusCode::BAD_REQUEST, "{}", broken.error());
    served.stop().await;
}

#[tokio::test]
async fn a_raw_body_is_the_only_input() {
    let served = Served::start().await;
    let raw = |path: &str, body: &'static [u8]| {
        let mut request = request(Method::POST, path, body);
        request.headers_mut().insert(LENGTH, 0.into());
        request
    };
    let (json, blobs) = split(&served.send(raw(FREE, &[1; 12])).await);
    assert_eq!((&json["outputs"][0]["shape"], &blobs[..]), (&json!([3]), &[1; 12][..]));
    let (json, blobs) = split(&served.send(raw("/v2/models/text/infer", b"words")).await);
    assert_eq!((&json["outputs"][0]["shape"], &blobs[..]), (&json!([1, 1]), &b"\x05\0\0\0words"[..]));
    let refused = served.send(raw(FREE, &[1; 13])).await;
    assert!(refused.error().starts_with("Unable to deduce the shape of input 'INPUT0' from 13 bytes"));
    let refused = served.send(raw("/v2/models/pair/infer", b"")).await;
    assert!(refused.error().starts_with("Raw request must only have 1 input (found 2)"));
    served.stop().await;
}

#[tokio::test]
async fn what_is_refused_has_the_status_and_the_words_of_its_mistake() {
    let served = Served::start().await;
    let repeat = r#"{"inputs": []}"#;
    for (path, body, status, message) in [
        ("/v2/models/nobody/infer", PAIR, 404, "Request for unknown model: 'nobody' is not found"),
        ("/v2/models/pair/versions/x/infer", PAIR, 400, "failed to get model version from specified version string"),
        ("/v2/models/repeat_int32/infer", repeat, 501, "HTTP end point doesn't support models with decoupled"),
        (FREE, "{", 400, "failed to parse the request JSON buffer: "),
        (FREE, r#"{"inputs": []}"#, 400, "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model"),
        (FREE, &SLOW.replace("FP32", "INT8"), 400, "[request id: <id_unknown>] inference input 'INPUT0' data-type is"),
        (FREE, &SLOW.replace("[1, 1]", "[2]"), 400, "[request id: <id_unknown>] input byte size mismatch for input"),
        (FREE, &SLOW.replace("FP32", "FP16"), 400, "receiving FP16 data via JSON is not supported."),
    ] {
        let answer = served.post(path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {body}");
        assert!(answer.error().starts_with(message), "{path} {body}: {}", answer.error());
    }
    let short = with_binary(FREE, r#"{"inputs": []}"#, b"more");
    assert!(served.send(short).await.error().starts_with("unexpected additional input data"));
    let mut long = request(Method::POST, FREE, "{}");
    long.headers_mut().insert(LENGTH, 3.into());
    assert_eq!(
        served.send(long).await.error(),
        "inference-header-content-length is 3, but the request body has only 2 bytes"
    );
    // Each of them was counted, once.
    assert_eq!(outcomes(&served), (10, 0, 10));
    served.stop().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let served = Served::with(Control::None, Settings { request_bytes_max: PAIR.len(), ..Settings::default() }).await;
    assert_eq!(served.post("/v2/models/pair/infer", PAIR).await.status, StatusCode::OK);
    let answer = served.post("/v2/models/pair/infer", &format!("{PAIR} ")).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().contains("--http-max-input-size"), "{}", answer.error());
    served.stop().await;
}

#[tokio::test]
async fn the_callers_id_comes_back_and_one_is_made_if_there_is_none() {
    let served = Served::start().await;
    let mut named = request(Method::POST, "/v2/models/pair/infer", PAIR);
    named.headers_mut().insert("x-request-id", "mine-1".parse().expect("a value"));
    assert_eq!(served.send(named).await.headers["x-request-id"], "mine-1");
    let made = served.post("/v2/models/pair/infer", PAIR).await;
    assert_eq!(made.headers["x-request-id"].len(), 32);
    let refused = served.post("/v2/models/nobody/infer", PAIR).await;
    assert!(refused.headers.contains_key("x-request-id"));
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_back() {
    let served = Served::start().await;
    let path = "/v2/models/slow/infer";
    let first = served.post(path, SLOW);
    let gone = async {
        let stream = TcpStream::connect(served.address).await.expect("the server listens");
        let (mut sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.expect("it speaks HTTP");
        let connection = tokio::spawn(connection);
        let asked = tokio::spawn(async move { sender.send_request(request(Method::POST, path, SLOW)).await });
        until(|| outcomes(&served).0 == 2).await;
        connection.abort();
        asked.abort();
        until(|| outcomes(&served).2 == 1).await;
    };
    let (answered, ()) = within(async { tokio::join!(first, gone) }).await;
    assert_eq!(answered.status, StatusCode::OK);
    assert_eq!(outcomes(&served), (2, 1, 1));
    served.stop().await;
}

#[tokio::test]
async fn a_caller_that_breaks_off_in_the_body_is_counted_as_refused() {
    use tokio::io::AsyncWriteExt as _;
    let served = Served::start().await;
    let mut stream = TcpStream::connect(served.address).await.expect("the server listens");
    let head = format!("POST {FREE} HTTP/1.1\r\nhost: nereid\r\ncontent-length: 1000\r\n\r\n{{\"inputs\"");
    stream.write_all(head.as_bytes()).await.expect("the server reads");
    drop(stream);
    until(|| outcomes(&served) == (1, 0, 1)).await;
    served.stop().await;
}
