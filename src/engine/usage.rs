//! Since when nobody has asked for a version, and what it costs to have it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::infer::Instant;

/// The use of one version. Requests write it with one atomic operation; whoever needs memory reads it.
#[derive(Debug)]
pub(super) struct Usage {
    began: Instant,
    /// When it was last used, in microseconds since it began.
    last_us: AtomicU64,
    /// What its load took, in microseconds.
    load_us: AtomicU64,
}

impl Usage {
    /// Of a version that is loaded now.
    pub(super) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self { began: now, last_us: AtomicU64::new(0), load_us: AtomicU64::new(0) })
    }

    /// Says what the load took, which ended now.
    pub(super) fn loaded(&self, took: Duration, now: Instant) {
        self.load_us.store(took.as_micros() as u64, Ordering::Relaxed);
        self.used(now);
    }

    /// A request asks for it.
    pub(super) fn used(&self, now: Instant) {
        let micros = now.saturating_duration_since(self.began).as_micros() as u64;
        self.last_us.fetch_max(micros, Ordering::Relaxed);
    }

    /// How long nobody has asked for it.
    pub(super) fn unused(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last())
    }

    /// When somebody has asked for it last.
    pub(super) fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.last_us.load(Ordering::Relaxed))
    }

    /// What its load took.
    pub(super) fn load_time(&self) -> Duration {
        Duration::from_micros(self.load_us.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_version_is_unused_since_its_last_request_began() {
        let usage = Usage::new(Instant::now());
        tokio::time::advance(Duration::from_secs(2)).await;
        usage.loaded(Duration::from_secs(2), Instant::now());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(usage.unused(Instant::now()), Duration::from_secs(3));
        usage.used(Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((usage.unused(Instant::now()), usage.load_time()), (Duration::from_secs(1), Duration::from_secs(2)));
    }
}
