//! Makes the server's own request out of a ModelInfer message, and refuses what is wrong with the message itself.
//!
//! Whether names, shapes and sizes fit the model is `model::Signature`'s to check, later and once. Tensor bytes are
//! views of the message's buffer, never copies, unless they came as typed contents. Begin with [`request`].

use bytes::Bytes;

use super::context::Context;
use super::wire::ModelInferRequest;
use super::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::{contents, parameters};
use crate::error::{Error, Result};
use crate::infer::{Instant, Request, RequestedOutput};
use crate::model::{ModelConfig, Version};
use crate::tensor::{DataType, NamedTensor, Shape, Tensor};

/// The most dimensions of a tensor; no model has nearly as many.
const DIMENSIONS_MAX: usize = 64;

/// What a caller said about a request beside the message.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When the message had been read.
    pub at: Instant,
    /// Until when the caller waits, counted from the call's headers on; `None` for ever.
    pub deadline: Option<Instant>,
    /// Its id and its trace.
    pub context: Context,
}

/// A decoded request.
#[derive(Debug)]
pub struct Decoded {
    /// The request.
    pub request: Request,
    /// On a stream: the caller wants a last message even if it holds no data.
    pub empty_final_response: bool,
}

/// The version that a version string names; `None` for the empty one, which means the highest that is ready.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is not a positive integer.
pub fn version(text: &str) -> Result<Option<Version>> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<i128>() {
        Ok(number) if is_plain(text) && number > 0 && Version::try_from(number).is_ok() => Ok(Some(number as Version)),
        Ok(number) if number <= 0 || !is_plain(text) => Err(Error::invalid(format!(
            "invalid model version specified '{text}' , version should be an integral value > 0"
        ))),
        failed => Err(Error::invalid(format!(
            "failed to get model version from specified version string '{text}' (details: {}), version should be an \
             integral value > 0",
            failed.map_or_else(|error| error.to_string(), |_| "number too large".to_owned())
        ))),
    }
}

/// Whether a number is written in the one way that a version has: without a plus sign and leading zeros.
fn is_plain(number: &str) -> bool {
    !number.starts_with(['+', '0'])
}

/// Decodes `wire`, a request for the model of `config`.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] for the first thing wrong with parameters, inputs or requested outputs;
/// [`crate::error::Kind::Unimplemented`] for data in shared memory.
pub fn request(wire: ModelInferRequest, config: &ModelConfig, arrival: Arrival) -> Result<Decoded> {
    let version = version(&wire.model_version)?;
    let parameters = parameters::of_request(wire.parameters)?;
    let inputs = inputs(wire.inputs, wire.raw_input_contents, config, &wire.id)?;
    let outputs = wire.outputs.into_iter().map(output).collect::<Result<_>>()?;
    let request = Request {
        model: wire.model_name,
        version,
        id: wire.id,
        inputs,
        outputs,
        arrived: arrival.at,
        deadline: arrival.deadline,
        timeout: parameters.timeout,
        priority: parameters.priority,
        parameters: parameters.custom,
    };
    Ok(Decoded { request, empty_final_response: parameters.empty_final_response })
}

fn inputs(wire: Vec<InferInputTensor>, raw: Vec<Bytes>, config: &ModelConfig, id: &str) -> Result<Vec<NamedTensor>> {
    let raw_count = raw.len();
    if raw_count > wire.len() {
        return Err(Error::invalid(format!(
            "raw_input_contents has {raw_count} entries but the request for model '{}' has {} inputs",
            config.name,
            wire.len()
        )));
    }
    let mut raw = raw.into_iter();
    let mut tensors = Vec::with_capacity(wire.len());
    for input in wire {
        if !input.parameters.is_empty() && parameters::shared_memory(&input.name, &input.parameters)? {
            return Err(if input.contents.is_some() {
                Error::invalid(format!(
                    "unexpected 'content' provided when using shared memory for input tensor '{}' for model '{}'",
                    input.name, config.name
                ))
            } else {
                parameters::shared_memory_disabled()
            });
        }
        let dtype = data_type(&input, config, id)?;
        let shape = shape(&input)?;
        let data = match (input.contents, raw_count) {
            (Some(_), 1..) => {
                return Err(Error::invalid(format!(
                    "contents field must not be specified when using raw_input_contents for '{}' for model '{}'",
                    input.name, config.name
                )));
            }
            (Some(contents), 0) => Some(contents::bytes(contents, dtype, &input.name, &config.name)?),
            (None, _) => raw.next(),
        };
        let Some(data) = data else {
            return Err(Error::invalid(format!(
                "unable to find data for input tensor '{}' for model '{}' in request.",
                input.name, config.name
            )));
        };
        tensors.push(NamedTensor { name: input.name, tensor: Tensor { dtype, shape, data } });
    }
    Ok(tensors)
}

fn data_type(input: &InferInputTensor, config: &ModelConfig, id: &str) -> Result<DataType> {
    if let Some(dtype) = DataType::from_name(&input.datatype) {
        return Ok(dtype);
    }
    let refusal = match config.inputs.iter().find(|spec| *spec.name == *input.name) {
        Some(spec) => format!(
            "inference input '{}' data-type is '{}', but model '{}' expects '{}'",
            input.name,
            input.datatype,
            config.name,
            spec.dtype_name()
        ),
        None => format!("unexpected inference input '{}' for model '{}'", input.name, config.name),
    };
    let id = if id.is_empty() { "<id_unknown>" } else { id };
    Err(Error::invalid(format!("[request id: {id}] {refusal}")))
}

fn shape(input: &InferInputTensor) -> Result<Shape> {
    if input.shape.len() > DIMENSIONS_MAX {
        return Err(Error::invalid(format!(
            "input '{}' has {} dimensions, at most {DIMENSIONS_MAX} are supported",
            input.name,
            input.shape.len()
        )));
    }
    Ok(Shape::new(&input.shape))
}

fn output(wire: InferRequestedOutputTensor) -> Result<RequestedOutput> {
    let classification = parameters::classification(&wire.name, &wire.parameters)?;
    Ok(RequestedOutput { name: wire.name, classification })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_string_is_a_positive_integer_or_empty() {
        assert_eq!(version(""), Ok(None));
        assert_eq!(version("3"), Ok(Some(3)));
        let message = |text| version(text).expect_err("refused").to_string();
        for text in ["0", "-1", "+1", "01"] {
            assert_eq!(
                message(text),
                format!("invalid model version specified '{text}' , version should be an integral value > 0")
            );
        }
        for text in ["one", "1.0", "1 ", "99999999999999999999999999"] {
            let message = message(text);
            assert!(
                message.starts_with(&format!(
                    "failed to get model version from specified version string '{text}' (details: "
                )),
                "{message}"
            );
            assert!(message.ends_with("), version should be an integral value > 0"), "{message}");
        }
    }
}
