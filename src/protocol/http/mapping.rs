//! Makes an inference message out of the flat object that the generate routes take.
//!
//! A key that names an input is that input, a scalar or a flat array, whose elements are distributed over the model's
//! shape; every other key is a parameter, and so is each member of `parameters`.

use serde_json::value::RawValue;

use super::body::{self, Members};
use super::json;
use super::json::{data, parameter};
use super::path::Named;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSpec};
use crate::protocol::v2::wire::ModelInferRequest;
use crate::protocol::v2::wire::model_infer_request::InferInputTensor;
use crate::tensor::Shape;

/// The key of the request's id.
const ID: &str = "id";
/// The key of the object whose members are parameters, too.
const PARAMETERS: &str = "parameters";

/// The message for the model of `config`, whose place is `at`.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if `text` is no object, or has a value that its input or a parameter cannot
/// have.
pub fn request(text: &[u8], at: Named, config: &ModelConfig) -> Result<ModelInferRequest> {
    let Members(mut members) = body::parse(text, "generate")?;
    let mut message =
        ModelInferRequest { model_name: at.model, model_version: at.version, ..ModelInferRequest::default() };
    let is_input = |key: &str| config.inputs.iter().any(|input| *input.name == *key);
    if is_input(PARAMETERS) && members.contains_key(PARAMETERS) {
        return Err(Error::invalid("Keyword 'parameters' for nested schema also given as input tensor name"));
    }
    if let Some(id) = members.get(ID).filter(|_| !is_input(ID)) {
        message.id = request_id(id)?;
        members.remove(ID);
    }
    if let Some(nested) = members.remove(PARAMETERS) {
        let nested: Members<'_> = serde_json::from_str(nested.get())
            .map_err(|error| Error::invalid(format!("Expected JSON object for keyword: 'parameters': {error}")))?;
        add(&mut message, nested, config)?;
    }
    add(&mut message, Members(members), config)?;
    Ok(message)
}

fn add(message: &mut ModelInferRequest, Members(members): Members<'_>, config: &ModelConfig) -> Result<()> {
    for (key, value) in members {
        match config.inputs.iter().find(|input| *input.name == *key) {
            Some(input) => add_input(message, input, value, config)?,
            None => {
                let parameter::Value(parameter) = serde_json::from_str(value.get())
                    .map_err(|error| Error::invalid(format!("parameter '{key}': {}", json::reason(&error))))?;
                message.parameters.insert(key, parameter);
            }
        }
    }
    Ok(())
}

fn add_input(
    message: &mut ModelInferRequest,
    input: &TensorSpec,
    value: &RawValue,
    config: &ModelConfig,
) -> Result<()> {
    let name = &input.name;
    let (Some(dtype), Some(dims)) = (input.dtype, &input.dims) else {
        return Err(Error::invalid(format!(
            "input '{name}' of model '{}' has no type and shape in its configuration, which generate needs",
            config.name
        )));
    };
    let shape = if config.max_batch_rows > 0 { dims.with_rows(-1) } else { dims.clone() };
    let data = data::read(value.get(), dtype, name)?;
    let Some(shape) = distribute(data.count, &shape) else {
        return Err(Error::invalid(format!("The schema can not convert input '{name}' to tensor with proper shape")));
    };
    message.inputs.push(InferInputTensor {
        name: name.to_string(),
        datatype: dtype.name().to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    });
    message.raw_input_contents.push(data.bytes);
    Ok(())
}

/// The shape of so many elements: fixed dimensions first, the innermost open one takes the rest, other open ones are 1.
fn distribute(elements: usize, model: &Shape) -> Option<Shape> {
    let mut left = i64::try_from(elements).ok()?;
    for &dim in model.iter().filter(|&&dim| dim >= 0) {
        left = if dim == 0 { (left == 0).then_some(1)? } else { (left % dim == 0).then_some(left / dim)? };
    }
    let mut shape = model.to_vec();
    for dim in shape.iter_mut().rev().filter(|dim| **dim < 0) {
        *dim = std::mem::replace(&mut left, 1);
    }
    (left == 1).then(|| shape.into())
}

fn request_id(value: &RawValue) -> Result<String> {
    match serde_json::from_str(value.get()) {
        Ok(serde_json::Value::String(id)) => Ok(id),
        Ok(serde_json::Value::Number(id)) if id.is_u64() => Ok(id.to_string()),
        _ => Err(Error::invalid("Invalid value for 'id': expected a string or a whole number from 0 up")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_fill_the_fixed_dimensions_first_and_the_innermost_open_one_takes_the_rest() {
        let shape = |elements, model: &[i64]| distribute(elements, &Shape::new(model)).map(|shape| shape.to_vec());
        assert_eq!(shape(1, &[-1, 1]), Some(vec![1, 1]));
        assert_eq!(shape(8, &[-1, 4]), Some(vec![2, 4]));
        assert_eq!(shape(6, &[-1, -1, 2]), Some(vec![1, 3, 2]));
        assert_eq!(shape(6, &[-1, 2, -1]), Some(vec![1, 2, 3]));
        assert_eq!(shape(4, &[2, 2]), Some(vec![2, 2]));
        assert_eq!(shape(1, &[]), Some(vec![]));
        for (elements, model) in [(3, &[-1, 2][..]), (8, &[2, 2]), (2, &[]), (1, &[0]), (0, &[2])] {
            assert_eq!(shape(elements, model), None, "{elements} {model:?}");
        }
    }
}
