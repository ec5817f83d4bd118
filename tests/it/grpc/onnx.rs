//! Models in ONNX, from the file to the answer.

#[path = "../../../src/backend/onnx/tests/file.rs"]
#[allow(dead_code, reason = "the backend's own tests use the rest")]
mod file;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use nereid::engine::{Control, Overrides};
use nereid::protocol::grpc::Settings;
use nereid::protocol::v2::wire::ModelConfigRequest;

use self::file::Graph;
use super::{Served, request};
use crate::process::Process;
use crate::support::{self, identity_config};

/// Writes version 1 of a model of this graph.
fn write(root: &Path, name: &str, config: &str, graph: Graph) {
    support::write_model(root, name, config, &[1]);
    std::fs::write(root.join(name).join("1/model.onnx"), graph.file()).expect("the file is writable");
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_configuration_is_completed_and_answers() {
    let served = Served::with(Control::Explicit(None), Settings::default()).await;
    write(served.root.path(), "doubled", "", Graph::doubled());
    if let Err(error) = served.engine.load("doubled", Overrides::default()).await {
        // Only a library that is not there may be the reason.
        assert!(error.message().contains("scripts/setup-onnxruntime"), "{error}");
        let _ = writeln!(std::io::stderr(), "NOT TESTED: {error}");
        return served.stop().await;
    }
    let mut client = served.client().await;
    let asked = ModelConfigRequest { name: "doubled".to_owned(), version: String::new() };
    let config = client.model_config(asked).await.expect("answered").into_inner().config.expect("it is there");
    assert_eq!((config.platform.as_str(), config.max_batch_size), ("onnxruntime_onnx", 4));
    assert_eq!((config.input[0].name.as_str(), &config.input[0].dims[..]), ("X", &[-1][..]));
    let calls = (0..32u8).map(|number| {
        let (mut client, value) = (client.clone(), f32::from(number));
        tokio::spawn(async move {
            let asked = request("doubled", &[("X", "FP32", &[1, 3], &bytes(&[value; 3]))]);
            let answer = client.model_infer(asked).await.expect("answered").into_inner();
            assert_eq!(answer.outputs[0].shape, [1, 3]);
            assert_eq!(answer.raw_output_contents[0], bytes(&[2.0 * value; 3]));
        })
    });
    for call in calls.collect::<Vec<_>>() {
        support::within(call).await.expect("it has its answer");
    }
    let folder = served.root.path().join("folder/1/model.onnx");
    std::fs::create_dir_all(&folder).expect("the folder is writable");
    std::fs::write(folder.join("model.onnx"), Graph::doubled().file()).expect("the folder is writable");
    served.engine.load("folder", Overrides::default()).await.expect("a folder stands for the model in it");
    let asked = request("folder", &[("X", "FP32", &[1, 1], &bytes(&[4.0]))]);
    assert_eq!(client.model_infer(asked).await.expect("answered").into_inner().raw_output_contents[0], bytes(&[8.0]));
    let wrong = request("doubled", &[("X", "FP32", &[5, 3], &bytes(&[1.0; 15]))]);
    assert!(client.model_infer(wrong).await.is_err(), "a batch of at most 4 rows");
    drop(client);
    served.stop().await;
}

#[test]
fn without_the_library_the_server_serves_and_the_model_says_what_helps() {
    let root = tempfile::tempdir().expect("a temporary directory");
    support::write_model(root.path(), "other", &identity_config(""), &[1]);
    write(root.path(), "doubled", "", Graph::doubled());
    let nowhere = root.path().join("libonnxruntime.so");
    let server = Process::start(root.path(), &["--onnxruntime", &nowhere.to_string_lossy()]);
    let mut stream = TcpStream::connect(server.address("http")).expect("it serves");
    let asked = "POST /v2/repository/index HTTP/1.1\r\nhost: nereid\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(asked.as_bytes()).expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains(r#""name":"other","version":"1","state":"READY""#), "{answer}");
    let expected = "ONNX Runtime cannot be used: libonnxruntime.so: cannot open shared object file";
    assert!(answer.contains(expected) && answer.contains("let --onnxruntime name"), "{answer}");
    server.stop();
}
