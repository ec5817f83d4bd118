//! What becomes of each model: which operation on it runs, which waits, what is served. Decides, and does nothing itself.
//!
//! The manager tells [`Models`] what has happened by [`Models::on`], and does what [`Models::effects`] says. It knows no
//! threads and no files, so that it can be run step by step: what serves a version (`S`) and who waits for an answer
//! (`C`) are anything. Each caller gets exactly one answer. `event` is what comes in and goes out, `model` is one model,
//! `members` is what concerns models that are made of others.

mod event;
mod members;
#[cfg(test)]
mod members_tests;
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::event::{Effect, Event, Job, Loaded, Origin, Retired};
use self::model::{Model, Operation, Running};
use super::Key;
use super::lifecycle::State;
use super::order::{Because, Turn, Unload, What, outdated, outdated_load, turn};
use super::overrides::Overrides;
use super::progress::Progress;
use super::stopped;
use crate::error::{Error, Kind, Result};
use crate::model::Version;

/// Whether a model is to leave for others' memory, which nobody has asked for.
fn is_eviction(what: &What) -> bool {
    matches!(what, What::Unload(Unload { because: Some(Because::Evicted), .. }))
}

/// Callers that may wait for operations on one model.
const CALLERS_MAX: usize = 64;

/// All models that were ever asked for.
#[derive(Debug)]
pub struct Models<S, C> {
    models: BTreeMap<Key, Model<S, C>>,
    changed: BTreeSet<Key>,
    effects: Vec<Effect<S, C>>,
    /// How many loads have brought new copies.
    news: u64,
    stopping: bool,
}

impl<S, C> Default for Models<S, C> {
    fn default() -> Self {
        Self { models: BTreeMap::new(), changed: BTreeSet::new(), effects: Vec::new(), news: 0, stopping: false }
    }
}

impl<S: Clone, C> Models<S, C> {
    /// Takes note of what has happened.
    pub fn on(&mut self, event: Event<S, C>) {
        match event {
            Event::Start(asked) => {
                for (key, callers) in asked {
                    self.models.entry(key.clone()).or_default().lasting = true;
                    self.ask(key, What::Load(Overrides::default()), callers);
                }
            }
            Event::Ask { key, what, callers } => self.ask(key, what, callers),
            Event::Resolved { key, versions, progress } => self.resolved(&key, &versions, &progress),
            Event::Loaded { key, result } => self.loaded(key, result),
            Event::Retired(retired) => self.retired(retired),
            Event::Lost { key, version, error } => self.lost(&key, version, &error),
            Event::Stop => {
                self.stopping = true;
                for key in self.models.keys().cloned().collect::<Vec<_>>() {
                    self.ask(key, What::Unload(Unload::default()), Vec::new());
                }
            }
        }
    }

    /// What is to be done now, in this order.
    pub fn effects(&mut self) -> Vec<Effect<S, C>> {
        let changed = std::mem::take(&mut self.changed);
        let publish = changed.into_iter().map(|key| {
            let view = self.models.get(&key).map(|model| model.view.clone());
            Effect::Publish(key, view)
        });
        let mut effects: Vec<_> = publish.collect();
        effects.append(&mut self.effects);
        effects
    }

    fn ask(&mut self, key: Key, what: What, mut callers: Vec<C>) {
        if self.stopping && matches!(what, What::Load(_)) {
            return self.answer(callers, &Err(stopped()));
        }
        if matches!(what, What::Unload(_)) && !self.models.contains_key(&key) {
            return self.answer(callers, &Ok(()));
        }
        if is_eviction(&what) && self.is_busy(&key) {
            // It was chosen when nobody did anything with it.
            return self.answer(callers, &Ok(()));
        }
        let model = self.models.entry(key.clone()).or_default();
        model.asked_for |= matches!(what, What::Load(_)) && !callers.is_empty();
        let running = model.running.as_ref().map(Running::runs);
        match turn(running, model.waiting.as_ref().map(|waiting| &waiting.what), &what) {
            Turn::Begin => self.begin(key, Operation { what, callers }),
            Turn::JoinRunning | Turn::JoinWaiting if model.callers() + callers.len() > CALLERS_MAX => {
                let message = format!("more than {CALLERS_MAX} operations on model '{}' wait already", key.name);
                self.answer(callers, &Err(Error::unavailable(message)));
            }
            Turn::JoinRunning => {
                if let Some(running) = &mut model.running {
                    running.operation.callers.append(&mut callers);
                }
            }
            Turn::JoinWaiting => {
                if let Some(waiting) = &mut model.waiting {
                    waiting.callers.append(&mut callers);
                }
            }
            Turn::Wait { cancel } => self.wait(key, Operation { what, callers }, cancel),
        }
    }

    /// Whether an operation on this model is under way. What serves it stays, unless that is an unload.
    fn is_busy(&mut self, key: &Key) -> bool {
        let Some(model) = self.models.get(key).filter(|model| model.running.is_some()) else { return false };
        if !model.servings.is_empty() {
            self.effects.push(Effect::Stay(model.servings.values().cloned().collect()));
        }
        true
    }

    /// Puts an operation behind the one that runs, in place of any that waits; `cancel` if what runs is pointless now.
    fn wait(&mut self, key: Key, operation: Operation<C>, cancel: bool) {
        let Some(model) = self.models.get_mut(&key) else { return };
        let overtaken = model.waiting.replace(operation);
        let cancelled = model.running.as_ref().filter(|_| cancel);
        if let Some(running) = cancelled {
            running.progress.overtaken.cancel();
        }
        let idle = cancelled.is_some_and(|running| !running.needs.is_empty());
        if let Some(Operation { what, callers }) = overtaken {
            self.answer(callers, &Err(outdated(&what)));
        }
        // It waits for others and has no job that would end.
        if idle {
            self.loaded(key, Err(outdated_load()));
        }
    }

    fn begin(&mut self, key: Key, operation: Operation<C>) {
        match operation.what.clone() {
            What::Load(overrides) => self.begin_load(key, overrides, operation),
            What::Unload(unload) => self.begin_unload(key, unload, operation),
        }
    }

    fn begin_load(&mut self, key: Key, overrides: Overrides, operation: Operation<C>) {
        let model = self.models.entry(key.clone()).or_default();
        let running = Running::new(operation);
        model.view.wanted = true;
        model.view.progress = Some(running.progress.clone());
        model.running = Some(running);
        self.changed.insert(key.clone());
        self.start_job(&key, overrides, false);
    }

    fn start_job(&mut self, key: &Key, overrides: Overrides, members_tried: bool) {
        let Some(model) = self.models.get_mut(key) else { return };
        let Some(running) = &mut model.running else { return };
        running.again |= std::mem::take(&mut model.stale);
        running.news = self.news;
        let served = model.origin.clone().filter(|_| !model.servings.is_empty());
        let served = served.map(|origin| (origin, model.servings.clone()));
        let (progress, again) = (running.progress.clone(), running.again);
        self.effects.push(Effect::Load(Job { key: key.clone(), overrides, again, served, progress, members_tried }));
    }

    fn resolved(&mut self, key: &Key, versions: &[Version], progress: &Arc<Progress>) {
        let goes_on = |running: &Running<C>| Arc::ptr_eq(&running.progress, progress);
        let model = self.models.get_mut(key).filter(|model| model.running.as_ref().is_some_and(goes_on));
        let Some(model) = model else { return };
        model.view.reason = "".into();
        for &version in versions.iter().filter(|version| !model.servings.contains_key(version)) {
            model.view.set(version, State::Loading, "");
        }
        self.changed.insert(key.clone());
    }

    fn loaded(&mut self, key: Key, result: Result<Loaded<S>>) {
        if let Ok(Loaded::Needs(needs)) = result {
            return self.wait_for(key, needs);
        }
        let Some(model) = self.models.get_mut(&key) else { return };
        if let Ok(loaded) = result.as_ref()
            && model.is_outdone(loaded)
        {
            return self.load_anew(key, result);
        }
        let Some(Running { operation, again, news, .. }) = model.running.take() else { return };
        model.view.progress = None;
        self.changed.insert(key.clone());
        let result = match (self.fitting(&key, result), operation.what) {
            (Ok(Loaded::New { origin, versions, kept, members }), what) => {
                let Some(model) = self.models.get_mut(&key) else { return };
                if let What::Load(overrides) = what {
                    // Files may be large, and nobody but their caller has them.
                    model.overrides = Overrides { files: BTreeMap::new(), ..overrides };
                }
                model.origin = origin;
                let members = std::mem::replace(&mut model.members, members);
                model.sought.clear();
                let (replaced, unloaded) = model.replace(versions, &kept);
                if !replaced.is_empty() {
                    model.formers.extend((!members.is_empty()).then(|| members.clone()));
                    let retired = Retired { members, ..Retired::aside(&key, unloaded) };
                    self.effects.push(Effect::Retire(replaced, retired));
                }
                self.news += 1;
                model.news = self.news;
                self.compare(&key, news);
                self.reload_dependents(&key);
                Ok(())
            }
            (Ok(Loaded::Asleep), _) => {
                self.models.entry(key.clone()).or_default().sleep();
                Ok(())
            }
            (Ok(Loaded::Unchanged | Loaded::Needs(_)), _) => Ok(()),
            (Err(error), _) => Err(error),
        };
        if let Err(error) = &result {
            self.failed(&key, error, again);
        }
        self.answer(operation.callers, &result);
        self.next(key);
    }

    /// A version that the load relies on was lost meanwhile: drops what it has opened, and begins once more. This
    /// happens once only, since nothing that is served is relied on any more.
    fn load_anew(&mut self, key: Key, loaded: Result<Loaded<S>>) {
        if let Ok(Loaded::New { versions, kept, .. }) = loaded {
            self.drop_opened(&key, versions, &kept);
        }
        let running = self.models.get(&key).and_then(|model| model.running.as_ref());
        if let Some(What::Load(overrides)) = running.map(|running| running.operation.what.clone()) {
            self.start_job(&key, overrides, false);
        }
    }

    /// Drops what a load has opened for nothing.
    fn drop_opened(&mut self, key: &Key, versions: BTreeMap<Version, S>, kept: &BTreeSet<Version>) {
        let opened = versions.into_iter().filter(|(version, _)| !kept.contains(version));
        let opened: Vec<S> = opened.map(|(_, serving)| serving).collect();
        if !opened.is_empty() {
            self.effects.push(Effect::Retire(opened, Retired::aside(key, Vec::new())));
        }
    }

    fn failed(&mut self, key: &Key, error: &Error, again: bool) {
        let Some(model) = self.models.get_mut(key) else { return };
        model.failed(error);
        if again {
            // It still does not fit what it is made of: the next load is not to find everything as it should be.
            model.origin = None;
        }
        // A name that somebody mistyped is no model that should be there.
        if error.kind() == Kind::NotFound && model.is_nothing() {
            self.models.remove(key);
        }
    }

    /// Goes on with what has waited for others, if it need not wait any more.
    fn go_on(&mut self, key: &Key) {
        let running = self.models.get(key).and_then(|model| model.running.as_ref());
        let Some(running) = running.filter(|running| running.is_free()) else { return };
        match running.operation.what.clone() {
            What::Load(overrides) => self.start_job(key, overrides, true),
            What::Unload(_) => {
                // What is made of it goes first, even if something newer has overtaken its unload meanwhile, or only a
                // replaced copy of it still has requests.
                self.unload_users(key);
                let running = self.models.get(key).and_then(|model| model.running.as_ref());
                if running.is_some_and(Running::is_free) {
                    self.retire(key);
                }
            }
        }
    }

    fn begin_unload(&mut self, key: Key, unload: Unload, operation: Operation<C>) {
        let orphans = if unload.dependents { self.orphans(&key) } else { Vec::new() };
        let Some(model) = self.models.get_mut(&key) else { return self.answer(operation.callers, &Ok(())) };
        model.unload(unload.because.as_ref());
        model.running = Some(Running::new(Operation { what: operation.what, callers: Vec::new() }));
        self.changed.insert(key.clone());
        self.answer(operation.callers, &Ok(()));
        self.go_on(&key);
        for orphan in orphans {
            self.ask(orphan, What::Unload(Unload { dependents: true, because: None }), Vec::new());
        }
    }

    /// Drains and drops what is left of a model that is unloaded.
    fn retire(&mut self, key: &Key) {
        let Some(model) = self.models.get_mut(key) else { return };
        model.running.iter_mut().for_each(|running| running.retires = true);
        model.view.versions.values_mut().for_each(|view| view.serving = None);
        let leaving = std::mem::take(&mut model.leaving);
        let unloaded = leaving.keys().copied().collect();
        let evicted = model.evicted.take().filter(|_| !leaving.is_empty());
        let retired = Retired { operation: true, evicted, ..Retired::aside(key, unloaded) };
        self.effects.push(Effect::Retire(leaving.into_values().collect(), retired));
        self.changed.insert(key.clone());
    }

    fn retired(&mut self, Retired { key, unloaded, members, operation, .. }: Retired) {
        let Some(model) = self.models.get_mut(&key) else { return };
        model.retired(&unloaded, &members);
        if operation {
            model.running = None;
            if model.is_nothing() && model.view.reason.is_empty() {
                self.models.remove(&key);
            }
        }
        self.changed.insert(key.clone());
        if operation {
            self.next(key);
        } else {
            self.release(&key);
        }
    }

    /// The versions that are served, and what serves them.
    pub fn served(&self) -> impl Iterator<Item = (&Key, Version, &S)> {
        let servings = self.models.iter().flat_map(|(key, model)| model.servings.iter().map(move |each| (key, each)));
        servings.map(|(key, (version, serving))| (key, *version, serving))
    }

    /// Drops a version that cannot serve; the next load opens everything anew.
    fn lost(&mut self, key: &Key, version: Version, error: &Error) {
        let Some(model) = self.models.get_mut(key) else { return };
        let Some(serving) = model.servings.remove(&version) else { return };
        model.origin = None;
        model.view.set(version, State::Unavailable, error.message());
        let retired = Retired::aside(key, vec![version]);
        self.effects.push(Effect::Retire(vec![serving], retired));
        self.changed.insert(key.clone());
    }

    /// Begins the next operation on a model, and tells those that wait for the last one.
    fn next(&mut self, key: Key) {
        if let Some(model) = self.models.get_mut(&key) {
            if let Some(waiting) = model.waiting.take() {
                self.begin(key.clone(), waiting);
            } else if model.stale && model.view.wanted && !self.stopping {
                let overrides = model.overrides.clone();
                let operation = Operation { what: What::Load(overrides.clone()), callers: Vec::new() };
                self.begin_load(key.clone(), overrides, operation);
            }
        }
        self.release(&key);
    }

    fn answer(&mut self, callers: Vec<C>, result: &Result<()>) {
        self.effects.extend(callers.into_iter().map(|caller| Effect::Answer(caller, result.clone())));
    }
}
