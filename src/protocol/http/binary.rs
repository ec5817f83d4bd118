//! The binary tensor extension: where in a body the JSON ends, and a body that is nothing but one tensor.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::decode::{BinaryOutputs, Decoded};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSpec};
use crate::protocol::v2::wire::ModelInferRequest;
use crate::protocol::v2::wire::model_infer_request::InferInputTensor;
use crate::tensor::DataType;

/// The header that says how long the JSON at the beginning of a body is, in both directions.
pub const HEADER: &str = "inference-header-content-length";

/// What a body consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A request in JSON, and the binary data behind it.
    Request(Bytes, Bytes),
    /// The data of the model's only input.
    Tensor(Bytes),
}

/// Splits `body` as its headers say.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the header is no number, or more than the body has.
pub fn split(headers: &HeaderMap, mut body: Bytes) -> Result<Layout> {
    let Some(value) = headers.get(HEADER) else { return Ok(Layout::Request(body, Bytes::new())) };
    let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
    match length {
        None => Err(Error::invalid(format!("Unable to parse {HEADER}, expected a number of bytes, got {value:?}"))),
        Some(0) => Ok(Layout::Tensor(body)),
        Some(length) if length > body.len() => {
            Err(Error::invalid(format!("{HEADER} is {length}, but the request body has only {} bytes", body.len())))
        }
        Some(length) => {
            let text = body.split_to(length);
            Ok(Layout::Request(text, body))
        }
    }
}

/// The request whose only input is all of `body`, for the model of `config`: its shape follows from its size, and the
/// outputs are wanted as binary data.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the model does not have one input with at most one dimension of any size,
/// or if the size fits no shape.
pub fn tensor(config: &ModelConfig, body: Bytes) -> Result<Decoded> {
    let [input] = &*config.inputs else {
        return Err(Error::invalid(format!(
            "Raw request must only have 1 input (found {}) to be deduced but got {} inputs in '{}' model configuration",
            config.inputs.len(),
            config.inputs.len(),
            config.name
        )));
    };
    let not_known = || {
        Error::invalid(format!(
            "the type and shape of input '{}' of model '{}' are not configured",
            input.name, config.name
        ))
    };
    let dtype = input.dtype.ok_or_else(not_known)?;
    let dims = input.dims.as_deref().ok_or_else(not_known)?;
    let (elements, data) = match dtype.size() {
        Some(size) if body.len().is_multiple_of(size) => (body.len() / size, body),
        Some(_) => return Err(unfit(input, dtype, body.len())),
        None => (1, string(&body)?),
    };
    let mut shape = deduced(input, dims, elements).ok_or_else(|| unfit(input, dtype, data.len()))?;
    if config.max_batch_rows > 0 {
        shape.insert(0, 1);
    }
    let name = input.name.to_string();
    let tensor = InferInputTensor { name, datatype: dtype.name().to_owned(), shape, ..InferInputTensor::default() };
    let message =
        ModelInferRequest { inputs: vec![tensor], raw_input_contents: vec![data], ..ModelInferRequest::default() };
    Ok(Decoded { message, binary: BinaryOutputs::all() })
}

/// A body of strings is one element.
fn string(body: &Bytes) -> Result<Bytes> {
    let length = u32::try_from(body.len()).map_err(|_| Error::invalid("a string of 4 GiB cannot be sent"))?;
    let mut data = BytesMut::with_capacity(4 + body.len());
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(body);
    Ok(data.freeze())
}

/// `dims` with its one open dimension such that there are `elements`; `None` if that cannot be.
fn deduced(input: &TensorSpec, dims: &[i64], elements: usize) -> Option<Vec<i64>> {
    let fixed: usize = dims.iter().filter(|&&dim| dim >= 0).map(|&dim| dim as usize).product();
    let open = match dims.iter().filter(|&&dim| dim < 0).count() {
        0 => return (fixed == elements).then(|| dims.to_vec()),
        1 if fixed > 0 && elements.is_multiple_of(fixed) => elements / fixed,
        _ => return None,
    };
    tracing::trace!(input = %input.name, open, "shape deduced");
    Some(dims.iter().map(|&dim| if dim < 0 { open as i64 } else { dim }).collect())
}

fn unfit(input: &TensorSpec, dtype: DataType, bytes: usize) -> Error {
    let dims = input.dims.as_deref().unwrap_or_default();
    Error::invalid(format!(
        "Unable to deduce the shape of input '{}' from {bytes} bytes of type '{dtype}': its dimensions are {dims:?}, of \
         which at most one may be -1",
        input.name
    ))
}
