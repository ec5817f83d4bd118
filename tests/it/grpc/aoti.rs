//! Packages of AOTInductor, from the file to the answer.

#[path = "../../../src/backend/libtorch/tests/built.rs"]
mod built;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use nereid::engine::{Control, Overrides};
use nereid::protocol::grpc::Settings;
use nereid::protocol::v2::wire::ModelConfigRequest;
use tonic::Code;

use super::{Served, request};
use crate::process::Process;
use crate::support::{self, identity_config};

/// How the names of packages' libraries end.
const LIBRARY: &str = ".wrapper.so";

/// Writes version 1 of a model of the package.
fn write(root: &Path, config: &str) {
    support::write_model(root, "linear", config, &[1]);
    std::fs::copy(built::linear(), root.join("linear/1/model.pt2")).expect("the file is writable");
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_without_a_configuration_answers_in_batches() {
    let served = Served::with(Control::Explicit(None), Settings::default()).await;
    write(served.root.path(), "instance_group { count: 2 }");
    served.engine.load("linear", Overrides::default()).await.expect("it loads");
    let mut client = served.client().await;
    let asked = ModelConfigRequest { name: "linear".to_owned(), version: String::new() };
    let config = client.model_config(asked).await.expect("answered").into_inner().config.expect("it is there");
    assert_eq!((config.platform.as_str(), config.max_batch_size), ("torch_aoti", 8));
    let calls = (0..64u8).map(|number| {
        let (mut client, value) = (client.clone(), f32::from(number));
        tokio::spawn(async move {
            let asked = request("linear", &[("x", "FP32", &[1, 4], &bytes(&[value, 0.0, 0.0, 1.0]))]);
            let answer = client.model_infer(asked).await.expect("answered").into_inner();
            assert_eq!(answer.outputs[0].shape, [1, 3]);
            assert_eq!(answer.raw_output_contents[0], bytes(&[value + 1.0, 1.0, (6.0 - value).max(0.0)]));
        })
    });
    for call in calls.collect::<Vec<_>>() {
        support::within(call).await.expect("it has its answer");
    }
    for (dtype, shape, count) in
        [("FP32", &[9, 4][..], 36), ("FP32", &[1, 5], 5), ("FP32", &[4], 4), ("INT32", &[1, 4], 4)]
    {
        let wrong = request("linear", &[("x", dtype, shape, &bytes(&vec![1.0; count]))]);
        let refused = client.model_infer(wrong).await.expect_err("it is refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_package_is_opened_anew_for_more_instances_and_not_for_fewer() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (engine, _) = support::engine_with(root.path(), Control::Explicit(Some(Vec::new())), |_| {}).await;
    write(root.path(), "");
    for (count, opened) in [(2, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)] {
        support::write_model(root.path(), "linear", &format!("instance_group {{ count: {count} }}"), &[1]);
        engine.load("linear", Overrides::default()).await.expect("it loads");
        let loads = support::metric(&engine, "nereid_model_loads_total{result=\"success\"}");
        assert_eq!(loads, opened, "for {count} instances");
        support::until(|| support::metric(&engine, "nereid_instances{model=\"linear\"") == f64::from(count)).await;
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_of_the_reference_server_loads_if_it_agrees() {
    let served = Served::with(Control::Explicit(None), Settings::default()).await;
    let config = |dims: i64| {
        format!(
            "backend: \"pytorch\" platform: \"torch_aoti\" max_batch_size: 16\n\
             input {{ name: \"INPUT__0\" data_type: TYPE_FP32 dims: {dims} }}\n\
             output {{ name: \"RESULT\" data_type: TYPE_FP32 dims: 3 }}\n"
        )
    };
    write(served.root.path(), &config(4));
    served.engine.load("linear", Overrides::default()).await.expect("it loads");
    write(served.root.path(), &config(5));
    let error = served.engine.load("linear", Overrides::default()).await.expect_err("it does not agree");
    assert!(error.message().contains("input 'INPUT__0' has dims [5], after one for the batch"), "{error}");
    served.stop().await;
}

/// What the server answers to a POST without a body.
fn post(server: &Process, path: &str) -> String {
    let mut stream = TcpStream::connect(server.address("http")).expect("it serves");
    let asked = format!("POST {path} HTTP/1.1\r\nhost: nereid\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(asked.as_bytes()).expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn without_the_flag_the_server_serves_and_the_model_says_why_it_does_not() {
    let root = tempfile::tempdir().expect("a temporary directory");
    support::write_model(root.path(), "other", &identity_config(""), &[1]);
    write(root.path(), "");
    let server = Process::start(root.path(), &[]);
    let answer = post(&server, "/v2/repository/index");
    assert!(answer.contains(r#""name":"other","version":"1","state":"READY""#), "{answer}");
    assert!(answer.contains("it is loaded only with --allow-aoti"), "{answer}");
    assert!(!server.mapped().contains(LIBRARY));
    server.stop();
}

#[tokio::test]
async fn of_a_package_that_is_unloaded_nothing_is_left() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write(root.path(), "");
    let flags = ["--allow-aoti", "--model-control-mode", "explicit", "--load-model", "linear"];
    let server = Process::start(root.path(), &flags);
    let answer = post(&server, "/v2/repository/index");
    assert!(answer.contains(r#""name":"linear","version":"1","state":"READY""#), "{answer}");
    assert!(server.mapped().contains(LIBRARY));
    post(&server, "/v2/repository/models/linear/unload");
    support::until(|| !server.mapped().contains(LIBRARY)).await;
    server.stop();
}
