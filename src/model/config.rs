//! The model configuration as meant: validated once, complete, in the server's own types.
//!
//! Made from [`super::schema::ModelConfig`] by `repository`; the fields say what the rest of the server needs and
//! nothing else. Durations are durations, absent limits are `None`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{
    BatchInput, BatchOutput, Device, QueuePolicy, RateLimit, Residency, Scheduling, ServerPadding, TimeoutAction,
    schema,
};
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
    /// The inputs that callers send, in the order of the configuration.
    pub inputs: Vec<TensorSpec>,
    /// The outputs that callers get, in the order of the configuration.
    pub outputs: Vec<TensorSpec>,
    /// Further inputs of the model file, which tell it how a ragged batch is put together.
    pub batch_inputs: Vec<BatchInput>,
    /// Outputs that are split by another rule than by rows.
    pub batch_outputs: Vec<BatchOutput>,
    /// The padding that the server does, if any.
    pub padding: Option<ServerPadding>,
    /// One entry for each instance to run.
    pub instances: Vec<Instances>,
    /// How requests become executions.
    pub scheduling: Scheduling,
    /// The latency budget, if the model has one.
    pub budget: Option<LatencyBudget>,
    /// What an execution may take before its instance is written off; zero for any time, `None` for the server's setting.
    pub execution_time_max: Option<Duration>,
    /// How firmly it is in memory.
    pub residency: Residency,
    /// Whether a request may have any number of responses.
    pub decoupled: bool,
    /// `parameters{}` as text.
    pub parameters: BTreeMap<String, String>,
    /// Labels of the model's metrics as they are written: its own tags with their leading underscore.
    pub metric_tags: BTreeMap<String, String>,
    /// Upper bounds of the buckets of the model's histograms, by the metric's name, where they are not the usual ones.
    pub histogram_buckets: BTreeMap<String, Vec<f64>>,
    /// Whether equal requests may be answered from the response cache.
    pub response_cache: bool,
    /// How long they may; `None` for as long as the server says.
    pub response_cache_ttl: Option<Duration>,
    /// What every instance runs before it takes requests.
    pub warmup: Vec<WarmupSample>,
    /// The normalised configuration as clients read it.
    pub schema: Arc<schema::ModelConfig>,
}

impl ModelConfig {
    /// The smallest configuration: no tensors, no instances, each request one execution, a queue of one request.
    pub fn new(name: &str, backend: &str) -> Self {
        let queue = QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: None,
            allow_timeout_override: false,
            requests_max: 1,
        };
        Self {
            name: name.into(),
            backend: backend.to_owned(),
            max_batch_rows: 0,
            inputs: Vec::new(),
            outputs: Vec::new(),
            batch_inputs: Vec::new(),
            batch_outputs: Vec::new(),
            padding: None,
            instances: Vec::new(),
            scheduling: Scheduling::Single(queue),
            budget: None,
            execution_time_max: None,
            residency: Residency::default(),
            decoupled: false,
            parameters: BTreeMap::new(),
            metric_tags: BTreeMap::new(),
            histogram_buckets: BTreeMap::new(),
            response_cache: false,
            response_cache_ttl: None,
            warmup: Vec::new(),
            schema: Arc::default(),
        }
    }

    /// The configuration as the model file sees it: `inputs` are followed by sequence controls, states and batch inputs,
    /// `outputs` by the states' outputs that callers do not get.
    #[must_use]
    pub fn of_file(&self) -> Self {
        let spec = |name: &Arc<str>, dtype, dims: Option<&Shape>| TensorSpec::new(name.clone(), dtype, dims.cloned());
        let mut config = self.clone();
        if let Scheduling::Sequence(batching) = &self.scheduling {
            let controls = batching.controls.iter();
            config.inputs.extend(controls.map(|c| spec(&c.name, Some(c.kind.dtype()), Some(&Shape::new(&[1])))));
            for state in &batching.states {
                config.inputs.push(spec(&state.input, Some(state.dtype), Some(&state.dims)));
                if !config.outputs.iter().any(|output| output.name == state.output) {
                    config.outputs.push(spec(&state.output, Some(state.dtype), Some(&state.dims)));
                }
            }
        }
        for batch_input in &self.batch_inputs {
            config.inputs.extend(batch_input.targets.iter().map(|name| spec(name, Some(batch_input.dtype), None)));
        }
        config
    }
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
    /// Whether its shape may differ between the members of a batch, which are then one flat tensor.
    pub ragged: bool,
    /// Labels of a classification output, one for each index.
    pub labels: Arc<[String]>,
}

impl TensorSpec {
    /// A tensor about which nothing else is said.
    pub fn new(name: impl Into<Arc<str>>, dtype: Option<DataType>, dims: Option<Shape>) -> Self {
        Self { name: name.into(), dtype, dims, reshape: None, optional: false, ragged: false, labels: Arc::new([]) }
    }
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
    /// What each needs to execute, where the rate limiter is on.
    pub rate_limit: RateLimit,
    /// The name of the policy for its threads and memory; empty for none.
    pub host_policy: String,
}

impl Instances {
    /// Instances that nothing limits.
    pub fn new(group: impl Into<String>, device: Device, count: usize) -> Self {
        let (rate_limit, host_policy) = (RateLimit::default(), String::new());
        Self { group: group.into(), device, count, rate_limit, host_policy }
    }
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
