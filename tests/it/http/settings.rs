//! The trace and the log settings, read and changed while the server runs.

use http::StatusCode;
use serde_json::json;

use super::Served;

#[tokio::test]
async fn trace_settings_of_a_model_go_before_those_of_the_server() {
    let served = Served::start().await;
    let server = served.get("/v2/trace/setting").await.json();
    assert_eq!((&server["trace_level"], &server["trace_rate"]), (&json!(["OFF"]), &json!("1000")));
    let path = "/v2/models/pair/trace/setting";
    let changed = served.post(path, r#"{"trace_level": ["TIMESTAMPS"], "trace_rate": "7"}"#).await.json();
    assert_eq!((&changed["trace_level"], &changed["trace_rate"]), (&json!(["TIMESTAMPS"]), &json!("7")));
    assert_eq!(served.get(path).await.json(), changed);
    assert_eq!(served.get("/v2/trace/setting").await.json(), server);
    let back = served.post(path, r#"{"trace_level": null, "trace_rate": null}"#).await.json();
    assert_eq!(back, server);
    served.stop().await;
}

#[tokio::test]
async fn trace_settings_of_what_has_none_are_refused() {
    let served = Served::start().await;
    let path = "/v2/models/pair/versions/1/trace/setting";
    for answer in [served.get(path).await, served.post(path, "{}").await] {
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().contains("use /v2/models/pair/trace/setting"), "{}", answer.error());
    }
    let unknown = served.get("/v2/models/nobody/trace/setting").await;
    assert_eq!((unknown.status, &*unknown.error()), (StatusCode::BAD_REQUEST, "Request for unknown model : nobody"));
    served.stop().await;
}

#[tokio::test]
async fn log_settings_are_changed_and_shown() {
    let served = Served::start().await;
    let before = served.get("/v2/logging").await.json();
    assert_eq!((&before["log_info"], &before["log_verbose_level"]), (&json!(true), &json!(0)));
    let body = r#"{"log_warning": false, "log_verbose_level": 1, "log_error": null}"#;
    let after = served.post("/v2/logging", body).await.json();
    assert_eq!((&after["log_warning"], &after["log_verbose_level"]), (&json!(false), &json!(1)));
    assert_eq!(after["log_error"], before["log_error"]);
    assert_eq!(served.get("/v2/logging").await.json(), after);
    served.stop().await;
}

#[tokio::test]
async fn wrong_settings_are_named() {
    let served = Served::start().await;
    for (path, body, status, expected) in [
        ("/v2/trace/setting", r#"{"trace_rate": true}"#, StatusCode::BAD_REQUEST, "'trace_rate'"),
        ("/v2/trace/setting", r#"{"trace_rate": "often"}"#, StatusCode::BAD_REQUEST, "trace_rate"),
        ("/v2/trace/setting", r#"{"trace_file": "x"}"#, StatusCode::NOT_IMPLEMENTED, "trace file location"),
        ("/v2/logging", r#"{"log_info": "yes"}"#, StatusCode::BAD_REQUEST, "log_info"),
        ("/v2/logging", r#"{"log_info": []}"#, StatusCode::BAD_REQUEST, "log_info"),
        ("/v2/logging", r#"{"log_file": "x"}"#, StatusCode::NOT_IMPLEMENTED, "log file location"),
        ("/v2/logging", "[]", StatusCode::BAD_REQUEST, "failed to parse the logging request"),
    ] {
        let answer = served.post(path, body).await;
        assert_eq!(answer.status, status, "{path} {body}");
        assert!(answer.error().contains(expected), "{path} {body}: {}", answer.error());
    }
    served.stop().await;
}
