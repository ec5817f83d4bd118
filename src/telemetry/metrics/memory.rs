//! The series of the memory that models share, by device, and of what each version holds of it.

use std::time::Duration;

use metrics::{Counter, Gauge, Label};

use super::histogram::Histogram;
use super::{
    ALLOCATED, ALLOCATOR_KEPT, DEMAND_LOADS, DEMAND_SECONDS, DEMANDS, DEVICE_LIMIT, DEVICE_RESERVED, DEVICE_USED,
    EVICTIONS, MODEL_MEMORY, Metrics, PAGE_BYTES, PAGE_FAILURES, PAGE_SECONDS, PAGED_MODELS, SECONDS, SPILL_BYTES,
    version_labels,
};
use crate::model::{Allocated, ModelConfig, Version};

impl Metrics {
    /// The series of one device's memory.
    pub fn memory(&self, device: &str) -> MemoryMetrics {
        let series = self.series(vec![Label::new("device", device.to_owned())]);
        MemoryMetrics {
            limit: series.gauge(&DEVICE_LIMIT),
            reserved: series.gauge(&DEVICE_RESERVED),
            used: series.gauge(&DEVICE_USED),
        }
    }

    /// Sets what an allocator has of a device.
    pub(in crate::telemetry) fn allocated(&self, allocated: &Allocated) {
        let series = self.series(vec![Label::new("device", allocated.device.to_string())]);
        series.gauge(&ALLOCATED).set(allocated.used as f64);
        series.gauge(&ALLOCATOR_KEPT).set(allocated.kept as f64);
    }

    /// The series of models that are loaded by requests, and of those that leave.
    pub fn on_demand(&self) -> OnDemandMetrics {
        let series = self.series(Vec::new());
        let requests = |result| series.with("result", result).counter(&DEMANDS);
        let loads = |result| series.with("result", result).counter(&DEMAND_LOADS);
        OnDemandMetrics {
            hits: requests("hit"),
            misses: requests("miss"),
            loads: loads("success"),
            failures: loads("failure"),
            waited: series.histogram(&DEMAND_SECONDS, &SECONDS),
            evictions: series.counter(&EVICTIONS),
        }
    }

    /// The series of models whose weights leave and come back.
    pub fn pages(&self) -> PageMetrics {
        let series = self.series(Vec::new());
        let way = |direction| {
            let series = series.with("direction", direction);
            (series.histogram(&PAGE_SECONDS, &SECONDS), series.counter(&PAGE_BYTES))
        };
        PageMetrics {
            models: series.gauge(&PAGED_MODELS),
            spilled: series.gauge(&SPILL_BYTES),
            out: way("out"),
            back: way("in"),
            failures: series.counter(&PAGE_FAILURES),
        }
    }

    /// Counts bytes that a model version holds on a device, until the result is dropped; two copies of it, of which one
    /// takes the other's place, count together.
    pub fn held(&self, config: &ModelConfig, version: Version, device: &str, bytes: u64) -> HeldBytes {
        let mut labels = version_labels(&config.name, version, &config.metric_tags);
        labels.push(Label::new("device", device.to_owned()));
        let gauge = self.series(labels).gauge(&MODEL_MEMORY);
        gauge.increment(bytes as f64);
        HeldBytes { gauge, bytes }
    }
}

/// What is told of one device's memory.
#[derive(Debug)]
pub struct MemoryMetrics {
    limit: Gauge,
    reserved: Gauge,
    used: Gauge,
}

impl MemoryMetrics {
    /// Sets how many bytes models may hold.
    pub fn limited(&self, bytes: u64) {
        self.limit.set(bytes as f64);
    }

    /// Sets how many bytes are given out, and how many of them are held.
    pub fn holds(&self, reserved: u64, used: u64) {
        self.reserved.set(reserved as f64);
        self.used.set(used as f64);
    }
}

/// What is counted of models that are loaded by requests, and of those that leave.
#[derive(Debug)]
pub struct OnDemandMetrics {
    hits: Counter,
    misses: Counter,
    loads: Counter,
    failures: Counter,
    waited: Histogram,
    evictions: Counter,
}

impl OnDemandMetrics {
    /// Counts a request that found its model there.
    pub fn hit(&self) {
        self.hits.increment(1);
    }

    /// Counts a request that has waited so long for its model.
    pub fn missed(&self, waited: Duration) {
        self.misses.increment(1);
        self.waited.record(waited.as_secs_f64());
    }

    /// Counts a load that requests have waited for.
    pub fn loaded(&self, success: bool) {
        if success { &self.loads } else { &self.failures }.increment(1);
    }

    /// Counts a model that leaves.
    pub fn evicted(&self) {
        self.evictions.increment(1);
    }
}

/// What is told of models whose weights leave and come back.
#[derive(Debug)]
pub struct PageMetrics {
    models: Gauge,
    spilled: Gauge,
    out: (Histogram, Counter),
    back: (Histogram, Counter),
    failures: Counter,
}

impl PageMetrics {
    /// Sets how many models are out, and the bytes of their files.
    pub fn holds(&self, models: usize, spilled: u64) {
        self.models.set(models as f64);
        self.spilled.set(spilled as f64);
    }

    /// Counts a model whose so many bytes have left.
    pub fn paged_out(&self, took: Duration, bytes: u64) {
        self.out.0.record(took.as_secs_f64());
        self.out.1.increment(bytes);
    }

    /// Counts a model whose so many bytes have come back.
    pub fn paged_in(&self, took: Duration, bytes: u64) {
        self.back.0.record(took.as_secs_f64());
        self.back.1.increment(bytes);
    }

    /// Counts a model whose weights could not be moved.
    pub fn failed(&self) {
        self.failures.increment(1);
    }
}

/// Bytes that a version holds; dropping it gives them back.
#[derive(Debug)]
#[must_use = "the bytes are given back when this is dropped"]
pub struct HeldBytes {
    gauge: Gauge,
    bytes: u64,
}

impl HeldBytes {
    /// It is so many now.
    pub fn set(&mut self, bytes: u64) {
        self.gauge.increment(bytes as f64 - self.bytes as f64);
        self.bytes = bytes;
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.gauge.decrement(self.bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_of_a_version_count_together_until_one_is_dropped() {
        let metrics = Metrics::new();
        let config = ModelConfig::new("m", "identity");
        let shown = |bytes: u64| {
            let line = format!("nereid_model_memory_bytes{{model=\"m\",version=\"2\",device=\"cpu\"}} {bytes}");
            metrics.render().lines().any(|each| each == line)
        };
        let first = metrics.held(&config, 2, "cpu", 100);
        let second = metrics.held(&config, 2, "cpu", 30);
        assert!(shown(130));
        let mut second = second;
        second.set(40);
        assert!(shown(140));
        second.set(30);
        drop(first);
        assert!(shown(30));
        drop(second);
        assert!(shown(0));
    }
}
