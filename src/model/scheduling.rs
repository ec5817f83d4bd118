//! How the requests of a model become executions, as its configuration says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Version;
use crate::tensor::{DataType, Shape};

/// How requests become executions.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheduling {
    /// Each request is one execution.
    Single(QueuePolicy),
    /// Requests are combined.
    Dynamic(DynamicBatching),
    /// Requests belong to sequences, each of which keeps its slot.
    Sequence(SequenceBatching),
    /// Nothing is executed: other models are, one after the other.
    Ensemble(Ensemble),
}

/// The settings of dynamic batching.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicBatching {
    /// Row counts to prefer, ascending, each within the maximum; empty means the maximum only.
    pub preferred_rows: Vec<usize>,
    /// How long the oldest request may wait for others while an instance is idle; zero for not at all.
    pub queue_delay_max: Duration,
    /// Responses leave in the order of the requests.
    pub preserve_ordering: bool,
    /// The limits of the queue, and of each priority level that has none of its own.
    pub queue: QueuePolicy,
    /// The priority levels.
    pub priorities: Priorities,
}

/// The priority levels of a model; 1 is the highest.
#[derive(Clone, Debug, PartialEq)]
pub struct Priorities {
    /// How many there are; at least 1.
    pub levels: u64,
    /// The level of requests that bring none.
    pub default_level: u64,
    /// The limits of levels that have their own.
    pub policies: BTreeMap<u64, QueuePolicy>,
    /// The share of each level in what is executed (`priority.weights`); empty for strict priority.
    pub weights: Vec<u32>,
    /// A request counts as one level higher for each such time that it waits (`priority.ageing_us`).
    pub ageing: Option<Duration>,
}

impl Default for Priorities {
    fn default() -> Self {
        Self { levels: 1, default_level: 1, policies: BTreeMap::new(), weights: Vec::new(), ageing: None }
    }
}

/// What a queue holds and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct QueuePolicy {
    /// What happens at the timeout.
    pub timeout_action: TimeoutAction,
    /// The timeout of requests that bring none; `None` for no limit.
    pub timeout: Option<Duration>,
    /// Whether a request's own timeout may shorten the default.
    pub allow_timeout_override: bool,
    /// The most requests that wait.
    pub requests_max: usize,
}

impl QueuePolicy {
    /// How long a request may wait: its own `asked` can only shorten the default, and only if the policy allows it.
    /// Without a default it always counts.
    pub fn wait_max(&self, asked: Option<Duration>) -> Option<Duration> {
        match (self.timeout, asked) {
            (None, asked) => asked,
            (Some(default), Some(asked)) if self.allow_timeout_override => Some(default.min(asked)),
            (default, _) => default,
        }
    }
}

/// What happens to a request whose queue timeout passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// It is refused.
    Reject,
    /// It goes behind all requests that are still in time.
    Delay,
}

/// The settings of sequence batching.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceBatching {
    /// Which requests make a batch.
    pub strategy: SequenceStrategy,
    /// A sequence that brings no request for so long is over.
    pub idle_max: Duration,
    /// Further inputs of the model file, which tell it about the sequence.
    pub controls: Vec<SequenceControl>,
    /// What is kept from one request of a sequence to the next.
    pub states: Vec<SequenceState>,
    /// If a request may be executed several times, until the model says that it is done.
    pub iterative: Option<Iterative>,
    /// The limits of the backlog and of what waits in slots, together.
    pub queue: QueuePolicy,
}

/// How often a request is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iterative {
    /// The output, of those that callers get or of the states', whose first element is not zero once a request is done;
    /// `None` if the first execution is the last.
    pub done_output: Option<Arc<str>>,
    /// The most executions of one request.
    pub steps_max: u32,
}

/// Which requests of the sequences make a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum SequenceStrategy {
    /// Each sequence has its place in the batch of its instance.
    Direct {
        /// How long to wait for more slots to have a request.
        queue_delay_max: Duration,
        /// The share of slots with a request, from 0 to 1, that ends the wait.
        slot_utilization_min: f32,
    },
    /// The oldest requests of the sequences that an instance has.
    Oldest {
        /// The most sequences of an instance at a time; 0 for as many as a batch has rows.
        candidates_max: usize,
        /// As for dynamic batching.
        preferred_rows: Vec<usize>,
        /// As for dynamic batching.
        queue_delay_max: Duration,
        /// As for dynamic batching.
        preserve_ordering: bool,
    },
}

/// An input of the model file that the server fills for each member of a batch: one element.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceControl {
    /// The input's name.
    pub name: Arc<str>,
    /// What it tells.
    pub kind: SequenceControlKind,
}

/// What a control input tells.
#[derive(Clone, Debug, PartialEq)]
pub enum SequenceControlKind {
    /// Whether a sequence begins.
    Start(Flag),
    /// Whether the slot has a request.
    Ready(Flag),
    /// Whether a sequence ends.
    End(Flag),
    /// The correlation id.
    CorrelationId(DataType),
}

impl SequenceControlKind {
    /// The element type.
    pub fn dtype(&self) -> DataType {
        match self {
            Self::Start(flag) | Self::Ready(flag) | Self::End(flag) => flag.dtype,
            Self::CorrelationId(dtype) => *dtype,
        }
    }
}

/// How no and yes are written: the bytes of one element each.
#[derive(Clone, Debug, PartialEq)]
pub struct Flag {
    /// INT32, FP32 or BOOL.
    pub dtype: DataType,
    /// No.
    pub no: Bytes,
    /// Yes.
    pub yes: Bytes,
}

/// A tensor that is kept for a sequence: an output of one execution is an input of the next.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceState {
    /// The input that gets it.
    pub input: Arc<str>,
    /// The output that replaces it.
    pub output: Arc<str>,
    /// The element type.
    pub dtype: DataType,
    /// The dimensions without the batch dimension, -1 for any size.
    pub dims: Shape,
    /// What it is at first; `None` for zeros of `dims`, where each -1 is 1.
    pub initial: Option<InitialState>,
    /// The new state takes the memory of the old one.
    pub same_buffer: bool,
    /// Its memory may grow.
    pub growable: bool,
}

/// What a state is before the first request of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialState {
    /// The dimensions without the batch dimension, each known.
    pub dims: Shape,
    /// The tensor's bytes; `None` for zeros, or empty strings.
    pub data: Option<Bytes>,
}

/// A graph of models.
#[derive(Clone, Debug, PartialEq)]
pub struct Ensemble {
    /// The models; the tensors decide the order.
    pub steps: Vec<EnsembleStep>,
    /// The most requests at a time in each step; `None` for any number.
    pub step_requests_max: Option<usize>,
    /// The limits of the ensemble as a whole.
    pub queue: QueuePolicy,
}

/// One model of an ensemble.
#[derive(Clone, Debug, PartialEq)]
pub struct EnsembleStep {
    /// Its name.
    pub model: String,
    /// Its version; `None` for the highest that is ready.
    pub version: Option<Version>,
    /// The repository that the model is in; empty if the name is enough.
    pub namespace: String,
    /// The model's inputs, each with the graph's tensor that it gets; by the input's name.
    pub inputs: BTreeMap<String, String>,
    /// The model's outputs, each with the graph's tensor that it becomes; by the output's name.
    pub outputs: BTreeMap<String, String>,
}
