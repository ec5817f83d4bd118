//! Opens model versions on threads of their own: one command in, one result out.
//!
//! All that blocks while a model is loaded or unloaded happens here: reading files, opening weights, starting instances
//! and waiting for them, and joining them at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::cache::{Cache, ModelCache};
use super::catalog::Catalog;
use super::demand::Demand;
use super::handle::Served;
use super::hanging::Hanging;
use super::manager::Event;
use super::memory::{Lease, Leased, Memory};
use super::models::Job;
use super::pages::Pages;
use super::repositories::Repositories;
use super::room::Need;
use super::serving::{Serving, Shared};
use super::usage::Usage;
use super::{Handle, Settings, stopped, warmup};
use crate::backend::{Backend, Model};
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::model::{ModelConfig, Scheduling, Signature, TensorSpec, Version, VersionFiles};
use crate::repository::{BackendFacts, CudaDevices, Facts, Files};
use crate::scheduler::{
    Crew, CrewSettings, Hold, Levels, Limits, Queue, QueueSettings, ResponseLimits, Scheduler, SequenceSettings,
    Sequences, Warmup,
};
use crate::telemetry::metrics::{MODEL_HISTOGRAMS, Metrics};
use crate::telemetry::stats::ModelStats;

/// What configurations are held against, for these backends on this machine.
///
/// `queue_requests_max` bounds the queue of a model whose configuration gives no bound.
pub fn facts(backends: &[Arc<dyn Backend>], cuda_devices: CudaDevices, queue_requests_max: usize) -> Facts {
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
    Facts {
        cuda_devices,
        backends: backends.collect(),
        histograms: &MODEL_HISTOGRAMS,
        queue_requests_max,
        ..Facts::default()
    }
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

/// Runs `work` on a thread that has not given way, and waits for it: for what starts threads that outlive a load, since
/// each thread has the priority of the one that starts it. Blocking.
///
/// # Errors
/// As of [`on_thread`].
pub(super) fn at_usual_priority<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (end, wait) = tokio::sync::oneshot::channel();
    // The threads of the runtime have the priority of the process.
    tokio::runtime::Handle::current().spawn(async move { end.send(on_thread("nereid-starter", work).await) });
    wait.blocking_recv().unwrap_or_else(|_| Err(stopped()))
}

/// Runs `work`, which does not block, on a thread of the runtime, and waits for it: for what takes locks that those who
/// serve wait for, since a thread that has given way could keep them for long. Once the runtime ends, `work` runs here.
/// Blocking.
pub(super) fn promptly<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (end, wait) = tokio::sync::oneshot::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let own = work.clone();
    tokio::runtime::Handle::current().spawn(async move {
        let work = own.lock().take();
        work.map(|work| end.send(work()))
    });
    wait.blocking_recv().unwrap_or_else(|_| {
        let work = work.lock().take();
        work.expect("nobody has begun it, unless it has panicked")()
    })
}

/// A version whose weights are there.
pub(super) struct Opened {
    pub(super) config: Arc<ModelConfig>,
    pub(super) model: Arc<dyn Model>,
    pub(super) lease: Arc<Lease>,
    /// Files that must stay in their cache while it is served.
    pub(super) files: Arc<Files>,
    /// Whether its instances run anything before they serve: all that this is good for may be done already.
    pub(super) warms_up: bool,
    /// When its load began.
    pub(super) began: Instant,
}

/// Opens models; shared by all loader threads. What a load does, step by step, stands in `load.rs`.
pub(super) struct Loader {
    pub(super) repositories: Arc<Repositories>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) demand: Arc<Demand>,
    /// The way to the manager, once it is there.
    pub(super) events: OnceLock<mpsc::WeakSender<Event>>,
    backends: BTreeMap<&'static str, Arc<dyn Backend>>,
    pub(super) facts: Facts,
    pub(super) auto_complete: bool,
    pub(super) config_name: Option<String>,
    pub(super) gpu_limits: BTreeMap<u32, f64>,
    pub(super) memory: Arc<Memory>,
    pub(super) pages: Arc<Pages>,
    /// Held while a load chooses which models leave for it.
    pub(super) choosing: Mutex<()>,
    /// Held by a load that reads a file as a whole without memory for it.
    pub(super) completing: Mutex<()>,
    pub(super) retries: u32,
    /// What a load may take; `None` for any time.
    pub(super) time_max: Option<Duration>,
    /// Loads that took longer, and have not ended since.
    pub(super) hanging: Hanging,
    pub(super) responses: ResponseLimits,
    hold: Hold,
    instances: Shared,
    /// Some version has lost its instances, and knows it.
    pub(super) lost: Arc<Notify>,
    pub(super) cache: Option<Arc<Cache>>,
    pub(super) metrics: Metrics,
}

impl Loader {
    pub(super) fn new(
        settings: Settings,
        repositories: Arc<Repositories>,
        (catalog, demand, pages): (Arc<Catalog>, Arc<Demand>, Arc<Pages>),
        metrics: Metrics,
    ) -> Self {
        Self {
            pages,
            repositories,
            catalog,
            demand,
            events: OnceLock::new(),
            backends: settings.backends.iter().map(|backend| (backend.name(), backend.clone())).collect(),
            facts: settings.facts,
            auto_complete: settings.auto_complete,
            config_name: settings.config_name,
            gpu_limits: settings.gpu_limits,
            choosing: Mutex::default(),
            completing: Mutex::default(),
            memory: Memory::new(settings.memory_limits, &metrics),
            retries: settings.load_retries,
            time_max: settings.load_time_max,
            hanging: Hanging::new(settings.instances.lost_max),
            responses: settings.responses,
            hold: settings.hold,
            instances: Shared::new(&settings.instances, &metrics),
            lost: Arc::default(),
            cache: settings.cache.as_ref().map(|settings| Arc::new(Cache::new(settings, &metrics))),
            metrics,
        }
    }

    pub(super) fn backend(&self, name: &str) -> Result<&Arc<dyn Backend>> {
        self.backends.get(name).ok_or_else(|| Error::invalid(format!("unknown backend '{name}'")))
    }

    /// Opens one version, starts its instances and waits until all can serve.
    ///
    /// `lease` is for what it takes; `fetched` are files that must stay in their cache while it is served.
    pub(super) fn open(
        &self,
        need: Need<'_>,
        config: &Arc<ModelConfig>,
        (files, lease): (&VersionFiles, Lease),
        fetched: Arc<Files>,
    ) -> Result<Serving> {
        let began = Instant::now();
        let version = lease.holder().version;
        let of_file = config.of_file();
        let backend = self.backend(&config.backend)?;
        let (model, mut lease) = self.open_within(need, lease, || backend.open(files, &of_file))?;
        lease.watch(&model, config);
        let lease = Arc::new(lease);
        let model: Arc<dyn Model> = Arc::new(Leased::new(model, lease.clone()));
        let config = config.clone();
        self.serve(need.job, version, Opened { config, model, lease, files: fetched, warms_up: true, began })
    }

    /// Starts the instances of a version whose weights are there, and waits until all can serve.
    pub(super) fn serve(&self, job: &Job<Serving>, version: Version, opened: Opened) -> Result<Serving> {
        let Opened { config, model, lease, files, warms_up, began } = opened;
        let warmup = if warms_up { warmup::batches(&config, model.warms_up())? } else { Vec::new() };
        let stats = Arc::new(ModelStats::new(&self.metrics, &config, version));
        let scheduler = self.scheduler(&config, stats.clone())?;
        let signature = Arc::new(Signature::new(&config));
        let settings = self.crew_settings(job, (&config, version), (&scheduler, &model), warmup);
        let served = Served::Instances { scheduler, model };
        let cache = ModelCache::new(self.cache.as_ref(), &config, &stats);
        let before = self.demand.find(&job.key, Some(version));
        let usage = before.map_or_else(|| Usage::new(began), |before| before.usage.clone());
        let groups = config.clone();
        let handle = Arc::new(Handle { config, version, signature, stats, served, usage, cache });
        let crew = at_usual_priority(move || Crew::start(settings, &groups.instances)).and_then(std::convert::identity);
        // If one was given up, it may never end.
        let crew = crew.inspect_err(|_| lease.retired())?;
        lease.used_by(&crew);
        let took = began.elapsed();
        handle.stats.loaded(took);
        handle.usage.loaded(took, began + took);
        self.metrics.version_loaded();
        tracing::info!(model = %handle.config.name, version, seconds = took.as_secs_f64(), "model version is loaded");
        Ok(Serving { handle, crew: Some(crew), lease: Some(lease), files })
    }

    /// These versions as they are known before they are opened.
    pub(super) fn asleep(
        &self,
        config: &Arc<ModelConfig>,
        versions: impl Iterator<Item = Version>,
    ) -> BTreeMap<Version, Arc<Handle>> {
        let asleep = |version| {
            let (stats, served) = (Arc::new(ModelStats::new(&self.metrics, config, version)), Served::Nothing);
            let (signature, usage) = (Arc::new(Signature::new(config)), Usage::new(Instant::now()));
            let handle = Handle { config: config.clone(), version, signature, stats, served, usage, cache: None };
            (version, Arc::new(handle))
        };
        versions.map(asleep).collect()
    }

    fn crew_settings(
        &self,
        job: &Job<Serving>,
        (config, version): (&Arc<ModelConfig>, Version),
        (scheduler, model): (&Arc<dyn Scheduler>, &Arc<dyn Model>),
        warmup: Vec<Warmup>,
    ) -> CrewSettings {
        let (lost, key) = (self.lost.clone(), job.key.clone());
        let failed = move |error: Error| {
            tracing::error!(model = %key, version, %error, "no instance of the model version is left");
            lost.notify_one();
        };
        CrewSettings {
            name: format!("{}/{version}", config.name),
            scheduler: scheduler.clone(),
            model: model.clone(),
            warmup: warmup.into(),
            limiter: self.instances.limiter.clone(),
            host_policies: self.instances.host_policies.clone(),
            execution_time_max: self.instances.execution_time_max(config),
            lost_max: self.instances.lost_max,
            metrics: self.metrics.instances(&config.name, version, &config.metric_tags),
            in_background: job.is_reload(),
            failed: Box::new(failed),
        }
    }

    fn queue_settings(&self, config: &ModelConfig) -> QueueSettings {
        let (limits, hold, preserve_order) = match &config.scheduling {
            Scheduling::Dynamic(batching) => {
                let limits = match config.decoupled {
                    // One caller that takes its responses slowly would hold back all others of its batch.
                    true => Limits::single(),
                    false => Limits {
                        rows_max: config.max_batch_rows.max(1),
                        preferred_rows: batching.preferred_rows.clone(),
                        delay_max: batching.queue_delay_max,
                        budget: None,
                    },
                };
                (limits, self.hold.queued, batching.preserve_ordering)
            }
            Scheduling::Single(_) | Scheduling::Sequence(_) | Scheduling::Ensemble(_) => (Limits::single(), 0, false),
        };
        let levels = Levels::of(&config.scheduling);
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

    /// What makes executions of a version's requests.
    fn scheduler(&self, config: &ModelConfig, stats: Arc<ModelStats>) -> Result<Arc<dyn Scheduler>> {
        Ok(match &config.scheduling {
            Scheduling::Sequence(batching) => {
                let mut settings = SequenceSettings::new(config, batching, self.responses)?;
                settings.hold = self.hold;
                Sequences::new(settings, stats)
            }
            _ => Arc::new(Queue::new(self.queue_settings(config), stats)),
        })
    }
}

/// Whether requests may differ in this input.
fn varies(input: &TensorSpec) -> bool {
    input.optional || input.dims.as_ref().is_none_or(|dims| dims.contains(&-1))
}
