//! The trace settings, of one model or of all.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use serde_json::Value;

use super::body::{self, Object};
use super::path::Named;
use super::reply::Answer;
use super::{App, message};
use crate::error::{Error, Result};
use crate::protocol::v2::trace;
use crate::protocol::v2::wire::trace_setting_request::SettingValue;
use crate::protocol::v2::wire::{TraceSettingRequest, TraceSettingResponse};

/// The one setting that is a list; the others are single texts.
const LEVEL: &str = "trace_level";

/// `GET .../trace/setting`.
pub async fn read(State(app): State<Arc<App>>, at: Named) -> Answer {
    let request = TraceSettingRequest { settings: HashMap::new(), model_name: at.model };
    Ok(message::reply_serde(&shown(trace::settings(&app.gateway, request)?)))
}

/// `POST .../trace/setting`: answers the settings after the change.
pub async fn update(State(app): State<Arc<App>>, at: Named, body: Body) -> Answer {
    let asked = body::object(&app.small_body(body).await?, "trace")?;
    let request = TraceSettingRequest { settings: settings(asked)?, model_name: at.model };
    Ok(message::reply_serde(&shown(trace::settings(&app.gateway, request)?)))
}

/// Below a version there are no settings.
pub async fn of_version(at: Named) -> Answer {
    Err(Error::invalid(format!(
        "trace settings are of a model, not of one of its versions: use /v2/models/{}/trace/setting",
        at.model
    ))
    .into())
}

fn settings(asked: Object) -> Result<HashMap<String, SettingValue>> {
    asked.into_iter().map(|(key, value)| Ok((key.clone(), SettingValue { value: texts(&key, value)? }))).collect()
}

/// The texts of a setting; none for null, which takes the setting back.
fn texts(key: &str, value: Value) -> Result<Vec<String>> {
    let text = |value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) if number.is_i64() => Ok(number.to_string()),
        _ => Err(Error::invalid(format!("Invalid value for '{key}': expected a string, an array of strings or null"))),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(values) => values.into_iter().map(text).collect(),
        value => Ok(vec![text(value)?]),
    }
}

fn shown(settings: TraceSettingResponse) -> Object {
    let of = |(key, setting): (String, crate::protocol::v2::wire::trace_setting_response::SettingValue)| {
        let value = if key == LEVEL { Value::from(setting.value) } else { Value::from(setting.value.concat()) };
        (key, value)
    };
    settings.settings.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::v2::wire::trace_setting_response;

    #[test]
    fn null_takes_back_and_a_wrong_type_is_named() {
        let asked = body::object(br#"{"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5", "trace_count": -1, "log_frequency": null}"#, "trace");
        let settings = settings(asked.expect("an object")).expect("right types");
        assert_eq!(settings["trace_level"].value, ["TIMESTAMPS", "TENSORS"]);
        assert_eq!(
            (&settings["trace_rate"].value[..], &settings["trace_count"].value[..]),
            (&["5".to_owned()][..], &["-1".to_owned()][..])
        );
        assert!(settings["log_frequency"].value.is_empty());
        for value in [json!(true), json!({}), json!([[]]), json!(0.5)] {
            let refused = texts("trace_rate", value).expect_err("a wrong type");
            assert!(refused.message().starts_with("Invalid value for 'trace_rate'"), "{refused}");
        }
    }

    #[test]
    fn only_the_level_is_shown_as_a_list() {
        let value = |texts: &[&str]| trace_setting_response::SettingValue {
            value: texts.iter().map(|&text| text.to_owned()).collect(),
        };
        let settings =
            HashMap::from([("trace_level".to_owned(), value(&["OFF"])), ("trace_rate".to_owned(), value(&["1000"]))]);
        assert_eq!(
            Value::from(shown(TraceSettingResponse { settings })),
            json!({"trace_level": ["OFF"], "trace_rate": "1000"})
        );
    }
}
