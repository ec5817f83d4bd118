//! Makes the messages of ModelStreamInfer out of the server's own response.
//!
//! Clients read `raw_output_contents` by position without looking at its length, so there is exactly one entry for
//! each output, in the same order, and typed contents are never filled. Tensor bytes are handed over, not copied.

use std::collections::HashMap;

use crate::error::Error;
use crate::infer::{Output, ParameterValue, Response};
use crate::protocol::status::shorten;
use crate::protocol::v2::wire::infer_parameter::ParameterChoice;
use crate::protocol::v2::wire::model_infer_response::InferOutputTensor;
use crate::protocol::v2::wire::{InferParameter, ModelInferResponse, ModelStreamInferResponse};

/// The name of the stream parameter that marks the last response of a request.
const FINAL_RESPONSE: &str = "triton_final_response";

/// The message of `response`.
pub fn response(response: Response) -> ModelInferResponse {
    let mut outputs = Vec::with_capacity(response.outputs.len());
    let mut raw = Vec::with_capacity(response.outputs.len());
    for Output { name, tensor, .. } in response.outputs {
        outputs.push(InferOutputTensor {
            name: name.to_string(),
            datatype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.to_vec(),
            parameters: HashMap::new(),
            contents: None,
        });
        raw.push(tensor.data);
    }
    ModelInferResponse {
        model_name: response.model.to_string(),
        model_version: response.version.to_string(),
        id: response.id,
        parameters: response.parameters.into_iter().map(|(key, value)| (key, parameter(value))).collect(),
        outputs,
        raw_output_contents: raw,
    }
}

/// The message of one response on a stream; `last` if no other follows for its request.
pub fn stream_response(inner: Response) -> ModelStreamInferResponse {
    let last = inner.last;
    let mut message = response(inner);
    mark(&mut message, last);
    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(message) }
}

/// The message of a request on a stream that failed: the stream goes on, the id tells which one it was. `last` if no
/// other response follows for the request.
pub fn stream_error(error: &Error, id: String, last: bool) -> ModelStreamInferResponse {
    let mut message = ModelInferResponse { id, ..ModelInferResponse::default() };
    mark(&mut message, last);
    ModelStreamInferResponse { error_message: shorten(error.message()), infer_response: Some(message) }
}

fn mark(message: &mut ModelInferResponse, last: bool) {
    let parameter = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(last)) };
    message.parameters.insert(FINAL_RESPONSE.to_owned(), parameter);
}

/// A parameter as the message has it.
pub fn parameter(value: ParameterValue) -> InferParameter {
    let choice = match value {
        ParameterValue::Bool(value) => ParameterChoice::BoolParam(value),
        ParameterValue::Int(value) => ParameterChoice::Int64Param(value),
        ParameterValue::String(value) => ParameterChoice::StringParam(value),
        ParameterValue::Double(value) => ParameterChoice::DoubleParam(value),
    };
    InferParameter { parameter_choice: Some(choice) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::infer::Parameters;
    use crate::tensor::{DataType, Shape, Tensor};

    fn two_outputs() -> Response {
        let output = |name: &str, data: &'static [u8]| Output {
            name: Arc::from(name),
            tensor: Tensor::new(DataType::Uint8, Shape::new(&[1, data.len() as i64]), Bytes::from_static(data)),
            placed: false,
        };
        Response {
            model: Arc::from("m"),
            version: 3,
            id: "7".to_owned(),
            outputs: vec![output("a", b"xy"), output("b", b"")],
            parameters: Parameters::from([("cost".to_owned(), ParameterValue::Int(2))]),
            last: false,
            times: None,
        }
    }

    #[test]
    fn each_output_has_exactly_one_raw_entry_even_if_empty() {
        let message = response(two_outputs());
        assert_eq!(message.raw_output_contents, [&b"xy"[..], b""]);
        assert_eq!(message.outputs.len(), 2);
        assert_eq!((message.outputs[0].name.as_str(), message.outputs[0].datatype.as_str()), ("a", "UINT8"));
        assert_eq!(message.outputs[0].shape, [1, 2]);
        assert_eq!((message.id.as_str(), message.model_version.as_str()), ("7", "3"));
        assert_eq!(message.parameters["cost"].parameter_choice, Some(ParameterChoice::Int64Param(2)));
    }

    #[test]
    fn a_stream_message_says_whether_it_is_the_last() {
        let last = |response: Response| {
            let message = stream_response(response).infer_response.expect("always there");
            message.parameters[FINAL_RESPONSE].parameter_choice.clone()
        };
        assert_eq!(last(two_outputs()), Some(ParameterChoice::BoolParam(false)));
        assert_eq!(last(Response { last: true, ..two_outputs() }), Some(ParameterChoice::BoolParam(true)));
    }

    #[test]
    fn a_failed_stream_request_is_matched_by_its_id() {
        let message = stream_error(&Error::invalid("no"), "9".to_owned(), true);
        assert_eq!(message.error_message, "no");
        assert_eq!(message.infer_response.expect("always there").id, "9");
    }
}
