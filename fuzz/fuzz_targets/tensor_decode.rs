//! Any bytes as a ModelInfer message: what the decoder and the signature let through is what it says it is.
//!
//! The first byte chooses between a message of any bytes and one made of the rest piece by piece, which gets deeper.

#![no_main]

mod model;

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use nereid::model::{ModelConfig, Signature, TensorSpec};
use nereid::protocol::v2::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use nereid::protocol::v2::wire::{InferTensorContents, ModelInferRequest};
use nereid::tensor::{DataType, Shape, strings};
use prost::Message as _;

static CONFIGS: LazyLock<[ModelConfig; 2]> = LazyLock::new(|| [0, 8].map(config));

fn config(max_batch_rows: usize) -> ModelConfig {
    let open = |name: &str| TensorSpec::new(name, None, None);
    let inputs = vec![
        TensorSpec {
            reshape: Some(Shape::new(&[2, -1])),
            ..TensorSpec::new("a", Some(DataType::Fp32), Some(Shape::new(&[-1, 2])))
        },
        TensorSpec::new("b", Some(DataType::Bytes), Some(Shape::new(&[-1]))),
        open("c"),
    ];
    model::config(inputs, vec![open("y"), open("z")], max_batch_rows)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    let config = &CONFIGS[usize::from(choice & 1)];
    let message = if choice & 2 == 0 {
        ModelInferRequest::decode(Bytes::copy_from_slice(rest)).ok()
    } else {
        message(&mut Unstructured::new(rest)).ok()
    };
    if let Some(message) = message {
        follow(message, config);
    }
});

fn follow(message: ModelInferRequest, config: &ModelConfig) {
    let raw: usize = message.raw_input_contents.iter().map(Bytes::len).sum();
    let in_contents = message.encoded_len();
    let Ok(request) = model::decoded(message, config) else { return };
    let held: usize = request.inputs.iter().map(|input| input.tensor.data.len()).sum();
    // Typed contents grow at most eightfold: a varint of one byte becomes an element of eight.
    assert!(held <= raw + in_contents * 8);
    let outputs = request.outputs.iter().map(|output| output.name.as_str());
    let Ok(checked) = Signature::new(config).check(request.inputs, outputs.collect::<Vec<_>>().into_iter()) else {
        return;
    };
    assert_eq!(checked.inputs.len(), config.inputs.len());
    assert!(checked.rows >= 1 && checked.rows <= config.max_batch_rows.max(1));
    for tensor in &checked.inputs {
        let elements = tensor.shape.elements().expect("the signature refuses what cannot be counted");
        match tensor.dtype.size() {
            Some(size) => assert_eq!(tensor.data.len(), elements * size),
            None => assert_eq!(strings::iter(&tensor.data).filter(|element| element.is_ok()).count(), elements),
        }
        if config.max_batch_rows > 0 {
            assert_eq!(usize::try_from(tensor.shape[0]), Ok(checked.rows));
        }
    }
}

fn message(from: &mut Unstructured<'_>) -> Result<ModelInferRequest> {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", ""];
    const OUTPUTS: [&str; 3] = ["y", "z", "x"];
    let mut message = ModelInferRequest { model_name: "m".to_owned(), ..ModelInferRequest::default() };
    let typed = from.ratio(1, 4)?;
    for index in 0..from.int_in_range(0..=4)? {
        let name = if from.ratio(7, 8)? { NAMES[index % NAMES.len()] } else { *from.choose(&NAMES)? };
        let dtype = *from.choose(&DataType::ALL)?;
        let dims = 0..from.int_in_range(0..=3)?;
        let small = |from: &mut Unstructured<'_>| {
            if from.ratio(15, 16)? { from.int_in_range(0..=4) } else { from.arbitrary() }
        };
        let shape = dims.map(|_| small(from)).collect::<Result<Vec<i64>>>()?;
        let contents = if typed { Some(contents(from)?) } else { None };
        if !typed {
            message.raw_input_contents.push(data(from, dtype, &shape)?);
        }
        message.inputs.push(InferInputTensor {
            name: name.to_owned(),
            datatype: dtype.name().to_owned(),
            shape,
            contents,
            ..InferInputTensor::default()
        });
    }
    for _ in 0..from.int_in_range(0..=2)? {
        let name = (*from.choose(&OUTPUTS)?).to_owned();
        message.outputs.push(InferRequestedOutputTensor { name, ..InferRequestedOutputTensor::default() });
    }
    Ok(message)
}

/// Mostly as many bytes as the shape asks for; strings mostly framed.
fn data(from: &mut Unstructured<'_>, dtype: DataType, shape: &[i64]) -> Result<Bytes> {
    let elements = Shape::new(shape).elements().unwrap_or(0).min(256);
    if from.ratio(1, 8)? {
        return Ok(Bytes::copy_from_slice(from.arbitrary()?));
    }
    match dtype.size() {
        Some(size) => Ok(vec![0; elements * size].into()),
        None => {
            let each = (0..elements).map(|_| from.arbitrary::<&[u8]>()).collect::<Result<Vec<_>>>()?;
            Ok(strings::encode(each))
        }
    }
}

fn contents(from: &mut Unstructured<'_>) -> Result<InferTensorContents> {
    let mut contents = InferTensorContents::default();
    match from.int_in_range(0..=7)? {
        0 => contents.bool_contents = from.arbitrary()?,
        1 => contents.int_contents = from.arbitrary()?,
        2 => contents.int64_contents = from.arbitrary()?,
        3 => contents.uint_contents = from.arbitrary()?,
        4 => contents.uint64_contents = from.arbitrary()?,
        5 => contents.fp32_contents = from.arbitrary()?,
        6 => contents.fp64_contents = from.arbitrary()?,
        _ => contents.bytes_contents = from.arbitrary::<Vec<Vec<u8>>>()?.into_iter().map(Bytes::from).collect(),
    }
    Ok(contents)
}
