//! A response before a protocol encodes it.

use std::sync::Arc;

use super::Parameters;
use crate::model::Version;
use crate::tensor::Tensor;

/// One response to a request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The model's name.
    pub model: Arc<str>,
    /// The version that answered.
    pub version: Version,
    /// The request's id.
    pub id: String,
    /// The outputs in the order asked for.
    pub outputs: Vec<Output>,
    /// Parameters from the backend.
    pub parameters: Parameters,
    /// Whether no other response follows.
    pub last: bool,
}

/// One output tensor of a response.
#[derive(Clone, Debug)]
pub struct Output {
    /// The output's name.
    pub name: Arc<str>,
    /// The tensor; its bytes may be a view of the model's own output memory.
    pub tensor: Tensor,
}
