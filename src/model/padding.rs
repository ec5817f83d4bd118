//! Padding by the server, as a model's parameters ask for it.

use crate::tensor::Buckets;

/// Which inputs are padded, to what, and which outputs lose the padding again.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerPadding {
    /// What lengths are padded to.
    pub buckets: Buckets,
    /// The inputs whose free dimensions are padded, by index, each with the number that fills.
    pub inputs: Vec<(usize, f64)>,
    /// The input that is 1 for real elements and 0 for padding, made where a request leaves it out.
    pub mask: Option<Padded>,
    /// The outputs whose free dimensions are cut back.
    pub outputs: Vec<Padded>,
}

/// A tensor whose free dimensions are as long as those of a padded input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padded {
    /// The tensor, by its index among the inputs or outputs.
    pub tensor: usize,
    /// The padded input, by its index.
    pub source: usize,
}
