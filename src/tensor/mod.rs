//! Tensors as the server sees them: an element type, a shape and a view of contiguous little-endian bytes.
//!
//! Nothing here knows models, requests or libtorch. Begin with [`Tensor`].

mod batch;
mod dtype;
mod shape;
pub mod strings;

use bytes::Bytes;

pub use batch::{Batch, Member};
pub use dtype::DataType;
pub use shape::Shape;

/// A tensor in host memory: row-major, contiguous, little-endian; a clone shares the bytes.
///
/// For every type but [`DataType::Bytes`], `data.len()` is the element count times the element size once the tensor
/// was checked by `model::Signature`; before that nothing is promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The element type.
    pub dtype: DataType,
    /// The dimensions, outermost first, the batch dimension included where there is one.
    pub shape: Shape,
    /// The elements; for [`DataType::Bytes`] each as a 4-byte length and its bytes (see [`strings`]).
    pub data: Bytes,
}

/// A tensor with the name the caller gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The input or output name.
    pub name: String,
    /// The tensor itself.
    pub tensor: Tensor,
}
