//! The message of an answer without its raw contents, written straight from the server's own response.
//!
//! A message made for prost would first own a copy of each name, type and shape. What is written is what prost writes of
//! such a message; a test holds it to that. Begin with [`Head::new`].

use std::collections::HashMap;

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, hash_map, key_len, message, string};

use super::encode;
use crate::infer::{Output, Response};
use crate::protocol::v2::wire::InferParameter;

/// The numbers of the fields of `ModelInferResponse`.
const MODEL_NAME: u32 = 1;
const MODEL_VERSION: u32 = 2;
const ID: u32 = 3;
const PARAMETERS: u32 = 4;
const OUTPUTS: u32 = 5;

/// The numbers of the fields of `ModelInferResponse.InferOutputTensor`.
const NAME: u32 = 1;
const DATATYPE: u32 = 2;
const SHAPE: u32 = 3;

/// A response that can be written.
#[derive(Debug)]
pub struct Head<'a> {
    response: &'a Response,
    version: String,
    parameters: HashMap<String, InferParameter>,
}

impl<'a> Head<'a> {
    /// The head of this response.
    pub fn new(response: &'a Response) -> Self {
        let parameters = response.parameters.iter().map(|(key, value)| (key.clone(), encode::parameter(value.clone())));
        Self { response, version: response.version.to_string(), parameters: parameters.collect() }
    }

    /// How many bytes it takes.
    pub fn encoded_len(&self) -> usize {
        let texts = text_len(MODEL_NAME, &self.response.model)
            + text_len(MODEL_VERSION, &self.version)
            + text_len(ID, &self.response.id);
        let parameters = hash_map::encoded_len(string::encoded_len, message::encoded_len, PARAMETERS, &self.parameters);
        let outputs = self.response.outputs.iter().map(|output| field_len(OUTPUTS, output_len(output)));
        texts + parameters + outputs.sum::<usize>()
    }

    /// Writes it.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        put_text(MODEL_NAME, &self.response.model, buffer);
        put_text(MODEL_VERSION, &self.version, buffer);
        put_text(ID, &self.response.id, buffer);
        hash_map::encode(
            string::encode,
            string::encoded_len,
            message::encode,
            message::encoded_len,
            PARAMETERS,
            &self.parameters,
            buffer,
        );
        for output in &self.response.outputs {
            put_header(OUTPUTS, output_len(output), buffer);
            put_text(NAME, &output.name, buffer);
            put_text(DATATYPE, output.tensor.dtype.name(), buffer);
            if !output.tensor.shape.is_empty() {
                put_header(SHAPE, shape_len(output), buffer);
                output.tensor.shape.iter().for_each(|&dim| encode_varint(dim as u64, buffer));
            }
        }
    }
}

fn output_len(output: &Output) -> usize {
    let shape = if output.tensor.shape.is_empty() { 0 } else { field_len(SHAPE, shape_len(output)) };
    text_len(NAME, &output.name) + text_len(DATATYPE, output.tensor.dtype.name()) + shape
}

fn shape_len(output: &Output) -> usize {
    output.tensor.shape.iter().map(|&dim| encoded_len_varint(dim as u64)).sum()
}

/// An empty text is left out.
fn text_len(tag: u32, text: &str) -> usize {
    if text.is_empty() { 0 } else { field_len(tag, text.len()) }
}

fn put_text(tag: u32, text: &str, buffer: &mut impl BufMut) {
    if !text.is_empty() {
        put_header(tag, text.len(), buffer);
        buffer.put_slice(text.as_bytes());
    }
}

/// What a field takes whose content has so many bytes.
fn field_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn put_header(tag: u32, length: usize, buffer: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::infer::{ParameterValue, Parameters};
    use crate::protocol::v2::wire::ModelInferResponse;
    use crate::tensor::{DataType, Shape, Tensor};

    fn output() -> impl Strategy<Value = Output> {
        let shape = prop::collection::vec(prop_oneof![0..300_i64, Just(i64::MAX), Just(-1)], 0..8);
        (".{0,200}", 0..DataType::ALL.len(), shape).prop_map(|(name, dtype, shape)| {
            let tensor = Tensor::new(DataType::ALL[dtype], Shape::new(&shape), Bytes::new());
            Output { name: Arc::from(name), tensor, placed: false }
        })
    }

    fn response() -> impl Strategy<Value = Response> {
        let parameters = prop::collection::btree_map(".{0,5}", any::<i64>().prop_map(ParameterValue::Int), 0..2);
        let outputs = prop::collection::vec(output(), 0..4);
        (".{0,9}", any::<u64>(), ".{0,9}", parameters, outputs).prop_map(|(model, version, id, parameters, outputs)| {
            let (model, parameters): (_, Parameters) = (Arc::from(model), parameters);
            Response { model, version, id, outputs, parameters, last: true, times: None }
        })
    }

    proptest! {
        #[test]
        fn a_head_is_what_prost_writes_of_a_message_without_raw_contents(response in response()) {
            let head = Head::new(&response);
            let mut written = Vec::new();
            head.encode(&mut written);
            prop_assert_eq!(written.len(), head.encoded_len());
            let mut message = encode::response(response);
            message.raw_output_contents.clear();
            prop_assert_eq!(&written, &message.encode_to_vec());
            prop_assert_eq!(ModelInferResponse::decode(&written[..]).expect("well formed"), message);
        }
    }
}
