//! The series of the memory that models share, by device, and of what each version holds of it.

use metrics::{Gauge, Label};

use super::{DEVICE_LIMIT, DEVICE_RESERVED, DEVICE_USED, MODEL_MEMORY, Metrics, version_labels};
use crate::model::{ModelConfig, Version};

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

    /// Sets how many bytes are reserved, and how many are held.
    pub fn holds(&self, reserved: u64, used: u64) {
        self.reserved.set(reserved as f64);
        self.used.set(used as f64);
    }
}

/// Bytes that a version holds; dropping it gives them back.
#[derive(Debug)]
#[must_use = "the bytes are given back when this is dropped"]
pub struct HeldBytes {
    gauge: Gauge,
    bytes: u64,
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
        drop(first);
        assert!(shown(30));
        drop(second);
        assert!(shown(0));
    }
}
