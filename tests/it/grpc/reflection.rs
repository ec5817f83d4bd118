//! Server reflection, both versions of it.

use tokio_stream::StreamExt as _;
use tonic_reflection::pb::{v1, v1alpha};

use super::{Served, within};

const SERVICES: [&str; 2] = ["grpc.health.v1.Health", "inference.GRPCInferenceService"];

#[tokio::test]
async fn the_services_are_listed() {
    use v1::server_reflection_client::ServerReflectionClient;
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let served = Served::start().await;
    let mut client = ServerReflectionClient::new(served.channel().await);
    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::iter([ask])).await.expect("answered").into_inner();
    let answer = within(answers.next()).await.expect("an answer").expect("no status").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("not a list: {answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for service in SERVICES {
        assert!(names.contains(&service), "{names:?}");
    }
    drop((client, answers));
    served.stop().await;
}

#[tokio::test]
async fn older_clients_find_a_symbol() {
    use v1alpha::server_reflection_client::ServerReflectionClient;
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;
    let served = Served::start().await;
    let mut client = ServerReflectionClient::new(served.channel().await);
    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol("inference.ModelConfig".to_owned())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::iter([ask])).await.expect("answered").into_inner();
    let answer = within(answers.next()).await.expect("an answer").expect("no status").message_response;
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
    drop((client, answers));
    served.stop().await;
}
