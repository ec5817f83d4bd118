//! A model version that is served.

use std::sync::Arc;

use super::cache::{Caller, ModelCache, Own};
use crate::backend::Model;
use crate::error::{Error, Result};
use crate::infer::{Instant, Output, Parameters, Request, Response, Responses};
use crate::model::{Footprint, ModelConfig, Signature, Version};
use crate::scheduler::{Answer, Pushed, Scheduler, Waiter};
use crate::telemetry::metrics::InFlight;
use crate::telemetry::stats::ModelStats;
use crate::tensor::{Member, Tensor};

/// A model version that is served; whoever holds it may still use it while it is being unloaded.
#[derive(Clone)]
pub struct Handle {
    /// The configuration, the same for all versions of the model.
    pub config: Arc<ModelConfig>,
    /// The version.
    pub version: Version,
    /// What it accepts and returns.
    pub signature: Arc<Signature>,
    /// Its statistics since its load.
    pub stats: Arc<ModelStats>,
    pub(super) scheduler: Arc<dyn Scheduler>,
    pub(super) model: Arc<dyn Model>,
    /// `None` if its answers are not kept.
    pub(super) cache: Option<Arc<ModelCache>>,
}

impl Handle {
    /// The memory that it holds, as measured.
    pub fn footprint(&self) -> Footprint {
        self.model.footprint()
    }

    /// How many requests wait.
    pub fn pending(&self) -> usize {
        self.scheduler.waiting()
    }

    pub(super) fn infer(self: &Arc<Self>, request: Request, in_flight: InFlight, now: Instant) -> Responses {
        match &self.cache {
            Some(cache) if cache.takes(&request) => {
                let handle = self.clone();
                let start = move |request, in_flight| handle.execute(request, in_flight, Instant::now());
                Box::pin(Caller::new(cache.clone(), Own { request, in_flight, start }))
            }
            _ => self.execute(request, in_flight, now),
        }
    }

    fn execute(&self, request: Request, in_flight: InFlight, now: Instant) -> Responses {
        let id = request.id.clone();
        match self.start(request, in_flight, now) {
            Ok(responses) => responses,
            Err(error) => {
                self.stats.request_refused(error.kind());
                let shown = if id.is_empty() { "<id_unknown>" } else { &id };
                refusal(match error.kind() {
                    crate::error::Kind::InvalidArgument => {
                        Error::invalid(format!("[request id: {shown}] {}", error.message()))
                    }
                    _ => error,
                })
            }
        }
    }

    fn start(&self, request: Request, in_flight: InFlight, now: Instant) -> Result<Responses> {
        let wanted = request.outputs.iter().map(|output| output.name.as_str());
        let checked = self.signature.check(request.inputs, wanted)?;
        let pushed = Pushed {
            member: Member { rows: checked.rows, inputs: checked.inputs },
            arrived: request.arrived,
            deadline: request.deadline,
            timeout: request.timeout,
            priority: request.priority,
            sequence: request.sequence,
        };
        let times = (request.arrived, request.deadline);
        let waiting = self.scheduler.clone().push(pushed, now)?;
        let (model, version, signature) = (self.config.name.clone(), self.version, self.signature.clone());
        let (mut id, selected) = (request.id, checked.outputs);
        let respond = move |Answer { outputs, times, last }: Answer| {
            // Kept as long as another response may be made.
            let _in_flight = &in_flight;
            let outputs = select(&signature, selected.as_deref(), outputs);
            let (model, parameters) = (model.clone(), Parameters::new());
            let id = if last { std::mem::take(&mut id) } else { id.clone() };
            Response { model, version, id, outputs, parameters, last, times: Some(times) }
        };
        Ok(Box::pin(Waiter::new(self.scheduler.clone(), waiting, times, respond)))
    }
}

/// The wanted outputs with their names, without those that the model did not give.
fn select(signature: &Signature, selected: Option<&[usize]>, outputs: Vec<Tensor>) -> Vec<Output> {
    let output = |index: usize, tensor: Tensor| {
        let name = || signature.outputs()[index].name.clone();
        (!tensor.is_absent()).then(|| Output { name: name(), tensor, placed: false })
    };
    match selected {
        None => outputs.into_iter().enumerate().filter_map(|(index, tensor)| output(index, tensor)).collect(),
        Some(selected) => selected
            .iter()
            .filter_map(|&index| outputs.get(index).and_then(|tensor| output(index, tensor.clone())))
            .collect(),
    }
}

/// The responses of a request that is refused.
pub(super) fn refusal(error: Error) -> Responses {
    Box::pin(futures_util::stream::iter([Err(error)]))
}
