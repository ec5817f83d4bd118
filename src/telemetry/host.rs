//! Samples the host's processors and memory, and the server's own, from `/proc`.
//!
//! Begin with [`sample_every`]; who spawns it owns it, and ends it by dropping or aborting. On a system without `/proc`
//! the gauges stay at zero.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::metrics::{HostGauges, Metrics};
use crate::model::Allocated;

/// Sets the gauges of the host every `interval`; never returns. Reads a handful of small kernel files each time.
/// `allocated` says what allocators have of devices.
pub async fn sample_every(interval: Duration, metrics: Metrics, allocated: fn() -> Vec<Allocated>) {
    let gauges = metrics.host();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = CpuTimes::default();
    loop {
        ticks.tick().await;
        before = sample(&gauges, before);
        allocated().iter().for_each(|each| metrics.allocated(each));
    }
}

/// Sets every gauge; returns the processor times, from which the next sample subtracts.
fn sample(gauges: &HostGauges, before: CpuTimes) -> CpuTimes {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let now = CpuTimes::parse(&read("/proc/stat"));
    gauges.cpu_utilization.set(now.utilization_since(before));

    let memory = read("/proc/meminfo");
    let total = kib_field(&memory, "MemTotal:");
    gauges.memory_total.set(total as f64);
    gauges.memory_used.set(total.saturating_sub(kib_field(&memory, "MemAvailable:")) as f64);

    let status = read("/proc/self/status");
    gauges.process_resident.set(kib_field(&status, "VmRSS:") as f64);
    gauges.process_threads.set(number_field(&status, "Threads:") as f64);
    gauges.process_fds.set(std::fs::read_dir("/proc/self/fd").map_or(0, |open| open.count()) as f64);
    now
}

/// Processor time of all processors since boot, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct CpuTimes {
    busy: u64,
    all: u64,
}

impl CpuTimes {
    /// Reads the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, and guest times,
    /// which user and nice already contain.
    fn parse(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|each| each.parse().ok()).collect();
        let all = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Self { busy: all - idle, all }
    }

    /// The part of the time that was busy, from 0 to 1; 0 without an earlier sample.
    fn utilization_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        if all == 0 || before == Self::default() {
            0.0
        } else {
            self.busy.saturating_sub(before.busy) as f64 / all as f64
        }
    }
}

/// The number behind `name` in a file of `name  number` lines; 0 if it is missing.
fn number_field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The same for a line that ends in `kB`, in bytes.
fn kib_field(text: &str, name: &str) -> u64 {
    number_field(text, name) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utilization_is_the_busy_part_of_the_difference() {
        let before = CpuTimes::parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1 1 1\n");
        let now = CpuTimes::parse("cpu  130 0 70 840 60 0 0 0 0 0\n");
        assert_eq!(now.utilization_since(before), 0.5);
        assert_eq!(now.utilization_since(now), 0.0);
    }

    #[test]
    fn a_memory_field_is_given_in_bytes() {
        assert_eq!(kib_field("MemTotal:       2 kB\nMemFree: 1 kB\n", "MemTotal:"), 2048);
        assert_eq!(kib_field("", "MemTotal:"), 0);
    }
}
