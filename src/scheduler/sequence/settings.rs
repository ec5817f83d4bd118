//! What a sequence scheduler is told: its model's configuration, worked out once.

use std::sync::Arc;
use std::time::Duration;

use super::controls::Controls;
use super::direct::DirectLimits;
use super::states::States;
use super::table::Bounds;
use crate::error::{Error, Result};
use crate::model::{Iterative, ModelConfig, QueuePolicy, SequenceBatching, SequenceStrategy, TensorSpec};
use crate::scheduler::{Hold, Limits, ResponseLimits};
use crate::tensor::{DataType, Forms, Keep, Tensor};

/// The settings of a sequence scheduler.
#[derive(Clone, Debug)]
pub struct SequenceSettings {
    pub(super) model: Arc<str>,
    pub(super) strategy: Strategy,
    pub(super) bounds: Bounds,
    /// The most rows of one execution.
    pub(super) rows_max: usize,
    /// The inputs that callers send.
    pub(super) inputs: usize,
    pub(super) controls: Controls,
    pub(super) states: States,
    /// The outputs that are states, which stay where they are computed.
    pub(super) keep: Keep,
    /// If a request may be executed more than once.
    pub(super) iterations: Option<Iterations>,
    /// How long requests may wait.
    pub(super) queue: QueuePolicy,
    pub(super) budget: Option<Duration>,
    /// Whether requests may differ in shape, so that their shapes must be compared.
    pub(super) shapes_vary: bool,
    /// What the responses of one request may take, for a decoupled model; `None` for one that gives exactly one.
    pub(super) responses: Option<ResponseLimits>,
    /// How the model file sees the tensors; `None` for as they are.
    pub(super) forms: Option<Arc<Forms>>,
    /// Nothing runs until so many requests wait, or there is no room for more.
    pub hold: Hold,
}

/// Which requests make a batch.
#[derive(Clone, Debug)]
pub(super) enum Strategy {
    /// Each sequence has its place.
    Direct(DirectLimits),
    /// The oldest.
    Oldest(Limits),
}

/// How a model says that it is done with a request.
#[derive(Clone, Debug)]
pub(super) struct Iterations {
    /// The output that says so, among those of the model file; without one the first execution is the last.
    pub(super) done: Option<usize>,
    /// The most executions of one request.
    pub(super) steps_max: u32,
}

impl SequenceSettings {
    /// The settings that a configuration means.
    ///
    /// # Errors
    /// If an initial state does not hold what its dimensions say, or there is no such output as it names.
    pub fn new(config: &ModelConfig, batching: &SequenceBatching, responses: ResponseLimits) -> Result<Self> {
        let rows_max = config.max_batch_rows.max(1);
        let slots = match &batching.strategy {
            SequenceStrategy::Direct { .. } => rows_max,
            SequenceStrategy::Oldest { candidates_max, .. } if *candidates_max > 0 => *candidates_max,
            SequenceStrategy::Oldest { .. } => rows_max,
        };
        // One caller that takes its responses slowly must not hold back others.
        let alone = config.decoupled && batching.iterative.is_none();
        let budget = config.budget.map(|budget| budget.total);
        let strategy = match &batching.strategy {
            SequenceStrategy::Direct { queue_delay_max, slot_utilization_min } => Strategy::Direct(DirectLimits {
                slots,
                delay_max: *queue_delay_max,
                utilization_min: *slot_utilization_min,
            }),
            SequenceStrategy::Oldest { preferred_rows, queue_delay_max, .. } => Strategy::Oldest(Limits {
                rows_max: if alone { 1 } else { rows_max },
                preferred_rows: preferred_rows.clone(),
                delay_max: *queue_delay_max,
                budget,
            }),
        };
        let states = States::new(config, &batching.states)?;
        let iterations: Option<Iterations> =
            batching.iterative.as_ref().map(|iterative| Iterations::new(config, iterative)).transpose()?;
        let free = |input: &TensorSpec| input.dims.as_ref().is_none_or(|dims| dims.contains(&-1));
        Ok(Self {
            model: config.name.clone(),
            strategy,
            bounds: Bounds {
                instances: config.instances.iter().map(|group| group.count).sum(),
                slots,
                requests_max: batching.queue.requests_max,
                idle_max: batching.idle_max,
            },
            rows_max,
            inputs: config.inputs.len(),
            controls: Controls::new(config.name.clone(), batching.controls.clone(), config.max_batch_rows > 0),
            keep: states.keep(),
            states,
            iterations,
            queue: batching.queue.clone(),
            budget,
            shapes_vary: rows_max > 1 && config.inputs.iter().any(free),
            responses: config.decoupled.then_some(responses),
            forms: config.forms(),
            hold: Hold::default(),
        })
    }

    /// What stays where it is computed of a member that `asks` for so much: its states, too, but nothing that is read here.
    pub(super) fn kept(&self, asks: Keep) -> Keep {
        let keep = self.keep.or(asks);
        self.iterations.as_ref().and_then(|iterations| iterations.done).map_or(keep, |done| keep.reading(done))
    }
}

impl Iterations {
    fn new(config: &ModelConfig, iterative: &Iterative) -> Result<Self> {
        let find = |name: &Arc<str>| {
            let found = config.of_file().outputs.iter().position(|output| output.name == *name);
            found.ok_or_else(|| Error::internal(format!("model '{}' has no output '{name}'", config.name)))
        };
        let done = iterative.done_output.as_ref().map(find).transpose()?;
        Ok(Self { done, steps_max: iterative.steps_max })
    }

    /// Whether a request with these outputs of the model file is done: the first element of the output that says so is
    /// not zero, or there is no such output.
    pub(super) fn is_done(&self, outputs: &[Tensor]) -> bool {
        let Some(done) = self.done.and_then(|index| outputs.get(index)) else { return true };
        let element = &done.data[..done.dtype.size().unwrap_or(done.data.len()).min(done.data.len())];
        match (done.dtype, element.split_last()) {
            // The sign of a zero.
            (DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64, Some((last, rest))) => {
                last & 0x7f != 0 || rest.iter().any(|&byte| byte != 0)
            }
            _ => element.iter().any(|&byte| byte != 0),
        }
    }
}
