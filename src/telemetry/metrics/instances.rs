//! The series of a version's instances, and those of the rate limiter that all instances share.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{Counter, Gauge, Label};

use super::{
    INSTANCE_BUSY_US, INSTANCES, INSTANCES_LOST, LIMITER_RESOURCES, LIMITER_USED, LIMITER_WAITING, Metrics,
    version_labels,
};
use crate::model::Version;

impl Metrics {
    /// The series of the instances of one model version.
    pub fn instances(&self, model: &str, version: Version, tags: &BTreeMap<String, String>) -> InstancesMetrics {
        let labels = version_labels(model, version, tags);
        let series = self.series(labels.clone());
        let (running, lost) = (series.gauge(&INSTANCES), series.counter(&INSTANCES_LOST));
        InstancesMetrics { metrics: self.clone(), labels, running, lost }
    }

    /// The series of the rate limiter.
    pub fn limiter(&self) -> LimiterMetrics {
        LimiterMetrics { metrics: self.clone(), waiting: self.series(Vec::new()).gauge(&LIMITER_WAITING) }
    }
}

/// What is counted of a version's instances.
#[derive(Debug)]
pub struct InstancesMetrics {
    metrics: Metrics,
    labels: Vec<Label>,
    running: Gauge,
    lost: Counter,
}

impl InstancesMetrics {
    /// Counts one more; a version that is being replaced and its successor count together.
    pub fn joined(&self) {
        self.running.increment(1.0);
    }

    /// Counts one less.
    pub fn left(&self) {
        self.running.decrement(1.0);
    }

    /// Counts one that was given up.
    pub fn lost(&self) {
        self.lost.increment(1);
    }

    /// The time that one of them executes.
    pub fn busy(&self, index: usize, device: &str) -> BusyTime {
        let mut labels = self.labels.clone();
        labels.push(Label::new("instance", index.to_string()));
        labels.push(Label::new("device", device.to_owned()));
        BusyTime { counter: self.metrics.series(labels).counter(&INSTANCE_BUSY_US), rest: Duration::ZERO }
    }
}

/// The time that one instance executes.
#[derive(Debug)]
pub struct BusyTime {
    counter: Counter,
    /// What is less than the counter's unit.
    rest: Duration,
}

impl BusyTime {
    /// Adds one execution.
    pub fn add(&mut self, took: Duration) {
        let sum = self.rest + took;
        self.counter.increment(sum.as_micros() as u64);
        self.rest = Duration::from_nanos(u64::from(sum.subsec_nanos() % 1000));
    }
}

/// What is told of the rate limiter.
#[derive(Debug)]
pub struct LimiterMetrics {
    metrics: Metrics,
    waiting: Gauge,
}

impl LimiterMetrics {
    /// Sets how many instances wait for resources.
    pub fn waiting(&self, instances: usize) {
        self.waiting.set(instances as f64);
    }

    /// The series of one resource at one place.
    pub fn resource(&self, name: &str, place: &str) -> ResourceMetrics {
        let labels = vec![Label::new("resource", name.to_owned()), Label::new("place", place.to_owned())];
        let series = self.metrics.series(labels);
        ResourceMetrics { total: series.gauge(&LIMITER_RESOURCES), used: series.gauge(&LIMITER_USED) }
    }
}

/// What is told of one resource of the rate limiter.
#[derive(Debug)]
pub struct ResourceMetrics {
    total: Gauge,
    used: Gauge,
}

impl ResourceMetrics {
    /// Sets how much there is, and how much of it is held.
    pub fn stock(&self, total: u64, used: u64) {
        self.total.set(total as f64);
        self.used.set(used as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_times_below_a_microsecond_add_up() {
        let metrics = Metrics::new();
        let instances = metrics.instances("m", 1, &BTreeMap::new());
        let mut busy = instances.busy(3, "cpu");
        for _ in 0..1000 {
            busy.add(Duration::from_nanos(1500));
        }
        let line = "nereid_instance_busy_us_total{model=\"m\",version=\"1\",instance=\"3\",device=\"cpu\"} 1500";
        assert!(metrics.render().lines().any(|each| each == line), "{}", metrics.render());
    }
}
