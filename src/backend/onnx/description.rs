//! What a model file says about its inputs and outputs, in the server's own words. Pure.

use ort::value::{TensorElementType, ValueType};

use crate::tensor::{DataType, Shape};

/// The element types and ONNX Runtime's names for them.
const TYPES: [(DataType, TensorElementType); 14] = [
    (DataType::Bool, TensorElementType::Bool),
    (DataType::Uint8, TensorElementType::Uint8),
    (DataType::Uint16, TensorElementType::Uint16),
    (DataType::Uint32, TensorElementType::Uint32),
    (DataType::Uint64, TensorElementType::Uint64),
    (DataType::Int8, TensorElementType::Int8),
    (DataType::Int16, TensorElementType::Int16),
    (DataType::Int32, TensorElementType::Int32),
    (DataType::Int64, TensorElementType::Int64),
    (DataType::Fp16, TensorElementType::Float16),
    (DataType::Bf16, TensorElementType::Bfloat16),
    (DataType::Fp32, TensorElementType::Float32),
    (DataType::Fp64, TensorElementType::Float64),
    (DataType::Bytes, TensorElementType::String),
];

/// ONNX Runtime's type for an element type.
pub fn element_type(dtype: DataType) -> TensorElementType {
    TYPES.iter().find(|(each, _)| *each == dtype).map_or(TensorElementType::Undefined, |(_, element)| *element)
}

/// The element type, if the protocol has it.
pub fn data_type(element: TensorElementType) -> Option<DataType> {
    TYPES.iter().find(|(_, each)| *each == element).map(|(dtype, _)| *dtype)
}

/// A model file's inputs and outputs, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// What an execution must be given, then what it may be given because it has a default.
    pub inputs: Vec<Outlet>,
    /// What it gives.
    pub outputs: Vec<Outlet>,
}

/// One input or output of a model file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// Its name.
    pub name: String,
    /// The element type; `None` for what is no tensor, or one of a type that the protocol has not.
    pub dtype: Option<DataType>,
    /// All dimensions, -1 for any size. Empty for a scalar, and also where the file says nothing.
    pub dims: Shape,
    /// Whether an execution can do without it.
    pub optional: bool,
    /// How the file names its type, for messages.
    pub kind: String,
}

impl Outlet {
    /// What ONNX Runtime says about one.
    pub fn of(name: &str, kind: &ValueType, optional: bool) -> Self {
        let dims = kind.tensor_shape().map_or(&[][..], |shape| shape);
        Self {
            name: name.to_owned(),
            dtype: kind.tensor_type().and_then(data_type),
            dims: Shape::new(dims),
            optional,
            kind: kind.to_string(),
        }
    }

    /// Whether its first dimension may have any size, as that of a batch must.
    pub fn can_batch(&self) -> bool {
        self.dims.first() == Some(&-1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_has_one_of_the_library_and_reads_back() {
        for dtype in DataType::ALL {
            assert_eq!(data_type(element_type(dtype)), Some(dtype));
        }
        assert_eq!(data_type(TensorElementType::Complex64), None);
    }

    #[test]
    fn what_is_no_tensor_of_the_protocol_has_no_element_type() {
        let keys = ValueType::Map { key: TensorElementType::Int64, value: TensorElementType::Float32 };
        let outlet = Outlet::of("scores", &keys, false);
        assert_eq!((outlet.dtype, outlet.dims.len(), outlet.kind.as_str()), (None, 0, "Map<i64, f32>"));
    }
}
