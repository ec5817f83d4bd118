//! What becomes of each model: which operation on it runs, which waits, what is served. Decides, and does nothing itself.
//!
//! The manager tells [`Models`] what has happened by [`Models::on`], and does what [`Models::effects`] says. It knows no
//! threads and no files, so that it can be run step by step: what serves a version (`S`) and who waits for an answer
//! (`C`) are anything. Each caller gets exactly one answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Key;
use super::lifecycle::{ModelView, State, UNLOADED, VersionView};
use super::order::{Load, Running as Runs, Turn, Unload, What, outdated, turn};
use super::progress::Progress;
use super::stopped;
use crate::error::{Error, Kind, Result};
use crate::model::{ModelConfig, Version};
use crate::repository::Stamp;

/// Callers that may wait for operations on one model.
const CALLERS_MAX: usize = 64;

/// What has happened.
#[derive(Debug)]
pub enum Event<S, C> {
    /// The server starts: these models are to be there, whether they exist or not.
    Start(Vec<(Key, Vec<C>)>),
    /// Somebody asks for an operation.
    Ask {
        /// The model.
        key: Key,
        /// The operation.
        what: What,
        /// Who is to be answered.
        callers: Vec<C>,
    },
    /// A load has found out which versions it will open.
    Resolved {
        /// The model.
        key: Key,
        /// Its versions.
        versions: Vec<Version>,
        /// Which load that is; it may have ended by now.
        progress: Arc<Progress>,
    },
    /// A load has ended.
    Loaded {
        /// The model.
        key: Key,
        /// How.
        result: Result<Loaded<S>>,
    },
    /// Versions are drained and dropped.
    Retired(Retired),
    /// A version cannot serve any more.
    Lost {
        /// The model.
        key: Key,
        /// The version.
        version: Version,
        /// Why.
        error: Error,
    },
    /// The server ends.
    Stop,
}

/// What a load led to.
#[derive(Debug)]
pub enum Loaded<S> {
    /// What is served is what the files say.
    Unchanged,
    /// These models have to be ready first.
    Needs(Vec<Key>),
    /// All versions that are to be served from now on.
    New {
        /// Where they come from.
        origin: Option<Origin>,
        /// What serves them.
        versions: BTreeMap<Version, S>,
        /// Those of them that were served before and go on.
        kept: BTreeSet<Version>,
        /// The models that this one is made of.
        members: Vec<Key>,
    },
}

/// Where a model that is served comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Of the files.
    pub stamp: Stamp,
    /// Its configuration.
    pub config: Arc<ModelConfig>,
    /// Whether the configuration is not that of the files.
    pub config_overridden: bool,
    /// Whether the files are not those of the repository.
    pub files_overridden: bool,
}

/// Versions that were drained and dropped.
#[derive(Clone, Debug)]
pub struct Retired {
    /// Their model.
    pub key: Key,
    /// Those that are not served by a newer copy.
    pub unloaded: Vec<Version>,
    /// Whether this was an unload, after which the model's next operation may begin.
    pub operation: bool,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect<S, C> {
    /// Show readers this model; `None` if it is to be forgotten.
    Publish(Key, Option<ModelView<S>>),
    /// Answer a caller.
    Answer(C, Result<()>),
    /// Load a model, and tell of the end by [`Event::Loaded`].
    Load(Job<S>),
    /// Drain and drop these, and tell of the end by [`Event::Retired`].
    Retire(Vec<S>, Retired),
}

/// A load.
#[derive(Debug)]
pub struct Job<S> {
    /// The model.
    pub key: Key,
    /// How to load it.
    pub load: Load,
    /// What is served now, and where it comes from.
    pub served: Option<(Origin, BTreeMap<Version, S>)>,
    /// How far it is, and whether it is still wanted.
    pub progress: Arc<Progress>,
    /// Whether it was tried to load the models that this one is made of.
    pub members_tried: bool,
}

/// All models that were ever asked for.
#[derive(Debug)]
pub struct Models<S, C> {
    models: BTreeMap<Key, Model<S, C>>,
    changed: BTreeSet<Key>,
    effects: Vec<Effect<S, C>>,
    stopping: bool,
}

#[derive(Debug)]
struct Model<S, C> {
    view: ModelView<S>,
    /// What serves the ready versions.
    servings: BTreeMap<Version, S>,
    /// What served versions that are unloaded, until what is made of them has finished its requests.
    leaving: BTreeMap<Version, S>,
    origin: Option<Origin>,
    /// The last overrides of the configuration, for a reload that nobody asked for.
    load: Load,
    members: Vec<Key>,
    running: Option<Running<C>>,
    waiting: Option<Operation<C>>,
    /// Whether it is to be there since the start, even if its name is wrong.
    lasting: bool,
    /// Whether somebody asked for itself, and not for something that is made of it.
    asked_for: bool,
}

#[derive(Debug)]
struct Operation<C> {
    what: What,
    callers: Vec<C>,
}

#[derive(Debug)]
struct Running<C> {
    operation: Operation<C>,
    progress: Arc<Progress>,
    /// The models that it waits for; while there are any, it has no job. A load waits for what it is made of, an unload
    /// for what is made of it.
    needs: BTreeSet<Key>,
}

impl<S, C> Default for Models<S, C> {
    fn default() -> Self {
        Self { models: BTreeMap::new(), changed: BTreeSet::new(), effects: Vec::new(), stopping: false }
    }
}

impl<S, C> Default for Model<S, C> {
    fn default() -> Self {
        Self {
            view: ModelView::default(),
            servings: BTreeMap::new(),
            leaving: BTreeMap::new(),
            origin: None,
            load: Load::default(),
            members: Vec::new(),
            running: None,
            waiting: None,
            lasting: false,
            asked_for: false,
        }
    }
}

impl<S: Clone, C> Models<S, C> {
    /// Takes note of what has happened.
    pub fn on(&mut self, event: Event<S, C>) {
        match event {
            Event::Start(asked) => {
                for (key, callers) in asked {
                    self.models.entry(key.clone()).or_default().lasting = true;
                    self.ask(key, What::Load(Load::default()), callers);
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
                    running.operation.join(what, &mut callers);
                }
            }
            Turn::JoinWaiting => {
                if let Some(waiting) = &mut model.waiting {
                    waiting.join(what, &mut callers);
                }
            }
            Turn::Wait { cancel } => {
                let overtaken = model.waiting.replace(Operation { what, callers });
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
                    let outdated = outdated(&What::Load(Load::default()));
                    self.loaded(key, Err(outdated));
                }
            }
        }
    }

    fn begin(&mut self, key: Key, operation: Operation<C>) {
        match operation.what.clone() {
            What::Load(load) => self.begin_load(key, load, operation),
            What::Unload(unload) => self.begin_unload(key, unload, operation),
        }
    }

    fn begin_load(&mut self, key: Key, load: Load, operation: Operation<C>) {
        let model = self.models.entry(key.clone()).or_default();
        let progress = Arc::new(Progress::new());
        model.view.wanted = true;
        model.view.progress = Some(progress.clone());
        model.running = Some(Running { operation, progress, needs: BTreeSet::new() });
        self.changed.insert(key.clone());
        self.start_job(&key, load, false);
    }

    fn start_job(&mut self, key: &Key, load: Load, members_tried: bool) {
        let Some(model) = self.models.get(key) else { return };
        let Some(running) = &model.running else { return };
        let served = model.origin.clone().filter(|_| !model.servings.is_empty());
        let served = served.map(|origin| (origin, model.servings.clone()));
        let progress = running.progress.clone();
        self.effects.push(Effect::Load(Job { key: key.clone(), load, served, progress, members_tried }));
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
        let Some(Running { operation, .. }) = model.running.take() else { return };
        model.view.progress = None;
        self.changed.insert(key.clone());
        let result = match result {
            Ok(Loaded::New { origin, versions, kept, members }) => {
                if let What::Load(load) = &operation.what {
                    // Files may be large, and nobody but their caller has them.
                    model.load = Load { again: true, ..load.clone() };
                    model.load.overrides.files.clear();
                }
                (model.origin, model.members) = (origin, members);
                let replaced = model.replace(versions, &kept);
                if !replaced.is_empty() {
                    let retired = Retired { key: key.clone(), unloaded: Vec::new(), operation: false };
                    self.effects.push(Effect::Retire(replaced, retired));
                }
                self.reload_dependents(&key);
                Ok(())
            }
            Ok(Loaded::Unchanged | Loaded::Needs(_)) => Ok(()),
            Err(error) => {
                model.failed(&error);
                // A name that somebody mistyped is no model that should be there.
                if error.kind() == Kind::NotFound && model.is_nothing() {
                    self.models.remove(&key);
                }
                Err(error)
            }
        };
        self.answer(operation.callers, &result);
        self.next(key);
    }

    /// Begins the loads of the models that `key` needs and waits for them.
    fn wait_for(&mut self, key: Key, needs: Vec<Key>) {
        let mut waits_for = BTreeSet::new();
        for need in &needs {
            if *need == key || self.waits(need, &key) {
                continue;
            }
            let model = self.models.entry(need.clone()).or_default();
            if model.running.is_none() {
                self.ask(need.clone(), What::Load(Load::default()), Vec::new());
            }
            waits_for.insert(need.clone());
        }
        let Some(model) = self.models.get_mut(&key) else { return };
        model.members = needs;
        let Some(running) = &mut model.running else { return };
        running.needs = waits_for;
        if running.progress.overtaken.is_cancelled() {
            let outdated = outdated(&running.operation.what);
            return self.loaded(key, Err(outdated));
        }
        self.go_on(&key);
    }

    /// Goes on with what has waited for others, if it need not wait any more.
    fn go_on(&mut self, key: &Key) {
        let running = self.models.get(key).and_then(|model| model.running.as_ref());
        let Some(running) = running.filter(|running| running.needs.is_empty()) else { return };
        match running.operation.what.clone() {
            What::Load(load) => self.start_job(key, load, true),
            What::Unload(_) => self.retire(key),
        }
    }

    /// Whether `one` waits for `other`, perhaps by way of others.
    fn waits(&self, one: &Key, other: &Key) -> bool {
        let running = self.models.get(one).and_then(|model| model.running.as_ref());
        running.is_some_and(|running| running.needs.iter().any(|need| need == other || self.waits(need, other)))
    }

    /// Loads those again that are made of this model: it may have other inputs and outputs now.
    fn reload_dependents(&mut self, key: &Key) {
        for (dependent, load) in self.dependents(key) {
            self.ask(dependent, What::Load(load), Vec::new());
        }
    }

    /// The wanted models that are made of this one and do not wait for others, and how to load them.
    fn dependents(&self, key: &Key) -> Vec<(Key, Load)> {
        let made_of = self.models.iter().filter(|(_, model)| model.view.wanted && model.members.contains(key));
        let settled =
            made_of.filter(|(_, model)| model.running.as_ref().is_none_or(|running| running.needs.is_empty()));
        settled.map(|(key, model)| (key.clone(), model.load.clone())).collect()
    }

    fn begin_unload(&mut self, key: Key, unload: Unload, operation: Operation<C>) {
        let orphans = if unload.dependents { self.orphans(&key) } else { Vec::new() };
        let Some(model) = self.models.get_mut(&key) else { return self.answer(operation.callers, &Ok(())) };
        model.unload(unload.because.as_deref());
        let progress = Arc::new(Progress::new());
        let callers = operation.callers;
        let operation = Operation { what: operation.what, callers: Vec::new() };
        model.running = Some(Running { operation, progress, needs: BTreeSet::new() });
        self.changed.insert(key.clone());
        self.answer(callers, &Ok(()));
        for (dependent, wanted) in self.users(&key) {
            let running = self.models.get_mut(&key).and_then(|model| model.running.as_mut());
            running.into_iter().for_each(|running| _ = running.needs.insert(dependent.clone()));
            if wanted {
                let because = (!self.stopping).then(|| missing(&dependent, &key));
                self.ask(dependent, What::Unload(Unload { dependents: false, because }), Vec::new());
            }
        }
        self.go_on(&key);
        for orphan in orphans {
            self.ask(orphan, What::Unload(Unload { dependents: true, because: None }), Vec::new());
        }
    }

    /// The models that are made of this one and may have requests in flight, and whether they are wanted.
    fn users(&self, key: &Key) -> Vec<(Key, bool)> {
        let users = self.models.iter().filter(|(user, model)| *user != key && model.members.contains(key));
        let busy = users.filter(|(_, model)| model.running.is_some() || !model.servings.is_empty());
        busy.map(|(user, model)| (user.clone(), model.view.wanted)).collect()
    }

    /// Drains and drops what is left of a model that is unloaded.
    fn retire(&mut self, key: &Key) {
        let Some(model) = self.models.get_mut(key) else { return };
        model.view.versions.values_mut().for_each(|view| view.serving = None);
        let leaving = std::mem::take(&mut model.leaving);
        let retired = Retired { key: key.clone(), unloaded: leaving.keys().copied().collect(), operation: true };
        self.effects.push(Effect::Retire(leaving.into_values().collect(), retired));
        self.changed.insert(key.clone());
    }

    /// The members of a model that nobody has asked for and no other wanted model has.
    fn orphans(&self, key: &Key) -> Vec<Key> {
        let Some(model) = self.models.get(key) else { return Vec::new() };
        let needed = |member: &Key| {
            let others = self.models.iter().filter(|(other, model)| *other != key && model.view.wanted);
            others.into_iter().any(|(_, other)| other.members.contains(member))
        };
        let asked_for = |member: &Key| self.models.get(member).is_some_and(|member| member.asked_for);
        model.members.iter().filter(|member| !needed(member) && !asked_for(member)).cloned().collect()
    }

    fn retired(&mut self, Retired { key, unloaded, operation }: Retired) {
        let Some(model) = self.models.get_mut(&key) else { return };
        for version in unloaded {
            // It may be served again, by a newer copy.
            if let Some(view) = model.view.versions.get_mut(&version).filter(|view| view.state == State::Unloading) {
                view.state = State::Unavailable;
            }
        }
        if operation {
            model.running = None;
            if model.is_nothing() && model.view.reason.is_empty() {
                self.models.remove(&key);
            }
        }
        self.changed.insert(key.clone());
        if operation {
            self.next(key);
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
        let retired = Retired { key: key.clone(), unloaded: vec![version], operation: false };
        self.effects.push(Effect::Retire(vec![serving], retired));
        self.changed.insert(key.clone());
    }

    /// Begins the next operation on a model, or tells those that wait for it that there is none.
    fn next(&mut self, key: Key) {
        if let Some(waiting) = self.models.get_mut(&key).and_then(|model| model.waiting.take()) {
            return self.begin(key, waiting);
        }
        let waiters = self.models.iter_mut().filter_map(|(waiter, model)| {
            let running = model.running.as_mut()?;
            running.needs.remove(&key).then(|| waiter.clone())
        });
        for waiter in waiters.collect::<Vec<_>>() {
            self.go_on(&waiter);
        }
    }

    fn answer(&mut self, callers: Vec<C>, result: &Result<()>) {
        self.effects.extend(callers.into_iter().map(|caller| Effect::Answer(caller, result.clone())));
    }
}

/// Why a model that is made of others is not served, in the words of the reference server.
fn missing(ensemble: &Key, member: &Key) -> String {
    format!("ensemble '{}' contains models that are not available or ambiguous: {}", ensemble.name, member.name)
}

impl<C> Operation<C> {
    fn join(&mut self, what: What, callers: &mut Vec<C>) {
        if let (What::Load(own), What::Load(other)) = (&mut self.what, what) {
            own.again |= other.again;
        }
        self.callers.append(callers);
    }
}

impl<C> Running<C> {
    fn runs(&self) -> Runs<'_> {
        let begun = matches!(self.operation.what, What::Unload(_)) || self.progress.has_begun();
        Runs { what: &self.operation.what, begun }
    }
}

impl<S: Clone, C> Model<S, C> {
    fn callers(&self) -> usize {
        let running = self.running.as_ref().map_or(0, |running| running.operation.callers.len());
        running + self.waiting.as_ref().map_or(0, |waiting| waiting.callers.len())
    }

    /// Whether there is nothing to say about it.
    fn is_nothing(&self) -> bool {
        self.view.versions.is_empty() && self.waiting.is_none() && self.running.is_none() && !self.lasting
    }

    /// Serves these versions instead of those before; gives what is not used any more.
    fn replace(&mut self, versions: BTreeMap<Version, S>, kept: &BTreeSet<Version>) -> Vec<S> {
        let mut replaced = std::mem::replace(&mut self.servings, versions);
        self.view.reason = "".into();
        self.view.versions.retain(|version, _| replaced.contains_key(version));
        for version in replaced.keys() {
            self.view.set(*version, State::Unavailable, UNLOADED);
        }
        for (version, serving) in &self.servings {
            let serving = Some(serving.clone());
            let view = VersionView { state: State::Ready, reason: "".into(), serving };
            self.view.versions.insert(*version, view);
        }
        replaced.retain(|version, _| !kept.contains(version));
        replaced.into_values().collect()
    }

    /// Takes it out of service, for this reason if it is still wanted.
    fn unload(&mut self, because: Option<&str>) {
        self.leaving = std::mem::take(&mut self.servings);
        self.origin = None;
        self.asked_for = false;
        self.view.wanted = because.is_some();
        self.view.reason = because.unwrap_or_default().into();
        let reason = because.unwrap_or(UNLOADED);
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

    /// What was loading is unavailable for this reason; what is served goes on.
    fn failed(&mut self, error: &Error) {
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
