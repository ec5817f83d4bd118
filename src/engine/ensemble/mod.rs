//! Ensembles: models that execute nothing and pass tensors from model to model.
//!
//! [`graph`] is what an ensemble's configuration means together with its members' (pure), `run` is one request's way
//! through it and `seat` lets others end it, `gate` bounds how many there are; `connect` puts them together. Members are
//! reached through [`crate::infer::Infer`] and found anew for each step, so that a member may be an ensemble itself, and
//! may be reloaded at any time.

mod account;
mod connect;
mod gate;
pub mod graph;
mod open;
#[cfg(test)]
mod puppet;
mod run;
mod seat;
#[cfg(test)]
mod seat_tests;
mod task;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use self::account::Account;
pub(super) use self::connect::connect;
pub(super) use self::gate::Gate;
use self::gate::Pass;
use self::graph::Plan;
use self::run::Run;
use self::seat::Caller;
use crate::infer::{Infer, Request, Responses};
use crate::model::{Checked, ModelConfig, Version};
use crate::scheduler::ResponseLimits;
use crate::telemetry::metrics::InFlight;
use crate::telemetry::stats::ModelStats;

/// One version of an ensemble, fitted to its members as they are now.
pub(super) struct Ensemble {
    name: Arc<str>,
    version: Version,
    plan: Plan,
    /// The way to the members.
    members: Arc<dyn Infer>,
    pub(super) gate: Arc<Gate>,
    /// The most responses of one decoupled step that are under way behind it, for each request.
    responses_max: usize,
}

/// A request that fits the ensemble, and was let in.
struct Accepted {
    request: Request,
    checked: Checked,
    pass: Pass,
    account: Account,
}

impl Ensemble {
    /// One version of the ensemble with this configuration and plan; without requests.
    pub(super) fn new(
        config: &ModelConfig,
        version: Version,
        plan: Plan,
        members: Arc<dyn Infer>,
        responses: ResponseLimits,
    ) -> Self {
        let gate = Gate::new(plan.requests_max, plan.step_requests_max, plan.steps.len(), responses.stall_max);
        Self { name: config.name.clone(), version, plan, members, gate, responses_max: responses.waiting_max }
    }

    /// How many ensembles are within each other, this one included.
    pub(super) fn depth(&self) -> usize {
        self.plan.depth
    }

    /// Starts one request that was let in and whose tensors were `checked`.
    pub(super) fn start(
        self: &Arc<Self>,
        (request, checked): (Request, Checked),
        pass: Pass,
        (stats, in_flight): (&Arc<ModelStats>, InFlight),
    ) -> Responses {
        let account = Account::new(stats.clone(), request.arrived, checked.rows, in_flight);
        let account = if self.plan.decoupled { account.of_many() } else { account };
        let run = Run::new(self.clone(), Accepted { request, checked, pass, account });
        Box::pin(Caller::new(run, self.gate.stall_max))
    }
}
