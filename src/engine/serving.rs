//! A version that is served, and the instances that serve it.

use std::sync::Arc;
use std::time::Duration;

use super::handle::Served;
use super::memory::Lease;
use super::{Handle, InstanceSettings};
use crate::backend::libtorch;
use crate::error::Error;
use crate::model::{Device, HostPolicies, ModelConfig, Scheduling};
use crate::repository::Files;
use crate::scheduler::{Change, Crew, Limiter};
use crate::telemetry::metrics::Metrics;

/// A served version with the instances that serve it; clones share both.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) handle: Arc<Handle>,
    /// `None` for an ensemble, which has no instances.
    pub(super) crew: Option<Arc<Crew>>,
    /// Its part of the memory; `None` for an ensemble, which takes none.
    pub(super) lease: Option<Arc<Lease>>,
    /// Fetched files, which stay in their cache as long as the version is served.
    pub(super) files: Arc<Files>,
}

impl Serving {
    /// Finishes what waits, ends the instances, drops the model, and gives its memory back to the system. Blocking.
    pub(super) fn retire(self) {
        self.drain();
        drop(self);
        libtorch::release_unused();
    }

    /// Finishes what waits, and ends the instances, but for those that were given up. Blocking.
    pub(super) fn drain(&self) {
        match (&self.crew, &self.handle.served) {
            (Some(crew), _) => crew.retire(),
            (None, Served::Ensemble(ensemble)) => ensemble.gate.drain(),
            (None, Served::Instances { .. } | Served::Nothing) => {}
        }
        self.lease.iter().for_each(|lease| lease.retired());
    }

    /// It takes no more requests: its memory is given back soon.
    pub(super) fn leave(&self) {
        self.lease.iter().for_each(|lease| lease.leave());
    }

    /// It stays after all.
    pub(super) fn stay(&self) {
        self.lease.iter().for_each(|lease| lease.stay());
    }

    /// Why it cannot serve any more, if it has lost its instances.
    pub(super) fn lost(&self) -> Option<Error> {
        self.crew.as_ref()?.lost()
    }

    /// Whether the instances of this configuration can be had in place: on devices that have some already, by the model as
    /// it was opened, and not for sequences, which stay where their state is.
    pub(super) fn can_resize(&self, config: &ModelConfig) -> bool {
        let own = &self.handle.config;
        if own.instances == config.instances {
            return true;
        }
        let devices = |config: &ModelConfig| {
            let mut devices: Vec<Device> = config.instances.iter().map(|group| group.device).collect();
            devices.sort_unstable();
            devices.dedup();
            devices
        };
        let wanted = devices(config);
        matches!(&self.handle.served, Served::Instances { model, .. } if model.can_have(&config.instances))
            && matches!(config.scheduling, Scheduling::Single(_) | Scheduling::Dynamic(_))
            && !wanted.is_empty()
            && wanted.iter().all(|device| devices(own).contains(device))
    }

    /// The same version with this configuration, of which nothing but the instances differs, and the change of these that
    /// has yet to be made, if there is one. New ones start.
    pub(super) fn resize(&self, config: &Arc<ModelConfig>) -> (Self, Option<Change>) {
        let crew = self.crew.as_ref().filter(|_| config.instances != self.handle.config.instances);
        let change = crew.map(|crew| crew.change(&config.instances));
        let handle = Handle { config: config.clone(), ..Handle::clone(&self.handle) };
        (Self { handle: Arc::new(handle), ..self.clone() }, change)
    }
}

/// What the instances of all models share.
pub(super) struct Shared {
    /// `None` if nothing is limited.
    pub(super) limiter: Option<Arc<Limiter>>,
    pub(super) host_policies: Arc<HostPolicies>,
    execution_time_max: Option<Duration>,
    pub(super) lost_max: usize,
}

impl Shared {
    pub(super) fn new(settings: &InstanceSettings, metrics: &Metrics) -> Self {
        let limiter = settings.rate_limits.clone().map(|amounts| Arc::new(Limiter::new(amounts, metrics)));
        Self {
            limiter,
            host_policies: Arc::new(settings.host_policies.clone()),
            execution_time_max: settings.execution_time_max,
            lost_max: settings.lost_max,
        }
    }

    /// What an execution of this model may take; `None` for any time.
    pub(super) fn execution_time_max(&self, config: &ModelConfig) -> Option<Duration> {
        config.execution_time_max.or(self.execution_time_max).filter(|time| !time.is_zero())
    }
}
