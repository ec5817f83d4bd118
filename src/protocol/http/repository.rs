//! The model repository: index, load, unload.
//!
//! What a parameter may be called and which type it has is `v2::admin`'s to say, as over gRPC; here JSON becomes the
//! message's types: texts are strings, except that files travel as base64.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::body::{self, Members, Object};
use super::path::Named;
use super::reply::{Answer, done};
use super::{App, json, message};
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use crate::protocol::v2::admin;
use crate::protocol::v2::wire::model_repository_parameter::ParameterChoice;
use crate::protocol::v2::wire::repository_index_response::ModelIndex;
use crate::protocol::v2::wire::*;

/// One line of the index; what is empty is left out.
#[derive(Serialize)]
struct Line {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// `POST /v2/repository/index`.
pub async fn index(State(app): State<Arc<App>>, at: Named, body: Body) -> Answer {
    let asked = body::object(&app.small_body(body).await?, "index")?;
    let ready = body::boolean(&asked, "ready")?.unwrap_or(false);
    let request = RepositoryIndexRequest { repository_name: at.repository, ready };
    let entries = admin::index(&app.gateway, &request).await?.models;
    let line = |ModelIndex { name, version, state, reason }: ModelIndex| Line { name, version, state, reason };
    Ok(message::reply_serde(&entries.into_iter().map(line).collect::<Vec<_>>()))
}

/// The index of all repositories.
pub async fn entries(gateway: &Gateway, ready: bool) -> Result<Vec<ModelIndex>> {
    let request = RepositoryIndexRequest { repository_name: String::new(), ready };
    Ok(admin::index(gateway, &request).await?.models)
}

/// `POST /v2/repository/models/{model}/load`: answers when the model is loaded.
pub async fn load(State(app): State<Arc<App>>, at: Named, body: Body) -> Answer {
    let mut portion = app.gateway.portion();
    let text = body::read(body, app.settings.request_bytes_max, &mut portion).await?;
    let parameters = load_parameters(&text)?;
    drop(text);
    let request = RepositoryModelLoadRequest { repository_name: at.repository, model_name: at.model, parameters };
    admin::load(&app.gateway, request).await?;
    Ok(done())
}

fn load_parameters(text: &[u8]) -> Result<HashMap<String, ModelRepositoryParameter>> {
    let Members(mut members) = body::parse(text, "load")?;
    let Some(parameters) = members.remove("parameters") else { return Ok(HashMap::new()) };
    if !parameters.get().starts_with('{') {
        return Err(body::wrong_type("parameters", "an object", &plain(parameters)));
    }
    let Members(parameters) = serde_json::from_str(parameters.get())
        .map_err(|error| Error::invalid(format!("'parameters' of the load request: {}", json::reason(&error))))?;
    let parameters = parameters.into_iter().map(|(key, value)| {
        let choice = if key.starts_with("file:") { file(&key, plain(value))? } else { choice(plain(value)) };
        Ok((key, ModelRepositoryParameter { parameter_choice: choice }))
    });
    parameters.collect()
}

/// `POST /v2/repository/models/{model}/unload`.
pub async fn unload(State(app): State<Arc<App>>, at: Named, body: Body) -> Answer {
    let text = app.small_body(body).await?;
    let parameters = body::take_object(&mut body::object(&text, "unload")?, "parameters")?;
    let request = RepositoryModelUnloadRequest {
        repository_name: at.repository,
        model_name: at.model,
        parameters: unload_parameters(parameters),
    };
    admin::unload(&app.gateway, request).await?;
    Ok(done())
}

fn unload_parameters(parameters: Object) -> HashMap<String, ModelRepositoryParameter> {
    let of = |(key, value)| (key, ModelRepositoryParameter { parameter_choice: choice(value) });
    parameters.into_iter().map(of).collect()
}

/// A value that is no array and no object; those are empty, since no parameter is one and parsed they can be large.
fn plain(value: &RawValue) -> Value {
    match value.get().as_bytes().first() {
        Some(b'[') => Value::Array(Vec::new()),
        Some(b'{') => Value::Object(Object::new()),
        _ => serde_json::from_str(value.get()).unwrap_or_default(),
    }
}

/// A value as the message carries it; `None` if the message has no field for it.
fn choice(value: Value) -> Option<ParameterChoice> {
    match value {
        Value::Bool(value) => Some(ParameterChoice::BoolParam(value)),
        Value::Number(value) => value.as_i64().map(ParameterChoice::Int64Param),
        Value::String(value) => Some(ParameterChoice::StringParam(value)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The content of a file, which JSON carries as base64.
fn file(key: &str, value: Value) -> Result<Option<ParameterChoice>> {
    let Value::String(text) = value else { return Ok(choice(value)) };
    match BASE64_STANDARD.decode(text) {
        Ok(content) => Ok(Some(ParameterChoice::BytesParam(content.into()))),
        Err(error) => Err(Error::invalid(format!("Unable to decode base64 of load parameter '{key}': {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_decoded_and_a_wrong_one_named() {
        let decoded = file("file:1/m", json!("AAEC/w==")).expect("base64");
        assert_eq!(decoded, Some(ParameterChoice::BytesParam(vec![0, 1, 2, 255].into())));
        let refused = file("file:1/m", json!("###")).expect_err("no base64");
        assert!(refused.message().starts_with("Unable to decode base64 of load parameter 'file:1/m'"), "{refused}");
        assert_eq!(file("file:1/m", json!(true)), Ok(Some(ParameterChoice::BoolParam(true))));
    }

    #[test]
    fn what_no_field_can_carry_is_none() {
        assert_eq!(choice(json!("x")), Some(ParameterChoice::StringParam("x".to_owned())));
        assert_eq!(choice(json!(-7)), Some(ParameterChoice::Int64Param(-7)));
        for value in [json!(null), json!([1]), json!({}), json!(0.5)] {
            assert_eq!(choice(value), None);
        }
    }
}
