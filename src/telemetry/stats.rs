//! The statistics of one model version: exact counts and durations, cumulative since its load.
//!
//! The instance records each batch once, for all protocols alike; who waits for a request records its failure.
//! Readers take a [`Snapshot`].

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::error::Kind;

/// How often and for how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Number of events.
    pub count: u64,
    /// Sum of their durations in nanoseconds.
    pub ns: u64,
}

impl Total {
    /// Adds `count` events that took `each`.
    pub fn add(&mut self, count: u64, each: Duration) {
        self.count += count;
        self.ns += count * each.as_nanos() as u64;
    }
}

/// The parts of one execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchTimes {
    /// Rows of the batch.
    pub rows: usize,
    /// From the start until the inputs are where they are needed.
    pub compute_input: Duration,
    /// The computation.
    pub compute_infer: Duration,
    /// From the end of the computation until all responses were handed over.
    pub compute_output: Duration,
}

/// One answered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTimes {
    /// Rows of the request.
    pub rows: usize,
    /// From arrival until the execution began.
    pub queue: Duration,
    /// From arrival until the response was handed over.
    pub total: Duration,
}

/// The times of executions of one row count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchTotals {
    /// Until the inputs are ready.
    pub compute_input: Total,
    /// The computation.
    pub compute_infer: Total,
    /// Handing over.
    pub compute_output: Total,
}

/// The numbers at one moment; see spec/triton.md §5.1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Milliseconds since the epoch of the last execution's end; 0 for none.
    pub last_inference_ms: u64,
    /// Rows of answered requests.
    pub inference_count: u64,
    /// Executions.
    pub execution_count: u64,
    /// Answered requests, by total time.
    pub success: Total,
    /// Requests accepted by the model's checks and then failed, by total time.
    pub fail: Total,
    /// Queue time of answered requests.
    pub queue: Total,
    /// `compute_input` of answered requests: each request counts its batch's time.
    pub compute_input: Total,
    /// `compute_infer` of answered requests.
    pub compute_infer: Total,
    /// `compute_output` of answered requests.
    pub compute_output: Total,
    /// By row count of the execution.
    pub batches: BTreeMap<usize, BatchTotals>,
    /// Failed requests by kind, those refused by the model's checks included.
    pub failures: BTreeMap<Kind, u64>,
}

/// Collects the statistics of one model version.
#[derive(Debug, Default)]
pub struct ModelStats {
    /// Written once per batch by an instance and once per failure by a waiter; held for a few adds only.
    totals: Mutex<Snapshot>,
}

impl ModelStats {
    /// Records one execution and the requests that it answered.
    pub fn batch_finished(&self, batch: &BatchTimes, requests: impl IntoIterator<Item = RequestTimes>) {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let mut totals = self.totals.lock();
        totals.last_inference_ms = now_ms;
        totals.execution_count += 1;
        let by_rows = totals.batches.entry(batch.rows).or_default();
        by_rows.compute_input.add(1, batch.compute_input);
        by_rows.compute_infer.add(1, batch.compute_infer);
        by_rows.compute_output.add(1, batch.compute_output);
        let mut answered = 0;
        for request in requests {
            answered += 1;
            totals.inference_count += request.rows as u64;
            totals.success.add(1, request.total);
            totals.queue.add(1, request.queue);
        }
        totals.compute_input.add(answered, batch.compute_input);
        totals.compute_infer.add(answered, batch.compute_infer);
        totals.compute_output.add(answered, batch.compute_output);
    }

    /// Records a request that failed after its checks, `total` after its arrival.
    pub fn request_failed(&self, kind: Kind, total: Duration) {
        let mut totals = self.totals.lock();
        totals.fail.add(1, total);
        *totals.failures.entry(kind).or_default() += 1;
    }

    /// Records a request that the model's checks refused; `fail` does not count it, as in the reference server.
    pub fn request_refused(&self, kind: Kind) {
        *self.totals.lock().failures.entry(kind).or_default() += 1;
    }

    /// The numbers now.
    pub fn snapshot(&self) -> Snapshot {
        self.totals.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_counts_its_time_once_and_for_each_request() {
        let stats = ModelStats::default();
        let ms = Duration::from_millis;
        let batch = BatchTimes { rows: 3, compute_input: ms(1), compute_infer: ms(2), compute_output: ms(3) };
        let request = |rows| RequestTimes { rows, queue: ms(4), total: ms(10) };
        stats.batch_finished(&batch, [request(1), request(2)]);
        stats.request_failed(Kind::TimedOut, ms(7));
        let now = stats.snapshot();
        assert_eq!((now.execution_count, now.inference_count), (1, 3));
        assert_eq!(now.compute_infer, Total { count: 2, ns: 4_000_000 });
        assert_eq!(now.batches[&3].compute_infer, Total { count: 1, ns: 2_000_000 });
        assert_eq!(now.fail, Total { count: 1, ns: 7_000_000 });
        assert_eq!(now.failures[&Kind::TimedOut], 1);
    }
}
