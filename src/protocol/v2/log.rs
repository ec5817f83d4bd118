//! LogSettings: reads and changes which lines are logged and in which form.

use std::collections::HashMap;

use super::wire::log_settings_request::setting_value::ParameterChoice as Given;
use super::wire::log_settings_response::SettingValue;
use super::wire::log_settings_response::setting_value::ParameterChoice as Told;
use super::wire::{LogSettingsRequest, LogSettingsResponse};
use crate::error::{Error, Kind, Result};
use crate::gateway::Gateway;
use crate::telemetry::logging::{Format, Levels};

/// Changes the settings that are given, all or none of them, and answers all that hold then.
///
/// # Errors
/// [`Kind::InvalidArgument`] for an unknown name or a wrong type or value; [`Kind::Unimplemented`] for the file.
pub fn settings(gateway: &Gateway, request: LogSettingsRequest) -> Result<LogSettingsResponse> {
    let control = gateway.log();
    if !request.settings.is_empty() {
        let given = request.settings.into_iter().map(|(name, value)| (name, value.parameter_choice));
        let given: Vec<_> = given.collect();
        let now = control.settings();
        // Once as a rehearsal, so that a mistake changes nothing.
        change(&given, &mut now.levels.clone(), &mut now.format.clone())?;
        let mut changed = Ok(());
        control.change(|levels, format| changed = change(&given, levels, format));
        changed?;
        let now = control.settings();
        tracing::info!(levels = ?now.levels, format = now.format.name(), "log settings changed");
    }
    let now = control.settings();
    let file = now.file.map(|path| path.display().to_string()).unwrap_or_default();
    let told = [
        ("log_file", Told::StringParam(file)),
        ("log_info", Told::BoolParam(now.levels.info)),
        ("log_warning", Told::BoolParam(now.levels.warning)),
        ("log_error", Told::BoolParam(now.levels.error)),
        ("log_verbose_level", Told::Uint32Param(now.levels.verbose)),
        ("log_format", Told::StringParam(now.format.name().to_owned())),
    ];
    let of = |told| SettingValue { parameter_choice: Some(told) };
    let settings: HashMap<_, _> = told.into_iter().map(|(name, told)| (name.to_owned(), of(told))).collect();
    Ok(LogSettingsResponse { settings })
}

fn change(given: &[(String, Option<Given>)], levels: &mut Levels, format: &mut Format) -> Result<()> {
    for (name, value) in given {
        match (name.as_str(), value) {
            ("log_file", _) => {
                let message = "log file location can not be updated through network protocol";
                return Err(Error::new(Kind::Unimplemented, message));
            }
            ("log_info", Some(Given::BoolParam(shown))) => levels.info = *shown,
            ("log_warning", Some(Given::BoolParam(shown))) => levels.warning = *shown,
            ("log_error", Some(Given::BoolParam(shown))) => levels.error = *shown,
            ("log_info" | "log_warning" | "log_error", _) => return Err(expected("boolean", name)),
            ("log_verbose_level", Some(Given::Uint32Param(level))) => levels.verbose = *level,
            ("log_verbose_level", _) => return Err(expected("int32", name)),
            ("log_format", Some(Given::StringParam(name))) => {
                let unknown = || Error::invalid(format!("invalid argument for log_format, got: {name}"));
                *format = Format::from_name(name).ok_or_else(unknown)?;
            }
            ("log_format", _) => return Err(expected("string", name)),
            (unknown, _) => return Err(Error::invalid(format!("unknown log setting '{unknown}'"))),
        }
    }
    Ok(())
}

fn expected(what: &str, name: &str) -> Error {
    Error::invalid(format!("expect {what} for '{name}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: Given) -> std::result::Result<(Levels, Format), String> {
        let (mut levels, mut format) = (Levels::default(), Format::Default);
        let changed = change(&[(name.to_owned(), Some(value))], &mut levels, &mut format);
        changed.map(|()| (levels, format)).map_err(|error| error.to_string())
    }

    #[test]
    fn each_setting_changes_what_it_names() {
        let usual = Levels::default();
        let hide = || Given::BoolParam(false);
        assert_eq!(of("log_info", hide()), Ok((Levels { info: false, ..usual }, Format::Default)));
        assert_eq!(of("log_warning", hide()), Ok((Levels { warning: false, ..usual }, Format::Default)));
        assert_eq!(of("log_error", hide()), Ok((Levels { error: false, ..usual }, Format::Default)));
        assert_eq!(
            of("log_verbose_level", Given::Uint32Param(2)),
            Ok((Levels { verbose: 2, ..usual }, Format::Default))
        );
        assert_eq!(of("log_format", Given::StringParam("ISO8601".to_owned())), Ok((usual, Format::Iso8601)));
    }

    #[test]
    fn wrong_values_have_the_reference_servers_messages() {
        let text = || Given::StringParam("x".to_owned());
        for (name, value, message) in [
            ("log_info", text(), "expect boolean for 'log_info'"),
            ("log_warning", Given::Uint32Param(1), "expect boolean for 'log_warning'"),
            ("log_error", text(), "expect boolean for 'log_error'"),
            ("log_verbose_level", Given::BoolParam(true), "expect int32 for 'log_verbose_level'"),
            ("log_format", Given::BoolParam(true), "expect string for 'log_format'"),
            ("log_format", text(), "invalid argument for log_format, got: x"),
            ("log_file", text(), "log file location can not be updated through network protocol"),
            ("log_colour", text(), "unknown log setting 'log_colour'"),
        ] {
            assert_eq!(of(name, value), Err(message.to_owned()));
        }
    }
}
