//! The handles that count what the response cache of a server holds.

use metrics::{Counter, Gauge};

use super::series::Series;
use super::{CACHE_BYTES, CACHE_ENTRIES, CACHE_EVICTIONS, CACHE_LIMIT};

/// What a response cache holds.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    entries: Gauge,
    bytes: Gauge,
    limit: Gauge,
    full: Counter,
    expired: Counter,
    unloaded: Counter,
}

/// Why an entry is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// Others needed its room.
    Full,
    /// It was too old.
    Expired,
    /// Its model version is gone.
    Unloaded,
}

impl CacheMetrics {
    pub(super) fn register(series: &Series<'_>) -> Self {
        let evictions = |reason| series.with("reason", reason).counter(&CACHE_EVICTIONS);
        Self {
            entries: series.gauge(&CACHE_ENTRIES),
            bytes: series.gauge(&CACHE_BYTES),
            limit: series.gauge(&CACHE_LIMIT),
            full: evictions("full"),
            expired: evictions("expired"),
            unloaded: evictions("unloaded"),
        }
    }

    /// Sets how many bytes the cache may hold.
    pub fn limited(&self, bytes: usize) {
        self.limit.set(bytes as f64);
    }

    /// Sets what the cache holds.
    pub fn holds(&self, entries: usize, bytes: usize) {
        self.entries.set(entries as f64);
        self.bytes.set(bytes as f64);
    }

    /// Counts entries that are no longer there.
    pub fn evicted(&self, why: Evicted, entries: usize) {
        let counter = match why {
            Evicted::Full => &self.full,
            Evicted::Expired => &self.expired,
            Evicted::Unloaded => &self.unloaded,
        };
        counter.increment(entries as u64);
    }
}
