//! Converts typed tensor contents into the little-endian bytes that everything behind works with.
//!
//! Which contents field carries which element type is the protocol's rule; FP16 and BF16 have none and travel raw only.

use bytes::{Bytes, BytesMut};

use super::wire::InferTensorContents;
use crate::error::{Error, Result};
use crate::tensor::{DataType, strings};

/// The elements of `contents` as bytes of a tensor of `dtype`.
///
/// `input` and `model` are for messages.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the filled field is not the one of `dtype`, if more than one is filled,
/// or if a value does not fit the element type.
pub fn bytes(contents: InferTensorContents, dtype: DataType, input: &str, model: &str) -> Result<Bytes> {
    let filled = filled_fields(&contents);
    let field = field_of(dtype);
    if filled.len() > 1 {
        return Err(Error::invalid(format!(
            "unexpected explicit tensor data for input tensor '{input}' for model '{model}' of type '{}', binary data was \
             already supplied.",
            filled[1]
        )));
    }
    if let Some(found) = filled.first()
        && Some(*found) != field
    {
        return Err(Error::invalid(format!(
            "unexpected explicit tensor data for input tensor '{input}' for model '{model}' of type '{found}', expected \
             datatype '{dtype}'"
        )));
    }
    let out_of_range = |value: i128| {
        Error::invalid(format!("value {value} of input tensor '{input}' for model '{model}' does not fit '{dtype}'"))
    };
    Ok(match dtype {
        DataType::Bool => contents.bool_contents.into_iter().map(u8::from).collect(),
        DataType::Int8 => narrow(contents.int_contents, |v| i8::try_from(v).map(i8::to_le_bytes), out_of_range)?,
        DataType::Int16 => narrow(contents.int_contents, |v| i16::try_from(v).map(i16::to_le_bytes), out_of_range)?,
        DataType::Uint8 => narrow(contents.uint_contents, |v| u8::try_from(v).map(u8::to_le_bytes), out_of_range)?,
        DataType::Uint16 => narrow(contents.uint_contents, |v| u16::try_from(v).map(u16::to_le_bytes), out_of_range)?,
        DataType::Int32 => wide(contents.int_contents, i32::to_le_bytes),
        DataType::Uint32 => wide(contents.uint_contents, u32::to_le_bytes),
        DataType::Int64 => wide(contents.int64_contents, i64::to_le_bytes),
        DataType::Uint64 => wide(contents.uint64_contents, u64::to_le_bytes),
        DataType::Fp32 => wide(contents.fp32_contents, f32::to_le_bytes),
        DataType::Fp64 => wide(contents.fp64_contents, f64::to_le_bytes),
        DataType::Bytes => strings::encode(contents.bytes_contents.iter().map(|element| &element[..])),
        // No field can be filled here, so this is a tensor without elements.
        DataType::Fp16 | DataType::Bf16 => Bytes::new(),
    })
}

/// The type for which each filled field is meant, in the order of the message.
fn filled_fields(contents: &InferTensorContents) -> Vec<&'static str> {
    [
        (contents.bool_contents.is_empty(), "BOOL"),
        (contents.int_contents.is_empty(), "INT32"),
        (contents.int64_contents.is_empty(), "INT64"),
        (contents.uint_contents.is_empty(), "UINT32"),
        (contents.uint64_contents.is_empty(), "UINT64"),
        (contents.fp32_contents.is_empty(), "FP32"),
        (contents.fp64_contents.is_empty(), "FP64"),
        (contents.bytes_contents.is_empty(), "BYTES"),
    ]
    .into_iter()
    .filter_map(|(empty, name)| (!empty).then_some(name))
    .collect()
}

/// The field that carries elements of `dtype`, by the name that [`filled_fields`] gives it.
fn field_of(dtype: DataType) -> Option<&'static str> {
    match dtype {
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Some("INT32"),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => Some("UINT32"),
        DataType::Fp16 | DataType::Bf16 => None,
        other => Some(other.name()),
    }
}

fn wide<T: Copy, const N: usize>(values: Vec<T>, to_bytes: impl Fn(T) -> [u8; N]) -> Bytes {
    let mut data = BytesMut::with_capacity(values.len() * N);
    for value in values {
        data.extend_from_slice(&to_bytes(value));
    }
    data.freeze()
}

fn narrow<T: Copy + Into<i128>, E, const N: usize>(
    values: Vec<T>,
    to_bytes: impl Fn(T) -> std::result::Result<[u8; N], E>,
    out_of_range: impl Fn(i128) -> Error,
) -> Result<Bytes> {
    let mut data = BytesMut::with_capacity(values.len() * N);
    for value in values {
        data.extend_from_slice(&to_bytes(value).map_err(|_| out_of_range(value.into()))?);
    }
    Ok(data.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(contents: InferTensorContents, dtype: DataType) -> String {
        bytes(contents, dtype, "in", "m").expect_err("refused").to_string()
    }

    #[test]
    fn every_type_with_a_field_becomes_little_endian_bytes() {
        let contents = InferTensorContents {
            bool_contents: vec![true, false],
            int_contents: vec![-1, 2],
            int64_contents: vec![-1, 2],
            uint_contents: vec![255, 2],
            uint64_contents: vec![u64::MAX, 2],
            fp32_contents: vec![1.5, -0.0],
            fp64_contents: vec![1.5, -0.0],
            bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new()],
        };
        let only = |dtype: DataType| {
            let mut one = InferTensorContents::default();
            match field_of(dtype) {
                Some("BOOL") => one.bool_contents = contents.bool_contents.clone(),
                Some("INT32") => one.int_contents = contents.int_contents.clone(),
                Some("INT64") => one.int64_contents = contents.int64_contents.clone(),
                Some("UINT32") => one.uint_contents = contents.uint_contents.clone(),
                Some("UINT64") => one.uint64_contents = contents.uint64_contents.clone(),
                Some("FP32") => one.fp32_contents = contents.fp32_contents.clone(),
                Some("FP64") => one.fp64_contents = contents.fp64_contents.clone(),
                _ => one.bytes_contents = contents.bytes_contents.clone(),
            }
            bytes(one, dtype, "in", "m").expect("the right field").to_vec()
        };
        assert_eq!(only(DataType::Bool), [1, 0]);
        assert_eq!(only(DataType::Int8), [255, 2]);
        assert_eq!(only(DataType::Int16), [255, 255, 2, 0]);
        assert_eq!(only(DataType::Int32), [255, 255, 255, 255, 2, 0, 0, 0]);
        assert_eq!(only(DataType::Int64).len(), 16);
        assert_eq!(only(DataType::Uint8), [255, 2]);
        assert_eq!(only(DataType::Uint16), [255, 0, 2, 0]);
        assert_eq!(only(DataType::Uint32), [255, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(only(DataType::Uint64)[..8], [255; 8]);
        assert_eq!(only(DataType::Fp32)[..4], 1.5f32.to_le_bytes());
        assert_eq!(only(DataType::Fp64)[8..], (-0.0f64).to_le_bytes());
        assert_eq!(only(DataType::Bytes), [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
    }

    #[test]
    fn the_wrong_field_is_refused() {
        let floats = InferTensorContents { fp32_contents: vec![1.0], ..Default::default() };
        let expected = |dtype| {
            format!(
                "unexpected explicit tensor data for input tensor 'in' for model 'm' of type 'FP32', expected datatype \
                 '{dtype}'"
            )
        };
        for dtype in [DataType::Int32, DataType::Fp64, DataType::Fp16, DataType::Bf16, DataType::Bytes] {
            assert_eq!(refused(floats.clone(), dtype), expected(dtype));
        }
    }

    #[test]
    fn two_fields_are_refused() {
        let both = InferTensorContents { fp32_contents: vec![1.0], int_contents: vec![1], ..Default::default() };
        assert!(refused(both, DataType::Fp32).ends_with("of type 'FP32', binary data was already supplied."));
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused() {
        let contents = InferTensorContents { int_contents: vec![1, 128], ..Default::default() };
        assert_eq!(
            refused(contents, DataType::Int8),
            "value 128 of input tensor 'in' for model 'm' does not fit 'INT8'"
        );
    }

    #[test]
    fn no_elements_fit_every_type() {
        for dtype in DataType::ALL {
            assert_eq!(bytes(InferTensorContents::default(), dtype, "in", "m"), Ok(Bytes::new()));
        }
    }
}
