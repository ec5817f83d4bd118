//! The manager task: the only owner of which versions are wanted and which are there.
//!
//! What it does with each command and each end of a job is decided by [`Models`]; here commands are received, jobs are
//! run, and the catalog is published. Operations on one model run one after the other, those on different models at the
//! same time, as many as there are permits.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::attempt::Attempt;
use super::catalog::Catalog;
use super::lifecycle::{ModelView, State};
use super::loader::{Loader, on_thread};
use super::models::{self, Effect, Models, Retired};
use super::order::What;
use super::pages::Pages;
use super::permits::Permits;
use super::poll::{self, End, Watched};
use super::repositories::Repositories;
use super::serving::Serving;
use super::{Key, stopped};
use crate::error::Result;

/// Commands that may wait for the manager.
const COMMANDS_MAX: usize = 64;
/// Events that are shown to readers together.
const TOGETHER_MAX: usize = 64;

/// Who waits for the end of an operation.
pub(super) type Caller = oneshot::Sender<Result<()>>;
/// What the manager is told.
pub(super) type Event = models::Event<Serving, Caller>;

/// The manager's other end.
pub(super) struct Manager {
    events: mpsc::Sender<Event>,
    /// The manager task, and the poll task if there is one; joined by [`Manager::stop`].
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Manager {
    /// Starts the task; at most `load_threads` models load at the same time.
    pub(super) fn start(loader: Arc<Loader>, catalog: Arc<Catalog>, load_threads: usize) -> Self {
        let (events, received) = mpsc::channel(COMMANDS_MAX);
        // Loads may have models unloaded. Set once: each loader has one manager.
        let _ = loader.events.set(events.downgrade());
        let task = Task {
            loader,
            catalog,
            permits: Permits::new(load_threads),
            events: events.downgrade(),
            models: Models::default(),
            jobs: JoinSet::new(),
            listing: false,
            stopping: false,
        };
        let task = tokio::spawn(task.run(received));
        Self { events, tasks: Mutex::new(vec![task]) }
    }

    /// The way to the task.
    pub(super) fn events(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }

    /// Watches the repositories from now on; ends with the manager.
    pub(super) fn poll(
        &self,
        repositories: Arc<Repositories>,
        watched: Watched,
        loads: Vec<(Key, End)>,
        catalog: Arc<Catalog>,
    ) {
        let watch = poll::watch(repositories, watched, loads, (self.events.clone(), catalog));
        self.tasks.lock().push(tokio::spawn(watch));
    }

    /// Begins to load what is to be there from the start.
    pub(super) async fn begin(&self, loads: Vec<(Key, Vec<Caller>)>) -> Result<()> {
        self.events.send(Event::Start(loads)).await.map_err(|_| stopped())
    }

    /// Asks for an operation and waits for its end.
    pub(super) async fn ask(&self, key: Key, what: What) -> Result<()> {
        let (caller, wait) = oneshot::channel();
        let asked = self.events.send(Event::Ask { key, what, callers: vec![caller] }).await;
        asked.map_err(|_| stopped())?;
        wait.await.map_err(|_| stopped())?
    }

    /// Takes everything out of service and ends.
    pub(super) async fn stop(&self) {
        let _ = self.events.send(Event::Stop).await;
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            let _ = task.await;
        }
    }
}

struct Task {
    loader: Arc<Loader>,
    catalog: Arc<Catalog>,
    permits: Permits,
    /// For what a job has to tell before its end.
    events: mpsc::WeakSender<Event>,
    models: Models<Serving, Caller>,
    jobs: JoinSet<Event>,
    /// Whether the models of the start are known, and not yet shown.
    listing: bool,
    stopping: bool,
}

impl Task {
    async fn run(mut self, mut received: mpsc::Receiver<Event>) {
        let mut open = true;
        while !self.stopping || !self.jobs.is_empty() {
            tokio::select! {
                Some(ended) = self.jobs.join_next() => self.ended(ended),
                () = self.loader.lost.notified() => self.drop_lost(|_| true),
                event = received.recv(), if open => {
                    open = event.is_some();
                    self.take(event.unwrap_or(Event::Stop));
                }
            }
            // With thousands of models, many things happen at the same time.
            for _ in 0..TOGETHER_MAX {
                match self.jobs.try_join_next() {
                    Some(ended) => self.ended(ended),
                    None => match received.try_recv() {
                        Ok(event) => self.take(event),
                        Err(_) => break,
                    },
                }
            }
            self.act();
        }
    }

    fn ended(&mut self, ended: std::result::Result<Event, JoinError>) {
        match ended {
            Ok(event) => self.take(event),
            Err(error) => tracing::error!(%error, "a load or unload ended abnormally, and its model waits for it"),
        }
    }

    fn take(&mut self, event: Event) {
        match &event {
            Event::Stop => self.stopping = true,
            Event::Retired(retired) => retired.unloaded.iter().for_each(|_| self.loader.metrics.version_unloaded()),
            Event::Loaded { key, result: Err(error) } => tracing::error!(model = %key, %error, "model failed to load"),
            Event::Start(_) => self.listing = true,
            Event::Ask { .. } | Event::Resolved { .. } | Event::Loaded { .. } | Event::Lost { .. } => {}
        }
        let loaded = if let Event::Loaded { key, .. } = &event { Some(key.clone()) } else { None };
        self.models.on(event);
        if let Some(loaded) = loaded {
            // What a reload has kept may have been lost before it ended.
            self.drop_lost(|key| *key == loaded);
        }
    }

    /// Takes the versions of these models out of service that have lost their instances.
    fn drop_lost(&mut self, of: impl Fn(&Key) -> bool) {
        let served = self.models.served().filter(|(key, ..)| of(key));
        let lost = served.filter_map(|(key, version, serving)| Some((key.clone(), version, serving.lost()?)));
        for (key, version, error) in lost.collect::<Vec<_>>() {
            self.models.on(Event::Lost { key, version, error });
        }
    }

    fn act(&mut self) {
        let mut views = Vec::new();
        let mut others = Vec::new();
        for effect in self.models.effects() {
            match effect {
                Effect::Publish(key, view) => {
                    view.iter().for_each(release_leaving);
                    views.push((key, view.map(|view| view.map(|serving| serving.handle.clone()))));
                }
                Effect::Outdate(servings) => {
                    let caches = servings.iter().filter_map(|serving| serving.handle.cache.as_ref());
                    caches.for_each(|cache| cache.outdate());
                }
                other => others.push(other),
            }
        }
        // Requests must find new copies before old ones refuse, and callers what they were told.
        self.catalog.publish(views);
        if std::mem::take(&mut self.listing) {
            self.catalog.list_finished();
        }
        for effect in others {
            match effect {
                Effect::Publish(..) | Effect::Outdate(_) => {}
                Effect::Answer(caller, result) => {
                    let _ = caller.send(result);
                }
                Effect::Load(job) => {
                    let (loader, permits, events) = (self.loader.clone(), self.permits.clone(), self.events.clone());
                    self.jobs.spawn(Attempt { loader, permits, events, job: Arc::new(job) }.run());
                }
                Effect::Stay(servings) => servings.iter().for_each(Serving::stay),
                Effect::Retire(servings, retired) => {
                    servings.iter().for_each(Serving::leave);
                    self.jobs.spawn(retire(self.loader.pages.clone(), servings, retired));
                }
            }
        }
    }
}

/// Who is made of a version that leaves has requests in it, which nothing holds back any more; and whoever needs memory
/// knows that more will come.
fn release_leaving(view: &ModelView<Serving>) {
    let leaving = view.versions.values().filter(|version| version.state == State::Unloading);
    for serving in leaving.filter_map(|version| version.serving.as_ref()) {
        serving.handle.served.release();
        serving.leave();
    }
}

/// Drains and drops what is not served any more, or pages it out.
async fn retire(pages: Arc<Pages>, servings: Vec<Serving>, mut retired: Retired) -> Event {
    let evicted = retired.evicted.take();
    let is_unload = retired.operation && evicted.is_none();
    if !servings.is_empty() || is_unload && pages.has(&retired.key) {
        let began = tokio::time::Instant::now();
        let key = retired.key.clone();
        let ended = on_thread("nereid-unload", move || {
            // Who unloads a model wants nothing to be left of it.
            if is_unload {
                pages.forget(&key);
            }
            match evicted {
                Some(origin) => pages.page_out(&key, origin, servings),
                None => servings.into_iter().for_each(Serving::retire),
            }
            // What was dropped may have had a file of weights.
            pages.tell();
        });
        if let Err(error) = ended.await {
            tracing::error!(model = %retired.key, %error, "unload failed");
        }
        let seconds = began.elapsed().as_secs_f64();
        for version in &retired.unloaded {
            tracing::info!(model = %retired.key, version, seconds, "model version is unloaded");
        }
    }
    Event::Retired(retired)
}
