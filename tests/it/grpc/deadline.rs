//! Deadlines, cancellation and stopping, with a model that takes [`SLOW`] for each request.

use std::time::Duration;

use nereid::infer::Instant;
use nereid::protocol::v2::wire::infer_parameter::ParameterChoice;
use prost::Message as _;
use tonic::{Code, Request};

use super::{SLOW, Served, call, framed, parameter, refusal, slow, until, within};

#[tokio::test]
async fn a_deadline_is_kept_while_the_instance_is_busy_and_the_request_never_runs() {
    let served = Served::start().await;
    let mut busy = served.client().await;
    let running = tokio::spawn(async move { busy.model_infer(slow()).await });
    let handle = served.engine.find("slow", None).expect("it is ready");
    until(|| served.engine.metrics().render().contains("nereid_requests_received_total 1")).await;
    let start = Instant::now();
    let message = slow().encode_to_vec();
    let message = framed(&message, message.len() as u32, 0);
    // The generated client would end the call itself.
    let status = call(&served, "ModelInfer", &[("grpc-timeout", "50m")], message).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(start.elapsed() < SLOW, "{:?}", start.elapsed());
    within(running).await.expect("no panic").expect("answered");
    assert_eq!(handle.stats.snapshot().execution_count, 1);
    served.stop().await;
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut asked = Request::new(slow());
    asked.metadata_mut().insert("grpc-timeout", "soon".parse().expect("ascii"));
    let (code, message) = refusal(client.model_infer(asked).await);
    assert_eq!((code, message.as_str()), (Code::InvalidArgument, "malformed grpc-timeout header \"soon\""));
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_waiting_requests_along() {
    let served = Served::start().await;
    let client = served.client().await;
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.model_infer(slow()).await })
        })
        .collect();
    let handle = served.engine.find("slow", None).expect("it is ready");
    until(|| handle.pending() >= 8).await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    until(|| handle.pending() == 0).await;
    assert!(handle.stats.snapshot().execution_count <= 3);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_stop_finishes_accepted_requests_and_refuses_new_ones() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut busy = served.client().await;
    let running = tokio::spawn(async move { busy.model_infer(slow()).await });
    until(|| served.engine.metrics().render().contains("nereid_requests_received_total 1")).await;
    served.gateway.drain();
    let (code, message) = refusal(client.model_infer(slow()).await);
    assert_eq!(code, Code::Unavailable);
    assert!(message.starts_with("Server is stopping"), "{message}");
    drop(client);
    served.stop().await;
    within(running).await.expect("no panic").expect("answered");
}

#[tokio::test]
async fn a_queue_timeout_is_microseconds() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut busy = served.client().await;
    let running = tokio::spawn(async move { busy.model_infer(slow()).await });
    until(|| served.engine.metrics().render().contains("nereid_requests_received_total 1")).await;
    let mut asked = slow();
    asked.parameters.insert("timeout".into(), parameter(ParameterChoice::Int64Param(20_000)));
    let start = Instant::now();
    let (code, message) = refusal(client.model_infer(asked).await);
    assert_eq!(code, Code::Unavailable);
    assert!(message.contains("Request timeout expired"), "{message}");
    assert!(start.elapsed() < SLOW - Duration::from_millis(50), "{:?}", start.elapsed());
    within(running).await.expect("no panic").expect("answered");
    drop(client);
    served.stop().await;
}
