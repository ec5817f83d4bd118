//! What the server and its models are: metadata, readiness, configuration, statistics, the list of models.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;

use super::path::Named;
use super::reply::{self, Answer};
use super::{App, message};
use crate::error::Kind;
use crate::protocol::v2::metadata;
use crate::protocol::v2::wire::*;

/// `GET /v2`.
pub async fn server(State(app): State<Arc<App>>) -> Response {
    message::reply("ServerMetadataResponse", &metadata::server(&app.settings.server_id))
}

/// `GET /v2/models/{model}`, with or without a version.
pub async fn describe(State(app): State<Arc<App>>, at: Named) -> Answer {
    let request = ModelMetadataRequest { name: at.model, version: at.version };
    Ok(message::reply("ModelMetadataResponse", &metadata::model(&app.gateway, &request)?))
}

/// `GET .../ready`: 200 if the model answers requests, 400 if it is known and does not.
pub async fn ready(State(app): State<Arc<App>>, at: Named) -> Answer {
    let request = ModelReadyRequest { name: at.model, version: at.version };
    match metadata::model_ready(&app.gateway, &request) {
        Ok(ModelReadyResponse { ready: true }) => Ok(StatusCode::OK.into_response()),
        Err(error) if error.kind() != Kind::Unavailable => Err(error.into()),
        Ok(_) | Err(_) => Ok(reply::error(StatusCode::BAD_REQUEST, "Model version not ready")),
    }
}

/// `GET .../config`.
pub async fn config(State(app): State<Arc<App>>, at: Named) -> Answer {
    let request = ModelConfigRequest { name: at.model, version: at.version };
    let config = metadata::config(&app.gateway, &request)?.config.unwrap_or_default();
    Ok(message::reply("ModelConfig", &config))
}

/// `GET .../stats`, and `GET /v2/models/stats` of all.
pub async fn statistics(State(app): State<Arc<App>>, at: Named) -> Answer {
    let request = ModelStatisticsRequest { name: at.model, version: at.version };
    Ok(message::reply("ModelStatisticsResponse", &metadata::statistics(&app.gateway, &request)?))
}

/// One model in the list.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Listed {
    name: String,
    /// That of the best version: READY if one is; empty if the model was never loaded.
    state: String,
    /// Those that are ready.
    versions: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// `GET /v2/models`: every model that the repositories hold.
pub async fn list(State(app): State<Arc<App>>) -> Answer {
    let index = super::repository::entries(&app.gateway, false).await?;
    Ok(message::reply_serde(&serde_json::json!({ "models": grouped(index) })))
}

/// One element for each model, from the index, which is ordered by name.
fn grouped(index: Vec<repository_index_response::ModelIndex>) -> Vec<Listed> {
    let mut models: Vec<Listed> = Vec::new();
    for entry in index {
        let new = models.last().is_none_or(|model| model.name != entry.name);
        if new {
            models.push(Listed { name: entry.name, state: String::new(), versions: Vec::new(), reason: String::new() });
        }
        let Some(model) = models.last_mut() else { continue };
        match entry.state.as_str() {
            READY => {
                model.versions.push(entry.version);
                (model.state, model.reason) = (entry.state, entry.reason);
            }
            _ if model.state != READY => (model.state, model.reason) = (entry.state, entry.reason),
            _ => {}
        }
    }
    models
}

const READY: &str = "READY";

#[cfg(test)]
mod tests {
    use super::repository_index_response::ModelIndex;
    use super::*;

    #[test]
    fn a_model_is_as_ready_as_its_best_version() {
        let entry = |name: &str, version: &str, state: &str, reason: &str| ModelIndex {
            name: name.to_owned(),
            version: version.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
        };
        let index = vec![
            entry("a", "1", "READY", ""),
            entry("a", "2", "UNAVAILABLE", "broken"),
            entry("b", "1", "UNAVAILABLE", "unloaded"),
            entry("b", "2", "LOADING", ""),
            entry("c", "", "", ""),
        ];
        let listed = |name: &str, state: &str, versions: &[&str]| Listed {
            name: name.to_owned(),
            state: state.to_owned(),
            versions: versions.iter().map(|&version| version.to_owned()).collect(),
            reason: String::new(),
        };
        let expected = [listed("a", "READY", &["1"]), listed("b", "LOADING", &[]), listed("c", "", &[])];
        assert_eq!(grouped(index), expected);
    }
}
