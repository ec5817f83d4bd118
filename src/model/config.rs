//! The model configuration as meant: validated once, complete, in the server's own types.
//!
//! Made from [`super::schema::ModelConfig`] by `repository`; the fields say what the rest of the server needs and
//! nothing else. Durations are durations, absent limits are `None`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Device, schema};
use crate::tensor::{DataType, Shape};

/// One model's configuration, the same for all its versions.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The model's name: the directory's.
    pub name: Arc<str>,
    /// The backend's registered name, such as `pytorch` or `identity`.
    pub backend: String,
    /// The most rows of one execution; 0 for a model without a batch dimension.
    pub max_batch_rows: usize,
    /// The inputs in the order of the configuration.
    pub inputs: Vec<TensorSpec>,
    /// The outputs in the order of the configuration.
    pub outputs: Vec<TensorSpec>,
    /// One entry for each instance to run.
    pub instances: Vec<Instances>,
    /// How requests become executions.
    pub scheduling: Scheduling,
    /// The latency budget, if the model has one.
    pub budget: Option<LatencyBudget>,
    /// Whether a request may have any number of responses.
    pub decoupled: bool,
    /// `parameters{}` as text.
    pub parameters: BTreeMap<String, String>,
    /// Labels of the model's metrics, already with their leading underscore.
    pub metric_tags: BTreeMap<String, String>,
    /// What every instance runs before it takes requests.
    pub warmup: Vec<WarmupSample>,
    /// The normalised configuration as clients read it.
    pub schema: Arc<schema::ModelConfig>,
}

/// One input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// The name in requests and responses.
    pub name: Arc<str>,
    /// The element type; `None` if only the model itself knows (a configuration completed from TorchScript).
    pub dtype: Option<DataType>,
    /// The dimensions without the batch dimension, -1 for any size; `None` if only the model itself knows.
    pub dims: Option<Shape>,
    /// The dimensions that the model file sees instead of `dims`, if they differ (the `reshape` field).
    pub reshape: Option<Shape>,
    /// Whether a request may leave it out.
    pub optional: bool,
    /// Labels of a classification output, one for each index.
    pub labels: Arc<[String]>,
}

/// Instances of one group on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instances {
    /// The group's name.
    pub group: String,
    /// Where they run.
    pub device: Device,
    /// How many; at least one.
    pub count: usize,
}

/// How requests become executions.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheduling {
    /// Each request is one execution.
    Single(QueuePolicy),
    /// Requests are combined.
    Dynamic(DynamicBatching),
}

impl Scheduling {
    /// The queue's limits.
    pub fn queue_policy(&self) -> &QueuePolicy {
        match self {
            Scheduling::Single(policy) => policy,
            Scheduling::Dynamic(batching) => &batching.queue,
        }
    }
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
    /// The queue's limits.
    pub queue: QueuePolicy,
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

/// What happens to a request whose queue timeout passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// It is refused.
    Reject,
    /// It goes behind all requests that are still in time.
    Delay,
}

/// The latency budget of a model (`latency.budget_us`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyBudget {
    /// The longest time from a request's arrival to its response.
    pub total: Duration,
}

/// A made-up request that warms an instance up.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmupSample {
    /// The name in messages.
    pub name: String,
    /// The size of the batch dimension; 1 for a model without one.
    pub rows: usize,
    /// The inputs, by name.
    pub inputs: Vec<WarmupInput>,
    /// How often it runs; at least once.
    pub runs: usize,
}

/// One input of a warm-up sample.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmupInput {
    /// The input's name.
    pub name: String,
    /// The element type.
    pub dtype: DataType,
    /// The dimensions without the batch dimension, each known.
    pub dims: Shape,
    /// What is in it.
    pub data: WarmupData,
}

/// The contents of a warm-up input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WarmupData {
    /// Zeros, or empty strings.
    Zero,
    /// Random bytes, or empty strings.
    Random,
    /// The tensor's bytes lie in this file.
    File(PathBuf),
}
