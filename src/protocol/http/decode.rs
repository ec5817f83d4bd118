//! Makes the ModelInfer message out of a body: JSON, and behind it the binary data of the inputs that name its size.
//!
//! What the message means is `v2::infer`'s to say, as for gRPC. Members that nobody knows are left out, as the reference
//! server does. Begin with [`request`].

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::json;
use super::json::data::{self, Elements};
use super::json::parameter::Parameters;
use crate::error::{Error, Result};
use crate::protocol::v2::PARTS_MAX;
use crate::protocol::v2::wire::infer_parameter::ParameterChoice;
use crate::protocol::v2::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::protocol::v2::wire::{InferParameter, ModelInferRequest};
use crate::tensor::DataType;

/// The most elements that room is made for before they were seen: a few bytes can claim so many for each input.
const EXPECTED_MAX: usize = 1 << 12;

/// What a body asks for.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The request, without the names that stand in the path.
    pub message: ModelInferRequest,
    /// How the outputs are to be sent.
    pub binary: BinaryOutputs,
}

/// Which outputs leave as binary data.
#[derive(Debug, Default)]
pub struct BinaryOutputs {
    /// Those that say nothing else.
    default: bool,
    named: HashMap<String, bool>,
}

impl BinaryOutputs {
    /// All of them.
    pub fn all() -> Self {
        Self { default: true, named: HashMap::new() }
    }

    /// Whether the output of that name does.
    pub fn has(&self, output: &str) -> bool {
        self.named.get(output).copied().unwrap_or(self.default)
    }
}

/// Decodes `text` with the binary data that follows it.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is not the JSON of a request, or if the sizes do not add up.
pub fn request(text: &[u8], blobs: Bytes) -> Result<Decoded> {
    let body: Body = serde_json::from_slice(text).map_err(|error| Error::invalid(json::reason(&error)))?;
    let mut parameters = body.parameters.0;
    let mut binary = BinaryOutputs {
        default: take_flag(&mut parameters, "binary_data_output")?.unwrap_or(false),
        named: HashMap::new(),
    };
    if let Some(key) = parameters.keys().find(|key| key.starts_with("triton_")) {
        return Err(Error::invalid(format!(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified, got '{key}'"
        )));
    }
    let mut message = ModelInferRequest { id: body.id.unwrap_or_default(), parameters, ..ModelInferRequest::default() };
    let mut blobs = Blobs(blobs);
    for input in body.inputs {
        let (tensor, data) = input.decoded(&mut blobs)?;
        message.inputs.push(tensor);
        message.raw_input_contents.extend(data);
    }
    if !blobs.0.is_empty() {
        return Err(Error::invalid(format!(
            "unexpected additional input data: {} bytes of binary data belong to no input",
            blobs.0.len()
        )));
    }
    for output in body.outputs {
        let Output { name, parameters: Parameters(mut parameters) } = output;
        if let Some(flag) = take_flag(&mut parameters, "binary_data")? {
            binary.named.insert(name.clone(), flag);
        }
        message.outputs.push(InferRequestedOutputTensor { name, parameters });
    }
    Ok(Decoded { message, binary })
}

/// Takes a boolean parameter out.
fn take_flag(parameters: &mut HashMap<String, InferParameter>, key: &str) -> Result<Option<bool>> {
    match parameters.remove(key).and_then(|parameter| parameter.parameter_choice) {
        None => Ok(None),
        Some(ParameterChoice::BoolParam(flag)) => Ok(Some(flag)),
        Some(_) => {
            Err(Error::invalid(format!("Unable to parse '{key}': attempt to access JSON non-boolean as boolean")))
        }
    }
}

/// The binary data that no input has taken yet.
struct Blobs(Bytes);

impl Blobs {
    fn take(&mut self, input: &str, size: i64) -> Result<Bytes> {
        match usize::try_from(size) {
            Ok(size) if size <= self.0.len() => Ok(self.0.split_to(size)),
            Ok(_) => Err(Error::invalid(format!(
                "unexpected size for input '{input}', expecting {size} bytes of binary data, only {} are left",
                self.0.len()
            ))),
            Err(_) => {
                Err(Error::invalid(format!("'binary_data_size' of input '{input}' must not be negative, got {size}")))
            }
        }
    }
}

/// A request as it is written.
#[derive(serde::Deserialize)]
struct Body {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(deserialize_with = "inputs")]
    inputs: Vec<Input>,
    #[serde(default, deserialize_with = "outputs")]
    outputs: Vec<Output>,
}

fn inputs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Input>, D::Error> {
    deserializer.deserialize_seq(Parts { what: "inputs", element: PhantomData })
}

fn outputs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Output>, D::Error> {
    deserializer.deserialize_seq(Parts { what: "outputs", element: PhantomData })
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    deserializer.deserialize_seq(Parts { what: "dimensions", element: PhantomData })
}

/// Reads an array of bounded length.
struct Parts<T> {
    what: &'static str,
    element: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Parts<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {}", self.what)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Vec<T>, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = array.next_element()? {
            if parts.len() == PARTS_MAX {
                return Err(A::Error::custom(format_args!("the request has more than {PARTS_MAX} {}", self.what)));
            }
            parts.push(part);
        }
        Ok(parts)
    }
}

/// A requested output as it is written.
#[derive(serde::Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// An input as it is written, its data already in the form of a tensor.
struct Input {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    parameters: Parameters,
    data: Given,
}

/// The member `data` of an input.
enum Given {
    /// It is not there.
    Nothing,
    /// It was read.
    Elements(Bytes),
    /// It is there, and the data type has no elements in JSON.
    Unread,
}

impl Input {
    /// The input's message, and its data if that is not in shared memory.
    fn decoded(self, blobs: &mut Blobs) -> Result<(InferInputTensor, Option<Bytes>)> {
        let Self { name, shape, datatype, parameters: Parameters(mut parameters), data } = self;
        let size = parameters.remove("binary_data_size").and_then(|size| size.parameter_choice);
        let shared = parameters.contains_key("shared_memory_region");
        let data = match (data, size, shared) {
            (Given::Elements(data), None, false) => Some(data),
            // What has no elements in JSON is refused for that; what is no type at all, as in the other protocol.
            (Given::Unread, None, false) => {
                match DataType::from_name(&datatype).and_then(|dtype| data::refusal(dtype, &name)) {
                    Some(refusal) => return Err(refusal),
                    None => Some(Bytes::new()),
                }
            }
            (Given::Nothing, Some(ParameterChoice::Int64Param(size)), false) => Some(blobs.take(&name, size)?),
            (Given::Nothing, Some(_), false) => {
                return Err(Error::invalid(
                    "Unable to parse 'binary_data_size': attempt to access JSON non-unsigned-integer as unsigned-integer",
                ));
            }
            (Given::Nothing, None, true) => None,
            (data, size, shared) => return Err(not_one(!matches!(data, Given::Nothing), size.is_some(), shared)),
        };
        Ok((InferInputTensor { name, datatype, shape, parameters, contents: None }, data))
    }
}

/// The refusal of an input whose data is at no or at more than one place.
fn not_one(data: bool, binary: bool, shared: bool) -> Error {
    let fields = [("'data'", data), ("'binary_data_size'", binary), ("'shared_memory_region'", shared)];
    let set: Vec<&str> = fields.iter().filter(|(_, set)| *set).map(|(field, _)| *field).collect();
    let found = if set.is_empty() { " no field is set".to_owned() } else { format!(" set {}", set.join(" ")) };
    Error::invalid(format!(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', \
         'shared_memory_region' in 'parameters'. But{found}"
    ))
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Name,
    Shape,
    Datatype,
    Parameters,
    Data,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InputVisitor)
    }
}

struct InputVisitor;

/// The member `shape`.
#[derive(serde::Deserialize)]
struct Dimensions(#[serde(deserialize_with = "shape")] Vec<i64>);

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an input")
    }

    /// Data that stands behind its type is read in place; data before it is looked for its end, and read afterwards.
    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Input, A::Error> {
        let mut name: Option<String> = None;
        let mut shape: Option<Vec<i64>> = None;
        let mut datatype: Option<String> = None;
        let mut parameters = Parameters::default();
        let mut early: Option<&'de RawValue> = None;
        let mut data = Given::Nothing;
        while let Some(member) = object.next_key()? {
            match member {
                Member::Name => name = Some(object.next_value()?),
                Member::Shape => shape = Some(object.next_value::<Dimensions>()?.0),
                Member::Datatype => datatype = Some(object.next_value()?),
                Member::Parameters => parameters = object.next_value()?,
                Member::Data => match &datatype {
                    None => early = Some(object.next_value()?),
                    Some(datatype) => {
                        let Some(dtype) = readable(datatype) else {
                            object.next_value::<IgnoredAny>()?;
                            data = Given::Unread;
                            continue;
                        };
                        let mut elements = Elements::new(dtype, expected(shape.as_deref()));
                        object.next_value_seed(elements.seed()).map_err(|error| {
                            let name = name.as_deref().unwrap_or_default();
                            A::Error::custom(data::about(name, &error.to_string()))
                        })?;
                        data = Given::Elements(elements.finish().bytes);
                    }
                },
                Member::Other => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        let missing = |member: &'static str| {
            A::Error::custom(format_args!(
                "Unable to parse 'inputs': attempt to access non-existing object member '{member}'"
            ))
        };
        let name = name.ok_or_else(|| missing("name"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let datatype = datatype.ok_or_else(|| missing("datatype"))?;
        if let Some(text) = early {
            data = match readable(&datatype) {
                Some(dtype) => Given::Elements(data::read(text.get(), dtype, &name).map_err(A::Error::custom)?.bytes),
                None => Given::Unread,
            };
        }
        Ok(Input { name, shape, datatype, parameters, data })
    }
}

/// The element type of that name, if its elements can be JSON.
fn readable(datatype: &str) -> Option<DataType> {
    DataType::from_name(datatype).filter(|dtype| data::refusal(*dtype, "").is_none())
}

/// How many elements a tensor of that shape has, as far as room is made for them.
fn expected(shape: Option<&[i64]>) -> usize {
    let count = shape.unwrap_or_default().iter().try_fold(1usize, |count, &dimension| {
        usize::try_from(dimension).ok().and_then(|dimension| count.checked_mul(dimension))
    });
    count.unwrap_or(0).min(EXPECTED_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> Decoded {
        request(text.as_bytes(), Bytes::new()).expect("well formed")
    }

    fn refused(text: &str) -> String {
        request(text.as_bytes(), Bytes::new()).expect_err("refused").to_string()
    }

    #[test]
    fn a_request_becomes_the_message_of_the_other_protocol() {
        let decoded = decoded(
            r#"{"id": "7", "extra": {"deep": [1]}, "parameters": {"priority": 1, "binary_data_output": true},
                "inputs": [{"name": "a", "shape": [1, 2], "datatype": "INT16", "data": [[1, 2]], "more": null}],
                "outputs": [{"name": "b", "parameters": {"binary_data": false, "classification": 2}}, {"name": "c"}]}"#,
        );
        let message = &decoded.message;
        assert_eq!((message.id.as_str(), message.parameters.len()), ("7", 1));
        assert_eq!(message.parameters["priority"].parameter_choice, Some(ParameterChoice::Int64Param(1)));
        let input = &message.inputs[0];
        assert_eq!((input.name.as_str(), input.datatype.as_str(), &input.shape[..]), ("a", "INT16", &[1, 2][..]));
        assert_eq!(message.raw_input_contents, [Bytes::from_static(&[1, 0, 2, 0])]);
        assert_eq!(message.outputs[0].parameters.len(), 1);
        assert_eq!((decoded.binary.has("b"), decoded.binary.has("c")), (false, true));
    }

    #[test]
    fn data_may_come_before_its_type() {
        let body = r#"{"inputs": [{"data": [[1, 2]], "name": "a", "shape": [1, 2], "datatype": "UINT8"}]}"#;
        assert_eq!(decoded(body).message.raw_input_contents, [Bytes::from_static(&[1, 2])]);
        let wrong = r#"{"inputs": [{"data": [256], "name": "a", "shape": [1], "datatype": "UINT8"}]}"#;
        assert_eq!(refused(wrong), "Unable to parse 'data' of input 'a': value 256 does not fit 'UINT8'");
    }

    #[test]
    fn binary_data_is_taken_in_order_without_a_copy() {
        let text = r#"{"inputs": [
            {"name": "a", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
            {"name": "b", "shape": [1], "datatype": "UINT8", "data": [9]},
            {"name": "c", "shape": [1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}]}"#;
        let blobs = Bytes::from_static(&[1, 2, 3, 4]);
        let raw = request(text.as_bytes(), blobs.clone()).expect("well formed").message.raw_input_contents;
        assert_eq!(raw, [&[1, 2][..], &[9], &[3, 4]]);
        assert_eq!(raw[2].as_ptr(), blobs[2..].as_ptr());
        for (blobs, message) in [
            (&[1, 2, 3][..], "unexpected size for input 'c', expecting 2 bytes of binary data, only 1 are left"),
            (&[1, 2, 3, 4, 5], "unexpected additional input data: 1 bytes of binary data belong to no input"),
        ] {
            let refused = request(text.as_bytes(), Bytes::from_static(blobs)).expect_err("does not add up");
            assert_eq!(refused.message(), message);
        }
    }

    #[test]
    fn data_has_exactly_one_place() {
        let input = |more: &str| {
            refused(&format!(r#"{{"inputs": [{{"name": "a", "shape": [1], "datatype": "UINT8"{more}}}]}}"#))
        };
        assert!(input("").ends_with("in 'parameters'. But no field is set"));
        let both = input(r#", "data": [1], "parameters": {"binary_data_size": 1}"#);
        assert!(both.ends_with("But set 'data' 'binary_data_size'"), "{both}");
        let both = input(r#", "parameters": {"binary_data_size": 1, "shared_memory_region": "r"}"#);
        assert!(both.ends_with("But set 'binary_data_size' 'shared_memory_region'"), "{both}");
        assert!(input(r#", "parameters": {"binary_data_size": -1}"#).contains("must not be negative"));
        assert!(input(r#", "parameters": {"binary_data_size": "1"}"#).contains("non-unsigned-integer"));
    }

    #[test]
    fn an_input_in_shared_memory_has_no_data_and_keeps_its_parameters() {
        let body = r#"{"inputs": [{"name": "a", "shape": [1], "datatype": "UINT8", "parameters":
            {"shared_memory_region": "r", "shared_memory_byte_size": 1}}]}"#;
        let message = decoded(body).message;
        assert_eq!((message.inputs[0].parameters.len(), message.raw_input_contents.len()), (2, 0));
    }

    #[test]
    fn half_precision_is_refused_and_no_type_at_all_is_left_to_the_pipeline() {
        for order in [r#""data": [1], "datatype": "FP16""#, r#""datatype": "FP16", "data": [1]"#] {
            let refused = refused(&format!(r#"{{"inputs": [{{"name": "a", "shape": [1], {order}}}]}}"#));
            assert!(refused.starts_with("receiving FP16 data via JSON is not supported."), "{refused}");
        }
        let body = r#"{"inputs": [{"name": "a", "shape": [1], "datatype": "FP8", "data": [[{}]]}]}"#;
        assert_eq!(decoded(body).message.inputs[0].datatype, "FP8");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (body, message) in [
            ("", "failed to parse the request JSON buffer: EOF while parsing"),
            ("{\"inputs\": [}", "failed to parse the request JSON buffer: expected value at line 1 column 13"),
            ("{}", "missing field `inputs`"),
            ("{\"inputs\": [{}]}", "Unable to parse 'inputs': attempt to access non-existing object member 'name'"),
            ("{\"inputs\": [], \"outputs\": [{}]}", "missing field `name`"),
            ("{\"inputs\": [], \"id\": 1}", "invalid type: integer `1`, expected a string"),
            ("{\"inputs\": [], \"parameters\": {\"binary_data_output\": 1}}", "Unable to parse 'binary_data_output'"),
            ("{\"inputs\": [], \"parameters\": {\"triton_x\": 1}}", "parameter keys starting with 'triton_'"),
            ("{\"inputs\": [{\"shape\": [1.5]}]}", "invalid type: floating point `1.5`, expected i64"),
        ] {
            let refused = refused(body);
            assert!(refused.starts_with(message), "{body}: {refused}");
        }
    }

    #[test]
    fn parts_are_bounded() {
        let outputs = vec![r#"{"name": "x"}"#; PARTS_MAX + 1].join(",");
        let refused = refused(&format!(r#"{{"inputs": [], "outputs": [{outputs}]}}"#));
        assert_eq!(refused, "the request has more than 4096 outputs");
        assert_eq!(expected(Some(&[i64::MAX, 3])), 0);
        assert_eq!(expected(Some(&[i64::MAX])), EXPECTED_MAX);
    }
}
