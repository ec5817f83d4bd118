//! The series of a model's sequences: their slots, and what is kept for them.

use std::fmt;

use metrics::Gauge;

use super::series::Series;
use super::{SEQUENCE_BACKLOG, SEQUENCE_SLOTS, SEQUENCE_SLOTS_USED, SEQUENCE_STATE_BYTES};

/// Where the sequences of one model version are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// How many slots there are.
    pub total: usize,
    /// How many of them have a sequence.
    pub used: usize,
    /// Sequences that wait for a slot.
    pub backlog: usize,
}

/// The gauges of one model version's sequences; a version that is being replaced and its successor count together.
#[derive(Clone, Debug)]
pub(in crate::telemetry) struct SequenceGauges {
    total: Gauge,
    used: Gauge,
    backlog: Gauge,
    state_bytes: Gauge,
}

impl SequenceGauges {
    pub(super) fn register(series: &Series<'_>) -> Self {
        Self {
            total: series.gauge(&SEQUENCE_SLOTS),
            used: series.gauge(&SEQUENCE_SLOTS_USED),
            backlog: series.gauge(&SEQUENCE_BACKLOG),
            state_bytes: series.gauge(&SEQUENCE_STATE_BYTES),
        }
    }

    /// One scheduler's part of the gauges, none so far.
    pub(in crate::telemetry) fn part(&self) -> SlotsTold {
        SlotsTold { gauges: self.clone(), told: Slots::default() }
    }

    /// Counts the bytes of states until the result is dropped.
    pub(in crate::telemetry) fn hold(&self, bytes: usize) -> Held {
        let bytes = bytes as f64;
        self.state_bytes.increment(bytes);
        Held { gauge: self.state_bytes.clone(), bytes }
    }
}

/// What one scheduler tells of its slots; dropping it takes that back.
pub struct SlotsTold {
    gauges: SequenceGauges,
    told: Slots,
}

impl fmt::Debug for SlotsTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotsTold").field("told", &self.told).finish_non_exhaustive()
    }
}

impl SlotsTold {
    /// Tells how it is now.
    pub fn tell(&mut self, now: Slots) {
        let before = std::mem::replace(&mut self.told, now);
        let SequenceGauges { total, used, backlog, .. } = &self.gauges;
        let parts = [(total, before.total, now.total), (used, before.used, now.used)];
        for (gauge, before, now) in parts.into_iter().chain([(backlog, before.backlog, now.backlog)]) {
            if before != now {
                gauge.increment(now as f64 - before as f64);
            }
        }
    }
}

impl Drop for SlotsTold {
    fn drop(&mut self) {
        self.tell(Slots::default());
    }
}

/// Bytes that are held until this is dropped.
#[must_use = "the bytes count as given back when this is dropped"]
pub struct Held {
    gauge: Gauge,
    bytes: f64,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.decrement(self.bytes);
    }
}
