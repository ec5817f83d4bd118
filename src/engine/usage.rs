//! Since when nobody has asked for a version, how often somebody does, and what it costs to have it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::infer::Instant;

/// A request counts the less the longer it is ago: after this many seconds, 1/e.
const MEMORY_S: f64 = 100.0;

/// The use of one version. Requests write it with a few atomic operations; whoever needs memory reads it. A version that
/// leaves for others' memory and comes back has the same.
#[derive(Debug)]
pub(super) struct Usage {
    began: Instant,
    /// When its last load ended, in microseconds since it began.
    loaded_us: AtomicU64,
    /// When a request asked for it last.
    asked_us: AtomicU64,
    /// The requests until then, each as much as it counted when the last one came: the bits of an `f64`. An update that is
    /// lost does no harm.
    requests: AtomicU64,
    /// What its load took, in microseconds.
    load_us: AtomicU64,
    /// Whether it was dropped when it was to be paged out.
    is_dropped: AtomicBool,
}

impl Usage {
    /// Of a version that is loaded now.
    pub(super) fn new(now: Instant) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self {
            began: now,
            loaded_us: zero(),
            asked_us: zero(),
            requests: zero(),
            load_us: zero(),
            is_dropped: AtomicBool::new(false),
        })
    }

    /// Says what the load took, which ended now.
    pub(super) fn loaded(&self, took: Duration, now: Instant) {
        self.load_us.store(took.as_micros() as u64, Ordering::Relaxed);
        self.loaded_us.store(self.micros(now), Ordering::Relaxed);
    }

    /// A request asks for it.
    pub(super) fn used(&self, now: Instant) {
        let now = self.micros(now);
        let before = self.asked_us.fetch_max(now, Ordering::Relaxed);
        let ago_s = now.saturating_sub(before) as f64 / 1e6;
        let requests = self.requests() * (-ago_s / MEMORY_S).exp() + 1.0;
        self.requests.store(requests.to_bits(), Ordering::Relaxed);
    }

    fn requests(&self) -> f64 {
        f64::from_bits(self.requests.load(Ordering::Relaxed))
    }

    fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_micros() as u64
    }

    /// How long nobody has asked for it, and the usual time between two requests besides. What is asked for seldom has not
    /// become precious by a request a moment ago.
    pub(super) fn unused(&self, now: Instant) -> Duration {
        let usual = Duration::from_secs_f64(MEMORY_S / self.requests().max(1.0));
        now.saturating_duration_since(self.last()) + usual
    }

    /// When somebody has asked for it last, or it was loaded.
    pub(super) fn last(&self) -> Instant {
        let last_us = self.loaded_us.load(Ordering::Relaxed).max(self.asked_us.load(Ordering::Relaxed));
        self.began + Duration::from_micros(last_us)
    }

    /// It cannot be paged out.
    pub(super) fn dropped(&self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }

    /// Whether it cannot be paged out, as far as was tried.
    pub(super) fn is_dropped(&self) -> bool {
        self.is_dropped.load(Ordering::Relaxed)
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
        assert_eq!(usage.unused(Instant::now()), Duration::from_secs(3 + 100));
        usage.used(Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(usage.unused(Instant::now()), Duration::from_secs(1 + 100));
        assert_eq!(usage.load_time(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_seldom_counts_as_unused_for_longer() {
        let (seldom, often) = (Usage::new(Instant::now()), Usage::new(Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        for second in 0..=1000 {
            often.used(Instant::now());
            if second % 20 == 0 {
                seldom.used(Instant::now());
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let seconds = |usage: &Usage| usage.unused(Instant::now()).as_secs_f64();
        assert!(
            (seconds(&often) - 2.0).abs() < 0.1,
            "one since the last request, one between two: {}",
            seconds(&often)
        );
        assert!((seconds(&seldom) - 19.0).abs() < 1.0, "{}", seconds(&seldom));
        seldom.loaded(Duration::from_secs(1), Instant::now());
        assert!(seconds(&seldom) > 17.0, "a load is no request");
        tokio::time::advance(Duration::from_secs(60)).await;
        seldom.used(Instant::now());
        assert!(seconds(&often) > seconds(&seldom), "habits change");
    }
}
