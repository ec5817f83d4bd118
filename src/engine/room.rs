//! Makes room for a load: reserves what it will take, before anything is opened, and waits where memory is given back.
//!
//! Runs on loader threads, and blocks. Begin with [`Loader::reserve`].

use std::collections::BTreeMap;

use super::hanging::Claim;
use super::loader::Loader;
use super::memory::Lease;
use super::memory::ledger::{Holder, excess};
use super::models::Job;
use super::order::outdated_load;
use super::serving::Serving;
use crate::error::{Error, Result};
use crate::model::{Footprint, ModelConfig, Version, VersionFiles};

/// A load as far as memory is concerned.
#[derive(Clone, Copy)]
pub(super) struct Need<'a> {
    pub(super) job: &'a Job<Serving>,
    pub(super) claim: &'a Claim,
    pub(super) config: &'a ModelConfig,
}

impl Loader {
    /// Reserves what these versions will take, all of it or nothing. Waits for versions that are being unloaded.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unavailable`] with who is in the way, or that nobody waits for the load any more.
    pub(super) fn reserve(
        &self,
        need: Need<'_>,
        files: &[(Version, VersionFiles)],
    ) -> Result<BTreeMap<Version, Lease>> {
        let of_file = need.config.of_file();
        let estimate = |files: &VersionFiles| {
            // What cannot be read cannot be opened either, and says so then.
            let backend = self.backend(&need.config.backend).ok();
            backend.and_then(|backend| backend.estimate(files, &of_file).ok()).unwrap_or_default()
        };
        let parts = files.iter().map(|(version, files)| (self.holder(need, *version), estimate(files)));
        let leases = self.line_up(need, parts.collect())?;
        Ok(leases.into_iter().map(|lease| (lease.holder().version, lease)).collect())
    }

    /// Corrects a reservation by what was measured, which may be more than was expected.
    ///
    /// # Errors
    /// As of [`Loader::reserve`].
    pub(super) fn commit(&self, need: Need<'_>, mut lease: Lease, measured: &Footprint) -> Result<Lease> {
        if !lease.commit(measured, need.config) {
            let more = excess(measured, &lease.bytes());
            let version = lease.holder().version;
            for further in self.line_up(need, vec![(self.holder(need, version), more)])? {
                lease.join(further);
            }
            if !lease.commit(measured, need.config) {
                return Err(Error::internal("the memory that was reserved is not there"));
            }
        }
        Ok(lease)
    }

    fn holder(&self, need: Need<'_>, version: Version) -> Holder {
        Holder { key: need.job.key.clone(), version }
    }

    fn line_up(&self, need: Need<'_>, parts: Vec<(Holder, Footprint)>) -> Result<Vec<Lease>> {
        let line = self.memory.line_up(parts);
        loop {
            if need.job.progress.overtaken.is_cancelled() || need.claim.is_taken() {
                return Err(outdated_load());
            }
            match line.reserve() {
                Ok(leases) => return Ok(leases),
                Err(lack) if !lack.bytes.bytes.is_empty() && !lack.is_behind => {
                    return Err(Error::unavailable(format!("model '{}' {}", need.config.name, lack.why)));
                }
                // It is given back soon, or others come first.
                Err(_) => line.wait(),
            }
        }
    }
}
