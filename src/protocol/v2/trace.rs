//! TraceSetting: reads and changes what is traced, of the server or of one model.
//!
//! Names, checks and messages are the reference server's; a name that it would pass over is refused here.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::wire::{TraceSettingRequest, TraceSettingResponse, trace_setting_request, trace_setting_response};
use crate::error::{Error, Kind, Result};
use crate::gateway::Gateway;
use crate::telemetry::trace::{Change, Level, Mode, Tracer, Update};

const LEVEL: &str = "trace_level";
const RATE: &str = "trace_rate";
const COUNT: &str = "trace_count";
const LOG_FREQUENCY: &str = "log_frequency";
const FILE: &str = "trace_file";
const MODE: &str = "trace_mode";

/// Changes the settings that are given, and answers all that hold then.
///
/// # Errors
/// [`Kind::InvalidArgument`] for an unknown model, name or value; [`Kind::Unimplemented`] for what is fixed at the start.
pub fn settings(gateway: &Gateway, request: TraceSettingRequest) -> Result<TraceSettingResponse> {
    let model = Some(request.model_name.as_str()).filter(|model| !model.is_empty());
    if let Some(model) = model
        && gateway.find(model, None).is_err()
    {
        return Err(Error::invalid(format!("Request for unknown model : {model}")));
    }
    let tracer = gateway.tracer();
    if !request.settings.is_empty() {
        let change = change(&request.settings)?;
        tracer.change(model, change);
        tracing::info!(model, ?change, "trace settings changed");
    }
    Ok(TraceSettingResponse { settings: described(tracer, model) })
}

type Given = HashMap<String, trace_setting_request::SettingValue>;

fn change(given: &Given) -> Result<Change> {
    let fixed =
        |what| Error::new(Kind::Unimplemented, format!("trace {what} can not be updated through network protocol"));
    if given.contains_key(FILE) {
        return Err(fixed("file location"));
    }
    if given.contains_key(MODE) {
        return Err(fixed("mode"));
    }
    let known = [LEVEL, RATE, COUNT, LOG_FREQUENCY];
    if let Some(unknown) = given.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::invalid(format!("unknown trace setting '{unknown}', expected {}", known.join(", "))));
    }
    let count = match number(given, COUNT, -1..=i32::MAX)? {
        Update::Keep => Update::Keep,
        Update::Clear => Update::Clear,
        Update::Set(count) => Update::Set(u32::try_from(count).ok()),
    };
    Ok(Change {
        level: level(given)?,
        rate: number(given, RATE, 0..=u32::MAX)?,
        count,
        log_frequency: number(given, LOG_FREQUENCY, 0..=u32::MAX)?,
    })
}

fn level(given: &Given) -> Result<Update<Level>> {
    let Some(value) = given.get(LEVEL) else { return Ok(Update::Keep) };
    if value.value.is_empty() {
        return Ok(Update::Clear);
    }
    let names: Vec<&str> = value.value.iter().map(String::as_str).collect();
    Level::from_names(&names).map(Update::Set).map_err(Error::invalid)
}

fn number<T>(given: &Given, name: &str, bounds: RangeInclusive<T>) -> Result<Update<T>>
where
    T: Copy + Display + PartialOrd + TryFrom<i128>,
{
    let Some(value) = given.get(name) else { return Ok(Update::Keep) };
    let text = match value.value.as_slice() {
        [] => return Ok(Update::Clear),
        [text] => text,
        _ => return Err(Error::invalid(format!("expect only 1 value for '{name}'"))),
    };
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(Error::invalid(format!("Unable to parse '{name}', got: {text}")));
    }
    let number = text.parse::<i128>().ok().and_then(|number| T::try_from(number).ok());
    number.filter(|number| bounds.contains(number)).map(Update::Set).ok_or_else(|| {
        let (min, max) = bounds.into_inner();
        Error::invalid(format!("Unable to parse '{name}', value is out of range [ {min}, {max} ], got: {text}"))
    })
}

fn described(tracer: &Tracer, model: Option<&str>) -> HashMap<String, trace_setting_response::SettingValue> {
    let values = tracer.values(model);
    let settings = tracer.settings();
    let count = values.count.map_or_else(|| "-1".to_owned(), |count| count.to_string());
    let mut described = vec![
        (LEVEL, values.level.names().into_iter().map(str::to_owned).collect()),
        (RATE, vec![values.rate.to_string()]),
        (COUNT, vec![count]),
        (MODE, vec![settings.mode.name().to_owned()]),
    ];
    match settings.mode {
        Mode::Triton => {
            let file = settings.file.as_ref().map(|path| path.display().to_string());
            described.push((FILE, vec![file.unwrap_or_default()]));
            described.push((LOG_FREQUENCY, vec![values.log_frequency.to_string()]));
        }
        Mode::OpenTelemetry => {
            let otlp = &settings.otlp;
            described.push(("url", vec![otlp.url.clone()]));
            if !otlp.resource.is_empty() {
                let resource = otlp.resource.iter().map(|(key, value)| format!("{key}={value}"));
                described.push(("resource", resource.collect()));
            }
            described.push(("bsp_max_queue_size", vec![otlp.queue_size_max.to_string()]));
            described.push(("bsp_schedule_delay", vec![otlp.schedule_delay.as_millis().to_string()]));
            described.push(("bsp_max_export_batch_size", vec![otlp.batch_size_max.to_string()]));
        }
    }
    let of = |value| trace_setting_response::SettingValue { value };
    described.into_iter().map(|(name, value)| (name.to_owned(), of(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &[&str])]) -> std::result::Result<Change, String> {
        let value = |texts: &[&str]| trace_setting_request::SettingValue {
            value: texts.iter().map(|text| (*text).to_owned()).collect(),
        };
        let given = pairs.iter().map(|(name, texts)| ((*name).to_owned(), value(texts))).collect();
        change(&given).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_set_and_empty_lists_take_them_back() {
        let change = of(&[(LEVEL, &["TIMESTAMPS", "TENSORS"]), (RATE, &["5"]), (COUNT, &["-1"]), (LOG_FREQUENCY, &[])]);
        let expected = Change {
            level: Update::Set(Level { timestamps: true, tensors: true }),
            rate: Update::Set(5),
            count: Update::Set(None),
            log_frequency: Update::Clear,
        };
        assert_eq!(change, Ok(expected));
        assert_eq!(of(&[(LEVEL, &["OFF"])]), Ok(Change { level: Update::Set(Level::OFF), ..Change::default() }));
    }

    #[test]
    fn wrong_values_have_the_reference_servers_messages() {
        for (name, value, message) in [
            (LEVEL, &["OFF", "TENSORS"][..], "Expect only one trace level 'OFF' is specified"),
            (LEVEL, &["LOUD"], "unknown trace level 'LOUD', expected OFF, TIMESTAMPS or TENSORS"),
            (RATE, &["often"], "Unable to parse 'trace_rate', got: often"),
            (RATE, &["-1"], "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: -1"),
            (RATE, &["1", "2"], "expect only 1 value for 'trace_rate'"),
            (COUNT, &["-2"], "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], got: -2"),
            (LOG_FREQUENCY, &[""], "Unable to parse 'log_frequency', got: "),
            (
                LOG_FREQUENCY,
                &["99999999999999999999999999999999999999999999"],
                "Unable to parse 'log_frequency', value is out of range [ 0, 4294967295 ], got: \
                 99999999999999999999999999999999999999999999",
            ),
            (FILE, &["x"], "trace file location can not be updated through network protocol"),
            (MODE, &["triton"], "trace mode can not be updated through network protocol"),
            (
                "speed",
                &["1"],
                "unknown trace setting 'speed', expected trace_level, trace_rate, trace_count, log_frequency",
            ),
        ] {
            assert_eq!(of(&[(name, value)]), Err(message.to_owned()), "{name}");
        }
    }
}
