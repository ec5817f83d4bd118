//! What is below messages: limits, framing, unknown calls.

use bytes::Bytes;
use nereid::engine::Control;
use nereid::protocol::grpc::Settings;
use nereid::protocol::grpc::wire::ServerLiveRequest;
use prost::Message as _;
use tonic::Code;

use super::{Served, call, framed, pair, refusal, request};

#[tokio::test]
async fn broken_bodies_are_refused() {
    let served = Served::start().await;
    let message = pair().encode_to_vec();
    let length = message.len() as u32;
    let twice: Bytes = [framed(&message, length, 0), framed(&message, length, 0)].concat().into();
    for (what, body, code) in [
        ("whole", framed(&message, length, 0), Code::Ok),
        ("empty", Bytes::new(), Code::Internal),
        ("half a header", Bytes::from_static(&[0, 0]), Code::Internal),
        ("too short", framed(&message, length + 1, 0), Code::Internal),
        ("too long", framed(&message, length - 1, 0), Code::Internal),
        ("two messages", twice, Code::Internal),
        ("not a message", framed(&[0xff; 20], 20, 0), Code::Internal),
        ("compressed without saying how", framed(&message, length, 1), Code::Unimplemented),
    ] {
        let status = call(&served, "ModelInfer", &[], body).await;
        assert_eq!(status.code(), code, "{what}: {status}");
    }
    served.stop().await;
}

#[tokio::test]
async fn an_unknown_call_is_unimplemented() {
    let served = Served::start().await;
    assert_eq!(call(&served, "ModelTrain", &[], framed(&[], 0, 0)).await.code(), Code::Unimplemented);
    served.stop().await;
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_and_a_response_too() {
    let settings = Settings { request_bytes_max: 4000, response_bytes_max: 1000, ..Settings::default() };
    let served = Served::with(Control::None, settings).await;
    let mut client = served.client().await;
    let floats = |count: i64| request("free", &[("INPUT0", "FP32", &[count], &vec![0; 4 * count as usize])]);
    client.model_infer(floats(200)).await.expect("within both limits");
    let (code, message) = refusal(client.model_infer(floats(500)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.starts_with("Response has byte size 20"), "{message}");
    assert!(message.ends_with(" which exceeds gRPC's byte size limit 1000."), "{message}");
    let (code, message) = refusal(client.model_infer(floats(2000)).await);
    assert_eq!(code, Code::ResourceExhausted);
    assert!(message.starts_with("Received message larger than max (80"), "{message}");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn more_connections_than_allowed_wait() {
    let settings = Settings { connections_max: 1, ..Settings::default() };
    let served = Served::with(Control::None, settings).await;
    let mut first = served.client().await;
    first.server_live(ServerLiveRequest {}).await.expect("answered");
    let address = served.address;
    let second = tokio::spawn(async move {
        let mut second = super::Client::connect(format!("http://{address}")).await.expect("the port is open");
        second.server_live(ServerLiveRequest {}).await
    });
    first.server_live(ServerLiveRequest {}).await.expect("answered");
    assert!(!second.is_finished());
    drop(first);
    super::within(second).await.expect("no panic").expect("answered after the first has gone");
    served.stop().await;
}

#[tokio::test]
async fn a_stop_ends_idle_connections() {
    let served = Served::start().await;
    let mut client = served.client().await;
    client.server_live(ServerLiveRequest {}).await.expect("answered");
    served.stop().await;
    assert!(client.server_live(ServerLiveRequest {}).await.is_err());
}
