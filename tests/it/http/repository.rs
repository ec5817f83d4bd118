//! The model repository: index, load, unload.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use nereid::engine::Control;
use nereid::protocol::http::Settings;
use serde_json::{Value, json};

use super::Served;
use crate::support;

async fn explicit() -> Served {
    Served::with(Control::Explicit(None), Settings::default()).await
}

/// The line of `pair` in the index.
async fn pair(served: &Served, body: &str) -> Option<Value> {
    let index = served.post("/v2/repository/index", body).await.json();
    index.as_array().expect("a list").iter().find(|line| line["name"] == "pair").cloned()
}

#[tokio::test]
async fn the_index_leaves_out_what_is_empty() {
    let served = explicit().await;
    let expected = json!({"name": "pair", "version": "1", "state": "READY"});
    for body in ["", "{}", r#"{"ready": true}"#] {
        assert_eq!(pair(&served, body).await, Some(expected.clone()), "{body}");
    }
    support::write_model(served.root.path(), "late", "backend: \"identity\"", &[]);
    let index = served.post("/v2/repository/index", "").await.json();
    assert!(index.as_array().expect("a list").contains(&json!({"name": "late"})), "{index}");
    served.stop().await;
}

#[tokio::test]
async fn an_unloaded_model_is_unavailable_until_it_is_loaded_again() {
    let served = explicit().await;
    let unloaded = served.post("/v2/repository/models/pair/unload", "").await;
    assert_eq!((unloaded.status, &unloaded.body[..]), (StatusCode::OK, &b""[..]));
    assert_eq!(pair(&served, r#"{"ready": true}"#).await, None);
    let ready = served.get("/v2/models/pair/versions/1/ready").await;
    assert_eq!((ready.status, ready.error()), (StatusCode::BAD_REQUEST, "Model version not ready".to_owned()));
    let loaded = served.post("/v2/repository/models/pair/load", "{}").await;
    assert_eq!((loaded.status, &loaded.body[..]), (StatusCode::OK, &b""[..]));
    assert_eq!(served.get("/v2/models/pair/ready").await.status, StatusCode::OK);
    served.stop().await;
}

#[tokio::test]
async fn a_load_brings_its_own_configuration_and_files() {
    let served = explicit().await;
    let config = json!({"backend": "identity", "max_batch_size": 3,
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [1]}]});
    let parameters = json!({"config": config.to_string(), "file:7/weights": BASE64_STANDARD.encode([0, 255, 7])});
    let body = json!({ "parameters": parameters }).to_string();
    let loaded = served.post("/v2/repository/models/pair/load", &body).await;
    assert_eq!(loaded.status, StatusCode::OK, "{:?}", loaded.body);
    let model = served.get("/v2/models/pair").await.json();
    assert_eq!((&model["versions"], &model["inputs"][0]["shape"]), (&json!(["7"]), &json!([-1, 1])));
    served.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_named() {
    let served = explicit().await;
    for (path, body, expected) in [
        ("index", "[]", "failed to parse the index request as a JSON object"),
        ("index", r#"{"ready": 1}"#, "Invalid value for 'ready': expected a boolean"),
        ("models/pair/load", "{", "failed to parse the load request as a JSON object"),
        ("models/pair/load", r#"{"parameters": 1}"#, "Invalid value for 'parameters': expected an object"),
        (
            "models/pair/load",
            r#"{"parameters": {"config": 1}}"#,
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            "models/pair/load",
            r#"{"parameters": {"file:1/m": {}}}"#,
            "invalid value type for load parameter 'file:1/m', expected bytes_param.",
        ),
        (
            "models/pair/load",
            r#"{"parameters": {"file:1/m": "?"}}"#,
            "Unable to decode base64 of load parameter 'file:1/m'",
        ),
        ("models/pair/load", r#"{"parameters": {"speed": "1"}}"#, "unrecognized load parameter 'speed'."),
        ("models/..%2Fpair/load", "", "model name '../pair' is not the name of a directory"),
        ("models/%2E%2E/unload", "", "model name '..' is not the name of a directory"),
        (
            "models/pair/unload",
            r#"{"parameters": {"unload_dependents": 1}}"#,
            "invalid value type for 'unload_dependents' parameter, expected bool_param.",
        ),
    ] {
        let answer = served.post(&format!("/v2/repository/{path}"), body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {body}");
        assert!(answer.error().contains(expected), "{path} {body}: {}", answer.error());
    }
    assert_eq!(served.get("/v2/models/pair/ready").await.status, StatusCode::OK);
    served.stop().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let settings = Settings { request_bytes_max: 1000, ..Settings::default() };
    let served = Served::with(Control::Explicit(None), settings).await;
    let body = format!(r#"{{"parameters": {{"config": "{}"}}}}"#, " ".repeat(1000));
    let answer = served.post("/v2/repository/models/pair/load", &body).await;
    assert!(matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE), "{}", answer.status);
    assert!(answer.error().contains("1000 bytes"), "{}", answer.error());
    served.stop().await;
}

#[tokio::test]
async fn repositories_have_no_names() {
    let served = explicit().await;
    for path in ["index", "models/pair/load", "models/pair/unload"] {
        let answer = served.post(&format!("/v2/repository/mine/{path}"), "").await;
        assert_eq!(
            (answer.status, answer.error()),
            (StatusCode::NOT_IMPLEMENTED, "'repository_name' specification is not supported".to_owned()),
            "{path}"
        );
    }
    served.stop().await;
}

#[tokio::test]
async fn models_cannot_be_loaded_by_call_unless_the_server_says_so() {
    let served = Served::start().await;
    let answer = served.post("/v2/repository/models/pair/load", "").await;
    assert_eq!(
        (answer.status, answer.error()),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "explicit model load / unload is not allowed if polling is enabled".to_owned()
        )
    );
    served.stop().await;
}

#[tokio::test]
async fn the_wrong_method_is_told_apart_from_the_wrong_path() {
    let served = Served::start().await;
    let wrong_method = (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    let wrong_path = (StatusCode::NOT_FOUND, "Not Found");
    for (path, expected) in [
        ("/v2/repository/index", wrong_method),
        ("/v2/repository/models/pair/load", wrong_method),
        ("/v2/models/pair/nothing", wrong_path),
        ("/v3", wrong_path),
    ] {
        let answer = served.get(path).await;
        assert_eq!((answer.status, &*answer.error()), expected, "{path}");
    }
    assert_eq!(served.post("/v2/models/pair", "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    served.stop().await;
}
