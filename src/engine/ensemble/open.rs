//! Loads ensembles: there is nothing to open, but members to be found.

use std::sync::Arc;
use std::time::Duration;

use super::super::entrance::Entrance;
use super::super::handle::Served;
use super::super::loader::Loader;
use super::super::serving::Serving;
use super::super::{Handle, Key};
use super::graph::Plan;
use super::{Ensemble, connect};
use crate::engine::cache::ModelCache;
use crate::engine::usage::Usage;
use crate::error::Result;
use crate::infer::Instant;
use crate::model::{EnsembleStep, ModelConfig, Scheduling, Signature, Version};
use crate::repository::Positions;
use crate::scheduler::stopping;
use crate::telemetry::stats::ModelStats;

impl Loader {
    /// Fits an ensemble to its members as they are now; `None` for any other model.
    ///
    /// # Errors
    /// Those of [`connect`].
    pub(in crate::engine) fn connect(
        &self,
        config: &mut Arc<ModelConfig>,
        members: &[Key],
        positions: &Positions,
    ) -> Result<Option<Plan>> {
        let Scheduling::Ensemble(ensemble) = config.scheduling.clone() else { return Ok(None) };
        let find = |step: &EnsembleStep| {
            let key = members.iter().find(|key| *key.name == *step.model)?;
            let ready = self.catalog.is_ready(key);
            let found = self.catalog.find_member(&key.namespace, &step.model, step.version);
            found.ok().filter(|_| ready).map(|handle| handle.member())
        };
        connect(Arc::make_mut(config), &ensemble, positions, find).map(Some)
    }

    /// A version of an ensemble.
    pub(in crate::engine) fn open_ensemble(
        &self,
        key: &Key,
        config: &Arc<ModelConfig>,
        version: Version,
        plan: &Plan,
    ) -> Serving {
        let stats = Arc::new(ModelStats::new(&self.metrics, config, version));
        let signature = Arc::new(Signature::new(config));
        // The catalog has the ensemble, and so is not held by it.
        let (namespace, catalog) = (key.namespace.clone(), Arc::downgrade(&self.catalog));
        // Each step is a request of its own, and counted as such.
        let members = Entrance::new(&self.metrics, move |request| {
            let catalog = catalog.upgrade().ok_or_else(stopping)?;
            catalog.find_member(&namespace, &request.model, request.version)
        });
        let ensemble = Ensemble::new(config, version, plan.clone(), Arc::new(members), self.responses);
        stats.loaded(Duration::ZERO);
        self.metrics.version_loaded();
        tracing::info!(model = %config.name, version, "ensemble is connected");
        let served = Served::Ensemble(Arc::new(ensemble));
        let cache = ModelCache::new(self.cache.as_ref(), config, &stats);
        let usage = Usage::new(Instant::now());
        let handle = Arc::new(Handle { config: config.clone(), version, signature, stats, served, usage, cache });
        Serving { handle, crew: None, lease: None, files: Arc::default() }
    }
}
