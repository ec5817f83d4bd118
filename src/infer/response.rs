//! A response before a protocol encodes it.

use std::sync::Arc;

use super::{Instant, Parameters};
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
    /// When its request passed each stage; `None` if it was not executed.
    pub times: Option<Times>,
}

/// When a request passed the stages of its execution; written by the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// It entered the queue.
    pub queued: Instant,
    /// An instance took it and began to prepare the inputs.
    pub began: Instant,
    /// The inputs were where the computation needs them.
    pub inputs_ready: Instant,
    /// The computation was done.
    pub outputs_ready: Instant,
    /// The outputs were split and handed over.
    pub ended: Instant,
}

/// One output tensor of a response.
#[derive(Clone, Debug)]
pub struct Output {
    /// The output's name.
    pub name: Arc<str>,
    /// The tensor; its bytes may be a view of the model's own output memory.
    pub tensor: Tensor,
    /// The bytes went where the caller wanted them (shared memory), so that `tensor` has none and none are sent.
    pub placed: bool,
}
