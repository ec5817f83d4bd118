//! What a queue is told once.

use std::sync::Arc;

use super::levels::Levels;
use super::plan::Limits;
use super::responses::ResponseLimits;
use crate::tensor::Forms;

/// For test tools, which make batches repeatable so: what must have come before a scheduler runs anything; 0 for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Requests that wait (`TRITONSERVER_DELAY_SCHEDULER`).
    pub queued: usize,
    /// Requests that wait in the backlog of a sequence batcher (`TRITONSERVER_BACKLOG_DELAY_SCHEDULER`).
    pub backlog: usize,
}

/// The limits of one queue.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// The most requests that wait, in all levels together.
    pub requests_max: usize,
    /// What a batch may be.
    pub limits: Limits,
    /// The priority levels, and what each holds and for how long.
    pub levels: Levels,
    /// Whether answers leave in the order of arrival; not for a decoupled model.
    pub preserve_order: bool,
    /// Nothing runs until so many requests wait, or there is no room for more; then everything does. 0 for at once.
    pub hold: usize,
    /// Whether requests may differ in shape, or in what they leave out, so that this must be compared.
    pub shapes_vary: bool,
    /// How the model file sees the tensors; `None` for as they are.
    pub forms: Option<Arc<Forms>>,
    /// How many instances pull.
    pub instances: usize,
    /// What the responses of one request may take, for a decoupled model; `None` for one that gives exactly one.
    pub responses: Option<ResponseLimits>,
}
