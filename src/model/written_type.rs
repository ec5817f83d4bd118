//! The element types as configurations spell them.

use super::schema;
use crate::tensor::DataType;

/// A configuration's spelling of an element type.
pub fn written_type(dtype: DataType) -> schema::DataType {
    match dtype {
        DataType::Bool => schema::DataType::TypeBool,
        DataType::Uint8 => schema::DataType::TypeUint8,
        DataType::Uint16 => schema::DataType::TypeUint16,
        DataType::Uint32 => schema::DataType::TypeUint32,
        DataType::Uint64 => schema::DataType::TypeUint64,
        DataType::Int8 => schema::DataType::TypeInt8,
        DataType::Int16 => schema::DataType::TypeInt16,
        DataType::Int32 => schema::DataType::TypeInt32,
        DataType::Int64 => schema::DataType::TypeInt64,
        DataType::Fp16 => schema::DataType::TypeFp16,
        DataType::Bf16 => schema::DataType::TypeBf16,
        DataType::Fp32 => schema::DataType::TypeFp32,
        DataType::Fp64 => schema::DataType::TypeFp64,
        DataType::Bytes => schema::DataType::TypeString,
    }
}

/// The element type of a configuration's spelling; `None` for `TYPE_INVALID`.
pub fn data_type(written: schema::DataType) -> Option<DataType> {
    DataType::ALL.into_iter().find(|dtype| written_type(*dtype) == written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_spelling_but_the_invalid_one_is_one_type() {
        let spellings: Vec<_> = (0..).map_while(|number| schema::DataType::try_from(number).ok()).collect();
        let (types, invalid): (Vec<_>, Vec<_>) =
            spellings.into_iter().partition(|written| data_type(*written).is_some());
        assert_eq!((types.len(), invalid), (DataType::ALL.len(), vec![schema::DataType::TypeInvalid]));
    }
}
