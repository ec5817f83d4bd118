//! One model as the state machine knows it: what serves it, which operation on it runs, and which one waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::event::{Loaded, Origin, Retired};
use crate::engine::Key;
use crate::engine::lifecycle::{ASLEEP, ModelView, State, UNLOADED, VersionView};
use crate::engine::order::Because;
use crate::engine::order::{Running as Runs, What};
use crate::engine::overrides::Overrides;
use crate::engine::progress::Progress;
use crate::error::Error;
use crate::model::Version;

/// A model that was ever asked for.
#[derive(Debug)]
pub(super) struct Model<S, C> {
    pub(super) view: ModelView<S>,
    /// What serves the ready versions.
    pub(super) servings: BTreeMap<Version, S>,
    /// What served versions that are unloaded, until what is made of them has finished its requests.
    pub(super) leaving: BTreeMap<Version, S>,
    /// Where it comes from; `None` also if the next load is to open everything anew.
    pub(super) origin: Option<Origin>,
    /// Where that comes from which leaves because others need its memory.
    pub(super) evicted: Option<Origin>,
    /// The last overrides of the configuration, for a reload that nobody asked for.
    pub(super) overrides: Overrides,
    /// What serves it is made of these.
    pub(super) members: Vec<Key>,
    /// What it is to be made of, if its last load has not come to that.
    pub(super) sought: Vec<Key>,
    /// What its replaced copies are made of, one for each that still has requests.
    pub(super) formers: Vec<Vec<Key>>,
    /// Whether one of its members was replaced and this model has not been fitted to it since.
    pub(super) stale: bool,
    /// Which of all loads has brought what serves it.
    pub(super) news: u64,
    pub(super) running: Option<Running<C>>,
    pub(super) waiting: Option<Operation<C>>,
    /// Whether it is to be there since the start, even if its name is wrong.
    pub(super) lasting: bool,
    /// Whether somebody asked for itself, and not for something that is made of it.
    pub(super) asked_for: bool,
}

/// Something to be done with a model, and who wants to know of its end.
#[derive(Debug)]
pub(super) struct Operation<C> {
    pub(super) what: What,
    pub(super) callers: Vec<C>,
}

/// The operation that is under way.
#[derive(Debug)]
pub(super) struct Running<C> {
    pub(super) operation: Operation<C>,
    pub(super) progress: Arc<Progress>,
    /// Whether it is a load that fits the model to members that were replaced.
    pub(super) again: bool,
    /// How many loads had brought new copies when its job began: it has seen no later one.
    pub(super) news: u64,
    /// The models that it waits for; while there are any, it has no job. A load waits for what it is made of, an unload
    /// for what is made of it.
    pub(super) needs: BTreeSet<Key>,
    /// Whether it is an unload whose versions are being drained.
    pub(super) retires: bool,
}

impl<C> Running<C> {
    pub(super) fn new(operation: Operation<C>) -> Self {
        Self {
            operation,
            progress: Arc::new(Progress::new()),
            again: false,
            news: 0,
            needs: BTreeSet::new(),
            retires: false,
        }
    }

    /// Whether it waits for nothing and has yet to go on.
    pub(super) fn is_free(&self) -> bool {
        self.needs.is_empty() && !self.retires
    }

    pub(super) fn runs(&self) -> Runs<'_> {
        let begun = matches!(self.operation.what, What::Unload(_)) || self.progress.has_begun();
        Runs { what: &self.operation.what, begun }
    }
}

impl<S, C> Default for Model<S, C> {
    fn default() -> Self {
        Self {
            view: ModelView::default(),
            servings: BTreeMap::new(),
            leaving: BTreeMap::new(),
            origin: None,
            evicted: None,
            overrides: Overrides::default(),
            members: Vec::new(),
            sought: Vec::new(),
            formers: Vec::new(),
            stale: false,
            news: 0,
            running: None,
            waiting: None,
            lasting: false,
            asked_for: false,
        }
    }
}

impl<S: Clone, C> Model<S, C> {
    /// How many wait for the ends of its operations.
    pub(super) fn callers(&self) -> usize {
        let running = self.running.as_ref().map_or(0, |running| running.operation.callers.len());
        running + self.waiting.as_ref().map_or(0, |waiting| waiting.callers.len())
    }

    /// Whether there is nothing to say about it.
    pub(super) fn is_nothing(&self) -> bool {
        let rests = self.waiting.is_none() && self.running.is_none() && self.formers.is_empty();
        self.view.versions.is_empty() && rests && !self.lasting
    }

    /// It is to be made of these; what is served goes on, in case the load fails.
    pub(super) fn seek(&mut self, members: Vec<Key>) {
        if self.servings.is_empty() {
            self.members.clear();
        }
        self.sought = members;
    }

    /// Whether it is made of this model, or is to be.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.members.contains(key) || self.sought.contains(key)
    }

    /// Whether it is unloaded just now.
    pub(super) fn leaves(&self) -> bool {
        self.running.as_ref().is_some_and(|running| matches!(running.operation.what, What::Unload(_)))
    }

    /// Whether requests may be under way in it that need this model.
    pub(super) fn uses(&self, key: &Key) -> bool {
        let serves = self.leaves() || !self.servings.is_empty();
        serves && self.members.contains(key) || self.formers.iter().any(|members| members.contains(key))
    }

    /// Whether this load relies on a version that was lost since it began.
    pub(super) fn is_outdone(&self, loaded: &Loaded<S>) -> bool {
        match loaded {
            Loaded::Unchanged => self.origin.is_none(),
            Loaded::Asleep | Loaded::Needs(_) => false,
            Loaded::New { kept, .. } => kept.iter().any(|version| !self.servings.contains_key(version)),
        }
    }

    /// Serves these versions instead of those before; gives what is not used any more, and the versions that are not
    /// served by a newer copy.
    pub(super) fn replace(
        &mut self,
        versions: BTreeMap<Version, S>,
        kept: &BTreeSet<Version>,
    ) -> (Vec<S>, Vec<Version>) {
        let mut replaced = std::mem::replace(&mut self.servings, versions);
        self.view.reason = "".into();
        self.view.versions.retain(|version, _| replaced.contains_key(version));
        let unloaded: Vec<Version> =
            replaced.keys().copied().filter(|version| !self.servings.contains_key(version)).collect();
        for &version in &unloaded {
            self.view.set(version, State::Unloading, UNLOADED);
        }
        for (version, serving) in &self.servings {
            let serving = Some(serving.clone());
            let view = VersionView { state: State::Ready, reason: "".into(), serving };
            self.view.versions.insert(*version, view);
        }
        replaced.retain(|version, _| !kept.contains(version));
        (replaced.into_values().collect(), unloaded)
    }

    /// Takes it out of service, for this reason if it is still wanted.
    pub(super) fn unload(&mut self, because: Option<&Because>) {
        self.leaving = std::mem::take(&mut self.servings);
        self.evicted = self.origin.take().filter(|_| because == Some(&Because::Evicted) && !self.stale);
        self.stale = false;
        self.asked_for &= because.is_some();
        self.view.wanted = because.is_some();
        self.view.reason = because.map_or("", Because::text).into();
        let reason = because.map_or(UNLOADED, Because::text);
        for version in self.view.versions.keys().copied().collect::<Vec<_>>() {
            match self.leaving.get(&version) {
                Some(serving) => {
                    let view =
                        VersionView { state: State::Unloading, reason: reason.into(), serving: Some(serving.clone()) };
                    self.view.versions.insert(version, view);
                }
                None => self.view.set(version, State::Unavailable, reason),
            }
        }
    }

    /// It is known, and not opened; what is served goes on.
    pub(super) fn sleep(&mut self) {
        self.view.reason = ASLEEP.into();
        let loading = self.view.versions.values_mut().filter(|view| view.state == State::Loading);
        loading.for_each(|view| (view.state, view.reason) = (State::Unavailable, ASLEEP.into()));
    }

    /// Versions are gone, unless they are served again or another copy of them is leaving.
    pub(super) fn retired(&mut self, unloaded: &[Version], members: &[Key]) {
        if let Some(at) = self.formers.iter().position(|former| former == members) {
            self.formers.swap_remove(at);
        }
        for version in unloaded.iter().filter(|version| !self.leaving.contains_key(version)) {
            if let Some(view) = self.view.versions.get_mut(version).filter(|view| view.state == State::Unloading) {
                view.state = State::Unavailable;
            }
        }
    }

    /// What was loading is unavailable for this reason; what is served goes on.
    pub(super) fn failed(&mut self, error: &Error) {
        let reason = error.message();
        for (version, view) in self.view.versions.clone() {
            if view.state == State::Loading || self.servings.is_empty() {
                self.view.set(version, State::Unavailable, reason);
            }
        }
        if self.view.versions.is_empty() {
            self.view.reason = reason.into();
        }
    }
}

impl Retired {
    /// The end of versions that a newer copy replaces, or nothing does, while their model goes on.
    pub(super) fn aside(key: &Key, unloaded: Vec<Version>) -> Self {
        Self { key: key.clone(), unloaded, members: Vec::new(), operation: false, evicted: None }
    }
}
