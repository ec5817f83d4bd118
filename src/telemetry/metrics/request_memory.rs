//! The handles that count the memory of requests.

use metrics::{Counter, Gauge};

use super::series::Series;
use super::{REQUEST_MEMORY, REQUEST_MEMORY_LIMIT, REQUEST_MEMORY_REFUSALS};

/// What is counted of the memory that requests take.
#[derive(Clone, Debug)]
pub struct RequestMemoryMetrics {
    limit: Gauge,
    held: Gauge,
    refusals: Counter,
}

impl RequestMemoryMetrics {
    pub(super) fn register(series: &Series<'_>) -> Self {
        Self {
            limit: series.gauge(&REQUEST_MEMORY_LIMIT),
            held: series.gauge(&REQUEST_MEMORY),
            refusals: series.counter(&REQUEST_MEMORY_REFUSALS),
        }
    }

    /// Sets the bytes that all requests together may take.
    pub fn limited(&self, bytes: usize) {
        self.limit.set(bytes as f64);
    }

    /// So many bytes are held more.
    pub fn holds(&self, bytes: usize) {
        self.held.increment(bytes as f64);
    }

    /// So many bytes were given back.
    pub fn releases(&self, bytes: usize) {
        self.held.decrement(bytes as f64);
    }

    /// Counts a request that was refused for want of room.
    pub fn refused(&self) {
        self.refusals.increment(1);
    }
}
