//! Tensors as the server sees them: an element type, a shape and a view of contiguous little-endian bytes.
//!
//! Nothing here knows models, requests or libtorch. Begin with [`Tensor`].

mod batch;
mod dtype;
mod forms;
mod padding;
mod ragged;
mod shape;
pub mod strings;

use bytes::Bytes;

pub use batch::{Batch, Member, Sink};
pub use dtype::{DataType, Number};
pub use forms::{Cut, Forms, InputForm, OutputForm, Reshape};
pub use padding::{Buckets, Mask, Padding};
pub use ragged::{BatchInputKind, MadeInput};
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

impl Tensor {
    /// What stands in the place of an optional input that a request left out.
    pub fn absent() -> Self {
        Self { dtype: DataType::Uint8, shape: Shape::new(&[-1, -1]), data: Bytes::new() }
    }

    /// Whether this only keeps the place of an input that was left out; no checked tensor has a negative dimension.
    pub fn is_absent(&self) -> bool {
        self.shape.first() == Some(&-1)
    }
}

/// A tensor with the name the caller gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The input or output name.
    pub name: String,
    /// The tensor itself.
    pub tensor: Tensor,
}
