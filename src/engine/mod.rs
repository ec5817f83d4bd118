//! The models that are served: loading, unloading, finding and running them.
//!
//! The manager task owns which versions are wanted and which are there; loader threads open them; the [`Catalog`] shows
//! readers the result with one atomic read. [`Engine`] is what the rooms above see. Knows no protocol.

mod agents;
mod attempt;
mod cache;
mod catalog;
pub mod check;
pub mod compare;
mod demand;
pub mod ensemble;
mod entrance;
pub mod evict;
mod handle;
mod hanging;
mod key;
pub mod lifecycle;
mod load;
mod loader;
mod manager;
mod memory;
pub mod models;
mod on_demand;
pub mod order;
mod overrides;
mod pages;
mod paging;
mod permits;
pub mod poll;
pub mod progress;
pub mod reconcile;
pub mod repositories;
mod room;
mod serving;
mod usage;
mod warmup;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};

use self::catalog::Catalog;
use self::demand::Demand;
use self::entrance::Entrance;
use self::lifecycle::{EVICTED, PAGED_OUT};
use self::loader::Loader;
use self::manager::Manager;
use self::on_demand::OnDemand;
use self::order::{Unload, What};
use self::pages::Pages;
use self::poll::Watched;
use self::repositories::{Look, Repositories};
use crate::backend::{Backend, Spill};
use crate::error::{Error, Kind, Result};
use crate::infer::{Infer, Request, Responses};
use crate::model::Version;
use crate::repository::{self, Facts, Roots};
use crate::telemetry::metrics::Metrics;

pub use cache::Settings as CacheSettings;
pub use catalog::IndexEntry;
pub use handle::Handle;
pub use key::Key;
pub use lifecycle::State;
pub use loader::facts;
pub use memory::{MemoryLimit, host_memory};
pub use overrides::Overrides;

pub use crate::model::{Amount, Device, HostPolicies, HostPolicy, parse_cores};
pub use crate::repository::{Cloud, Place, RemoteSettings, Root};
pub use crate::scheduler::{Hold, ResponseLimits};

/// How old the list of models in an object store may be that were never loaded: a console asks every second.
const INDEX_AGE_MAX: Duration = Duration::from_secs(15);

/// Who decides what is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Everything at the start, nothing later.
    None,
    /// The repository, looked at in this interval.
    Poll(Duration),
    /// The callers; at the start these models, or all if the list is `None`.
    Explicit(Option<Vec<String>>),
}

/// What instances may take, and where they run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceSettings {
    /// What there is of the rate limiter's resources, as far as the operator says; `None` if nothing is limited.
    pub rate_limits: Option<Vec<Amount>>,
    /// Where threads run.
    pub host_policies: HostPolicies,
    /// What an execution may take of a model that says nothing about it; `None` for any time.
    pub execution_time_max: Option<Duration>,
    /// How many instances of a version are replaced after they did not end in that time.
    pub lost_max: usize,
}

/// Where weights go that leave the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpillSettings {
    /// The directory of their files.
    pub directory: PathBuf,
    /// The most bytes of all files together.
    pub bytes_max: u64,
}

/// What the engine is told once.
pub struct Settings {
    /// Where models come from.
    pub roots: Roots,
    /// Whether each of them is a namespace, in which names may be those of others.
    pub namespacing: bool,
    /// Who decides what is loaded.
    pub control: Control,
    /// Models that load at the same time.
    pub load_threads: usize,
    /// How often a failed load is tried again.
    pub load_retries: u32,
    /// What a load may take before it is given up; `None` for any time.
    pub load_time_max: Option<Duration>,
    /// Above which used fraction of a CUDA device's memory no model is loaded on it, by its index.
    pub gpu_limits: BTreeMap<u32, f64>,
    /// How much memory models may take on a device, where it is not the usual share.
    pub memory_limits: BTreeMap<Device, MemoryLimit>,
    /// Where weights on the host go when others need their memory; `None` if they are dropped.
    pub spill: Option<SpillSettings>,
    /// The most requests that wait for a model to be loaded on demand.
    pub demands_max: usize,
    /// The most bytes of files that a load request may bring.
    pub override_bytes_max: usize,
    /// Whether configurations are completed from the model files.
    pub auto_complete: bool,
    /// The configuration to prefer: `configs/NAME.pbtxt`.
    pub config_name: Option<String>,
    /// Whether the engine is ready only when every wanted model is.
    pub strict_readiness: bool,
    /// What the responses of one request to a decoupled model may take.
    pub responses: ResponseLimits,
    /// What instances may take, and where they run.
    pub instances: InstanceSettings,
    /// What schedulers wait for before they run anything.
    pub hold: Hold,
    /// The response cache; `None` for none.
    pub cache: Option<CacheSettings>,
    /// What configurations are held against.
    pub facts: Facts,
    /// The backends by their names.
    pub backends: Vec<Arc<dyn Backend>>,
}

/// The models of one server.
pub struct Engine {
    entrance: Entrance,
    on_demand: OnDemand,
    demand: Arc<Demand>,
    pages: Arc<Pages>,
    catalog: Arc<Catalog>,
    manager: Manager,
    metrics: Metrics,
    repositories: Arc<Repositories>,
    namespacing: bool,
    control: Control,
    override_bytes_max: usize,
}

impl Engine {
    /// An engine without models; its manager task runs until [`Engine::stop`].
    ///
    /// Must be called inside a tokio runtime.
    pub fn new(settings: Settings, metrics: Metrics) -> Self {
        let (namespacing, load_threads) = (settings.namespacing, settings.load_threads);
        let (control, override_bytes_max) = (settings.control.clone(), settings.override_bytes_max);
        let demand = Demand::new(settings.demands_max, &metrics);
        let catalog = Arc::new(Catalog::new(settings.strict_readiness, demand.clone()));
        let repositories = Arc::new(Repositories::new(&settings.roots, namespacing));
        let spill = settings.spill.clone().map(|spill| Spill::new(spill.directory, spill.bytes_max));
        let pages = Pages::new(spill, &metrics);
        let shared = (catalog.clone(), demand.clone(), pages.clone());
        let loader = Loader::new(settings, repositories.clone(), shared, metrics.clone());
        let manager = Manager::start(Arc::new(loader), catalog.clone(), load_threads);
        let on_demand = OnDemand::new(catalog.clone(), demand.clone(), manager.events());
        let served = catalog.clone();
        let entrance = Entrance::new(&metrics, move |request| served.find(&request.model, request.version));
        let entrance = entrance.loading(on_demand.clone());
        Self {
            entrance,
            on_demand,
            demand,
            pages,
            catalog,
            manager,
            metrics,
            repositories,
            namespacing,
            control,
            override_bytes_max,
        }
    }

    /// Loads what the control mode asks for at the start, and waits until that is done. Begins to poll, if told. First it
    /// removes what servers that were killed have left of override files.
    ///
    /// Returns the models that could not be loaded and the repositories that could not be read, each with its reason.
    ///
    /// # Errors
    /// If no repository can be read, or one cannot be and nobody will look again.
    pub async fn start(&self) -> Result<Vec<(String, Error)>> {
        loader::on_thread("nereid-tidy", overrides::remove_abandoned).await?;
        let look = self.scan(Duration::ZERO).await?;
        match (&self.control, look.failed.first()) {
            (Control::None, Some((_, error))) => return Err(error.clone()),
            (Control::Poll(_), Some(_)) => self.catalog.repositories_read(false),
            _ => {}
        }
        for warning in &look.warnings {
            tracing::warn!("{warning}");
        }
        let mut keys: Vec<Key> = match &self.control {
            Control::None | Control::Poll(_) | Control::Explicit(None) => look.keys().cloned().collect(),
            Control::Explicit(Some(names)) => {
                let mut keys = Vec::new();
                for name in names {
                    keys.extend(self.keys(name).await?);
                }
                keys
            }
        };
        keys.sort();
        let (mut loads, mut ends, mut watched) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            let (caller, end) = oneshot::channel();
            let (watcher, seen) = oneshot::channel();
            loads.push((key.clone(), vec![caller, watcher]));
            watched.push((key.clone(), seen));
            ends.push(async move {
                let end = end.await.unwrap_or_else(|_| Err(stopped()));
                end.err().map(|error| (key.name.to_string(), error))
            });
        }
        self.manager.begin(loads).await?;
        if let Control::Poll(interval) = self.control {
            self.manager.poll(self.repositories.clone(), Watched::new(interval, &look), watched, self.catalog.clone());
        }
        let mut failed: Vec<(String, Error)> = join_all(ends).await.into_iter().flatten().collect();
        failed.extend(look.failed);
        self.catalog.start_finished();
        Ok(failed)
    }

    async fn scan(&self, age_max: Duration) -> Result<Look> {
        let repositories = self.repositories.clone();
        loader::on_thread("nereid-scan", move || repositories.scan(age_max)).await?
    }

    /// The models that a command for `name` is about.
    async fn keys(&self, name: &str) -> Result<Vec<Key>> {
        if !self.namespacing {
            return Ok(vec![Key::of(name)]);
        }
        let (repositories, name) = (self.repositories.clone(), name.to_owned());
        loader::on_thread("nereid-scan", move || repositories.keys(&name)).await
    }

    /// The version that a request for `name` gets: the wanted one, or the highest that is ready. Of a model that requests
    /// load it is what is known of it, until it is there.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown model or version or a model without a ready version, [`Kind::Unavailable`] for
    /// a version that is not ready.
    pub fn find(&self, name: &str, version: Option<Version>) -> Result<Arc<Handle>> {
        self.catalog.find(name, version).or_else(|error| self.on_demand.find(name, version).ok_or(error))
    }

    /// Whether the models that should be there are.
    pub fn ready(&self) -> bool {
        *self.catalog.readiness().borrow()
    }

    /// Readiness and its changes.
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.catalog.readiness()
    }

    /// Whether there is a model of that name, ready or not.
    pub fn knows(&self, name: &str) -> bool {
        self.catalog.knows(name)
    }

    /// The versions of a model that are ready, ascending.
    pub fn versions_ready(&self, name: &str) -> Vec<Version> {
        self.catalog.versions_ready(name)
    }

    /// Every model version with its state, or only those that are ready; in explicit mode also the names of models
    /// that lie in the repository and were never loaded.
    pub async fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let mut index = self.catalog.index(ready_only);
        let left = index.iter_mut().filter(|entry| entry.reason == EVICTED && self.pages.has(&entry.key));
        left.for_each(|entry| PAGED_OUT.clone_into(&mut entry.reason));
        if matches!(self.control, Control::Explicit(_)) && !ready_only {
            let look = self.scan(INDEX_AGE_MAX).await.unwrap_or_default();
            for key in look.models.into_keys().filter(|key| !self.catalog.knows_key(key)) {
                index.push(IndexEntry { key, version: None, state: None, reason: String::new() });
            }
            index.sort_by(|one, other| (&one.key, one.version).cmp(&(&other.key, other.version)));
        }
        index
    }

    /// The versions whose statistics are asked for: all that are ready of this model, or of every model for an empty
    /// name.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if there is no such model or version.
    pub fn statistics(&self, name: &str, version: Option<Version>) -> Result<Vec<Arc<Handle>>> {
        if name.is_empty() {
            return Ok(self.catalog.all_ready());
        }
        match version {
            None => {
                let handles = self.catalog.ready_of(name);
                let unknown = || Error::invalid(format!("requested model '{name}' is not available"));
                if handles.is_empty() { Err(unknown()) } else { Ok(handles) }
            }
            Some(version) => self
                .catalog
                .find(name, Some(version))
                .map(|handle| vec![handle])
                .map_err(|_| Error::invalid(format!("requested model version is not available for model '{name}'"))),
        }
    }

    /// Loads or reloads a model and waits until that is done.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] unless the control mode is explicit; otherwise why the model could not be loaded.
    pub async fn load(&self, name: &str, overrides: Overrides) -> Result<()> {
        self.check_explicit()?;
        repository::check_name(name)?;
        overrides.check_size(self.override_bytes_max)?;
        let keys = if overrides.files.is_empty() { self.keys(name).await? } else { vec![Key::of(name)] };
        let (this, overrides) = (self, &overrides);
        let loads = keys.into_iter().map(|key| async move {
            // Whoever asks for a model by its name wants it now, also if it is on demand.
            let wanted = this.demand.want(&key);
            let loaded = this.manager.ask(key.clone(), What::Load(overrides.clone())).await;
            drop(wanted);
            if loaded.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
                this.demand.is_nowhere(&key);
            }
            loaded
        });
        // The reference server's status for a name that is in no repository.
        join_all(loads).await.into_iter().collect::<Result<()>>().map_err(|error| match error.kind() {
            Kind::NotFound => Error::internal(error.message().to_owned()),
            _ => error,
        })
    }

    /// Takes a model out of service; returns once it gets no more requests, memory is freed later. With `dependents` also
    /// the models that only this one is made of.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] unless the control mode is explicit.
    pub async fn unload(&self, name: &str, dependents: bool) -> Result<()> {
        self.check_explicit()?;
        repository::check_name(name)?;
        let keys = if self.namespacing { self.catalog.keys(name) } else { vec![Key::of(name)] };
        let unloads = keys.into_iter().map(|key| {
            self.demand.forget(&key);
            let unload = Unload { dependents, because: None };
            self.manager.ask(key, What::Unload(unload))
        });
        join_all(unloads).await.into_iter().collect()
    }

    fn check_explicit(&self) -> Result<()> {
        match self.control {
            Control::Explicit(_) => Ok(()),
            Control::None | Control::Poll(_) => {
                Err(Error::unavailable("explicit model load / unload is not allowed if polling is enabled"))
            }
        }
    }

    /// The counters of the server that this engine belongs to.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Ends loads that wait for an object store; callers who wait for such a load hear of it.
    pub fn end_fetches(&self) {
        self.repositories.end_fetches();
    }

    /// Refuses new requests, finishes what was accepted, unloads everything, and ends the manager.
    pub async fn stop(&self) {
        self.manager.stop().await;
    }

    /// Schedulers that wait for more requests before they run anything wait no longer.
    pub fn release(&self) {
        self.catalog.release();
    }

    /// Refuses everything that still waits; what runs goes on.
    pub fn abort(&self) {
        self.catalog.abort();
    }
}

impl Infer for Engine {
    fn infer(&self, request: Request) -> Responses {
        self.entrance.infer(request)
    }
}

/// The error of an operation after the manager ended.
fn stopped() -> Error {
    Error::new(Kind::Unavailable, "the server is stopping")
}
