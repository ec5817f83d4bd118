//! Opens model versions on threads of their own: one command in, one result out.
//!
//! All that blocks while a model is loaded or unloaded happens here: reading files, opening weights, starting instances
//! and waiting for them, and joining them at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use super::overrides::{OverrideDir, Overrides};
use super::serving::{Serving, Shared};
use super::{Handle, Settings, warmup};
use crate::backend::Backend;
use crate::error::{Error, Kind, Result};
use crate::infer::Instant;
use crate::model::{ModelConfig, Scheduling, Signature, TensorSpec, Version, VersionFiles};
use crate::repository::{self, BackendFacts, Facts, Files, Found, Roots, Source, Stamp};
use crate::scheduler::{Crew, CrewSettings, Hold, Levels, Limits, Queue, QueueSettings, ResponseLimits, Scheduler};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::stats::ModelStats;

/// What configurations are held against, for these backends on this machine.
///
/// `queue_requests_max` bounds the queue of a model whose configuration gives no bound.
pub fn facts(backends: &[Arc<dyn Backend>], cuda_devices: Vec<u32>, queue_requests_max: usize) -> Facts {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let backends = backends.iter().map(|backend| {
        let checker = backend.clone();
        BackendFacts {
            name: backend.name().to_owned(),
            default_model_filename: backend.default_model_filename().map(str::to_owned),
            uses_cuda: backend.uses_cuda(),
            parameter_keys: owned(backend.parameter_keys()),
            check_parameters: Arc::new(move |config| checker.check_parameters(config)),
        }
    });
    Facts { cuda_devices, backends: backends.collect(), queue_requests_max, ..Facts::default() }
}

/// Runs blocking `work` on a thread with this name and waits for its result.
///
/// # Errors
/// If the system gives no thread, or the work panicked.
pub(super) async fn on_thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (result, wait) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _clock = runtime.enter();
        let _ = result.send(work());
    });
    thread.map_err(|error| Error::internal(format!("cannot start thread '{name}': {error}")))?;
    wait.await.map_err(|_| Error::internal(format!("thread '{name}' panicked")))
}

/// A version that can serve nothing any more.
pub(super) struct Lost {
    pub(super) model: Arc<str>,
    pub(super) version: Version,
    /// Tells which load of the version it was.
    pub(super) scheduler: Weak<dyn Scheduler>,
    pub(super) error: Error,
}

/// Hears of such versions.
pub(super) type OnLost = Box<dyn Fn(Lost) + Send + Sync>;

/// What a load command led to.
pub(super) enum Loaded {
    /// The files are those that are already served.
    Unchanged,
    /// New copies, to take over.
    New {
        /// Of the files that were read; `None` if they were overridden.
        stamp: Option<Stamp>,
        /// All versions that the policy asks for.
        versions: BTreeMap<Version, Serving>,
    },
}

/// Opens models; shared by all loader threads.
pub(super) struct Loader {
    roots: Roots,
    backends: BTreeMap<&'static str, Arc<dyn Backend>>,
    facts: Facts,
    auto_complete: bool,
    config_name: Option<String>,
    retries: u32,
    responses: ResponseLimits,
    hold: Hold,
    instances: Shared,
    /// Who hears of a version that has lost its instances; set once, by the manager.
    pub(super) lost: Arc<OnceLock<OnLost>>,
    pub(super) metrics: Metrics,
}

impl Loader {
    pub(super) fn new(settings: &Settings, metrics: Metrics) -> Self {
        Self {
            roots: settings.roots.clone(),
            backends: settings.backends.iter().map(|backend| (backend.name(), backend.clone())).collect(),
            facts: settings.facts.clone(),
            auto_complete: settings.auto_complete,
            config_name: settings.config_name.clone(),
            retries: settings.load_retries,
            responses: settings.responses,
            hold: settings.hold,
            instances: Shared::new(&settings.instances, &metrics),
            lost: Arc::default(),
            metrics,
        }
    }

    /// Opens all versions of a model that its policy asks for; all or none.
    ///
    /// `served` is the stamp of what is served now; `resolved` is told the versions as soon as they are known.
    pub(super) fn load(
        &self,
        name: &str,
        overrides: &Overrides,
        served: Option<&Stamp>,
        resolved: impl Fn(&[Version]),
    ) -> Result<Loaded> {
        let mut attempt = 0;
        loop {
            match self.try_load(name, overrides, served, &resolved) {
                Err(error) if attempt < self.retries => {
                    attempt += 1;
                    tracing::warn!(model = name, attempt, %error, "load failed, trying again");
                }
                result => return result,
            }
        }
    }

    fn try_load(
        &self,
        name: &str,
        overrides: &Overrides,
        served: Option<&Stamp>,
        resolved: &impl Fn(&[Version]),
    ) -> Result<Loaded> {
        let override_dir = match overrides.files.is_empty() {
            true => None,
            false => Some(OverrideDir::write(name, &overrides.files)?),
        };
        let found = self.find(name, override_dir.as_ref())?;
        let dir = &found.dir;
        if overrides.is_empty() && served == Some(&dir.stamp) {
            return Ok(Loaded::Unchanged);
        }
        let file = self.config_name.as_deref().map_or(Source::File, Source::Named);
        let source = overrides.config.as_deref().map_or(file, Source::Json);
        let mut fetched = found.fetch_shared()?;
        let (config, files) = self.configure(&found, source, &mut fetched).map_err(|error| match overrides.config {
            // Clients of the reference server look for the first words.
            Some(_) => error.context(format_args!("failed to load '{name}'")),
            None => error,
        })?;
        let versions: Vec<Version> = files.keys().copied().collect();
        resolved(&versions);
        let fetched = Arc::new(fetched);
        let mut servings = BTreeMap::new();
        for (version, files) in files {
            match self.open(&config, version, &files) {
                Ok(serving) => servings.insert(version, Serving { _files: fetched.clone(), ..serving }),
                Err(error) => {
                    servings.into_values().for_each(Serving::retire);
                    self.metrics.version_load_failed();
                    return Err(Error::invalid(format!(
                        "load failed for model '{name}': version {version} is at UNAVAILABLE state: {error};"
                    )));
                }
            };
        }
        Ok(Loaded::New { stamp: overrides.is_empty().then_some(found.dir.stamp), versions: servings })
    }

    fn find(&self, name: &str, override_dir: Option<&OverrideDir>) -> Result<Found> {
        let mut warnings = Vec::new();
        let found = match override_dir {
            Some(dir) => repository::look(name, dir.path(), &mut warnings)
                .map(Found::from)
                .map_err(|error| Error::internal(format!("cannot read override files: {error}"))),
            None => self.roots.find(name, &mut warnings).map_err(|error| match error.kind() {
                Kind::NotFound => {
                    Error::not_found(format!("failed to load '{name}', failed to poll from model repository"))
                }
                _ => error,
            }),
        };
        for warning in warnings {
            tracing::warn!(model = name, "{warning}");
        }
        found
    }

    /// Reads, completes and checks the configuration; gives the files of each version to serve.
    fn configure(
        &self,
        found: &Found,
        source: Source<'_>,
        fetched: &mut Files,
    ) -> Result<(Arc<ModelConfig>, BTreeMap<Version, VersionFiles>)> {
        let dir = &found.dir;
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
        if let Some((_, latest)) = files.last_key_value()
            && self.auto_complete
        {
            self.backend(&written.schema.backend)?.complete(latest, &mut written.schema)?;
        }
        let finished = written.finish(&self.facts)?;
        for warning in finished.warnings {
            tracing::warn!(model = dir.name, "{warning}");
        }
        Ok((Arc::new(finished.config), files))
    }

    fn backend(&self, name: &str) -> Result<&Arc<dyn Backend>> {
        self.backends.get(name).ok_or_else(|| Error::invalid(format!("unknown backend '{name}'")))
    }

    /// Opens one version, starts its instances and waits until all can serve.
    fn open(&self, config: &Arc<ModelConfig>, version: Version, files: &VersionFiles) -> Result<Serving> {
        let began = Instant::now();
        let of_file = config.of_file();
        let model = self.backend(&config.backend)?.open(files, &of_file)?;
        let stats = Arc::new(ModelStats::new(&self.metrics, &config.name, version, &config.metric_tags));
        let scheduler: Arc<dyn Scheduler> = Arc::new(Queue::new(self.queue_settings(config), stats.clone()));
        let signature = Arc::new(Signature::new(config));
        let handle =
            Arc::new(Handle { config: config.clone(), version, signature, stats: stats.clone(), scheduler, model });
        let crew = Crew::start(self.crew_settings(&handle)?, &config.instances)?;
        let took = began.elapsed();
        stats.loaded(took);
        self.metrics.version_loaded();
        tracing::info!(model = %config.name, version, seconds = took.as_secs_f64(), "model version is loaded");
        Ok(Serving { handle, crew, _files: Arc::default() })
    }

    fn crew_settings(&self, handle: &Arc<Handle>) -> Result<CrewSettings> {
        let (config, version) = (&handle.config, handle.version);
        let (lost, of) = (self.lost.clone(), (config.name.clone(), Arc::downgrade(&handle.scheduler)));
        let failed = move |error: Error| {
            tracing::error!(model = &*of.0, version, %error, "no instance of the model version is left");
            if let Some(lost) = lost.get() {
                lost(Lost { model: of.0.clone(), version, scheduler: of.1.clone(), error });
            }
        };
        Ok(CrewSettings {
            name: format!("{}/{version}", config.name),
            scheduler: handle.scheduler.clone(),
            model: handle.model.clone(),
            warmup: warmup::batches(config, handle.model.warms_up())?.into(),
            limiter: self.instances.limiter.clone(),
            host_policies: self.instances.host_policies.clone(),
            execution_time_max: self.instances.execution_time_max(config),
            lost_max: self.instances.lost_max,
            metrics: self.metrics.instances(&config.name, version, &config.metric_tags),
            failed: Box::new(failed),
        })
    }

    fn queue_settings(&self, config: &ModelConfig) -> QueueSettings {
        let (limits, levels, hold, preserve_order) = match &config.scheduling {
            Scheduling::Dynamic(batching) => {
                let limits = Limits {
                    rows_max: config.max_batch_rows.max(1),
                    preferred_rows: batching.preferred_rows.clone(),
                    delay_max: batching.queue_delay_max,
                    budget: None,
                };
                let levels = Levels::new(batching.priorities.clone(), batching.queue.clone());
                (limits, levels, self.hold.queued, batching.preserve_ordering)
            }
            Scheduling::Single(policy) => (Limits::single(), Levels::one(policy.clone()), 0, false),
            Scheduling::Sequence(batching) => (Limits::single(), Levels::one(batching.queue.clone()), 0, false),
            Scheduling::Ensemble(ensemble) => (Limits::single(), Levels::one(ensemble.queue.clone()), 0, false),
        };
        QueueSettings {
            requests_max: levels.requests_max(self.facts.queue_requests_max),
            limits: Limits { budget: config.budget.map(|budget| budget.total), ..limits },
            levels,
            preserve_order,
            hold,
            shapes_vary: config.inputs.iter().any(varies),
            forms: config.forms(),
            instances: config.instances.iter().map(|group| group.count).sum(),
            responses: config.decoupled.then_some(self.responses),
        }
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

/// Whether requests may differ in this input.
fn varies(input: &TensorSpec) -> bool {
    input.optional || input.dims.as_ref().is_none_or(|dims| dims.contains(&-1))
}
