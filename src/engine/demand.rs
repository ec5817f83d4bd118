//! Which models are loaded by requests, and which of them requests wait for.
//!
//! A model sleeps here while it is known and not loaded: with its configuration, so that requests can be decoded and
//! described. [`Demand::visit`] lets a request wait; all who wait for one model share one load, which goes on whoever of
//! them gives up, and whose error all of them get. Loader threads and requests write here; nobody waits for the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Weak};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use super::attempt::retry_delay;
use super::progress::Progress;
use super::{Handle, Key, stopped};
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::model::{Residency, Version};
use crate::scheduler::queue_full;
use crate::telemetry::metrics::{Metrics, OnDemandMetrics};

/// A load that several wait for.
type Load = Shared<BoxFuture<'static, Result<()>>>;

/// The models that requests load.
pub(super) struct Demand {
    state: Mutex<State>,
    /// The most requests that wait for one model.
    waiting_max: usize,
    pub(super) metrics: OnDemandMetrics,
}

#[derive(Default)]
struct State {
    models: BTreeMap<Key, Entry>,
    holds: Vec<Hold>,
}

/// Models that a load needs, which goes on as long as its progress is there.
struct Hold {
    progress: Weak<Progress>,
    ensemble: Key,
    members: Vec<Key>,
}

#[derive(Default)]
struct Entry {
    residency: Residency,
    /// Whether it left because others needed its memory.
    evicted: bool,
    /// Whether its next load is to open it.
    wanted: bool,
    /// Requests that wait for it, and who has it loaded by its name.
    waiting: usize,
    load: Option<Load>,
    failure: Option<Failure>,
    /// Its versions as they were when it was last configured or served.
    sleeping: BTreeMap<Version, Arc<Handle>>,
}

/// The last load, if it failed: until `retry` nobody tries again.
struct Failure {
    error: Error,
    times: u32,
    retry: Instant,
}

/// A request that waits for a model, or who has it loaded by its name; as long as it does, the model does not leave.
pub(super) struct Visit {
    demand: Arc<Demand>,
    key: Key,
}

impl Demand {
    pub(super) fn new(waiting_max: usize, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), waiting_max, metrics: metrics.on_demand() })
    }

    /// A model was configured so.
    pub(super) fn configured(&self, key: &Key, residency: Residency) {
        let mut state = self.state.lock();
        if residency == Residency::OnDemand || state.models.contains_key(key) {
            state.models.entry(key.clone()).or_default().residency = residency;
        }
    }

    /// The next load of this model opens it, whatever its configuration says. It does not leave as long as somebody has
    /// what this gives.
    pub(super) fn want(self: &Arc<Self>, key: &Key) -> Visit {
        let mut state = self.state.lock();
        let entry = state.models.entry(key.clone()).or_default();
        entry.wanted = true;
        entry.waiting += 1;
        Visit { demand: self.clone(), key: key.clone() }
    }

    /// Whether its next load opens it.
    pub(super) fn is_wanted(&self, key: &Key) -> bool {
        self.state.lock().models.get(key).is_some_and(|entry| entry.wanted)
    }

    /// It was unloaded by somebody who does not want it any more.
    pub(super) fn forget(&self, key: &Key) {
        if let Some(entry) = self.state.lock().models.get_mut(key) {
            (entry.wanted, entry.evicted, entry.failure) = (false, false, None);
        }
    }

    /// There is no such model.
    pub(super) fn is_nowhere(&self, key: &Key) {
        self.state.lock().models.retain(|known, entry| known != key || entry.waiting > 0);
    }

    /// It is known, and sleeps until the first request.
    pub(super) fn sleeps(&self, key: &Key, versions: BTreeMap<Version, Arc<Handle>>) {
        self.state.lock().models.entry(key.clone()).or_default().sleeping = versions;
    }

    /// These leave because others need their memory, and sleep until the next request. `false`, and nothing has changed,
    /// if one of them is needed since they were chosen.
    pub(super) fn evicted(&self, models: Vec<(Key, BTreeMap<Version, Arc<Handle>>)>) -> bool {
        let mut state = self.state.lock();
        if models.iter().any(|(key, _)| state.is_needed(key)) {
            return false;
        }
        for (key, versions) in models {
            let entry = state.models.entry(key).or_default();
            (entry.evicted, entry.wanted, entry.sleeping) = (true, false, versions);
        }
        true
    }

    /// Whether requests load it.
    pub(super) fn returns(&self, key: &Key) -> bool {
        let state = self.state.lock();
        state.models.get(key).is_some_and(|entry| entry.residency == Residency::OnDemand || entry.evicted)
    }

    /// A version that sleeps, for what does not need it to be there; the highest if none is named.
    pub(super) fn find(&self, key: &Key, version: Option<Version>) -> Option<Arc<Handle>> {
        let state = self.state.lock();
        let sleeping = &state.models.get(key)?.sleeping;
        match version {
            Some(version) => sleeping.get(&version).cloned(),
            None => sleeping.last_key_value().map(|(_, handle)| handle.clone()),
        }
    }

    /// These models are needed by the load of an ensemble, and stay as long as it goes on.
    pub(super) fn hold(&self, progress: &Arc<Progress>, ensemble: &Key, members: &[Key]) {
        let mut state = self.state.lock();
        state.forget_ended();
        let progress = Arc::downgrade(progress);
        state.holds.push(Hold { progress, ensemble: ensemble.clone(), members: members.to_vec() });
        for member in members {
            state.models.entry(member.clone()).or_default().wanted = true;
        }
    }

    /// Whether requests wait for it, or a load needs it.
    pub(super) fn is_needed(&self, key: &Key) -> bool {
        self.state.lock().is_needed(key)
    }

    /// The models that stay until a load of this one has ended: itself, and what loads hold that wait for it.
    pub(super) fn kept_by(&self, key: &Key) -> BTreeSet<Key> {
        let mut state = self.state.lock();
        state.forget_ended();
        let (mut kept, mut waiting, mut seen) = (BTreeSet::from([key.clone()]), vec![key.clone()], 0);
        while let Some(key) = waiting.get(seen).cloned() {
            seen += 1;
            for hold in state.holds.iter().filter(|hold| hold.members.contains(&key)) {
                kept.extend(hold.members.iter().chain([&hold.ensemble]).cloned());
                if !waiting.contains(&hold.ensemble) {
                    waiting.push(hold.ensemble.clone());
                }
            }
        }
        kept
    }

    /// Lets a request wait for a model.
    ///
    /// # Errors
    /// [`crate::error::Kind::QueueFull`] if too many wait; for a while after a load that failed, its error.
    pub(super) fn visit(self: &Arc<Self>, key: &Key) -> Result<Visit> {
        let mut state = self.state.lock();
        let entry = state.models.entry(key.clone()).or_default();
        if let Some(failure) = entry.failure.as_ref().filter(|failure| Instant::now() < failure.retry) {
            return Err(failure.error.clone());
        }
        if entry.waiting >= self.waiting_max {
            return Err(queue_full());
        }
        entry.waiting += 1;
        Ok(Visit { demand: self.clone(), key: key.clone() })
    }

    /// The load that goes on, or a new one, which goes on whoever waits for it, so that its end is known to the next.
    fn load<F>(self: &Arc<Self>, key: &Key, ask: impl FnOnce() -> F) -> Load
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let mut state = self.state.lock();
        let entry = state.models.entry(key.clone()).or_default();
        entry.wanted = true;
        let begin = || {
            let (demand, key, end) = (self.clone(), key.clone(), ask());
            let load = tokio::spawn(async move {
                let result = end.await;
                demand.ended(&key, &result);
                result
            });
            load.map(|joined| joined.unwrap_or_else(|_| Err(stopped()))).boxed().shared()
        };
        entry.load.get_or_insert_with(begin).clone()
    }

    /// A load has ended.
    fn ended(&self, key: &Key, result: &Result<()>) {
        let mut state = self.state.lock();
        let Some(entry) = state.models.get_mut(key) else { return };
        entry.load = None;
        self.metrics.loaded(result.is_ok());
        match result {
            Ok(()) => (entry.evicted, entry.failure) = (false, None),
            Err(error) => {
                let times = entry.failure.as_ref().map_or(1, |failure| failure.times.saturating_add(1));
                let retry = Instant::now() + retry_delay(times);
                entry.failure = Some(Failure { error: error.clone(), times, retry });
                entry.wanted = false;
            }
        }
    }
}

impl State {
    /// Loads that have ended need nothing any more.
    fn forget_ended(&mut self) {
        self.holds.retain(|hold| hold.progress.strong_count() > 0);
    }

    fn is_needed(&mut self, key: &Key) -> bool {
        self.forget_ended();
        let is_held = self.holds.iter().any(|hold| hold.members.contains(key));
        is_held || self.models.get(key).is_some_and(|entry| entry.waiting > 0)
    }
}

impl Visit {
    /// Which model it waits for.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Waits for the load that goes on, or for the one that `ask` asks for.
    ///
    /// # Errors
    /// Why the model could not be loaded.
    pub(super) async fn load<F>(&self, ask: impl FnOnce() -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let load = self.demand.load(&self.key, ask);
        load.await
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = self.demand.state.lock();
        if let Some(entry) = state.models.get_mut(&self.key) {
            entry.waiting -= 1;
        }
    }
}

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;
