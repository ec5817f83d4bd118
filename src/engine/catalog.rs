//! What may be served now: a snapshot that the manager replaces whole and readers never wait for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::Handle;
use super::lifecycle::{State, UNLOADED};
use crate::error::{Error, Result};
use crate::model::Version;

/// One line of the repository index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model's name.
    pub name: String,
    /// The version; `None` if no version of the model is known.
    pub version: Option<Version>,
    /// Its state; `None` for a model that was never loaded.
    pub state: Option<State>,
    /// Why it is in that state, if there is more to say.
    pub reason: String,
}

/// A version as the manager shows it.
#[derive(Clone)]
pub(super) struct VersionView {
    pub(super) state: State,
    pub(super) reason: String,
    /// Present while the version is served.
    pub(super) handle: Option<Arc<Handle>>,
}

/// A model as the manager shows it.
#[derive(Clone, Default)]
pub(super) struct ModelView {
    pub(super) versions: BTreeMap<Version, VersionView>,
    /// Why no version is known.
    pub(super) reason: String,
    /// Whether the model should be served.
    pub(super) wanted: bool,
    /// The highest version that is served.
    latest: Option<Arc<Handle>>,
}

impl ModelView {
    fn is_ready(&self) -> bool {
        !self.versions.is_empty()
            && self.versions.values().all(|version| version.state == State::Ready || version.reason == UNLOADED)
    }
}

type Snapshot = HashMap<String, ModelView>;

/// The one place where readers find models.
pub(super) struct Catalog {
    /// Replaced by the manager only.
    snapshot: ArcSwap<Snapshot>,
    strict: bool,
    /// Set once, when everything that should be loaded at the start was tried.
    started: AtomicBool,
    ready: watch::Sender<bool>,
}

impl Catalog {
    pub(super) fn new(strict: bool) -> Self {
        Self { snapshot: ArcSwap::default(), strict, started: AtomicBool::new(false), ready: watch::Sender::new(false) }
    }

    /// Replaces what readers see.
    pub(super) fn publish(&self, models: impl Iterator<Item = (String, ModelView)>) {
        let snapshot: Snapshot = models
            .map(|(name, mut model)| {
                model.latest = model.versions.values().rev().find_map(|version| version.handle.clone());
                (name, model)
            })
            .collect();
        self.snapshot.store(Arc::new(snapshot));
        self.update_readiness();
    }

    pub(super) fn start_finished(&self) {
        self.started.store(true, Ordering::Release);
        self.update_readiness();
    }

    /// Whether everything that should be loaded at the start was tried.
    pub(super) fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    fn update_readiness(&self) {
        let snapshot = self.snapshot.load();
        let all_ready = || snapshot.values().filter(|model| model.wanted).all(ModelView::is_ready);
        let ready = self.has_started() && (!self.strict || all_ready());
        self.ready.send_if_modified(|current| std::mem::replace(current, ready) != ready);
    }

    pub(super) fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(super) fn find(&self, name: &str, version: Option<Version>) -> Result<Arc<Handle>> {
        let snapshot = self.snapshot.load();
        let Some(model) = snapshot.get(name) else {
            return Err(Error::not_found(format!("Request for unknown model: '{name}' is not found")));
        };
        let Some(version) = version else {
            return model.latest.clone().ok_or_else(|| {
                Error::not_found(format!("Request for unknown model: '{name}' has no available versions"))
            });
        };
        let Some(view) = model.versions.get(&version) else {
            return Err(Error::not_found(format!(
                "Request for unknown model: '{name}' version {version} is not found"
            )));
        };
        view.handle.clone().ok_or_else(|| {
            Error::unavailable(format!("Request for unknown model: '{name}' version {version} is not at ready state"))
        })
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.snapshot.load().contains_key(name)
    }

    pub(super) fn ready_of(&self, name: &str) -> Vec<Arc<Handle>> {
        let snapshot = self.snapshot.load();
        let versions = snapshot.get(name).into_iter().flat_map(|model| model.versions.values());
        versions.filter_map(|version| version.handle.clone()).collect()
    }

    pub(super) fn versions_ready(&self, name: &str) -> Vec<Version> {
        self.ready_of(name).iter().map(|handle| handle.version).collect()
    }

    pub(super) fn all_ready(&self) -> Vec<Arc<Handle>> {
        let snapshot = self.snapshot.load();
        let mut names: Vec<&String> = snapshot.keys().collect();
        names.sort_unstable();
        names.into_iter().flat_map(|name| self.ready_of(name)).collect()
    }

    pub(super) fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let snapshot = self.snapshot.load();
        let mut index = Vec::new();
        for (name, model) in snapshot.iter() {
            let entry = |version, state, reason: &str| IndexEntry {
                name: name.clone(),
                version,
                state,
                reason: reason.to_owned(),
            };
            if model.versions.is_empty() && !ready_only {
                let state = (!model.reason.is_empty()).then_some(State::Unavailable);
                index.push(entry(None, state, &model.reason));
            }
            let shown = model.versions.iter().filter(|(_, view)| !ready_only || view.state == State::Ready);
            index.extend(shown.map(|(version, view)| entry(Some(*version), Some(view.state), &view.reason)));
        }
        index.sort_by(|one, other| (&one.name, one.version).cmp(&(&other.name, other.version)));
        index
    }

    pub(super) fn abort(&self) {
        for handle in self.all_ready() {
            handle.scheduler.abort();
        }
    }
}
