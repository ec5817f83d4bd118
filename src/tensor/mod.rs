//! Tensors as the server sees them: an element type, a shape, and a view of contiguous little-endian bytes or of memory
//! that is a backend's own.
//!
//! Nothing here knows models, requests or libtorch. Begin with [`Tensor`].

mod batch;
mod dtype;
mod forms;
mod padding;
mod ragged;
mod resident;
mod shape;
pub mod strings;

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;

pub use batch::{Batch, Member, Sink};
pub use dtype::{DataType, Number};
pub use forms::{Cut, Forms, InputForm, OutputForm, Reshape};
pub use padding::{Buckets, Mask, Padding};
pub use ragged::{BatchInputKind, MadeInput};
#[cfg(test)]
pub(crate) use resident::tests::Elsewhere;
pub use resident::{Keep, Resident};
pub use shape::Shape;

/// A tensor: row-major, contiguous, little-endian; a clone shares the elements.
///
/// For every type but [`DataType::Bytes`], [`Tensor::bytes`] is the element count times the element size once the tensor
/// was checked by `model::Signature`; before that nothing is promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The element type.
    pub dtype: DataType,
    /// The dimensions, outermost first, the batch dimension included where there is one.
    pub shape: Shape,
    /// The elements in host memory, for [`DataType::Bytes`] each as a 4-byte length and its bytes (see [`strings`]). Empty
    /// if they are only where `resident` says, which is nowhere but between executions that keep it (see [`Keep`]).
    pub data: Bytes,
    /// The same elements where a backend computed them, if they were left there.
    pub resident: Option<Arc<dyn Resident>>,
}

impl Tensor {
    /// A tensor in host memory.
    pub fn new(dtype: DataType, shape: Shape, data: Bytes) -> Self {
        Self { dtype, shape, data, resident: None }
    }

    /// How many bytes its elements are, wherever they are.
    pub fn bytes(&self) -> usize {
        self.resident.as_ref().map_or(self.data.len(), |resident| resident.bytes())
    }

    /// Whether its elements are in host memory.
    pub fn is_on_host(&self) -> bool {
        self.data.len() == self.bytes()
    }

    /// Its elements in host memory. Blocks while they are copied there, if they are elsewhere.
    ///
    /// # Errors
    /// Those of [`Resident::to_host`].
    pub fn host_data(&self) -> Result<Bytes> {
        match &self.resident {
            Some(resident) if !self.is_on_host() => resident.to_host(),
            _ => Ok(self.data.clone()),
        }
    }

    /// Brings it to host memory, and lets go of where it was.
    ///
    /// # Errors
    /// Those of [`Resident::to_host`].
    pub fn fetch(&mut self) -> Result<()> {
        if self.resident.is_some() {
            self.data = self.host_data()?;
            self.resident = None;
        }
        Ok(())
    }

    /// What stands in the place of an optional input that a request left out.
    pub fn absent() -> Self {
        Self::new(DataType::Uint8, Shape::new(&[-1, -1]), Bytes::new())
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
