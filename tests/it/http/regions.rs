//! Regions of shared memory: registered, listed and forgotten by JSON.

use http::StatusCode;
use serde_json::json;

use super::Served;
use crate::support::SharedObject;

#[tokio::test]
async fn a_region_is_listed_until_it_is_unregistered() {
    let served = Served::start().await;
    let object = SharedObject::new(64);
    let body = json!({"key": object.key, "offset": 16, "byte_size": 32}).to_string();
    let registered = served.post("/v2/systemsharedmemory/region/mine/register", &body).await;
    assert_eq!((registered.status, &registered.body[..]), (StatusCode::OK, &b""[..]));
    let listed = json!([{"name": "mine", "key": object.key, "offset": 16, "byte_size": 32}]);
    assert_eq!(served.get("/v2/systemsharedmemory/status").await.json(), listed);
    assert_eq!(served.get("/v2/systemsharedmemory/region/mine/status").await.json(), listed);
    let again = served.post("/v2/systemsharedmemory/region/mine/register", &body).await;
    assert_eq!(
        (again.status, &*again.error()),
        (StatusCode::BAD_REQUEST, "shared memory region 'mine' already in manager")
    );
    let forgotten = served.post("/v2/systemsharedmemory/region/mine/unregister", "").await;
    assert_eq!(forgotten.status, StatusCode::OK);
    assert_eq!(served.get("/v2/systemsharedmemory/status").await.json(), json!([]));
    let unknown = served.get("/v2/systemsharedmemory/region/mine/status").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.error().contains("'mine'"), "{}", unknown.error());
    served.stop().await;
}

#[tokio::test]
async fn all_regions_are_forgotten_at_once() {
    let served = Served::start().await;
    let object = SharedObject::new(64);
    for name in ["a", "b"] {
        let body = json!({"key": object.key, "byte_size": 64}).to_string();
        let path = format!("/v2/systemsharedmemory/region/{name}/register");
        assert_eq!(served.post(&path, &body).await.status, StatusCode::OK);
    }
    assert_eq!(served.post("/v2/systemsharedmemory/unregister", "").await.status, StatusCode::OK);
    assert_eq!(served.get("/v2/systemsharedmemory/status").await.json(), json!([]));
    served.stop().await;
}

#[tokio::test]
async fn a_wrong_registration_names_what_is_wrong() {
    let served = Served::start().await;
    let object = SharedObject::new(64);
    for (body, expected) in [
        (json!({}), "Shared memory register request has no 'key' field"),
        (json!({"key": object.key}), "Shared memory register request has no 'byte_size' field"),
        (json!({"key": 1, "byte_size": 1}), "Invalid value for 'key': expected a string"),
        (json!({"key": object.key, "byte_size": -1}), "Invalid value for 'byte_size'"),
        (json!({"key": object.key, "byte_size": 1, "offset": "0"}), "Invalid value for 'offset'"),
        (json!({"key": object.key, "byte_size": 65}), "mine"),
        (json!({"key": "/../../etc/passwd", "byte_size": 1}), ""),
    ] {
        let answer = served.post("/v2/systemsharedmemory/region/mine/register", &body.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {:?}", answer.body);
        assert!(answer.error().contains(expected), "{body}: {}", answer.error());
    }
    served.stop().await;
}

#[tokio::test]
async fn memory_of_cuda_devices_is_refused_where_there_is_none() {
    let served = Served::start().await;
    assert_eq!(served.get("/v2/cudasharedmemory/status").await.json(), json!([]));
    assert_eq!(served.post("/v2/cudasharedmemory/unregister", "").await.status, StatusCode::OK);
    let handle = format!("{}==", "A".repeat(86));
    // No machine has that many devices.
    let asked = json!({"raw_handle": {"b64": handle}, "device_id": i32::MAX, "byte_size": 64}).to_string();
    let short = json!({"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64}).to_string();
    let empty = json!({"raw_handle": {"b64": handle}, "device_id": 0, "byte_size": 0}).to_string();
    let failed = "failed to register CUDA shared memory region 'mine': ";
    for (body, expected) in [
        (&asked, format!("{failed}there is no CUDA device ")),
        (&short, format!("{failed}its handle has 3 bytes, not 64")),
        (&empty, format!("{failed}it has no bytes")),
        (&r#"{"device_id": 0}"#.to_owned(), "Shared memory register request has no 'raw_handle' field".to_owned()),
    ] {
        let refused = served.post("/v2/cudasharedmemory/region/mine/register", body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(refused.error().starts_with(&expected), "{body}: {}", refused.error());
    }
    served.stop().await;
}
