//! Liveness, readiness, and the standard health service.

use nereid::protocol::grpc::health_wire::HealthCheckRequest;
use nereid::protocol::grpc::health_wire::health_check_response::ServingStatus;
use nereid::protocol::grpc::health_wire::health_client::HealthClient;
use nereid::protocol::v2::wire::{ModelReadyRequest, ServerLiveRequest, ServerReadyRequest};
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::{Served, refusal, within};

fn any_service() -> HealthCheckRequest {
    HealthCheckRequest { service: "whatever".to_owned() }
}

#[tokio::test]
async fn a_ready_server_says_so_everywhere() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut health = HealthClient::new(served.channel().await);
    assert!(client.server_live(ServerLiveRequest {}).await.expect("answered").into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.expect("answered").into_inner().ready);
    assert_eq!(health.check(any_service()).await.expect("answered").into_inner().status(), ServingStatus::Serving);
    drop((client, health));
    served.stop().await;
}

#[tokio::test]
async fn a_stopping_server_lives_and_is_not_ready() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut health = HealthClient::new(served.channel().await);
    served.gateway.drain();
    assert!(client.server_live(ServerLiveRequest {}).await.expect("answered").into_inner().live);
    assert!(!client.server_ready(ServerReadyRequest {}).await.expect("answered").into_inner().ready);
    assert_eq!(health.check(any_service()).await.expect("answered").into_inner().status(), ServingStatus::NotServing);
    drop((client, health));
    served.stop().await;
}

#[tokio::test]
async fn a_watcher_hears_of_the_stop_and_then_its_stream_ends() {
    let served = Served::start().await;
    let mut health = HealthClient::new(served.channel().await);
    let mut watched = health.watch(any_service()).await.expect("answered").into_inner();
    let first = within(watched.next()).await.expect("the health now").expect("no status");
    assert_eq!(first.status(), ServingStatus::Serving);
    served.gateway.drain();
    let second = within(watched.next()).await.expect("the change").expect("no status");
    assert_eq!(second.status(), ServingStatus::NotServing);
    assert!(within(watched.next()).await.is_none());
    drop(health);
    served.stop().await;
}

#[tokio::test]
async fn a_models_readiness_is_true_or_an_error() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let ask = |name: &str, version: &str| ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
    assert!(client.model_ready(ask("pair", "")).await.expect("answered").into_inner().ready);
    assert!(client.model_ready(ask("versions", "1")).await.expect("answered").into_inner().ready);
    let unknown = refusal(client.model_ready(ask("nobody", "")).await);
    assert_eq!(unknown, (Code::NotFound, "Request for unknown model: 'nobody' is not found".to_owned()));
    let version = refusal(client.model_ready(ask("versions", "2")).await);
    assert_eq!(version, (Code::NotFound, "Request for unknown model: 'versions' version 2 is not found".to_owned()));
    drop(client);
    served.stop().await;
}
