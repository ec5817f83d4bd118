//! Liveness and readiness, and what has no route.

use http::{Method, StatusCode};

use super::{Served, request};

#[tokio::test]
async fn ready_until_the_server_stops_and_live_all_the_while() {
    let served = Served::start().await;
    let live = served.get("/v2/health/live").await;
    assert_eq!((live.status, live.body.len()), (StatusCode::OK, 0));
    assert_eq!(served.get("/v2/health/ready").await.status, StatusCode::OK);
    served.gateway.drain();
    assert_eq!(served.get("/v2/health/ready").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(served.get("/v2/health/live").await.status, StatusCode::OK);
    served.stop().await;
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_told_apart() {
    let served = Served::start().await;
    let answer = served.get("/v2/nothing").await;
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::NOT_FOUND, "Not Found"));
    let answer = served.send(request(Method::DELETE, "/v2/health/live", "")).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    served.stop().await;
}
