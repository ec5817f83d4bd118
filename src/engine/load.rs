//! What a load does, step by step: find the model, read its configuration, decide what can stay, open the rest.
//!
//! Runs on a loader thread, and blocks. All or nothing: if one version fails, none is served. Begin with [`Loader::load`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ensemble::graph::Plan;
use super::hanging::Claim;
use super::loader::{Loader, at_usual_priority, promptly};
use super::models::{Job, Loaded, Origin};
use super::order::outdated_load;
use super::overrides::{OverrideDir, Overrides};
use super::room::Need;
use super::serving::Serving;
use super::{Key, agents, reconcile};
use crate::backend::libtorch;
use crate::error::{Error, Result};
use crate::model::{Device, ModelConfig, Residency, Scheduling, Version, VersionFiles};
use crate::repository::{self, Files, Found, ModelDir, Positions, Source};
use crate::scheduler::Change;

/// The reference server's label of metrics that says in which repository a model lies; models' own begin with `_`.
const NAMESPACE_LABEL: &str = "namespace";

/// A configuration, and what it asks for.
struct Configured {
    config: Arc<ModelConfig>,
    /// Where its keys were written.
    positions: Positions,
    files: BTreeMap<Version, VersionFiles>,
    /// Keeps fetched files in their cache.
    fetched: Arc<Files>,
}

/// The files of the versions to serve.
struct Opened {
    files: BTreeMap<Version, VersionFiles>,
    fetched: Arc<Files>,
    /// Of an ensemble.
    plan: Option<Plan>,
}

impl Loader {
    /// Opens all versions of a model that its policy asks for; `resolved` is told them as soon as they are known. Takes
    /// the `claim` before it changes anything that is served.
    ///
    /// # Errors
    /// Why the model cannot be served, or that it need not be any more.
    pub(super) fn load(
        &self,
        job: &Job<Serving>,
        claim: &Claim,
        resolved: impl Fn(&[Version]),
    ) -> Result<Loaded<Serving>> {
        let overrides = &job.overrides;
        let override_dir = match overrides.files.is_empty() {
            true => None,
            false => Some(OverrideDir::write(&job.key.name, &overrides.files)?),
        };
        let found = self.find(&job.key, override_dir.as_ref())?;
        if overrides.is_empty() && !job.again && is_served(job, &found.dir) {
            return Ok(Loaded::Unchanged);
        }
        if let Some(loaded) = self.page_in((job, claim), &found.dir, &resolved)? {
            return Ok(loaded);
        }
        let Configured { mut config, positions, files, fetched } = self.configure_for((job, claim), &found)?;
        if !overrides.is_empty() {
            // What the request has brought is nowhere else.
            Arc::make_mut(&mut config).residency = Residency::Pinned;
        }
        if self.sleeps(job, &config) {
            let versions: Vec<Version> = files.keys().copied().collect();
            self.demand.sleeps(&job.key, self.asleep(&config, versions.iter().copied()));
            resolved(&versions);
            return Ok(Loaded::Asleep);
        }
        let members = self.members(&config, &job.key);
        if !job.members_tried && members.iter().any(|member| !self.catalog.is_ready(member)) {
            self.demand.hold(&job.progress, &job.key, &members);
            return Ok(Loaded::Needs(members));
        }
        let plan = self.connect(&mut config, &members, &positions)?;
        resolved(&files.keys().copied().collect::<Vec<_>>());
        let origin = Origin {
            stamp: found.dir.stamp,
            config,
            config_overridden: overrides.config.is_some(),
            files_overridden: override_dir.is_some(),
        };
        let kept = kept(job, &origin, files.keys().copied().collect());
        let mut versions = self.open_versions((job, claim), &origin, Opened { files, fetched, plan }, &kept)?;
        let mut stay = Vec::new();
        let resized = resize_kept((job, claim), &origin, &kept, &mut stay);
        let (stay, changes): (Vec<_>, Vec<_>) = stay.into_iter().unzip();
        let changes: Vec<Change> = changes.into_iter().flatten().collect();
        let (checked, changes) = promptly(move || (changes.iter().try_for_each(Change::check), changes));
        let resized = resized.and(checked).and_then(|()| match claim.take() {
            true => Ok(()),
            // Nobody waits for this any more.
            false => Err(outdated_load()),
        });
        if let Err(error) = resized {
            let left: Vec<_> = promptly(move || changes.into_iter().flat_map(Change::undo).collect());
            claim.leave(left.into_iter());
            versions.into_values().for_each(Serving::retire);
            return Err(error);
        }
        promptly(move || changes.into_iter().for_each(Change::make));
        versions.extend(stay.into_iter().map(|serving| (serving.handle.version, serving)));
        Ok(Loaded::New { origin: Some(origin), versions, kept, members })
    }

    /// Whether nobody needs this model yet, which its first request will load.
    pub(super) fn sleeps(&self, job: &Job<Serving>, config: &ModelConfig) -> bool {
        self.demand.configured(&job.key, config.residency);
        let is_served = || job.served.is_some() || self.catalog.is_ready(&job.key);
        config.residency == Residency::OnDemand && !is_served() && !self.demand.is_wanted(&job.key)
    }

    fn find(&self, key: &Key, override_dir: Option<&OverrideDir>) -> Result<Found> {
        let mut warnings = Vec::new();
        let found = match override_dir {
            Some(dir) => repository::look(&key.name, dir.path(), &mut warnings)
                .map(Found::from)
                .map_err(|error| Error::internal(format!("cannot read override files: {error}"))),
            None => self.repositories.find(key, &mut warnings),
        };
        for warning in warnings {
            tracing::warn!(model = %key, "{warning}");
        }
        found
    }

    fn configure_for(&self, (job, claim): (&Job<Serving>, &Claim), found: &Found) -> Result<Configured> {
        if let Some(roots) = self.repositories.roots_of(&job.key) {
            job.progress.fetch(roots, &job.key.name);
        }
        let Overrides { config, .. } = &job.overrides;
        let file = self.config_name.as_deref().map_or(Source::File, Source::Named);
        let source = config.as_deref().map_or(file, Source::Json);
        let configured = self.configure((job, claim), found, source).map_err(|error| match config {
            // Clients of the reference server look for the first words.
            Some(_) => error.context(format_args!("failed to load '{}'", job.key.name)),
            None => error,
        });
        job.progress.begin();
        configured
    }

    /// Reads, completes and checks the configuration; fetches the files of each version to serve.
    fn configure(
        &self,
        (job, claim): (&Job<Serving>, &Claim),
        found: &Found,
        source: Source<'_>,
    ) -> Result<Configured> {
        let (dir, key) = (&found.dir, &job.key);
        let mut fetched = found.fetch_shared()?;
        let mut written = repository::read(dir, source, &self.facts)?;
        let selected = written.versions(&dir.versions)?;
        for version in &selected.missing {
            tracing::warn!(model = dir.name, version, "a version that the policy asks for does not exist");
        }
        fetched.extend(found.fetch_versions(&selected.versions)?);
        let mut files = BTreeMap::new();
        for &version in &selected.versions {
            let of_version = written.files(version, &self.facts)?;
            check_regular(&of_version)?;
            files.insert(version, of_version);
        }
        // Before anything is read that may not be what its author meant. Agents may name files of other versions.
        let checked = &written.schema.model_repository_agents;
        let until_checked = found.fetch_files(&agents::files(checked), &selected.versions)?;
        agents::check(checked, &dir.path)?;
        drop(until_checked);
        if let Some((&version, latest)) = files.last_key_value()
            && self.auto_complete
            && !written.is_ensemble()
        {
            let backend = self.backend(&written.schema.backend)?;
            let residency = if job.overrides.is_empty() { written.residency() } else { Residency::Pinned };
            let config = ModelConfig { residency, ..ModelConfig::new(&key.name, backend.name()) };
            let bytes = backend.completes_in(latest, &written.schema);
            let _until_completed = self.reserve_briefly(Need { job, claim, config: &config }, (version, bytes))?;
            backend.complete(latest, &mut written.schema)?;
        }
        let mut finished = written.finish(&self.facts)?;
        for warning in finished.warnings {
            tracing::warn!(model = dir.name, "{warning}");
        }
        if !key.namespace.is_empty() {
            finished.config.metric_tags.insert(NAMESPACE_LABEL.to_owned(), key.namespace.to_string());
        }
        let (config, positions) = (Arc::new(finished.config), finished.positions);
        Ok(Configured { config, positions, files, fetched: Arc::new(fetched) })
    }

    /// The models that an ensemble is made of; of several of one name the one of its own namespace.
    fn members(&self, config: &ModelConfig, ensemble: &Key) -> Vec<Key> {
        let Scheduling::Ensemble(plan) = &config.scheduling else { return Vec::new() };
        let names: BTreeSet<&str> = plan.steps.iter().map(|step| &*step.model).collect();
        let key = |name: &str| {
            let keys = self.repositories.keys(name);
            let own = keys.iter().find(|key| key.namespace == ensemble.namespace);
            own.or(keys.first()).cloned().unwrap_or_else(|| Key::of(name))
        };
        names.into_iter().map(key).collect()
    }

    /// Opens the versions that are not kept; all or none.
    fn open_versions(
        &self,
        (job, claim): (&Job<Serving>, &Claim),
        origin: &Origin,
        Opened { files, fetched, plan }: Opened,
        kept: &BTreeSet<Version>,
    ) -> Result<BTreeMap<Version, Serving>> {
        let opened: Vec<_> = files.into_iter().filter(|(version, _)| !kept.contains(version)).collect();
        if !opened.is_empty() {
            self.check_devices(&origin.config)?;
        }
        let need = Need { job, claim, config: &origin.config };
        let mut leases = if plan.is_none() { self.reserve(need, &opened)? } else { BTreeMap::new() };
        job.progress.read_here(opened.iter().map(|(version, _)| origin.stamp.bytes(*version)).sum());
        let mut servings = BTreeMap::new();
        for (version, files) in opened {
            let result = match (job.progress.overtaken.is_cancelled(), &plan, leases.remove(&version)) {
                (false, Some(plan), _) => Ok(self.open_ensemble(&job.key, &origin.config, version, plan)),
                (false, None, Some(lease)) => self.open(need, &origin.config, (&files, lease), fetched.clone()),
                (true, ..) | (false, None, None) => Err(outdated_load()),
            };
            match result {
                Ok(serving) => servings.insert(version, serving),
                Err(error) => {
                    servings.into_values().for_each(Serving::retire);
                    self.metrics.version_load_failed();
                    let name = &job.key.name;
                    return Err(Error::invalid(format!(
                        "load failed for model '{name}': version {version} is at UNAVAILABLE state: {error};"
                    )));
                }
            };
        }
        Ok(servings)
    }

    /// Refuses to load on a device of which more is used than `--model-load-gpu-limit` allows.
    pub(super) fn check_devices(&self, config: &ModelConfig) -> Result<()> {
        for (&index, &fraction) in &self.gpu_limits {
            if !config.instances.iter().any(|group| group.device == Device::Cuda(index)) {
                continue;
            }
            let (free, total) = libtorch::cuda_memory(index)?;
            if is_over(free, total, fraction) {
                return Err(Error::unavailable(format!(
                    "can not create model '{}': memory limit set for KIND_GPU {index} has exceeded, model loading is rejected.",
                    config.name
                )));
            }
        }
        Ok(())
    }
}

/// Has the versions that are kept start the instances of the new configuration, and waits until they are ready, as long
/// as the load is not given up. Nothing else changes: what becomes of them, and the changes that have yet to be made, go
/// into `stay`, also if this fails.
fn resize_kept(
    (job, claim): (&Job<Serving>, &Claim),
    origin: &Origin,
    kept: &BTreeSet<Version>,
    stay: &mut Vec<(Serving, Option<Change>)>,
) -> Result<()> {
    let served = job.served.iter().flat_map(|(_, served)| served);
    for (_, serving) in served.filter(|(version, _)| kept.contains(version)) {
        if claim.is_taken() {
            // Opening may have taken long, and others may serve by now.
            return Err(outdated_load());
        }
        let (own, config) = (serving.clone(), origin.config.clone());
        let (serving, mut change) = at_usual_priority(move || own.resize(&config))?;
        let ready = change.as_mut().map_or(Ok(()), |change| claim.wait_for(change.ready()));
        stay.push((serving, change));
        ready?;
    }
    Ok(())
}

/// Whether more than this fraction is used.
fn is_over(free: u64, total: u64, fraction: f64) -> bool {
    let used = total.saturating_sub(free);
    used as f64 > total as f64 * fraction
}

/// Whether the repository's own files are what is served.
fn is_served(job: &Job<Serving>, dir: &ModelDir) -> bool {
    job.served
        .as_ref()
        .is_some_and(|(origin, _)| !origin.config_overridden && !origin.files_overridden && origin.stamp == dir.stamp)
}

/// The versions that need not be opened again.
fn kept(job: &Job<Serving>, after: &Origin, wanted: BTreeSet<Version>) -> BTreeSet<Version> {
    match &job.served {
        Some((before, served)) if !job.again && served.values().all(|serving| serving.can_resize(&after.config)) => {
            reconcile::kept(before, after, served.keys().copied(), &wanted)
        }
        _ => BTreeSet::new(),
    }
}

/// Whoever opens a pipe or a device as a model waits for ever.
fn check_regular(files: &VersionFiles) -> Result<()> {
    match &files.model_file {
        Some(file) if file.exists() && !file.is_file() => {
            Err(Error::invalid(format!("model file '{}' is not a regular file", file.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_full_above_its_fraction() {
        assert!(!is_over(20, 100, 0.8));
        assert!(is_over(19, 100, 0.8));
        assert!(!is_over(0, 100, 1.0));
    }
}
