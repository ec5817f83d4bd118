//! The element types of the inference protocol and their two spellings.

use std::fmt;

use smallvec::SmallVec;

/// The bytes of one number.
pub type Number = SmallVec<[u8; 8]>;

/// An element type of the KServe v2 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8-bit integer.
    Uint8,
    /// Unsigned 16-bit integer.
    Uint16,
    /// Unsigned 32-bit integer.
    Uint32,
    /// Unsigned 64-bit integer.
    Uint64,
    /// Signed 8-bit integer.
    Int8,
    /// Signed 16-bit integer.
    Int16,
    /// Signed 32-bit integer.
    Int32,
    /// Signed 64-bit integer.
    Int64,
    /// IEEE 754 binary16.
    Fp16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// IEEE 754 binary32.
    Fp32,
    /// IEEE 754 binary64.
    Fp64,
    /// Byte strings of varying length.
    Bytes,
}

impl DataType {
    /// Every element type.
    pub const ALL: [DataType; 14] = [
        DataType::Bool,
        DataType::Uint8,
        DataType::Uint16,
        DataType::Uint32,
        DataType::Uint64,
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Fp16,
        DataType::Bf16,
        DataType::Fp32,
        DataType::Fp64,
        DataType::Bytes,
    ];

    /// Bytes per element; `None` for strings, whose elements differ in length.
    pub const fn size(self) -> Option<usize> {
        match self {
            DataType::Bool | DataType::Uint8 | DataType::Int8 => Some(1),
            DataType::Uint16 | DataType::Int16 | DataType::Fp16 | DataType::Bf16 => Some(2),
            DataType::Uint32 | DataType::Int32 | DataType::Fp32 => Some(4),
            DataType::Uint64 | DataType::Int64 | DataType::Fp64 => Some(8),
            DataType::Bytes => None,
        }
    }

    /// The protocol's name, such as `FP32` or `BYTES`.
    pub const fn name(self) -> &'static str {
        match self {
            DataType::Bool => "BOOL",
            DataType::Uint8 => "UINT8",
            DataType::Uint16 => "UINT16",
            DataType::Uint32 => "UINT32",
            DataType::Uint64 => "UINT64",
            DataType::Int8 => "INT8",
            DataType::Int16 => "INT16",
            DataType::Int32 => "INT32",
            DataType::Int64 => "INT64",
            DataType::Fp16 => "FP16",
            DataType::Bf16 => "BF16",
            DataType::Fp32 => "FP32",
            DataType::Fp64 => "FP64",
            DataType::Bytes => "BYTES",
        }
    }

    /// `number` as one element: floating point to the nearest, an integer only if it is exactly one of this type.
    ///
    /// `None` if it does not fit, or for strings.
    pub fn encode(self, number: f64) -> Option<Number> {
        macro_rules! integer {
            ($type:ty) => {{
                // The bounds of 64-bit types are not numbers of f64; what rounds to them does not fit.
                let value = number as $type;
                let exact = value as f64 == number && !(value == <$type>::MAX && size_of::<$type>() == 8);
                exact.then(|| Number::from_slice(&value.to_le_bytes()))
            }};
        }
        match self {
            DataType::Bool => (number == 0.0 || number == 1.0).then(|| Number::from_slice(&[u8::from(number == 1.0)])),
            DataType::Uint8 => integer!(u8),
            DataType::Uint16 => integer!(u16),
            DataType::Uint32 => integer!(u32),
            DataType::Uint64 => integer!(u64),
            DataType::Int8 => integer!(i8),
            DataType::Int16 => integer!(i16),
            DataType::Int32 => integer!(i32),
            DataType::Int64 => integer!(i64),
            DataType::Fp16 => Some(Number::from_slice(&half::f16::from_f64(number).to_le_bytes())),
            DataType::Bf16 => Some(Number::from_slice(&half::bf16::from_f64(number).to_le_bytes())),
            DataType::Fp32 => Some(Number::from_slice(&(number as f32).to_le_bytes())),
            DataType::Fp64 => Some(Number::from_slice(&number.to_le_bytes())),
            DataType::Bytes => None,
        }
    }

    /// The element type with this protocol name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for dtype in DataType::ALL {
            assert_eq!(DataType::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(DataType::from_name("fp32"), None);
    }

    #[test]
    fn a_number_is_encoded_only_where_it_fits() {
        let encoded = |dtype: DataType, number| dtype.encode(number).map(|bytes| bytes.to_vec());
        assert_eq!(encoded(DataType::Int8, -1.0), Some(vec![0xff]));
        assert_eq!(encoded(DataType::Uint8, -1.0), None);
        assert_eq!(encoded(DataType::Uint8, 256.0), None);
        assert_eq!(encoded(DataType::Int32, 0.5), None);
        assert_eq!(encoded(DataType::Int64, 9.3e18), None);
        assert_eq!(encoded(DataType::Int64, f64::NAN), None);
        assert_eq!(encoded(DataType::Bool, 1.0), Some(vec![1]));
        assert_eq!(encoded(DataType::Bool, 2.0), None);
        assert_eq!(encoded(DataType::Fp16, 1.0), Some(vec![0, 0x3c]));
        assert_eq!(encoded(DataType::Bf16, 1.0), Some(vec![0x80, 0x3f]));
        assert_eq!(encoded(DataType::Fp32, -2.5), Some((-2.5f32).to_le_bytes().to_vec()));
        assert_eq!(encoded(DataType::Bytes, 0.0), None);
        for dtype in DataType::ALL {
            assert_eq!(encoded(dtype, 1.0).map(|bytes| bytes.len()), dtype.size());
        }
    }
}
