//! A request as every protocol decodes it.

use std::sync::Arc;
use std::time::Duration;

use super::{Follow, Instant};
use crate::model::Version;
use crate::tensor::NamedTensor;

/// One inference request; not yet checked against its model.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model's name.
    pub model: String,
    /// The wanted version; `None` for the highest that is ready.
    pub version: Option<Version>,
    /// The caller's id, echoed in responses and errors; empty if none.
    pub id: String,
    /// The inputs in the caller's order.
    pub inputs: Vec<NamedTensor>,
    /// Whether inputs lie in memory that the caller can still write.
    pub inputs_shared: bool,
    /// The wanted outputs; empty for all.
    pub outputs: Vec<RequestedOutput>,
    /// When the server had read the request.
    pub arrived: Instant,
    /// When the caller stops waiting (the gRPC deadline); `None` for never.
    pub deadline: Option<Instant>,
    /// The longest time in the queue that the caller allows; `None` for the model's default.
    pub timeout: Option<Duration>,
    /// The priority level; 0 for the model's default.
    pub priority: u64,
    /// Its place in a sequence of requests; `None` if it belongs to none.
    pub sequence: Option<Sequence>,
    /// Parameters without a meaning of their own to the server, for the backend.
    pub parameters: Parameters,
    /// Who follows it, where it is passed on.
    pub follow: Option<Arc<dyn Follow>>,
}

impl Request {
    /// A request without inputs that arrived at `now`.
    pub fn new(model: impl Into<String>, now: Instant) -> Self {
        Self {
            model: model.into(),
            version: None,
            id: String::new(),
            inputs: Vec::new(),
            inputs_shared: false,
            outputs: Vec::new(),
            arrived: now,
            deadline: None,
            timeout: None,
            priority: 0,
            sequence: None,
            parameters: Parameters::new(),
            follow: None,
        }
    }
}

/// A request's place in a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The sequence.
    pub id: CorrelationId,
    /// The sequence begins with this request.
    pub start: bool,
    /// The sequence ends with this request.
    pub end: bool,
}

/// What the requests of a sequence have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CorrelationId {
    /// A number, never 0.
    Number(u64),
    /// A text, never empty.
    Text(Arc<str>),
}

/// An output that the caller asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedOutput {
    /// The output's name.
    pub name: String,
    /// Ask for the `k` best classes instead of the tensor; 0 for the tensor.
    pub classification: u32,
    /// Leave it where it is computed, if that can be, for another model to take it there; its bytes are not read.
    pub keep: bool,
}

/// Custom parameters by name.
pub type Parameters = std::collections::BTreeMap<String, ParameterValue>;

/// A custom parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum ParameterValue {
    /// A truth value.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// A text.
    String(String),
    /// A floating-point number.
    Double(f64),
}
