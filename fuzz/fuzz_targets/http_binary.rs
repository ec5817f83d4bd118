//! Any bytes as a body with binary data: its parts are the whole, and no byte belongs to two tensors.
//!
//! The first byte chooses between any bytes, behind any length of their JSON, and a body made of the rest piece by
//! piece, which gets deeper.

#![no_main]

mod model;

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use nereid::model::{ModelConfig, Signature, TensorSpec};
use nereid::protocol::http::binary::{self, Layout};
use nereid::protocol::http::decode;
use nereid::tensor::{DataType, Shape};

static CONFIGS: LazyLock<Vec<ModelConfig>> = LazyLock::new(|| {
    let mut configs = Vec::new();
    for dtype in [DataType::Fp32, DataType::Uint8, DataType::Bytes] {
        for dims in [&[-1][..], &[2, -1, 3], &[4], &[0, -1], &[-1, -1], &[]] {
            let spec = |name: &str| TensorSpec::new(name, Some(dtype), Some(Shape::new(dims)));
            configs.extend([0, 8].map(|rows| model::config(vec![spec("a")], vec![spec("y")], rows)));
        }
    }
    configs
});

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    if choice & 1 == 0 {
        let Some((header, body)) = rest.split_first_chunk::<2>() else { return };
        follow(u16::from_le_bytes(*header).into(), Bytes::copy_from_slice(body), usize::from(choice >> 1));
    } else if let Ok((length, body)) = body(&mut Unstructured::new(rest)) {
        follow(length, body.into(), usize::from(choice >> 1));
    }
});

fn follow(length: usize, body: Bytes, config: usize) {
    let headers = HeaderMap::from_iter([(
        binary::HEADER.parse().expect("a name"),
        HeaderValue::from_str(&length.to_string()).expect("digits"),
    )]);
    let config = &CONFIGS[config % CONFIGS.len()];
    match binary::split(&headers, body.clone()) {
        Err(_) => assert!(length > body.len()),
        Ok(Layout::Tensor(data)) => {
            assert_eq!((length, &data), (0, &body));
            raw(config, data);
        }
        Ok(Layout::Request(text, blobs)) => {
            assert_eq!((text.len(), text.len() + blobs.len()), (length, body.len()));
            let Ok(decoded) = decode::request(&text, blobs.clone()) else { return };
            let views = decoded.message.raw_input_contents.iter().filter(|raw| blobs.as_ptr_range().contains(&raw.as_ptr()));
            assert!(views.map(Bytes::len).sum::<usize>() <= blobs.len());
            // Whatever follows may refuse it, and does not panic.
            if let Ok(request) = model::decoded(decoded.message, config) {
                let _ = Signature::new(config).check(request.inputs, [].into_iter());
            }
        }
    }
}

/// What a raw body was deduced to be, the model takes.
fn raw(config: &ModelConfig, data: Bytes) {
    let Ok(decoded) = binary::tensor(config, data) else { return };
    let inputs = model::decoded(decoded.message, config).expect("it is well formed").inputs;
    Signature::new(config).check(inputs, [].into_iter()).expect("its shape is one that the model takes");
}

/// A request whose sizes mostly add up, and the length of its JSON.
fn body(from: &mut Unstructured<'_>) -> Result<(usize, Vec<u8>)> {
    let (mut inputs, mut blobs) = (Vec::new(), Vec::new());
    for _ in 0..from.int_in_range(0..=3)? {
        let dtype = *from.choose(&DataType::ALL)?;
        let size: i64 = if from.ratio(15, 16)? { from.int_in_range(0..=40)? } else { from.arbitrary()? };
        blobs.resize(blobs.len() + size.clamp(0, 40) as usize, 1);
        let name = if from.ratio(7, 8)? { "a" } else { "b" };
        let dim: i8 = from.arbitrary()?;
        inputs.push(format!(
            r#"{{"name":"{name}","datatype":"{dtype}","shape":[{dim}],"parameters":{{"binary_data_size":{size}}}}}"#
        ));
    }
    if from.ratio(1, 8)? {
        blobs.extend(from.arbitrary::<&[u8]>()?);
    }
    let text = format!(r#"{{"inputs":[{}]}}"#, inputs.join(","));
    let length = if from.ratio(15, 16)? { text.len() } else { from.int_in_range(0..=text.len() * 2)? };
    Ok((length, [text.as_bytes(), &blobs].concat()))
}
