//! The response cache: equal requests to a model that asks for it are executed once.
//!
//! A [`Cache`] is the server's, bounded in bytes; a [`ModelCache`] is the part of one loaded version in it. Whoever asks
//! becomes a [`Caller`]: it finds an answer, or waits for an equal request that is under way, or leads. It stands in
//! front of a version's scheduler, so that the members of an ensemble use it too, and knows of a request only what decides
//! its answer.

mod caller;
mod entry;
mod flight;
mod key;
mod store;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;

use self::entry::Entry;
use self::flight::{Flight, Outcome};
use self::store::{Found, Kept, Key, Store};
use crate::infer::{Instant, Request, Response};
use crate::model::{ModelConfig, QueuePolicy, TimeoutAction};
use crate::scheduler::Levels;
use crate::telemetry::metrics::{CacheMetrics, Evicted, Metrics};
use crate::telemetry::stats::ModelStats;

pub(super) use self::caller::{Caller, Own};

/// What a response cache may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most bytes of all entries, bookkeeping included.
    pub bytes_max: usize,
    /// How long an entry of a model that says nothing about it may be used; `None` for any time.
    pub ttl: Option<Duration>,
}

/// The answers of one server.
pub(super) struct Cache {
    /// Held for a few moves; bytes are neither copied nor freed under it.
    store: Mutex<Store<Arc<Entry>>>,
    ttl: Option<Duration>,
    owners: AtomicU64,
    metrics: CacheMetrics,
}

impl Cache {
    pub(super) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        let metrics = metrics.cache();
        metrics.limited(settings.bytes_max);
        let store = Mutex::new(Store::new(settings.bytes_max));
        Self { store, ttl: settings.ttl, owners: AtomicU64::new(0), metrics }
    }

    fn find(&self, key: &Key, now: Instant) -> Option<Arc<Entry>> {
        let mut store = self.store.lock();
        let found = store.get(key, now);
        if matches!(found, Found::Expired(_)) {
            self.metrics.holds(store.len(), store.bytes());
        }
        drop(store);
        match found {
            Found::Hit(entry) => Some(entry),
            Found::Expired(_) => {
                self.metrics.evicted(Evicted::Expired, 1);
                None
            }
            Found::Miss => None,
        }
    }

    fn put(&self, kept: Kept<Arc<Entry>>) {
        let mut store = self.store.lock();
        let gone = store.put(kept);
        self.metrics.holds(store.len(), store.bytes());
        drop(store);
        self.metrics.evicted(Evicted::Full, gone.len());
    }

    fn forget(&self, owner: u64) {
        let mut store = self.store.lock();
        let gone = store.forget(owner);
        self.metrics.holds(store.len(), store.bytes());
        drop(store);
        self.metrics.evicted(Evicted::Unloaded, gone.len());
    }
}

/// The cache for one loaded version: a reload makes another, which finds nothing of this one.
pub(super) struct ModelCache {
    cache: Arc<Cache>,
    /// Stands for the model, its version and this load.
    owner: u64,
    ttl: Option<Duration>,
    /// As of the queue that its requests would wait in.
    levels: Levels,
    stats: Arc<ModelStats>,
    outdated: AtomicBool,
    /// The requests under way. Locked before the cache, after nothing.
    flights: Mutex<HashMap<FlightKey, Arc<Flight>>>,
    /// Callers that wait for the requests of others.
    waiting: AtomicUsize,
}

impl fmt::Debug for ModelCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelCache").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// Equal requests of one priority: an urgent one does not wait for one that is not.
type FlightKey = (Key, u64);

impl ModelCache {
    /// The part of a version of `config` in `cache`; `None` if the model does not use it.
    pub(super) fn new(cache: Option<&Arc<Cache>>, config: &ModelConfig, stats: &Arc<ModelStats>) -> Option<Arc<Self>> {
        if !config.response_cache {
            return None;
        }
        let Some(cache) = cache else {
            tracing::warn!(model = %config.name, "the model asks for a response cache, and the server has none: see --cache-config");
            return None;
        };
        Some(Arc::new(Self {
            owner: cache.owners.fetch_add(1, Relaxed),
            ttl: config.response_cache_ttl.or(cache.ttl),
            cache: cache.clone(),
            levels: Levels::of(&config.scheduling),
            stats: stats.clone(),
            outdated: AtomicBool::new(false),
            flights: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Whether a request may be answered with the answer of another: not if it is one of a sequence, nor if it brings or
    /// wants tensors that are not in host memory.
    pub(super) fn takes(&self, request: &Request) -> bool {
        request.sequence.is_none()
            && !self.outdated.load(Relaxed)
            && request.inputs.iter().all(|input| input.tensor.is_on_host())
            && !request.outputs.iter().any(|output| output.keep)
    }

    /// The version would answer otherwise now, as something that it is made of is replaced: what comes from now on is
    /// executed, until the version is loaded again.
    pub(super) fn outdate(&self) {
        self.outdated.store(true, Relaxed);
    }

    /// Whether no request is under way.
    #[cfg(test)]
    fn is_idle(&self) -> bool {
        self.flights.lock().is_empty()
    }

    /// What holds for waiting at a priority level: its number and its limits.
    fn level(&self, asked: u64) -> (u64, &QueuePolicy) {
        let level = self.levels.level(asked);
        (level, self.levels.policy(level))
    }

    /// Waits for what a flight comes to; whoever sees it first keeps the answer.
    fn poll(&self, key: &FlightKey, flight: &Arc<Flight>, token: u64, ctx: &mut Context<'_>) -> Poll<Outcome> {
        flight.poll(token, ctx, |response, looked| {
            let began = Instant::now();
            let entry = response.map(|response| self.keep(key.0, response, began));
            // Only now: whoever looks finds the flight or what it has brought.
            self.close(key, flight);
            self.stats.cache_missed(looked + began.elapsed());
            entry
        })
    }

    fn keep(&self, key: Key, response: &Response, now: Instant) -> Arc<Entry> {
        let bytes = Entry::bytes(response);
        if !self.cache.store.lock().fits(bytes) {
            return Arc::new(Entry::view(response));
        }
        let entry = Arc::new(Entry::copy(response));
        let expires = self.ttl.map(|ttl| now + ttl);
        self.cache.put(Kept { key, owner: self.owner, value: entry.clone(), bytes, expires });
        entry
    }

    /// Nobody joins this flight any more. Once its leader was gone another may have begun, which stays.
    fn close(&self, key: &FlightKey, flight: &Arc<Flight>) {
        let mut flights = self.flights.lock();
        if flights.get(key).is_some_and(|there| Arc::ptr_eq(there, flight)) {
            flights.remove(key);
        }
    }

    /// The leader is gone before there was an answer.
    fn abandon(&self, key: &FlightKey, flight: &Arc<Flight>) {
        self.close(key, flight);
        if let Some(looked) = flight.abandon() {
            self.stats.cache_missed(looked);
        }
    }
}

impl Drop for ModelCache {
    fn drop(&mut self) {
        self.cache.forget(self.owner);
    }
}

/// When a caller that waits for another's request gives up by the queue's rules: its queue timeout, if that refuses.
fn timeout(policy: &QueuePolicy, asked: Option<Duration>) -> Option<Duration> {
    if policy.timeout_action == TimeoutAction::Delay {
        return None;
    }
    policy.wait_max(asked)
}

#[cfg(test)]
mod tests;
