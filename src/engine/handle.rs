//! A model version that is served.

use std::sync::Arc;

use super::Entrance;
use super::cache::{Caller, ModelCache, Own};
use super::ensemble::{Ensemble, graph};
use super::usage::Usage;
use crate::backend::Model;
use crate::error::{Error, Result};
use crate::infer::{Instant, Output, Parameters, Request, Response, Responses};
use crate::model::{Checked, Footprint, ModelConfig, Signature, Version};
use crate::scheduler::{Answer, Pushed, Refusal, Scheduler, Waiter};
use crate::telemetry::metrics::InFlight;
use crate::telemetry::stats::ModelStats;
use crate::tensor::{Keep, Member, Tensor};

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
    pub(super) usage: Arc<Usage>,
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
    /// Nothing yet, or not any more: the model sleeps until a request has it loaded.
    Nothing,
}

impl Served {
    /// Holds nothing back any more until enough requests wait.
    pub(super) fn release(&self) {
        match self {
            Served::Instances { scheduler, .. } => scheduler.release(),
            // Its members do.
            Served::Ensemble(_) | Served::Nothing => {}
        }
    }

    /// Refuses everything that waits, too.
    pub(super) fn abort(&self) {
        match self {
            Served::Instances { scheduler, .. } => scheduler.abort(),
            Served::Ensemble(ensemble) => ensemble.gate.abort(),
            Served::Nothing => {}
        }
    }
}

impl Handle {
    /// The memory that it holds, as measured.
    pub fn footprint(&self) -> Footprint {
        match &self.served {
            Served::Instances { model, .. } => model.footprint(),
            // Its members have what it needs.
            Served::Ensemble(_) | Served::Nothing => Footprint::default(),
        }
    }

    /// How many requests wait.
    pub fn pending(&self) -> usize {
        match &self.served {
            Served::Instances { scheduler, .. } => scheduler.waiting(),
            // A request waits in its members only.
            Served::Ensemble(_) | Served::Nothing => 0,
        }
    }

    /// Whether it has no requests, and nothing that later ones need.
    pub(super) fn is_idle(&self) -> bool {
        match &self.served {
            Served::Instances { scheduler, .. } => scheduler.is_idle(),
            Served::Ensemble(ensemble) => ensemble.gate.is_idle(),
            Served::Nothing => true,
        }
    }

    /// The same version once it is not there any more.
    pub(super) fn asleep(&self) -> Arc<Self> {
        Arc::new(Self { served: Served::Nothing, cache: None, ..self.clone() })
    }

    /// What it is as a member of an ensemble.
    pub(super) fn member(&self) -> graph::Member {
        let depth = match &self.served {
            Served::Instances { .. } | Served::Nothing => 0,
            Served::Ensemble(ensemble) => ensemble.depth(),
        };
        graph::Member { config: self.config.clone(), depth, keeps_outputs: self.keeps_outputs() }
    }

    /// Whether tensors may stay with its backend on their way to it and from it.
    fn keeps_outputs(&self) -> bool {
        match &self.served {
            Served::Instances { model, .. } => model.keeps_outputs() && self.cache.is_none(),
            Served::Ensemble(_) | Served::Nothing => false,
        }
    }

    /// Starts a request here.
    ///
    /// # Errors
    /// The request as it came, if this version is being unloaded and takes no more.
    pub(super) fn infer(
        self: &Arc<Self>,
        request: Request,
        in_flight: InFlight,
        entrance: &Entrance,
        now: Instant,
    ) -> Result<Responses, Returned> {
        self.usage.used(now);
        let Some(cache) = self.cache.as_ref().filter(|cache| cache.takes(&request)) else {
            return self.execute(request, in_flight, now);
        };
        let (handle, entrance) = (self.clone(), entrance.clone());
        let start = move |request, in_flight| {
            let started = handle.execute(request, in_flight, Instant::now());
            // It may have waited for the request of another until nothing was taken here any more.
            started.unwrap_or_else(|Returned(returned)| entrance.start(returned.0, returned.1))
        };
        Ok(Box::pin(Caller::new(cache.clone(), Own { request, in_flight, start })))
    }

    fn execute(&self, request: Request, in_flight: InFlight, now: Instant) -> Result<Responses, Returned> {
        let id = request.id.clone();
        match self.start(request, in_flight, now) {
            Ok(responses) => Ok(responses),
            Err(Unstarted::Returned(returned)) => Err(returned),
            Err(Unstarted::Refused(error)) => {
                self.stats.request_refused(error.kind());
                let shown = if id.is_empty() { "<id_unknown>" } else { &id };
                Ok(refusal(match error.kind() {
                    crate::error::Kind::InvalidArgument => {
                        Error::invalid(format!("[request id: {shown}] {}", error.message()))
                    }
                    _ => error,
                }))
            }
        }
    }

    fn start(&self, mut request: Request, in_flight: InFlight, now: Instant) -> Result<Responses, Unstarted> {
        let wanted = request.outputs.iter().map(|output| output.name.as_str());
        let mut checked = self.signature.check(std::mem::take(&mut request.inputs), wanted)?;
        let scheduler = match &self.served {
            Served::Instances { scheduler, .. } => scheduler,
            Served::Ensemble(ensemble) => {
                let Some(pass) = ensemble.gate.enter()? else {
                    request.inputs = self.signature.uncheck(checked.inputs);
                    return Err(Unstarted::Returned(Returned::of(request, in_flight)));
                };
                // It may pass them on to any model.
                checked.inputs.iter_mut().try_for_each(Tensor::fetch)?;
                return Ok(ensemble.start((request, checked), pass, (&self.stats, in_flight)));
            }
            Served::Nothing => {
                request.inputs = self.signature.uncheck(checked.inputs);
                return Err(Unstarted::Returned(Returned::of(request, in_flight)));
            }
        };
        let pushed = Pushed {
            member: Member {
                keep: kept(&request, &checked),
                shared: request.inputs_shared,
                ..Member::new(checked.rows, checked.inputs)
            },
            arrived: request.arrived,
            deadline: request.deadline,
            timeout: request.timeout,
            priority: request.priority,
            sequence: request.sequence,
        };
        let times = (request.arrived, request.deadline);
        let waiting = match scheduler.clone().push(pushed, now) {
            Ok(waiting) => waiting,
            Err(Refusal::Error(error)) => return Err(error.into()),
            Err(Refusal::Closed(pushed)) => {
                request.inputs = self.signature.uncheck(pushed.member.inputs);
                request.sequence = pushed.sequence;
                return Err(Unstarted::Returned(Returned::of(request, in_flight)));
            }
        };
        let (model, version, signature) = (self.config.name.clone(), self.version, self.signature.clone());
        let (mut id, selected) = (request.id, checked.outputs);
        let respond = move |Answer { outputs, times, last }: Answer| {
            // Kept as long as another response may be made.
            let _under_way = &in_flight;
            let outputs = select(&signature, selected.as_deref(), outputs);
            let (model, parameters) = (model.clone(), Parameters::new());
            let id = if last { std::mem::take(&mut id) } else { id.clone() };
            Response { model, version, id, outputs, parameters, last, times: Some(times) }
        };
        Ok(Box::pin(Waiter::new(scheduler.clone(), waiting, times, respond)))
    }
}

/// A request as it came to a version that takes no more.
pub(super) struct Returned(pub(super) Box<(Request, InFlight)>);

impl Returned {
    fn of(request: Request, in_flight: InFlight) -> Self {
        Self(Box::new((request, in_flight)))
    }
}

/// Why a request was not started.
enum Unstarted {
    /// It fails.
    Refused(Error),
    /// The version takes no more.
    Returned(Returned),
}

impl From<Error> for Unstarted {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// The outputs of the model that stay where they are computed.
fn kept(request: &Request, checked: &Checked) -> Keep {
    let asked = request.outputs.iter().zip(checked.outputs.iter().flatten());
    asked.filter(|(output, _)| output.keep).fold(Keep::default(), |keep, (_, &index)| keep.passing(index))
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
