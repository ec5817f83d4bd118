//! The bound on the memory that requests hold together.

use http::{Method, StatusCode, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::compress::{compressed, post};
use super::{Served, request};
use crate::support::{metric, until};

const PATH: &str = "/v2/models/free/infer";
const HELD: &str = "nereid_request_memory_bytes";

/// A request of so many numbers, each of two bytes.
fn numbers(count: usize) -> String {
    let data = vec!["1"; count].join(",");
    format!(r#"{{"inputs": [{{"name": "INPUT0", "shape": [{count}], "datatype": "FP32", "data": [{data}]}}]}}"#)
}

/// A request in a call that promises `length` bytes of a body and sends as many zeros as `bytes`.
async fn unfinished(served: &Served, length: usize, bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(served.address).await.expect("the server listens");
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("the server reads");
    stream.write_all(&vec![b' '; bytes]).await.expect("the server reads");
    stream
}

#[tokio::test]
async fn what_has_come_of_large_requests_leaves_room_for_small_ones_only() {
    let served = Served::bounded(1 << 20).await;
    let large = unfinished(&served, 800_000, 700_000).await;
    until(|| metric(&served.engine, HELD) == 700_000.0).await;
    let refused = served.post(PATH, &numbers(50_000)).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.error().contains("(--request-memory-limit), try again later"), "{}", refused.error());
    assert_eq!(metric(&served.engine, "nereid_request_memory_refusals_total"), 1.0);
    assert_eq!(metric(&served.engine, "nereid_unrouted_requests_total{reason=\"unavailable\"}"), 1.0);
    assert_eq!(served.post(PATH, &numbers(1000)).await.status, StatusCode::OK);
    // The caller goes away.
    drop(large);
    until(|| metric(&served.engine, HELD) == 0.0).await;
    assert_eq!(served.post(PATH, &numbers(50_000)).await.status, StatusCode::OK);
    until(|| metric(&served.engine, HELD) == 0.0).await;
    served.stop().await;
}

#[tokio::test]
async fn what_was_compressed_counts_as_what_it_becomes() {
    let served = Served::bounded(1 << 20).await;
    for encoding in ["gzip", "deflate", "zstd"] {
        let small = compressed(encoding, " ".repeat(8 << 20)).await;
        assert!(small.len() < 16 << 10, "{encoding}: {}", small.len());
        let answer = served.send(post(PATH, &[(header::CONTENT_ENCODING, encoding)], small)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().starts_with("the request takes more than 786432 bytes"), "{}", answer.error());
        until(|| metric(&served.engine, HELD) == 0.0).await;
    }
    assert_eq!(metric(&served.engine, "nereid_request_memory_refusals_total"), 3.0);
    served.stop().await;
}

#[tokio::test]
async fn numbers_count_as_the_tensors_that_they_become() {
    let served = Served::bounded(1 << 20).await;
    let text = numbers(250_000);
    assert!(text.len() < 700_000);
    let answer = served.post(PATH, &text).await;
    assert!(answer.error().starts_with("the request takes more than 786432 bytes"), "{}", answer.error());
    let outcomes = served.engine.metrics().outcomes().expect("metrics are on");
    assert_eq!((outcomes.received, outcomes.refused), (1, 1));
    served.stop().await;
}

#[tokio::test]
async fn a_request_holds_its_memory_until_it_is_answered() {
    let served = Served::bounded(1 << 20).await;
    let asked = r#"{"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}"#;
    let slow = request(Method::POST, "/v2/models/slow/infer", asked);
    let held = until(|| metric(&served.engine, HELD) == asked.len() as f64);
    let (answer, ()) = tokio::join!(served.send(slow), held);
    assert_eq!(answer.status, StatusCode::OK);
    until(|| metric(&served.engine, HELD) == 0.0).await;
    served.stop().await;
}

#[tokio::test]
async fn an_answer_counts_until_it_was_sent() {
    let served = Served::bounded(64 << 20).await;
    let length = 16 << 20;
    let input =
        r#"{"name": "INPUT0", "shape": [4194304], "datatype": "FP32", "parameters": {"binary_data_size": 16777216}}"#;
    let output = r#"{"name": "OUTPUT0", "parameters": {"binary_data": true}}"#;
    let text = format!(r#"{{"inputs": [{input}], "outputs": [{output}]}}"#);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\ninference-header-content-length: {}\r\ncontent-length: {}\r\n\r\n",
        text.len(),
        text.len() + length
    );
    let mut stream = TcpStream::connect(served.address).await.expect("the server listens");
    stream.write_all(head.as_bytes()).await.expect("the server reads");
    stream.write_all(text.as_bytes()).await.expect("the server reads");
    stream.write_all(&vec![0; length]).await.expect("the server reads");
    let answered = || served.engine.metrics().outcomes().expect("metrics are on").answered == 1;
    until(answered).await;
    let held = metric(&served.engine, HELD);
    assert!((length as f64..length as f64 + 4096.0).contains(&held), "{held}");
    stream.read_exact(&mut vec![0; length]).await.expect("as much and the head comes");
    until(|| metric(&served.engine, HELD) == 0.0).await;
    served.stop().await;
}
