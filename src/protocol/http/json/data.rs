//! Reads the elements of one tensor from JSON straight into its little-endian bytes.
//!
//! Elements may be nested in arrays as the shape says, or flat, or anything between: only their order counts. That there
//! are as many as the shape has is the signature's to check. Begin with [`Elements`].

use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::tensor::DataType;

/// How deep a request may be nested.
pub const NESTING_MAX: usize = 100;

/// The levels around the data of an input: the request, its inputs, the input.
const NESTING_AROUND: usize = 3;

/// The elements of a tensor and how many they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// The elements, as a tensor holds them.
    pub bytes: Bytes,
    /// How many they are.
    pub count: usize,
}

/// Reads `text`, one element or an array of elements of `dtype`, for the input of that name.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is not JSON, or if an element is of another kind or does not fit.
pub fn read(text: &str, dtype: DataType, input: &str) -> Result<Data> {
    if let Some(refusal) = refusal(dtype, input) {
        return Err(refusal);
    }
    let mut elements = Elements::new(dtype, 0);
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = elements.seed().deserialize(&mut reader).and_then(|()| reader.end());
    read.map_err(|error| Error::invalid(about(input, &super::reason(&error))))?;
    Ok(elements.finish())
}

/// Why elements of `dtype` cannot be JSON at all; `None` if they can.
pub fn refusal(dtype: DataType, input: &str) -> Option<Error> {
    matches!(dtype, DataType::Fp16 | DataType::Bf16).then(|| {
        Error::invalid(format!(
            "receiving {dtype} data via JSON is not supported. Please use the binary data format for input '{input}'"
        ))
    })
}

/// The message for data of an input that cannot be read for this `reason`.
pub fn about(input: &str, reason: &str) -> String {
    format!("Unable to parse 'data' of input '{input}': {reason}")
}

/// The elements that were read so far.
#[derive(Debug)]
pub struct Elements {
    dtype: DataType,
    bytes: Vec<u8>,
    count: usize,
}

impl Elements {
    /// None yet; there is room for the first `expected` of them.
    pub fn new(dtype: DataType, expected: usize) -> Self {
        Self { dtype, bytes: Vec::with_capacity(expected.saturating_mul(dtype.size().unwrap_or(4))), count: 0 }
    }

    /// Reads one element, or an array of them at any depth.
    pub fn seed(&mut self) -> Seed<'_> {
        Seed { elements: self, depth: NESTING_AROUND }
    }

    /// All of them.
    pub fn finish(self) -> Data {
        Data { bytes: self.bytes.into(), count: self.count }
    }

    #[inline]
    fn put<E>(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.bytes.extend_from_slice(bytes);
        self.count += 1;
        Ok(())
    }

    #[cold]
    fn wrong_kind<E: serde::de::Error>(&self) -> E {
        let kind = match self.dtype {
            DataType::Bool => "boolean",
            DataType::Uint8 | DataType::Uint16 | DataType::Uint32 | DataType::Uint64 => "unsigned-integer",
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => "signed-integer",
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => "double",
            DataType::Bytes => "string",
        };
        E::custom(format_args!("attempt to access JSON non-{kind} as {kind}"))
    }

    #[cold]
    fn out_of_range<E: serde::de::Error>(&self, value: impl fmt::Display) -> E {
        E::custom(format_args!("value {value} does not fit '{}'", self.dtype))
    }
}

/// Reads what comes next in the JSON into the elements.
pub struct Seed<'a> {
    elements: &'a mut Elements,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Appends `$value` as a `$type`, or refuses it.
macro_rules! put {
    ($elements:expr, $value:expr, $type:ty) => {
        match <$type>::try_from($value) {
            Ok(value) => $elements.put(&value.to_le_bytes()),
            Err(_) => Err($elements.out_of_range($value)),
        }
    };
}

/// Appends the integer `$value` as whatever the elements are.
macro_rules! put_integer {
    ($elements:expr, $value:expr) => {
        match $elements.dtype {
            DataType::Uint8 => put!($elements, $value, u8),
            DataType::Uint16 => put!($elements, $value, u16),
            DataType::Uint32 => put!($elements, $value, u32),
            DataType::Uint64 => put!($elements, $value, u64),
            DataType::Int8 => put!($elements, $value, i8),
            DataType::Int16 => put!($elements, $value, i16),
            DataType::Int32 => put!($elements, $value, i32),
            DataType::Int64 => put!($elements, $value, i64),
            DataType::Fp32 => $elements.put(&($value as f32).to_le_bytes()),
            DataType::Fp64 => $elements.put(&($value as f64).to_le_bytes()),
            DataType::Bool | DataType::Bytes | DataType::Fp16 | DataType::Bf16 => Err($elements.wrong_kind()),
        }
    };
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "elements of type '{}'", self.elements.dtype)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        put_integer!(self.elements, value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        put_integer!(self.elements, value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.elements.dtype {
            DataType::Fp32 if (value as f32).is_infinite() => Err(self.elements.out_of_range(value)),
            DataType::Fp32 => self.elements.put(&(value as f32).to_le_bytes()),
            DataType::Fp64 => self.elements.put(&value.to_le_bytes()),
            _ => Err(self.elements.wrong_kind()),
        }
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        match self.elements.dtype {
            DataType::Bool => self.elements.put(&[u8::from(value)]),
            _ => Err(self.elements.wrong_kind()),
        }
    }

    /// A string, or one of the three numbers that JSON cannot write otherwise.
    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        let number = || match value {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        };
        match (self.elements.dtype, number()) {
            (DataType::Bytes, _) => {
                let length = u32::try_from(value.len()).map_err(|_| self.elements.out_of_range("of 4 GiB"))?;
                self.elements.bytes.extend_from_slice(&length.to_le_bytes());
                self.elements.put(value.as_bytes())
            }
            (DataType::Fp32, Some(number)) => self.elements.put(&(number as f32).to_le_bytes()),
            (DataType::Fp64, Some(number)) => self.elements.put(&number.to_le_bytes()),
            _ => Err(self.elements.wrong_kind()),
        }
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Err(self.elements.wrong_kind())
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.elements.wrong_kind())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        let depth = self.depth + 1;
        if depth > NESTING_MAX {
            return Err(A::Error::custom(format_args!(
                "JSON nesting depth exceeds maximum allowed limit ({NESTING_MAX})"
            )));
        }
        while array.next_element_seed(Seed { elements: self.elements, depth })?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::strings;

    fn bytes(text: &str, dtype: DataType) -> Vec<u8> {
        read(text, dtype, "in").expect("elements").bytes.to_vec()
    }

    fn refused(text: &str, dtype: DataType) -> String {
        let message = read(text, dtype, "in").expect_err("refused").to_string();
        message.strip_prefix("Unable to parse 'data' of input 'in': ").expect("it says where").to_owned()
    }

    #[test]
    fn every_type_has_its_bytes() {
        assert_eq!(bytes("[true, false]", DataType::Bool), [1, 0]);
        assert_eq!(bytes("[0, 255]", DataType::Uint8), [0, 255]);
        assert_eq!(bytes("[-128, 127]", DataType::Int8), [128, 127]);
        assert_eq!(bytes("[258]", DataType::Uint16), [2, 1]);
        assert_eq!(bytes("[-2]", DataType::Int16), [254, 255]);
        assert_eq!(bytes("[4294967295]", DataType::Uint32), [255; 4]);
        assert_eq!(bytes("[-1]", DataType::Int32), [255; 4]);
        assert_eq!(bytes("[18446744073709551615]", DataType::Uint64), [255; 8]);
        assert_eq!(bytes("[-9223372036854775808]", DataType::Int64), i64::MIN.to_le_bytes());
        assert_eq!(bytes("[0.1]", DataType::Fp32), 0.1f32.to_le_bytes());
        assert_eq!(bytes("[3]", DataType::Fp32), 3f32.to_le_bytes());
        assert_eq!(bytes("[-3]", DataType::Fp64), (-3f64).to_le_bytes());
        assert_eq!(bytes("[5e-324]", DataType::Fp64), 5e-324f64.to_le_bytes());
        assert_eq!(bytes(r#"["a", "", "\u00fc"]"#, DataType::Bytes), strings::encode([&b"a"[..], b"", "ü".as_bytes()]));
    }

    #[test]
    fn nested_flat_and_single_are_the_same() {
        let flat = read("[1,2,3,4]", DataType::Int32, "in").expect("elements");
        assert_eq!(flat.count, 4);
        assert_eq!(read("[[1,2],[3,4]]", DataType::Int32, "in"), Ok(flat.clone()));
        assert_eq!(read("[[[1],2],[],[[3,4]]]", DataType::Int32, "in"), Ok(flat));
        assert_eq!(read("7", DataType::Uint8, "in"), Ok(Data { bytes: Bytes::from_static(&[7]), count: 1 }));
    }

    #[test]
    fn what_json_cannot_say_is_a_string() {
        let read = bytes(r#"["NaN", "Infinity", "-Infinity"]"#, DataType::Fp32);
        assert!(f32::from_le_bytes([read[0], read[1], read[2], read[3]]).is_nan());
        assert_eq!(read[4..], [f32::INFINITY.to_le_bytes(), f32::NEG_INFINITY.to_le_bytes()].concat());
        assert_eq!(refused(r#"["nan"]"#, DataType::Fp64), "attempt to access JSON non-double as double");
        assert_eq!(
            refused(r#"["NaN"]"#, DataType::Int8),
            "attempt to access JSON non-signed-integer as signed-integer"
        );
    }

    #[test]
    fn the_wrong_kind_is_refused() {
        for (text, dtype, kind) in [
            ("[1]", DataType::Bool, "boolean"),
            ("[1.0]", DataType::Int32, "signed-integer"),
            ("[true]", DataType::Uint8, "unsigned-integer"),
            ("[18446744073709551616]", DataType::Uint64, "unsigned-integer"),
            ("[null]", DataType::Fp32, "double"),
            ("[{\"a\": 1}]", DataType::Fp32, "double"),
            ("[1]", DataType::Bytes, "string"),
        ] {
            assert_eq!(refused(text, dtype), format!("attempt to access JSON non-{kind} as {kind}"), "{text}");
        }
        let half = read("[1]", DataType::Fp16, "in").expect_err("no JSON").to_string();
        assert_eq!(
            half,
            "receiving FP16 data via JSON is not supported. Please use the binary data format for input 'in'"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (text, dtype, value) in [
            ("[256]", DataType::Uint8, "256"),
            ("[-1]", DataType::Uint64, "-1"),
            ("[32768]", DataType::Int16, "32768"),
            ("[9223372036854775808]", DataType::Int64, "9223372036854775808"),
            ("[1e39]", DataType::Fp32, "1000000000000000000000000000000000000000"),
        ] {
            assert_eq!(refused(text, dtype), format!("value {value} does not fit '{dtype}'"));
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let nested = |levels: usize| "[".repeat(levels) + "1" + &"]".repeat(levels);
        assert_eq!(bytes(&nested(NESTING_MAX - NESTING_AROUND), DataType::Uint8), [1]);
        assert!(refused(&nested(NESTING_MAX - NESTING_AROUND + 1), DataType::Uint8).contains("nesting depth exceeds"));
    }

    #[test]
    fn what_is_not_json_says_where() {
        let message = read("[1, 2", DataType::Uint8, "in").expect_err("refused").to_string();
        assert!(message.contains("EOF while parsing a list at line 1 column 5"), "{message}");
    }
}
