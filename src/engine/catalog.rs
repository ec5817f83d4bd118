//! What may be served now: a snapshot that the manager replaces whole and readers never wait for.
//!
//! A new snapshot shares with the old one every model that has not changed, so that thousands of models cost little.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::demand::Demand;
use super::lifecycle::{ModelView, State, VersionView};
use super::{Handle, Key};
use crate::error::{Error, Result};
use crate::model::Version;

/// One line of the repository index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model.
    pub key: Key,
    /// The version; `None` if no version of the model is known.
    pub version: Option<Version>,
    /// Its state; `None` for a model that was never loaded.
    pub state: Option<State>,
    /// Why it is in that state, if there is more to say; how far it is while it loads.
    pub reason: String,
}

/// A model as readers find it.
struct Model {
    namespace: Arc<str>,
    view: ModelView<Arc<Handle>>,
    /// The highest version that is served.
    latest: Option<Arc<Handle>>,
    is_ready: bool,
}

/// The models by name; of one name there is one, except with namespaces.
type Snapshot = HashMap<Arc<str>, SmallVec<[Arc<Model>; 1]>>;

/// The one place where readers find models.
pub(super) struct Catalog {
    /// Replaced by the manager only.
    snapshot: ArcSwap<Snapshot>,
    /// Knows the models that need not be there.
    demand: Arc<Demand>,
    strict: bool,
    /// Set once, when the names of all that should be loaded at the start are known.
    listed: AtomicBool,
    /// Set once, when everything that should be loaded at the start was tried.
    started: AtomicBool,
    /// Whether a repository may have models that nobody has seen yet.
    unread: AtomicBool,
    ready: watch::Sender<bool>,
}

impl Catalog {
    pub(super) fn new(strict: bool, demand: Arc<Demand>) -> Self {
        Self {
            snapshot: ArcSwap::default(),
            demand,
            strict,
            listed: AtomicBool::new(false),
            started: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            ready: watch::Sender::new(false),
        }
    }

    /// Replaces what readers see of these models; `None` takes one away.
    pub(super) fn publish(&self, changes: Vec<(Key, Option<ModelView<Arc<Handle>>>)>) {
        if changes.is_empty() {
            return;
        }
        let mut snapshot = Snapshot::clone(&self.snapshot.load());
        for (Key { name, namespace }, view) in changes {
            let models = snapshot.entry(name.clone()).or_default();
            models.retain(|model| model.namespace != namespace);
            if let Some(view) = view {
                models.push(Arc::new(Model::new(namespace, view)));
                models.sort_by(|one, other| one.namespace.cmp(&other.namespace));
            } else if models.is_empty() {
                snapshot.remove(&name);
            }
        }
        self.snapshot.store(Arc::new(snapshot));
        self.update_readiness();
    }

    /// From now on, what is not known is in no repository.
    pub(super) fn list_finished(&self) {
        self.listed.store(true, Ordering::Release);
    }

    /// Everything that should be loaded at the start was tried.
    pub(super) fn start_finished(&self) {
        self.list_finished();
        self.started.store(true, Ordering::Release);
        self.update_readiness();
    }

    /// Whether every repository has been read since the start, so that all models are known that should be ready.
    pub(super) fn repositories_read(&self, all: bool) {
        if self.unread.swap(!all, Ordering::AcqRel) == all {
            self.update_readiness();
        }
    }

    fn update_readiness(&self) {
        let snapshot = self.snapshot.load();
        let good = |name: &Arc<str>, model: &Model| {
            model.is_ready || !model.view.wanted || self.demand.returns(&model.key(name))
        };
        let all_ready = || snapshot.iter().all(|(name, models)| models.iter().all(|model| good(name, model)));
        let ready = self.started.load(Ordering::Acquire)
            && (!self.strict || !self.unread.load(Ordering::Acquire) && all_ready());
        self.ready.send_if_modified(|current| std::mem::replace(current, ready) != ready);
    }

    pub(super) fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(super) fn find(&self, name: &str, version: Option<Version>) -> Result<Arc<Handle>> {
        self.find_among(name, |models| match models {
            [model] => model.find(name, version),
            models => Err(Error::invalid(format!(
                "There are {} identifiers of model '{name}' in global map, model namespace must be provided to resolve ambiguity.",
                models.len()
            ))),
        })
    }

    /// The version of a model as another model sees it that lies in `namespace`: that of its own namespace goes first,
    /// and one that is being unloaded is still there for what the other has begun.
    pub(super) fn find_member(&self, namespace: &str, name: &str, version: Option<Version>) -> Result<Arc<Handle>> {
        let own = self.find_among(name, |models| match models.iter().find(|model| *model.namespace == *namespace) {
            Some(model) => model.find(name, version).or_else(|error| model.find_leaving(version).ok_or(error)),
            None => Err(Error::not_found("")),
        });
        own.or_else(|_| self.find(name, version))
    }

    fn find_among(&self, name: &str, find: impl FnOnce(&[Arc<Model>]) -> Result<Arc<Handle>>) -> Result<Arc<Handle>> {
        match self.snapshot.load().get(name) {
            Some(models) => find(models),
            None if !self.listed.load(Ordering::Acquire) => Err(Error::unavailable("Server not ready")),
            None => Err(unknown(name, "is not found")),
        }
    }

    fn models_of(&self, name: &str) -> SmallVec<[Arc<Model>; 1]> {
        self.snapshot.load().get(name).cloned().unwrap_or_default()
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.snapshot.load().contains_key(name)
    }

    pub(super) fn knows_key(&self, key: &Key) -> bool {
        self.models_of(&key.name).iter().any(|model| model.namespace == key.namespace)
    }

    /// Whether a version of the model is served.
    pub(super) fn is_ready(&self, key: &Key) -> bool {
        self.models_of(&key.name).iter().any(|model| model.namespace == key.namespace && model.latest.is_some())
    }

    /// The model of that name, if there is one only, and it should be served and is not.
    pub(super) fn absent(&self, name: &str) -> Option<Key> {
        match self.models_of(name).as_slice() {
            [model] if model.view.wanted && model.latest.is_none() => Some(Key::within(&model.namespace, name)),
            _ => None,
        }
    }

    /// The models that are served, each with what serves it, and whether it is being loaded anew.
    pub(super) fn served(&self) -> Vec<(Key, Vec<Arc<Handle>>, bool)> {
        let snapshot = self.snapshot.load();
        let models = snapshot.iter().flat_map(|(name, models)| models.iter().map(move |model| (name, model)));
        let served = models.filter(|(_, model)| model.latest.is_some());
        served.map(|(name, model)| (model.key(name), model.served(), model.view.progress.is_some())).collect()
    }

    /// The models of that name.
    pub(super) fn keys(&self, name: &str) -> Vec<Key> {
        self.models_of(name).iter().map(|model| Key::within(&model.namespace, name)).collect()
    }

    pub(super) fn ready_of(&self, name: &str) -> Vec<Arc<Handle>> {
        self.models_of(name).iter().flat_map(|model| model.served()).collect()
    }

    pub(super) fn versions_ready(&self, name: &str) -> Vec<Version> {
        self.ready_of(name).iter().map(|handle| handle.version).collect()
    }

    pub(super) fn all_ready(&self) -> Vec<Arc<Handle>> {
        let snapshot = self.snapshot.load();
        let mut names: Vec<&Arc<str>> = snapshot.keys().collect();
        names.sort_unstable();
        names.into_iter().flat_map(|name| self.ready_of(name)).collect()
    }

    pub(super) fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let snapshot = self.snapshot.load();
        let mut index = Vec::new();
        for (name, models) in snapshot.iter() {
            for model in models {
                let key = Key { name: name.clone(), namespace: model.namespace.clone() };
                model.index(&key, ready_only, &mut index);
            }
        }
        index.sort_by(|one, other| (&one.key, one.version).cmp(&(&other.key, other.version)));
        index
    }

    pub(super) fn abort(&self) {
        self.all_ready().iter().for_each(|handle| handle.served.abort());
    }

    pub(super) fn release(&self) {
        self.all_ready().iter().for_each(|handle| handle.served.release());
    }
}

impl Model {
    fn new(namespace: Arc<str>, view: ModelView<Arc<Handle>>) -> Self {
        let served = |version: &VersionView<Arc<Handle>>| version.serving.clone().filter(|_| version.is_served());
        let latest = view.versions.values().rev().find_map(served);
        let is_ready = view.is_ready();
        Self { namespace, view, latest, is_ready }
    }

    fn key(&self, name: &Arc<str>) -> Key {
        Key { name: name.clone(), namespace: self.namespace.clone() }
    }

    fn served(&self) -> Vec<Arc<Handle>> {
        let served = self.view.versions.values().filter(|version| version.is_served());
        served.filter_map(|version| version.serving.clone()).collect()
    }

    fn find(&self, name: &str, version: Option<Version>) -> Result<Arc<Handle>> {
        let loading = || match &self.view.progress {
            Some(progress) => format!(": {}", progress.describe()),
            None => String::new(),
        };
        let Some(version) = version else {
            return match (&self.latest, &self.view.progress) {
                (Some(latest), _) => Ok(latest.clone()),
                (None, Some(_)) => Err(not_ready(format_args!("'{name}' is not at ready state{}", loading()))),
                (None, None) => Err(unknown(name, "has no available versions")),
            };
        };
        match self.view.versions.get(&version) {
            Some(view) => match &view.serving {
                Some(handle) if view.is_served() => Ok(handle.clone()),
                _ => {
                    let loading = if view.state == State::Loading { loading() } else { String::new() };
                    Err(not_ready(format_args!("'{name}' version {version} is not at ready state{loading}")))
                }
            },
            // Which versions there are is not known before the model was looked at.
            None if self.view.versions.is_empty() && self.view.progress.is_some() => {
                Err(not_ready(format_args!("'{name}' version {version} is not at ready state{}", loading())))
            }
            None => Err(unknown(name, format_args!("version {version} is not found"))),
        }
    }

    /// A version that is being unloaded and still has something to serve.
    fn find_leaving(&self, version: Option<Version>) -> Option<Arc<Handle>> {
        match version {
            Some(version) => self.view.versions.get(&version)?.serving.clone(),
            None => self.view.versions.values().rev().find_map(|view| view.serving.clone()),
        }
    }

    fn index(&self, key: &Key, ready_only: bool, index: &mut Vec<IndexEntry>) {
        let progress = || self.view.progress.as_ref().map(|progress| progress.describe()).unwrap_or_default();
        if self.view.versions.is_empty() && !ready_only {
            let (state, reason) = match &self.view.progress {
                Some(_) => (Some(State::Loading), progress()),
                None => ((!self.view.reason.is_empty()).then_some(State::Unavailable), self.view.reason.to_string()),
            };
            index.push(IndexEntry { key: key.clone(), version: None, state, reason });
        }
        let shown = self.view.versions.iter().filter(|(_, view)| !ready_only || view.state == State::Ready);
        index.extend(shown.map(|(version, view)| {
            let reason = if view.state == State::Loading { progress() } else { view.reason.to_string() };
            IndexEntry { key: key.clone(), version: Some(*version), state: Some(view.state), reason }
        }));
    }
}

fn unknown(name: &str, what: impl std::fmt::Display) -> Error {
    let what = format!("Request for unknown model: '{name}' {what}");
    Error::not_found(what)
}

fn not_ready(what: std::fmt::Arguments<'_>) -> Error {
    Error::unavailable(format!("Request for unknown model: {what}"))
}
