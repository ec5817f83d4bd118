//! How a load brings a model back that is paged out: it waits for memory as any load does, and has the weights come back.
//!
//! Nothing is read from the repository but what tells whether the files have changed; nothing is compiled, compared or
//! warmed up. Runs on loader threads, and blocks. Begin with [`Loader::page_in`].

use std::collections::{BTreeMap, BTreeSet};

use super::hanging::Claim;
use super::loader::{Loader, Opened};
use super::memory::Lease;
use super::memory::ledger::{Holder, excess};
use super::models::{Job, Loaded};
use super::order::outdated_load;
use super::pages::{Page, Paged};
use super::room::Need;
use super::serving::Serving;
use crate::error::Result;
use crate::infer::Instant;
use crate::model::{Footprint, Version};
use crate::repository::ModelDir;

impl Loader {
    /// The model of this job from where it is paged out; `None` if it is not, or is of no use any more: then nothing is
    /// left of it.
    ///
    /// # Errors
    /// Why it cannot be served, as of [`Loader::load`].
    pub(super) fn page_in(
        &self,
        (job, claim): (&Job<Serving>, &Claim),
        dir: &ModelDir,
        resolved: &impl Fn(&[Version]),
    ) -> Result<Option<Loaded<Serving>>> {
        let Some(page) = self.pages.take(&job.key) else { return Ok(None) };
        let is_asked_for = job.overrides.is_empty() && !job.again && job.served.is_none();
        if !is_asked_for || page.origin.config_overridden || page.origin.stamp != dir.stamp {
            tracing::info!(model = %job.key, "paged out model is dropped: something else is to be loaded");
            return Ok(self.drop_page(page));
        }
        if self.sleeps(job, &page.origin.config) {
            self.pages.put(page);
            return Ok(Some(Loaded::Asleep));
        }
        resolved(&page.versions.keys().copied().collect::<Vec<_>>());
        let config = page.origin.config.clone();
        let need = Need { job, claim, config: &config };
        let leases = match self.check_devices(&config).and_then(|()| self.line_up(need, lacking(&page))) {
            Ok(leases) => leases,
            Err(error) => {
                self.pages.put(page);
                return Err(error);
            }
        };
        let began = Instant::now();
        if let Err(error) = self.fill(&page, leases) {
            self.pages.metrics.failed();
            tracing::warn!(model = %job.key, %error, "weights cannot be paged in; the model is loaded anew");
            return Ok(self.drop_page(page));
        }
        let (bytes, mut versions) = (page.bytes(), BTreeMap::new());
        for (version, paged) in page.versions {
            match self.serve_again(job, version, paged, began) {
                Ok(serving) => _ = versions.insert(version, serving),
                Err(error) => {
                    versions.into_values().for_each(Serving::retire);
                    return Err(error);
                }
            }
        }
        if !claim.take() {
            // Nobody waits for this any more.
            versions.into_values().for_each(Serving::retire);
            return Err(outdated_load());
        }
        let took = began.elapsed();
        self.pages.came_back(took, bytes);
        tracing::info!(model = %job.key, seconds = took.as_secs_f64(), "model is paged in");
        Ok(Some(Loaded::New { origin: Some(page.origin), versions, kept: BTreeSet::new(), members: Vec::new() }))
    }

    /// Starts the instances of a version whose weights are back.
    fn serve_again(&self, job: &Job<Serving>, version: Version, paged: Paged, began: Instant) -> Result<Serving> {
        let Paged { config, model, lease, files, load_time, .. } = paged;
        let serving = self.serve(job, version, Opened { config, model, lease, files, warms_up: false, began })?;
        // What it would cost to have it back without its page; the way back that it takes now is no load.
        serving.handle.usage.loaded(load_time, Instant::now());
        Ok(serving)
    }

    /// What is dropped is no load.
    fn drop_page(&self, page: Page) -> Option<Loaded<Serving>> {
        drop(page);
        self.pages.tell();
        None
    }

    /// Has all weights come back, each into its lease.
    fn fill(&self, page: &Page, leases: Vec<Lease>) -> Result<()> {
        // If one does not come back, nobody is to wait for any of them.
        page.versions.values().zip(leases).for_each(|(paged, lease)| paged.lease.join(lease));
        for paged in page.versions.values() {
            paged.model.page_in()?;
            paged.lease.settle();
        }
        self.pages.tell();
        Ok(())
    }
}

/// What comes back beyond what stayed, version by version.
fn lacking(page: &Page) -> Vec<(Holder, Footprint)> {
    let lacks = |paged: &Paged| (paged.lease.holder().clone(), excess(&paged.resident, &paged.lease.bytes()));
    page.versions.values().map(lacks).collect()
}
