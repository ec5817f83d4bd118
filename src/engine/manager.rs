//! The manager task: the only owner of which versions are wanted and which are there.
//!
//! Commands come through a bounded channel. Operations on one model run one after the other, those on different models
//! at the same time, as many as there are permits. After every change the catalog is published anew.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::catalog::{Catalog, ModelView, VersionView};
use super::lifecycle::{State, UNLOADED};
use super::loader::{Loaded, Loader, Lost, on_thread};
use super::overrides::Overrides;
use super::serving::Serving;
use super::{poll, stopped};
use crate::error::{Error, Kind, Result};
use crate::model::Version;
use crate::repository::{Roots, Scan, Stamp};

/// Commands that may wait for the manager.
const COMMANDS_MAX: usize = 64;
/// Commands that may wait for an operation on the same model to end.
const WAITING_MAX: usize = 16;

type Done = oneshot::Sender<Result<()>>;

/// What the manager can be told.
pub(super) enum Command {
    /// Load or reload a model.
    Load { name: String, overrides: Overrides, done: Option<Done> },
    /// Take a model out of service.
    Unload { name: String, done: Option<Done> },
    /// A loader found out which versions it will open.
    Resolved { name: String, versions: Vec<Version> },
    /// A version has lost its instances.
    Lost(Lost),
    /// Take everything out of service and end.
    Stop { done: oneshot::Sender<()> },
}

impl Command {
    pub(super) fn polled_load(name: String) -> Self {
        Self::Load { name, overrides: Overrides::default(), done: None }
    }

    fn refuse(self) {
        if let Self::Load { name, done, .. } | Self::Unload { name, done } = self {
            let message = format!("more than {WAITING_MAX} operations on model '{name}' wait already");
            answer(done, Err(Error::unavailable(message)));
        }
    }

    pub(super) fn polled_unload(name: String) -> Self {
        Self::Unload { name, done: None }
    }
}

/// The manager's other end.
pub(super) struct Manager {
    commands: mpsc::Sender<Command>,
    /// The manager task, and the poll task if there is one; joined by [`Manager::stop`].
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Manager {
    /// Starts the task; at most `load_threads` models load at the same time.
    pub(super) fn start(loader: Loader, catalog: Arc<Catalog>, load_threads: usize) -> Self {
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let tell = commands.downgrade();
        let _ = loader.lost.set(Box::new(move |lost| {
            if let Some(commands) = tell.upgrade() {
                tokio::spawn(async move { commands.send(Command::Lost(lost)).await });
            }
        }));
        let task = Task {
            loader: Arc::new(loader),
            catalog,
            permits: Arc::new(Semaphore::new(load_threads.max(1))),
            progress: commands.downgrade(),
            models: BTreeMap::new(),
            queued: HashMap::new(),
            jobs: JoinSet::new(),
            stopping: None,
        };
        let task = tokio::spawn(task.run(received));
        Self { commands, tasks: Mutex::new(vec![task]) }
    }

    pub(super) fn poll(&self, roots: Roots, interval: Duration, scan: Scan) {
        let watch = poll::watch(roots, interval, scan, self.commands.clone());
        self.tasks.lock().push(tokio::spawn(watch));
    }

    pub(super) async fn load(&self, name: &str, overrides: Overrides) -> Result<()> {
        self.ask(|done| Command::Load { name: name.to_owned(), overrides, done: Some(done) }).await
    }

    pub(super) async fn unload(&self, name: &str) -> Result<()> {
        self.ask(|done| Command::Unload { name: name.to_owned(), done: Some(done) }).await
    }

    async fn ask(&self, command: impl FnOnce(Done) -> Command) -> Result<()> {
        let (done, wait) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| stopped())?;
        wait.await.map_err(|_| stopped())?
    }

    pub(super) async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Stop { done }).await.is_ok() {
            let _ = wait.await;
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            let _ = task.await;
        }
    }
}

#[derive(Default)]
struct Model {
    view: ModelView,
    /// What serves the ready versions.
    servings: BTreeMap<Version, Serving>,
    /// Of the files that are served; `None` if none are or they were overridden.
    stamp: Option<Stamp>,
}

/// The end of a background job.
enum Finished {
    Loaded {
        name: String,
        result: Result<Loaded>,
        done: Option<Done>,
    },
    /// `operation` says whether this was an unload, after which the model's next operation may begin.
    Retired {
        name: String,
        unloaded: Vec<Version>,
        operation: bool,
    },
}

struct Task {
    loader: Arc<Loader>,
    catalog: Arc<Catalog>,
    permits: Arc<Semaphore>,
    progress: mpsc::WeakSender<Command>,
    models: BTreeMap<String, Model>,
    /// Commands for models that have an operation under way; the presence of a key says that they have.
    queued: HashMap<String, VecDeque<Command>>,
    jobs: JoinSet<Option<Finished>>,
    stopping: Option<oneshot::Sender<()>>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut open = true;
        while self.stopping.is_none() || !self.jobs.is_empty() {
            tokio::select! {
                Some(finished) = self.jobs.join_next(), if !self.jobs.is_empty() => match finished {
                    Ok(Some(finished)) => self.finish(finished),
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "a load or unload ended abnormally"),
                },
                command = commands.recv(), if open => match command {
                    Some(Command::Stop { done }) => self.stop(done),
                    Some(command) => self.take(command),
                    None => {
                        open = false;
                        self.stop(oneshot::channel().0);
                    }
                },
            }
        }
        commands.close();
        if let Some(done) = self.stopping.take() {
            let _ = done.send(());
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Resolved { name, versions } => self.resolved(&name, &versions),
            Command::Lost(lost) => self.lost(&lost),
            Command::Stop { .. } => {}
            Command::Load { done, .. } if self.stopping.is_some() => answer(done, Err(stopped())),
            Command::Load { ref name, .. } | Command::Unload { ref name, .. } => match self.queued.get_mut(name) {
                None => self.begin(command),
                Some(queue) if queue.len() < WAITING_MAX => queue.push_back(command),
                Some(_) => command.refuse(),
            },
        }
    }

    fn begin(&mut self, command: Command) {
        match command {
            Command::Load { name, overrides, done } => self.begin_load(name, overrides, done),
            Command::Unload { name, done } => self.begin_unload(name, done),
            Command::Resolved { .. } | Command::Lost(_) | Command::Stop { .. } => {}
        }
    }

    fn begin_load(&mut self, name: String, overrides: Overrides, done: Option<Done>) {
        let model = self.models.entry(name.clone()).or_default();
        model.view.wanted = true;
        let served = model.stamp.clone().filter(|_| !model.servings.is_empty());
        self.queued.entry(name.clone()).or_default();
        self.publish();
        tracing::info!(model = name, "loading model");
        let (loader, permits, progress) = (self.loader.clone(), self.permits.clone(), self.progress.clone());
        self.jobs.spawn(async move {
            let Ok(_permit) = permits.acquire().await else { return None };
            let model = name.clone();
            let work = move || {
                let resolved = |versions: &[Version]| {
                    if let Some(progress) = progress.upgrade() {
                        let _ = progress
                            .blocking_send(Command::Resolved { name: model.clone(), versions: versions.to_vec() });
                    }
                };
                loader.load(&model, &overrides, served.as_ref(), resolved)
            };
            let result = on_thread("nereid-loader", work).await.unwrap_or_else(Err);
            Some(Finished::Loaded { name, result, done })
        });
    }

    fn resolved(&mut self, name: &str, versions: &[Version]) {
        if let Some(model) = self.models.get_mut(name).filter(|_| self.queued.contains_key(name)) {
            model.view.reason.clear();
            for &version in versions.iter().filter(|version| !model.servings.contains_key(version)) {
                let view = VersionView { state: State::Loading, reason: String::new(), handle: None };
                model.view.versions.insert(version, view);
            }
            self.publish();
        }
    }

    /// Takes a version out of service that can serve nothing, unless it was replaced meanwhile.
    fn lost(&mut self, lost: &Lost) {
        let name = lost.model.to_string();
        let Some(model) = self.models.get_mut(&name) else { return };
        let is_own =
            |serving: &Serving| std::ptr::addr_eq(Arc::as_ptr(&serving.handle.scheduler), lost.scheduler.as_ptr());
        if !model.servings.get(&lost.version).is_some_and(is_own) {
            return;
        }
        let servings = model.servings.remove_entry(&lost.version).into_iter().collect();
        // The next load opens it anew, although the files are the same.
        model.stamp = None;
        model.view.set(lost.version, State::Unavailable, lost.error.message());
        self.retire(name, servings, Vec::new(), false);
        self.publish();
    }

    fn begin_unload(&mut self, name: String, done: Option<Done>) {
        if let Some(model) = self.models.get_mut(&name) {
            model.view.wanted = false;
            model.stamp = None;
            let servings = std::mem::take(&mut model.servings);
            let failed: Vec<Version> =
                model.view.versions.keys().filter(|version| !servings.contains_key(version)).copied().collect();
            for version in failed {
                model.view.set(version, State::Unavailable, UNLOADED);
            }
            let unloaded: Vec<Version> = servings.keys().copied().collect();
            for &version in &unloaded {
                model.view.set(version, State::Unloading, "");
            }
            self.queued.entry(name.clone()).or_default();
            self.retire(name, servings, unloaded, true);
            self.publish();
        }
        answer(done, Ok(()));
    }

    /// Drains and drops served versions in the background.
    fn retire(&mut self, name: String, servings: BTreeMap<Version, Serving>, unloaded: Vec<Version>, operation: bool) {
        self.jobs.spawn(async move {
            let began = tokio::time::Instant::now();
            let retired = on_thread("nereid-unload", move || servings.into_values().for_each(Serving::retire)).await;
            if let Err(error) = retired {
                tracing::error!(model = name, %error, "unload failed");
            }
            let seconds = began.elapsed().as_secs_f64();
            for version in &unloaded {
                tracing::info!(model = name, version, seconds, "model version is unloaded");
            }
            Some(Finished::Retired { name, unloaded, operation })
        });
    }

    fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Loaded { name, result, done } => {
                let result = self.loaded(&name, result);
                self.publish();
                answer(done, result);
                self.next(&name);
            }
            Finished::Retired { name, unloaded, operation } => {
                if let Some(model) = self.models.get_mut(&name) {
                    for &version in &unloaded {
                        model.view.set(version, State::Unavailable, UNLOADED);
                        self.loader.metrics.version_unloaded();
                    }
                }
                self.publish();
                if operation {
                    self.next(&name);
                }
            }
        }
    }

    fn loaded(&mut self, name: &str, result: Result<Loaded>) -> Result<()> {
        let model = self.models.entry(name.to_owned()).or_default();
        match result {
            Ok(Loaded::Unchanged) => Ok(()),
            Ok(Loaded::New { stamp, versions }) => {
                let replaced = std::mem::replace(&mut model.servings, versions);
                model.stamp = stamp;
                model.view.reason.clear();
                model.view.versions.retain(|version, view| {
                    *view = VersionView { state: State::Unavailable, reason: UNLOADED.to_owned(), handle: None };
                    replaced.contains_key(version)
                });
                for (version, serving) in &model.servings {
                    let handle = Some(serving.handle.clone());
                    model
                        .view
                        .versions
                        .insert(*version, VersionView { state: State::Ready, reason: String::new(), handle });
                }
                // Requests must find the new copies before the old ones refuse.
                self.publish();
                if !replaced.is_empty() {
                    self.retire(name.to_owned(), replaced, Vec::new(), false);
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(model = name, %error, "model failed to load");
                model.failed(&error);
                // A name that somebody mistyped is no model that should be there.
                if error.kind() == Kind::NotFound && model.view.versions.is_empty() && self.catalog.has_started() {
                    self.models.remove(name);
                }
                Err(error)
            }
        }
    }

    /// Begins the next operation on a model, if one waits.
    fn next(&mut self, name: &str) {
        let Some(command) = self.queued.get_mut(name).and_then(VecDeque::pop_front) else {
            self.queued.remove(name);
            return;
        };
        self.begin(command);
    }

    fn stop(&mut self, done: oneshot::Sender<()>) {
        self.stopping = Some(done);
        for (_, queue) in self.queued.iter_mut() {
            queue.drain(..).for_each(|command| match command {
                Command::Load { done, .. } | Command::Unload { done, .. } => answer(done, Err(stopped())),
                Command::Resolved { .. } | Command::Lost(_) | Command::Stop { .. } => {}
            });
        }
        let names: Vec<String> = self.models.keys().cloned().collect();
        for name in names {
            let command = Command::Unload { name, done: None };
            self.take(command);
        }
    }

    fn publish(&self) {
        self.catalog.publish(self.models.iter().map(|(name, model)| (name.clone(), model.view.clone())));
    }
}

impl Model {
    /// What was loading is unavailable for this reason; what is served goes on.
    fn failed(&mut self, error: &Error) {
        let reason = error.message();
        let loading: Vec<Version> =
            self.view.versions.keys().filter(|version| !self.servings.contains_key(version)).copied().collect();
        for version in loading {
            self.view.set(version, State::Unavailable, reason);
        }
        if self.view.versions.is_empty() {
            reason.clone_into(&mut self.view.reason);
        }
    }
}

impl ModelView {
    fn set(&mut self, version: Version, state: State, reason: &str) {
        self.versions.insert(version, VersionView { state, reason: reason.to_owned(), handle: None });
    }
}

fn answer(done: Option<Done>, result: Result<()>) {
    if let Some(done) = done {
        let _ = done.send(result);
    }
}
