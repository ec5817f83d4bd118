//! The handles that count clients' shared memory.

use metrics::{Counter, Gauge};

use super::series::Series;
use super::{REGION_BYTES, REGIONS};

/// What is counted of the clients' shared memory.
#[derive(Clone, Debug)]
pub struct RegionMetrics {
    registered: Gauge,
    viewed: Counter,
    copied: Counter,
    placed: Counter,
}

impl RegionMetrics {
    pub(super) fn register(series: &Series<'_>) -> Self {
        let bytes = |way| series.with("way", way).counter(&REGION_BYTES);
        Self {
            registered: series.gauge(&REGIONS),
            viewed: bytes("viewed"),
            copied: bytes("copied"),
            placed: bytes("placed"),
        }
    }

    /// Sets how many regions are registered.
    pub fn registered(&self, regions: usize) {
        self.registered.set(regions as f64);
    }

    /// Counts input bytes that are read where they are.
    pub fn viewed(&self, bytes: usize) {
        self.viewed.increment(bytes as u64);
    }

    /// Counts input bytes that were copied, because they have a structure to check.
    pub fn copied(&self, bytes: usize) {
        self.copied.increment(bytes as u64);
    }

    /// Counts output bytes that were written into a region.
    pub fn placed(&self, bytes: usize) {
        self.placed.increment(bytes as u64);
    }
}
