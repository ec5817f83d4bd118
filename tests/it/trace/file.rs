//! Traces in files of Triton's format.

use std::path::Path;

use futures_util::StreamExt as _;
use serde_json::Value;

use super::{client, infer, repository, request};
use crate::process::Process;

/// The elements of a trace file.
fn entries(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the file was written");
    serde_json::from_str(&text).expect("a whole array")
}

/// The names and times of the trace of this number, in the file's order.
fn stamps(entries: &[Value], id: u64) -> Vec<(&str, u64)> {
    let of_id = entries.iter().filter(|entry| entry["id"] == id);
    let stamps = of_id.filter_map(|entry| entry["timestamps"].as_array()).flatten();
    stamps.map(|stamp| (stamp["name"].as_str().expect("a name"), stamp["ns"].as_u64().expect("a time"))).collect()
}

const STAGES: [&str; 12] = [
    "GRPC_WAITREAD_START",
    "GRPC_WAITREAD_END",
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "INFER_RESPONSE_COMPLETE",
    "REQUEST_END",
    "GRPC_SEND_START",
    "GRPC_SEND_END",
];

#[tokio::test(flavor = "multi_thread")]
async fn requests_leave_their_times_and_tensors_in_the_file() {
    let root = repository();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().to_str().expect("a text");
    let flags = ["level=TIMESTAMPS", "level=TENSORS", "rate=2", &format!("triton,file={path}")].map(str::to_owned);
    let flags: Vec<&str> = flags.iter().flat_map(|text| ["--trace-config", text]).collect();
    let server = Process::start(root.path(), &flags);
    let mut client = client(&server).await;
    for model in ["m", "m", "n", "m"] {
        infer(&mut client, request(model), &[]).await.expect("answered");
    }
    // The fifth is not traced, the sixth fails.
    for _ in 0..2 {
        infer(&mut client, request("nobody"), &[]).await.expect_err("there is no such model");
    }
    let mut stream =
        client.model_stream_infer(tokio_stream::iter([request("m"), request("m")])).await.expect("open").into_inner();
    while let Some(response) = stream.next().await {
        assert_eq!(response.expect("a response").error_message, "");
    }
    drop((client, stream));
    server.stop();

    let entries = entries(file.path());
    let heads: Vec<&Value> = entries.iter().filter(|entry| entry.get("model_name").is_some()).collect();
    let head =
        |at: usize| (heads[at]["id"].as_u64(), heads[at]["model_name"].as_str(), heads[at]["request_id"].as_str());
    assert_eq!(heads.len(), 4);
    assert_eq!(head(0), (Some(1), Some("m"), Some("mine")));
    assert_eq!(head(1), (Some(2), Some("m"), Some("mine")));
    assert_eq!((head(2), head(3).1), ((Some(3), Some("nobody"), Some("mine")), Some("m")));
    for id in [1, 2, 4] {
        let stamps = stamps(&entries, id);
        assert_eq!(stamps.iter().map(|(name, _)| *name).collect::<Vec<_>>(), STAGES, "{id}");
        assert!(stamps.is_sorted_by_key(|(_, at)| *at), "{stamps:?}");
    }
    let failed: Vec<_> = stamps(&entries, 3).into_iter().map(|(name, _)| name).collect();
    assert!(failed.contains(&"REQUEST_END") && !failed.contains(&"COMPUTE_START"), "{failed:?}");
    let tensors: Vec<String> = entries
        .iter()
        .filter(|entry| entry["id"] == 1 && entry.get("activity").is_some())
        .map(|entry| format!("{} {}", entry["activity"], entry["tensor"]))
        .collect();
    assert_eq!(
        tensors,
        [
            r#""TENSOR_QUEUE_INPUT" {"data":"1,2,3,4","dtype":"UINT8","name":"IN","shape":"1,4"}"#,
            r#""TENSOR_BACKEND_OUTPUT" {"data":"1,2,3,4","dtype":"UINT8","name":"OUT","shape":"1,4"}"#,
        ]
    );
}
