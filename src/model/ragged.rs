//! How a ragged batch is put together and taken apart, as the configuration says.

use std::sync::Arc;

use crate::tensor::{BatchInputKind, DataType};

/// Inputs of the model file that tell it about one input of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchInput {
    /// What they hold.
    pub kind: BatchInputKind,
    /// Their names.
    pub targets: Vec<Arc<str>>,
    /// INT32 or FP32.
    pub dtype: DataType,
    /// The input that they are about, by its index.
    pub source: usize,
}

/// Outputs that are split by the shape of an input of each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOutput {
    /// Their names.
    pub targets: Vec<Arc<str>>,
    /// The input, by its index.
    pub source: usize,
}
