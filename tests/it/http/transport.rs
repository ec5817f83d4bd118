//! What is below requests: versions of HTTP, limits, peers that take their time.

use std::net::SocketAddr;
use std::time::Duration;

use nereid::engine::Control;
use nereid::infer::Instant;
use nereid::protocol::http::Settings;
use nereid::protocol::transport::Settings as Limits;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Served;
use crate::support::{PATIENCE, within};

const LIVE: &str = "GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n";

/// Sends `text` and gives all that comes back until the server closes.
async fn ask(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    // The server may answer and close before it has taken all.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A server that gives nobody time.
async fn hasty() -> Served {
    let soon = Duration::from_millis(50);
    let limits = Limits {
        handshake_timeout: soon,
        head_timeout: soon,
        idle_timeout: Some(soon),
        body_timeout: Some(soon),
        ..Limits::http()
    };
    Served::limited(Control::None, Settings::default(), limits).await
}

#[tokio::test]
async fn who_does_not_go_on_is_closed() {
    let served = hasty().await;
    for text in ["", "G", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /v2/health/live HTTP/1.1\r\nhost:"] {
        assert_eq!(ask(served.address, text).await, "", "{text}");
    }
    // One answer, and then silence, or half a request.
    for more in ["", "GET /v2/hea"] {
        let answer = ask(served.address, &format!("{LIVE}{more}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let served = Served::start().await;
    let limits = Limits::http();
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(limits.head_bytes_max));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(limits.headers_max));
    for head in [long, many] {
        let answer = ask(served.address, &head).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    served.stop().await;
}

#[tokio::test]
async fn peers_that_say_nothing_make_room_at_once() {
    let limits = Limits { connections_max: 2, ..Limits::http() };
    let served = Served::limited(Control::None, Settings::default(), limits).await;
    let mut silent = Vec::new();
    for begun in ["", "GET /", "", "GET /v2 HTTP/1.1\r\n", ""] {
        let mut stream = TcpStream::connect(served.address).await.expect("the server listens");
        stream.write_all(begun.as_bytes()).await.expect("the server reads");
        silent.push(stream);
    }
    let start = Instant::now();
    let answer = served.get("/v2/health/live").await;
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() < Limits::http().head_timeout / 2, "{:?}", start.elapsed());
    served.stop().await;
}

#[tokio::test]
async fn an_unfinished_request_does_not_hold_up_a_stop() {
    let served = Served::start().await;
    let mut silent = Vec::new();
    for begun in ["", "GET /", LIVE, "POST /v2/models/pair/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"] {
        let mut stream = TcpStream::connect(served.address).await.expect("the server listens");
        stream.write_all(begun.as_bytes()).await.expect("the server reads");
        silent.push(stream);
    }
    assert_eq!(served.get("/v2/health/live").await.status, 200);
    let start = Instant::now();
    served.stop().await;
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_stop_waits_for_who_pauses_within_a_large_answer() {
    const FLOATS: usize = 12 << 20;
    let served = Served::start().await;
    let (binary, parameters) = (json!({ "binary_data_size": 4 * FLOATS }), json!({ "binary_data_output": true }));
    let input = json!({ "name": "INPUT0", "datatype": "FP32", "shape": [FLOATS], "parameters": binary });
    let text = json!({ "inputs": [input], "parameters": parameters }).to_string();
    let mut stream = TcpStream::connect(served.address).await.expect("the server listens");
    let (head, body) = (text.len(), text.len() + 4 * FLOATS);
    let head = format!("host: x\r\ninference-header-content-length: {head}\r\ncontent-length: {body}\r\n\r\n");
    let request = format!("POST /v2/models/free/infer HTTP/1.1\r\n{head}{text}");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    stream.write_all(&vec![7; 4 * FLOATS]).await.expect("the server reads");
    let mut answer = vec![0; 15];
    within(stream.read_exact(&mut answer)).await.expect("it begins");
    assert_eq!(answer, b"HTTP/1.1 200 OK");
    let mut stop = std::pin::pin!(served.stop());
    tokio::time::timeout(Duration::from_secs(2), &mut stop).await.expect_err("the answer is not sent");
    let (read, ()) = tokio::join!(within(stream.read_to_end(&mut answer)), stop);
    read.expect("it ends well");
    assert!(answer.len() > 4 * FLOATS && answer.ends_with(&[7; 16]), "{} bytes", answer.len());
}
