//! The log settings.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use serde_json::Value;

use super::body::{self, Object};
use super::reply::Answer;
use super::{App, message};
use crate::error::{Error, Result};
use crate::protocol::v2::log;
use crate::protocol::v2::wire::{LogSettingsRequest, LogSettingsResponse};
use crate::protocol::v2::wire::{log_settings_request as asked, log_settings_response as answered};

/// `GET /v2/logging`.
pub async fn read(State(app): State<Arc<App>>) -> Answer {
    Ok(message::reply_serde(&shown(log::settings(&app.gateway, LogSettingsRequest::default())?)))
}

/// `POST /v2/logging`: answers the settings after the change.
pub async fn update(State(app): State<Arc<App>>, body: Body) -> Answer {
    let asked = body::object(&app.small_body(body).await?, "logging")?;
    let request = LogSettingsRequest { settings: settings(asked)? };
    Ok(message::reply_serde(&shown(log::settings(&app.gateway, request)?)))
}

/// The settings to change; null leaves one as it is.
fn settings(settings: Object) -> Result<HashMap<String, asked::SettingValue>> {
    use asked::setting_value::ParameterChoice;
    let of = |(key, value): (String, Value)| {
        let choice = match value {
            Value::Bool(value) => ParameterChoice::BoolParam(value),
            Value::String(value) => ParameterChoice::StringParam(value),
            Value::Number(value) => match value.as_u64().and_then(|value| u32::try_from(value).ok()) {
                Some(value) => ParameterChoice::Uint32Param(value),
                None => return Err(Error::invalid(format!("Invalid value for '{key}': {value} is out of range"))),
            },
            _ => {
                return Err(Error::invalid(format!("Invalid value for '{key}': expected a boolean, number or string")));
            }
        };
        Ok((key, asked::SettingValue { parameter_choice: Some(choice) }))
    };
    settings.into_iter().filter(|(_, value)| !value.is_null()).map(of).collect()
}

fn shown(settings: LogSettingsResponse) -> Object {
    use answered::setting_value::ParameterChoice;
    let of = |(key, setting): (String, answered::SettingValue)| {
        let value = match setting.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Value::from(value),
            Some(ParameterChoice::Uint32Param(value)) => Value::from(value),
            Some(ParameterChoice::StringParam(value)) => Value::from(value),
            None => Value::Null,
        };
        (key, value)
    };
    settings.settings.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_changes_nothing_and_a_wrong_type_is_named() {
        let parsed = |text: &str| settings(body::object(text.as_bytes(), "logging").expect("an object"));
        let changes =
            parsed(r#"{"log_info": false, "log_verbose_level": 1, "log_format": "ISO8601", "log_error": null}"#);
        let changes = changes.expect("right types");
        assert_eq!(changes.len(), 3);
        assert_eq!(
            changes["log_verbose_level"].parameter_choice,
            Some(asked::setting_value::ParameterChoice::Uint32Param(1))
        );
        for text in
            [r#"{"log_info": []}"#, r#"{"log_info": -1}"#, r#"{"log_info": 4294967296}"#, r#"{"log_info": 0.5}"#]
        {
            let refused = parsed(text).expect_err(text);
            assert!(refused.message().starts_with("Invalid value for 'log_info'"), "{refused}");
        }
    }

    #[test]
    fn each_setting_is_shown_by_its_own_type() {
        use answered::setting_value::ParameterChoice;
        let value = |choice| answered::SettingValue { parameter_choice: Some(choice) };
        let settings = HashMap::from([
            ("log_info".to_owned(), value(ParameterChoice::BoolParam(true))),
            ("log_verbose_level".to_owned(), value(ParameterChoice::Uint32Param(0))),
            ("log_file".to_owned(), value(ParameterChoice::StringParam(String::new()))),
        ]);
        assert_eq!(
            Value::from(shown(LogSettingsResponse { settings })),
            json!({"log_info": true, "log_verbose_level": 0, "log_file": ""})
        );
    }
}
