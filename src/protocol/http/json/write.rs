//! Writes the elements of a tensor, and single values, as JSON into a buffer.
//!
//! Numbers are written as short as they can be and still read back as the same number. A number that JSON cannot write
//! (not a number, the infinities) becomes the string `"NaN"`, `"Infinity"` or `"-Infinity"`, which is also read.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::infer::ParameterValue;
use crate::tensor::{DataType, Tensor, strings};

/// Appends the elements of `tensor`, of the output of that name, as a flat array.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] for types that do not travel as JSON, and for strings that are not UTF-8;
/// the buffer then ends anywhere.
pub fn tensor(out: &mut Vec<u8>, tensor: &Tensor, output: &str) -> Result<()> {
    /// All elements of one type, each written by `$write`.
    macro_rules! all {
        ($type:ty, $write:expr) => {{
            let (elements, _) = tensor.data.as_chunks::<{ size_of::<$type>() }>();
            list(out, elements, |out, element| $write(out, <$type>::from_le_bytes(*element)));
        }};
    }
    match tensor.dtype {
        DataType::Bool => {
            list(out, &tensor.data[..], |out, &byte| out.extend(if byte == 0 { &b"false"[..] } else { b"true" }))
        }
        DataType::Uint8 => all!(u8, number),
        DataType::Uint16 => all!(u16, number),
        DataType::Uint32 => all!(u32, number),
        DataType::Uint64 => all!(u64, number),
        DataType::Int8 => all!(i8, number),
        DataType::Int16 => all!(i16, number),
        DataType::Int32 => all!(i32, number),
        DataType::Int64 => all!(i64, number),
        DataType::Fp32 => all!(f32, |out: &mut Vec<u8>, value: f32| match word(f64::from(value)) {
            Some(word) => out.extend(word),
            None => number(out, value),
        }),
        DataType::Fp64 => all!(f64, double),
        DataType::Bytes => return texts(out, &tensor.data, output),
        dtype @ (DataType::Fp16 | DataType::Bf16) => {
            return Err(Error::invalid(format!(
                "sending {dtype} data via JSON is not supported. Please use the binary data format for output '{output}'"
            )));
        }
    }
    Ok(())
}

/// Appends a string with its quotes.
pub fn string(out: &mut Vec<u8>, text: &str) {
    number(out, text);
}

/// Appends the value of a parameter.
pub fn value(out: &mut Vec<u8>, value: &ParameterValue) {
    match value {
        ParameterValue::Bool(value) => number(out, value),
        ParameterValue::Int(value) => number(out, value),
        ParameterValue::String(value) => number(out, value),
        ParameterValue::Double(value) => double(out, *value),
    }
}

fn list<T>(out: &mut Vec<u8>, elements: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (index, element) in elements.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, element);
    }
    out.push(b']');
}

/// Appends a value that always has a form in JSON.
fn number(out: &mut Vec<u8>, value: impl Serialize) {
    serde_json::to_writer(out, &value).expect("a vector takes all bytes, and the value is a plain one");
}

fn double(out: &mut Vec<u8>, value: f64) {
    match word(value) {
        Some(word) => out.extend(word),
        None => number(out, value),
    }
}

/// How a number is written that JSON has no numeral for; `None` if it has.
fn word(value: f64) -> Option<&'static [u8]> {
    match value {
        _ if value.is_finite() => None,
        _ if value.is_nan() => Some(b"\"NaN\""),
        _ if value > 0.0 => Some(b"\"Infinity\""),
        _ => Some(b"\"-Infinity\""),
    }
}

fn texts(out: &mut Vec<u8>, data: &[u8], output: &str) -> Result<()> {
    out.push(b'[');
    for (index, element) in strings::iter(data).enumerate() {
        let element =
            element.map_err(|_| Error::internal(format!("the strings of output '{output}' are malformed")))?;
        let text = std::str::from_utf8(element).map_err(|_| {
            Error::invalid(format!(
                "element {index} of output '{output}' is not UTF-8 and has no form in JSON. Please use the binary data \
                 format for output '{output}'"
            ))
        })?;
        if index > 0 {
            out.push(b',');
        }
        string(out, text);
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::data;
    use super::*;
    use crate::tensor::Shape;

    fn written(dtype: DataType, data: impl Into<Bytes>) -> Result<String> {
        let mut out = Vec::new();
        super::tensor(&mut out, &Tensor::new(dtype, Shape::new(&[]), data.into()), "out")?;
        Ok(String::from_utf8(out).expect("JSON is UTF-8"))
    }

    #[test]
    fn every_type_reads_back_as_the_same_bytes() {
        let patterns: Vec<u8> = (0..=255).chain([0; 8]).chain([255; 8]).chain([0, 0, 0, 0, 0, 0, 0, 128]).collect();
        for dtype in DataType::ALL {
            let data = match dtype {
                DataType::Fp16 | DataType::Bf16 => continue,
                DataType::Bool => vec![1, 0, 1],
                DataType::Bytes => strings::encode([&b"a\"\\\n\0"[..], b"", "ü".as_bytes()]).to_vec(),
                // Not-a-numbers have many patterns and come back as one of them.
                DataType::Fp32 | DataType::Fp64 => patterns[..248].to_vec(),
                _ => patterns.clone(),
            };
            let text = written(dtype, data.clone()).expect("it has a form");
            assert_eq!(data::read(&text, dtype, "in").expect("it reads back").bytes, data, "{dtype}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let floats: Vec<u8> = [0.1f32, 1.0, -0.0, 1e30].into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(written(DataType::Fp32, floats).expect("numbers"), "[0.1,1.0,-0.0,1e+30]");
        assert_eq!(written(DataType::Int8, vec![255, 1]).expect("numbers"), "[-1,1]");
        assert_eq!(written(DataType::Uint8, Bytes::new()).expect("none"), "[]");
    }

    #[test]
    fn what_is_no_number_is_a_word() {
        let floats: Vec<u8> =
            [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().flat_map(f64::to_le_bytes).collect();
        assert_eq!(written(DataType::Fp64, floats).expect("words"), r#"["NaN","Infinity","-Infinity"]"#);
        let floats: Vec<u8> = f32::NAN.to_le_bytes().to_vec();
        assert_eq!(written(DataType::Fp32, floats).expect("a word"), r#"["NaN"]"#);
    }

    #[test]
    fn what_has_no_form_is_refused() {
        assert_eq!(
            written(DataType::Bf16, vec![0, 0]).expect_err("no form").message(),
            "sending BF16 data via JSON is not supported. Please use the binary data format for output 'out'"
        );
        let refused = written(DataType::Bytes, strings::encode([&b"ok"[..], b"\xff"])).expect_err("not UTF-8");
        assert!(refused.message().starts_with("element 1 of output 'out' is not UTF-8"), "{refused}");
    }
}
