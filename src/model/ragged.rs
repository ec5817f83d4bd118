//! How a ragged batch is put together and taken apart, as the configuration says.

use std::sync::Arc;

use crate::tensor::DataType;

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

/// What a batch input holds; `n` members, each with its element count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchInputKind {
    /// The element counts: `[n, 1]`.
    ElementCount,
    /// Their running sums: `[n, 1]`.
    AccumulatedElementCount,
    /// The same with a zero in front: `[n + 1, 1]`.
    AccumulatedElementCountWithZero,
    /// Nothing: its shape `[largest count]` says it.
    MaxElementCountAsShape,
    /// The shapes without the batch dimension: `[n, dims]`.
    ItemShape,
    /// The same in one dimension.
    ItemShapeFlatten,
}

/// Outputs that are split by the shape of an input of each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOutput {
    /// Their names.
    pub targets: Vec<Arc<str>>,
    /// The input, by its index.
    pub source: usize,
}
