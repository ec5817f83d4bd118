//! A model version that is served.

use std::sync::{Arc, Weak};

use super::cache::{Caller, ModelCache, Own};
use super::ensemble::{Ensemble, graph};
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
    pub(super) served: Served,
    /// `None` if its answers are not kept.
    pub(super) cache: Option<Arc<ModelCache>>,
}

/// What answers the requests of a model version.
#[derive(Clone)]
pub(super) enum Served {
    /// Instances of a model, which pull from a scheduler.
    Instances {
        /// Takes the requests in.
        scheduler: Arc<dyn Scheduler>,
        /// The weights.
        model: Arc<dyn Model>,
    },
    /// Other models.
    Ensemble(Arc<Ensemble>),
}

impl Served {
    /// Whether requests go to this scheduler.
    pub(super) fn is_by(&self, other: &Weak<dyn Scheduler>) -> bool {
        match self {
            Served::Instances { scheduler, .. } => std::ptr::addr_eq(Arc::as_ptr(scheduler), other.as_ptr()),
            Served::Ensemble(_) => false,
        }
    }

    /// Refuses everything that waits, too.
    pub(super) fn abort(&self) {
        match self {
            Served::Instances { scheduler, .. } => scheduler.abort(),
            Served::Ensemble(ensemble) => ensemble.gate.abort(),
        }
    }
}

impl Handle {
    /// The memory that it holds, as measured.
    pub fn footprint(&self) -> Footprint {
        match &self.served {
            Served::Instances { model, .. } => model.footprint(),
            // Its members have what it needs.
            Served::Ensemble(_) => Footprint::default(),
        }
    }

    /// How many requests wait.
    pub fn pending(&self) -> usize {
        match &self.served {
            Served::Instances { scheduler, .. } => scheduler.waiting(),
            // A request waits in its members only.
            Served::Ensemble(_) => 0,
        }
    }

    /// What it is as a member of an ensemble.
    pub(super) fn member(&self) -> graph::Member {
        let depth = match &self.served {
            Served::Instances { .. } => 0,
            Served::Ensemble(ensemble) => ensemble.depth(),
        };
        graph::Member { config: self.config.clone(), depth }
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

    fn start(&self, mut request: Request, in_flight: InFlight, now: Instant) -> Result<Responses> {
        let wanted = request.outputs.iter().map(|output| output.name.as_str());
        let checked = self.signature.check(std::mem::take(&mut request.inputs), wanted)?;
        let scheduler = match &self.served {
            Served::Instances { scheduler, .. } => scheduler,
            Served::Ensemble(ensemble) => return ensemble.start(request, checked, &self.stats, in_flight),
        };
        let pushed = Pushed {
            member: Member { rows: checked.rows, inputs: checked.inputs },
            arrived: request.arrived,
            deadline: request.deadline,
            timeout: request.timeout,
            priority: request.priority,
            sequence: request.sequence,
        };
        let times = (request.arrived, request.deadline);
        let waiting = scheduler.clone().push(pushed, now)?;
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
        Ok(Box::pin(Waiter::new(scheduler.clone(), waiting, times, respond)))
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
