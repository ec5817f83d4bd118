//! Metadata, readiness, configuration and statistics of models, and their list.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::json;

use super::Served;

#[tokio::test]
async fn the_server_says_what_it_is() {
    let served = Served::start().await;
    let server = served.get("/v2").await.json();
    assert_eq!((&server["name"], &server["version"]), (&json!("nereid"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(server["extensions"][0], "classification");
    served.stop().await;
}

#[tokio::test]
async fn a_models_metadata_has_its_versions_and_the_batch_dimension() {
    let served = Served::start().await;
    let tensor = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [-1, -1]});
    let expected = json!({
        "name": "versions", "versions": ["1", "3"], "platform": "identity",
        "inputs": [tensor("INPUT0")], "outputs": [tensor("OUTPUT0")]
    });
    assert_eq!(served.get("/v2/models/versions").await.json(), expected);
    assert_eq!(served.get("/v2/models/versions/versions/1").await.json()["versions"], json!(["1"]));
    served.stop().await;
}

#[tokio::test]
async fn readiness_of_a_model_is_a_status() {
    let served = Served::start().await;
    for path in ["/v2/models/pair/ready", "/v2/models/versions/versions/3/ready"] {
        let answer = served.get(path).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b""[..]), "{path}");
    }
    let unknown = served.get("/v2/models/nobody/ready").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.error(), "Request for unknown model: 'nobody' is not found");
    assert_eq!(served.get("/v2/models/versions/versions/2/ready").await.status, StatusCode::NOT_FOUND);
    served.stop().await;
}

#[tokio::test]
async fn a_configuration_is_the_normalised_one_with_its_defaults() {
    let served = Served::start().await;
    let config = served.get("/v2/models/pair/config").await.json();
    assert_eq!((&config["name"], &config["max_batch_size"]), (&json!("pair"), &json!(8)));
    assert_eq!((&config["input"][0]["data_type"], &config["input"][0]["dims"]), (&json!("TYPE_FP32"), &json!([4])));
    assert_eq!(config["instance_group"][0]["count"], json!(1));
    assert_eq!((&config["parameters"], &config["default_model_filename"]), (&json!({}), &json!("")));
    served.stop().await;
}

#[tokio::test]
async fn statistics_are_of_one_version_or_of_all() {
    let served = Served::start().await;
    let one = served.get("/v2/models/pair/stats").await.json();
    assert_eq!(one["model_stats"][0]["inference_stats"]["success"], json!({"count": 0, "ns": 0}));
    assert_eq!(one["model_stats"][0]["batch_stats"], json!([]));
    let of_version = served.get("/v2/models/versions/versions/3/stats").await.json();
    assert_eq!(of_version["model_stats"][0]["version"], json!("3"));
    let all = served.get("/v2/models/stats").await.json();
    let index = served.post("/v2/repository/index", "").await.json();
    assert_eq!(
        all["model_stats"].as_array().map(Vec::len),
        index.as_array().map(Vec::len),
        "every version of every model"
    );
    let unknown = served.get("/v2/models/nobody/stats").await;
    assert_eq!(
        (unknown.status, unknown.error()),
        (StatusCode::BAD_REQUEST, "requested model 'nobody' is not available".to_owned())
    );
    served.stop().await;
}

#[tokio::test]
async fn the_list_has_every_model_once() {
    let served = Served::start().await;
    let list = served.get("/v2/models").await.json();
    let models = list["models"].as_array().expect("a list");
    let names: BTreeSet<_> = models.iter().map(|model| model["name"].as_str()).collect();
    assert_eq!(names.len(), models.len());
    assert!(names.is_superset(&BTreeSet::from(["pair", "slow", "text"].map(Some))), "{names:?}");
    let versions = models.iter().find(|model| model["name"] == "versions");
    assert_eq!(versions, Some(&json!({"name": "versions", "state": "READY", "versions": ["1", "3"]})));
    served.stop().await;
}

#[tokio::test]
async fn a_version_that_is_no_number_is_refused_by_every_route() {
    let served = Served::start().await;
    for route in ["", "/ready", "/config", "/stats"] {
        for (version, expected) in [("x", "version string 'x'"), ("0", "'0'"), ("%2B1", "'+1'"), ("-1", "'-1'")] {
            let answer = served.get(&format!("/v2/models/pair/versions/{version}{route}")).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{version}{route}");
            assert!(answer.error().contains(expected), "{}", answer.error());
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn names_are_percent_decoded_and_must_be_text() {
    let served = Served::start().await;
    assert_eq!(served.get("/v2/models/p%61ir").await.json()["name"], json!("pair"));
    let unknown = served.get("/v2/models/..%2Fpair").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.error().contains("'../pair'"), "{}", unknown.error());
    let broken = served.get("/v2/models/%FF").await;
    assert_eq!(
        (broken.status, broken.error()),
        (StatusCode::BAD_REQUEST, "a name in the path is not UTF-8".to_owned())
    );
    served.stop().await;
}

#[tokio::test]
async fn the_api_describes_itself() {
    let served = Served::start().await;
    let description = served.get("/openapi.json").await.json();
    assert_eq!(description["openapi"], "3.1.0");
    assert!(description["paths"]["/v2/models/{model}/ready"]["get"].is_object());
    served.stop().await;
}
