//! Decodes the parameters of a request: those with a meaning to the server, and the custom ones for the backend.
//!
//! Knows names and types only; what a priority or a timeout does is the scheduler's matter.

use std::collections::HashMap;
use std::time::Duration;

use super::wire::{InferParameter, infer_parameter::ParameterChoice};
use crate::error::{Error, Result};
use crate::infer::{CorrelationId, ParameterValue, Parameters, Sequence};

const REGION: &str = "shared_memory_region";
const BYTE_SIZE: &str = "shared_memory_byte_size";

/// What the request-level parameters say.
#[derive(Debug, Default, PartialEq)]
pub struct RequestParameters {
    /// The priority level; 0 for the model's default.
    pub priority: u64,
    /// The longest time in the queue; `None` for the model's default.
    pub timeout: Option<Duration>,
    /// On a stream: send a last message even if it holds no data.
    pub empty_final_response: bool,
    /// The place in a sequence, if the request names one.
    pub sequence: Option<Sequence>,
    /// Everything else.
    pub custom: Parameters,
}

/// Decodes request-level parameters.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] for a known key of a wrong type, and for a reserved key.
pub fn of_request(wire: HashMap<String, InferParameter>) -> Result<RequestParameters> {
    let mut decoded = RequestParameters::default();
    let (mut correlation_id, mut start, mut end) = (None, false, false);
    for (key, parameter) in wire {
        let choice = parameter.parameter_choice;
        match key.as_str() {
            "sequence_id" => match choice {
                Some(ParameterChoice::Int64Param(0) | ParameterChoice::Uint64Param(0)) => {}
                Some(ParameterChoice::StringParam(id)) if id.is_empty() => {}
                // The wire has no unsigned form that all clients use: the bits are the number.
                Some(ParameterChoice::Int64Param(id)) => {
                    correlation_id = Some(CorrelationId::Number(id.cast_unsigned()))
                }
                Some(ParameterChoice::Uint64Param(id)) => correlation_id = Some(CorrelationId::Number(id)),
                Some(ParameterChoice::StringParam(id)) => correlation_id = Some(CorrelationId::Text(id.into())),
                _ => return Err(wrong_type(&key, "int64_param or string_param")),
            },
            "sequence_start" => start = boolean(&key, choice)?,
            "sequence_end" => end = boolean(&key, choice)?,
            "priority" => decoded.priority = priority(choice)?,
            "timeout" => match choice {
                Some(ParameterChoice::Int64Param(us)) => decoded.timeout = timeout(us),
                _ => return Err(wrong_type(&key, "int64_param")),
            },
            "triton_enable_empty_final_response" => decoded.empty_final_response = boolean(&key, choice)?,
            reserved if reserved.starts_with("triton_") => {
                return Err(Error::invalid(format!(
                    "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified, \
                     got '{reserved}'"
                )));
            }
            _ => {
                let value = custom(&key, choice)?;
                decoded.custom.insert(key, value);
            }
        }
    }
    decoded.sequence = correlation_id.map(|id| Sequence { id, start, end });
    Ok(decoded)
}

/// What an output's parameters say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OutputParameters {
    /// Ask for the `k` best classes instead of the tensor; 0 for the tensor.
    pub classification: u32,
    /// Where to put the tensor; `None` for into the response.
    pub placement: Option<Placement>,
}

/// Where in shared memory a tensor's data is, or is to go; as the caller says, unchecked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The name of the region.
    pub region: String,
    /// Where in the region it begins.
    pub offset: i64,
    /// How many bytes there are.
    pub byte_size: i64,
}

/// Decodes the parameters of a requested output.
///
/// # Errors
/// If a parameter has another type than it should, is negative, or if classes are to go to shared memory.
pub fn of_output(output: &str, wire: &HashMap<String, InferParameter>) -> Result<OutputParameters> {
    if wire.is_empty() {
        return Ok(OutputParameters::default());
    }
    let placement = placement(output, wire)?;
    let Some(parameter) = wire.get("classification") else {
        return Ok(OutputParameters { classification: 0, placement });
    };
    let Some(ParameterChoice::Int64Param(classes)) = parameter.parameter_choice else {
        return Err(wrong_type("classification", "int64_param"));
    };
    if placement.is_some() {
        return Err(Error::invalid(format!(
            "shared memory can not be used for output '{output}' together with the 'classification' parameter"
        )));
    }
    let classification = u32::try_from(classes).map_err(|_| {
        let limit = if classes < 0 { "expected >= 0" } else { "it is too large" };
        Error::invalid(format!("invalid value for 'classification' parameter of output '{output}', {limit}"))
    })?;
    Ok(OutputParameters { classification, placement: None })
}

/// Where a tensor's parameters put its data; `None` for into the message.
///
/// # Errors
/// If the three parameters contradict each other or have other types than they should.
pub fn placement(tensor: &str, wire: &HashMap<String, InferParameter>) -> Result<Option<Placement>> {
    let find = |key: &str| wire.get(key).map(|parameter| &parameter.parameter_choice);
    let number = |key: &'static str| match find(key) {
        None => Ok(None),
        Some(Some(ParameterChoice::Int64Param(number))) => Ok(Some((key, *number))),
        Some(_) => Err(wrong_tensor_type(key, tensor, "int64_param")),
    };
    let (offset, byte_size) = (number("shared_memory_offset")?, number(BYTE_SIZE)?);
    match (find(REGION), byte_size) {
        (Some(Some(ParameterChoice::StringParam(region))), Some((_, byte_size))) => {
            let offset = offset.map_or(0, |(_, offset)| offset);
            Ok(Some(Placement { region: region.clone(), offset, byte_size }))
        }
        (Some(Some(ParameterChoice::StringParam(_))), None) => Err(Error::invalid(format!(
            "'{BYTE_SIZE}' must be specified along with '{REGION}' parameter for tensor '{tensor}'"
        ))),
        (Some(_), _) => Err(wrong_tensor_type(REGION, tensor, "string_param")),
        (None, _) => match offset.or(byte_size) {
            Some((key, _)) => Err(Error::invalid(format!(
                "'{key}' can not be specified without '{REGION}' parameter for tensor '{tensor}'"
            ))),
            None => Ok(None),
        },
    }
}

fn wrong_type(key: &str, expected: &str) -> Error {
    Error::invalid(format!("invalid value type for '{key}' parameter, expected {expected}."))
}

fn wrong_tensor_type(key: &str, tensor: &str, expected: &str) -> Error {
    Error::invalid(format!("invalid value type for '{key}' parameter for tensor '{tensor}', expected {expected}."))
}

fn boolean(key: &str, choice: Option<ParameterChoice>) -> Result<bool> {
    match choice {
        Some(ParameterChoice::BoolParam(flag)) => Ok(flag),
        _ => Err(wrong_type(key, "bool_param")),
    }
}

fn priority(choice: Option<ParameterChoice>) -> Result<u64> {
    match choice {
        Some(ParameterChoice::Uint64Param(level)) => Ok(level),
        Some(ParameterChoice::Int64Param(level)) => u64::try_from(level).map_err(|_| {
            Error::invalid(format!("invalid value for 'priority' parameter, expected value >= 0, got {level}"))
        }),
        _ => Err(wrong_type("priority", "int64_param or uint64_param")),
    }
}

/// Microseconds as a duration; zero and, as in the reference server, a negative value mean no timeout.
fn timeout(us: i64) -> Option<Duration> {
    u64::try_from(us).ok().filter(|&us| us > 0).map(Duration::from_micros)
}

fn custom(key: &str, choice: Option<ParameterChoice>) -> Result<ParameterValue> {
    match choice {
        Some(ParameterChoice::BoolParam(value)) => Ok(ParameterValue::Bool(value)),
        Some(ParameterChoice::Int64Param(value)) => Ok(ParameterValue::Int(value)),
        Some(ParameterChoice::StringParam(value)) => Ok(ParameterValue::String(value)),
        Some(ParameterChoice::DoubleParam(value)) => Ok(ParameterValue::Double(value)),
        Some(ParameterChoice::Uint64Param(_)) | None => {
            Err(wrong_type(key, "bool_param, int64_param, string_param or double_param"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(pairs: &[(&str, ParameterChoice)]) -> HashMap<String, InferParameter> {
        let of = |choice: &ParameterChoice| InferParameter { parameter_choice: Some(choice.clone()) };
        pairs.iter().map(|(key, choice)| ((*key).to_owned(), of(choice))).collect()
    }

    fn message(pairs: &[(&str, ParameterChoice)]) -> String {
        of_request(wire(pairs)).expect_err("refused").to_string()
    }

    #[test]
    fn known_keys_have_their_meaning_and_others_are_custom() {
        let decoded = of_request(wire(&[
            ("priority", ParameterChoice::Uint64Param(2)),
            ("timeout", ParameterChoice::Int64Param(1500)),
            ("triton_enable_empty_final_response", ParameterChoice::BoolParam(true)),
            ("sequence_id", ParameterChoice::StringParam("s".into())),
            ("sequence_start", ParameterChoice::BoolParam(true)),
            ("beam", ParameterChoice::DoubleParam(0.5)),
        ]))
        .expect("well formed");
        assert_eq!((decoded.priority, decoded.timeout), (2, Some(Duration::from_micros(1500))));
        assert!(decoded.empty_final_response);
        let sequence = Sequence { id: CorrelationId::Text("s".into()), start: true, end: false };
        assert_eq!(decoded.sequence, Some(sequence));
        assert_eq!(decoded.custom["beam"], ParameterValue::Double(0.5));
    }

    #[test]
    fn no_sequence_and_a_timeout_that_is_not_positive_mean_nothing() {
        let decoded = of_request(wire(&[
            ("sequence_id", ParameterChoice::Int64Param(0)),
            ("timeout", ParameterChoice::Int64Param(-1)),
            ("priority", ParameterChoice::Int64Param(0)),
        ]));
        assert_eq!(decoded, Ok(RequestParameters::default()));
    }

    #[test]
    fn a_wrong_type_names_the_key_and_what_was_expected() {
        let int = || ParameterChoice::Int64Param(1);
        let text = || ParameterChoice::StringParam("x".into());
        for (key, choice, expected) in [
            ("sequence_id", ParameterChoice::BoolParam(true), "int64_param or string_param"),
            ("sequence_start", int(), "bool_param"),
            ("sequence_end", int(), "bool_param"),
            ("priority", text(), "int64_param or uint64_param"),
            ("timeout", ParameterChoice::Uint64Param(1), "int64_param"),
            ("triton_enable_empty_final_response", int(), "bool_param"),
            ("mine", ParameterChoice::Uint64Param(1), "bool_param, int64_param, string_param or double_param"),
        ] {
            let expected = format!("invalid value type for '{key}' parameter, expected {expected}.");
            assert_eq!(message(&[(key, choice)]), expected);
        }
    }

    #[test]
    fn reserved_keys_are_refused() {
        let refused = message(&[("triton_final_response", ParameterChoice::BoolParam(true))]);
        assert!(
            refused.starts_with("parameter keys starting with 'triton_' are reserved for Triton usage"),
            "{refused}"
        );
    }

    #[test]
    fn shared_memory_parameters_must_come_together() {
        let region = ("shared_memory_region", ParameterChoice::StringParam("r".into()));
        let offset = ("shared_memory_offset", ParameterChoice::Int64Param(0));
        let size = ("shared_memory_byte_size", ParameterChoice::Int64Param(64));
        let check = |pairs: &[(&str, ParameterChoice)]| placement("t", &wire(pairs)).map_err(|e| e.to_string());
        let at = |offset| Some(Placement { region: "r".to_owned(), offset, byte_size: 64 });
        assert_eq!(check(&[]), Ok(None));
        assert_eq!(check(&[region.clone(), size.clone()]), Ok(at(0)));
        assert_eq!(
            check(&[region.clone(), size.clone(), ("shared_memory_offset", ParameterChoice::Int64Param(8))]),
            Ok(at(8))
        );
        assert_eq!(
            check(&[region]).expect_err("no size"),
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 't'"
        );
        assert_eq!(
            check(&[offset]).expect_err("no region"),
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 't'"
        );
        assert_eq!(
            check(&[("shared_memory_region", ParameterChoice::Int64Param(1)), size]).expect_err("not a name"),
            "invalid value type for 'shared_memory_region' parameter for tensor 't', expected string_param."
        );
    }

    #[test]
    fn classification_is_a_count() {
        let of = |choice| of_output("o", &wire(&[("classification", choice)])).map_err(|e| e.to_string());
        let three = OutputParameters { classification: 3, placement: None };
        assert_eq!(of(ParameterChoice::Int64Param(3)), Ok(three));
        assert_eq!(
            of(ParameterChoice::BoolParam(true)).expect_err("not a number"),
            "invalid value type for 'classification' parameter, expected int64_param."
        );
        assert!(of(ParameterChoice::Int64Param(-1)).expect_err("negative").ends_with("expected >= 0"));
    }
}
