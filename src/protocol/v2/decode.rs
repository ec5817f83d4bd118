//! Makes the server's own request out of a ModelInfer message, and refuses what is wrong with the message itself.
//!
//! Whether names, shapes and sizes fit the model is `model::Signature`'s to check, later and once. Tensor bytes are
//! views of the message's buffer or of shared memory, never copies, unless they came as typed contents, or are strings
//! or truth values in shared memory. Begin with [`request`].

use bytes::Bytes;

use super::context::Context;
use super::parameters::{OutputParameters, Placement};
use super::shared_memory::Exchange;
use super::wire::ModelInferRequest;
use super::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::{contents, parameters};
use crate::error::{Error, Result};
use crate::gateway::regions::Regions;
use crate::gateway::request_memory::Portion;
use crate::infer::{Instant, Request, RequestedOutput};
use crate::model::{ModelConfig, Version};
use crate::tensor::{DataType, NamedTensor, Shape, Tensor};

/// The most dimensions of a tensor; no model has nearly as many.
const DIMENSIONS_MAX: usize = 64;

/// What a caller said about a request beside the message.
#[derive(Debug)]
pub struct Arrival {
    /// When the message had been read.
    pub at: Instant,
    /// Until when the caller waits, counted from the call's headers on; `None` for ever.
    pub deadline: Option<Instant>,
    /// Its id and its trace.
    pub context: Context,
    /// The memory that it holds.
    pub portion: Portion,
}

/// A decoded request.
#[derive(Debug)]
pub struct Decoded {
    /// The request.
    pub request: Request,
    /// On a stream: the caller wants a last message even if it holds no data.
    pub empty_final_response: bool,
    /// The shared memory that the request uses; its responses go through it.
    pub exchange: Exchange,
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

/// Decodes `wire`, a request for the model of `config`, whose tensors may be in `regions`. `arrival`'s portion comes to
/// hold its tensors, but for views of shared memory: they are more than the message where they came as numbers.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] for the first thing wrong with parameters, inputs or requested outputs;
/// those of [`Regions::window`] for data in shared memory, and of [`Portion::hold`].
pub fn request(
    wire: ModelInferRequest,
    config: &ModelConfig,
    arrival: &mut Arrival,
    regions: &Regions,
) -> Result<Decoded> {
    let version = version(&wire.model_version)?;
    let parameters = parameters::of_request(wire.parameters)?;
    let portion = &mut arrival.portion;
    let mut tensors = Tensors { config, regions, id: &wire.id, portion, bytes: 0, exchange: Exchange::default() };
    let inputs = tensors.inputs(wire.inputs, wire.raw_input_contents)?;
    let outputs = wire.outputs.into_iter().map(|wanted| tensors.output(wanted)).collect::<Result<_>>()?;
    let exchange = tensors.exchange;
    let request = Request {
        model: wire.model_name,
        version,
        id: wire.id,
        inputs,
        inputs_shared: exchange.reads_in_place(),
        outputs,
        arrived: arrival.at,
        deadline: arrival.deadline,
        timeout: parameters.timeout,
        priority: parameters.priority,
        sequence: parameters.sequence,
        parameters: parameters.custom,
        follow: None,
    };
    Ok(Decoded { request, empty_final_response: parameters.empty_final_response, exchange })
}

/// Decodes the tensors of one request.
struct Tensors<'a> {
    config: &'a ModelConfig,
    regions: &'a Regions,
    /// The request's, for messages.
    id: &'a str,
    /// What the request holds.
    portion: &'a mut Portion,
    /// Grows with each tensor that is not a view of shared memory.
    bytes: usize,
    /// Grows with each tensor in shared memory.
    exchange: Exchange,
}

impl Tensors<'_> {
    /// The inputs; those that are not in shared memory have their data in `raw`, in the same order, or in themselves.
    fn inputs(&mut self, wire: Vec<InferInputTensor>, raw: Vec<Bytes>) -> Result<Vec<NamedTensor>> {
        let raw_count = raw.len();
        let mut shared = 0;
        let mut raw = raw.into_iter();
        let mut tensors = Vec::with_capacity(wire.len());
        for mut input in wire {
            let placement = if input.parameters.is_empty() { None } else { placement(&input, self.config)? };
            let is_shared = placement.is_some();
            let dtype = self.data_type(&input)?;
            let shape = shape(&input)?;
            let data = match (placement, input.contents.take(), raw_count) {
                (Some(placement), ..) => {
                    shared += 1;
                    Some(self.shared(&placement, dtype)?)
                }
                (None, Some(_), 1..) => {
                    return Err(Error::invalid(format!(
                        "contents field must not be specified when using raw_input_contents for '{}' for model '{}'",
                        input.name, self.config.name
                    )));
                }
                (None, Some(contents), 0) => Some(contents::bytes(contents, dtype, &input.name, &self.config.name)?),
                (None, None, _) => raw.next(),
            };
            let Some(data) = data else {
                return Err(Error::invalid(format!(
                    "unable to find data for input tensor '{}' for model '{}' in request.",
                    input.name, self.config.name
                )));
            };
            if !is_shared {
                self.hold(data.len())?;
            }
            let data = if dtype == DataType::Bool { truth_values(data) } else { data };
            tensors.push(NamedTensor { name: input.name, tensor: Tensor::new(dtype, shape, data) });
        }
        if raw.next().is_some() {
            let outside = if shared > 0 { " outside of shared memory" } else { "" };
            return Err(Error::invalid(format!(
                "raw_input_contents has {raw_count} entries but the request for model '{}' has {} inputs{outside}",
                self.config.name,
                tensors.len() - shared
            )));
        }
        Ok(tensors)
    }

    /// The data of an input in shared memory: numbers in place, and what has to be checked as a copy.
    fn shared(&mut self, placement: &Placement, dtype: DataType) -> Result<Bytes> {
        let window = self.regions.window(&placement.region, placement.offset, placement.byte_size)?;
        let is_checked = matches!(dtype, DataType::Bytes | DataType::Bool);
        if !is_checked && let Some(view) = window.view() {
            self.exchange.reads(window);
            return Ok(view);
        }
        self.hold(window.len())?;
        window.copy()
    }

    /// Counts the bytes of one more tensor.
    fn hold(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.portion.cover(self.bytes)
    }

    fn data_type(&self, input: &InferInputTensor) -> Result<DataType> {
        if let Some(dtype) = DataType::from_name(&input.datatype) {
            return Ok(dtype);
        }
        let refusal = match self.config.inputs.iter().find(|spec| *spec.name == *input.name) {
            Some(spec) => format!(
                "inference input '{}' data-type is '{}', but model '{}' expects '{}'",
                input.name,
                input.datatype,
                self.config.name,
                spec.dtype_name()
            ),
            None => format!("unexpected inference input '{}' for model '{}'", input.name, self.config.name),
        };
        let id = if self.id.is_empty() { "<id_unknown>" } else { self.id };
        Err(Error::invalid(format!("[request id: {id}] {refusal}")))
    }

    fn output(&mut self, wire: InferRequestedOutputTensor) -> Result<RequestedOutput> {
        let OutputParameters { classification, placement } = parameters::of_output(&wire.name, &wire.parameters)?;
        if let Some(placement) = placement {
            self.exchange.output(self.regions, &placement, &wire.name)?;
        }
        Ok(RequestedOutput { name: wire.name, classification, keep: false })
    }
}

/// The same truth values with 1 for every true one: native code may do anything with a `bool` of another value.
fn truth_values(data: Bytes) -> Bytes {
    match data.iter().all(|value| *value <= 1) {
        true => data,
        false => data.iter().map(|value| u8::from(*value != 0)).collect(),
    }
}

/// Where in shared memory an input is, if it is there, and then nowhere else.
fn placement(input: &InferInputTensor, config: &ModelConfig) -> Result<Option<Placement>> {
    let placement = parameters::placement(&input.name, &input.parameters)?;
    if placement.is_some() && input.contents.is_some() {
        return Err(Error::invalid(format!(
            "unexpected 'content' provided when using shared memory for input tensor '{}' for model '{}'",
            input.name, config.name
        )));
    }
    Ok(placement)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_values_are_0_or_1_and_copied_only_if_they_are_not() {
        assert_eq!(truth_values(Bytes::from_static(&[0, 1, 2, 255])), [0, 1, 1, 1][..]);
        let right = Bytes::from_static(&[1, 0]);
        assert_eq!(truth_values(right.clone()).as_ptr(), right.as_ptr());
    }

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
