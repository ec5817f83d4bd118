//! The statistics of one model version: exact counts and durations, cumulative since its load.
//!
//! The instance records each batch once, for all protocols alike; who waits for a request records its failure.
//! Readers take a [`Snapshot`]. The model's metrics are counted at the same places; unlike the statistics they go on
//! through a reload, so a new [`ModelStats`] of the same version continues the same series.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::metrics::{Metrics, ModelMetrics};
use crate::error::Kind;
use crate::model::Version;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestTimes {
    /// Rows of the request.
    pub rows: usize,
    /// From arrival until the execution began.
    pub queue: Duration,
    /// From arrival until the response was handed over.
    pub total: Duration,
}

/// The most responses of one request that the statistics tell apart; later ones are not counted by index.
pub const RESPONSES_KEPT: usize = 1024;

/// The responses of one request to a decoupled model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Responses {
    /// From arrival until the first was handed over; `None` if there was none.
    pub first: Option<Duration>,
    /// How many there were.
    pub count: usize,
    /// How long each took, up to [`RESPONSES_KEPT`]: to compute it after the one before, and to hand it over.
    pub times: Vec<(Duration, Duration)>,
    /// What came behind them.
    pub end: ResponsesEnd,
}

/// What came behind the last response of a request to a decoupled model, and how long after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponsesEnd {
    /// Nothing: the response itself was the end.
    #[default]
    Data,
    /// The end without a response.
    Empty(Duration),
    /// An error.
    Failed(Duration),
    /// Nothing, as nobody took more.
    Cancelled(Duration),
}

/// The responses at one position, such as all first ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseTotals {
    /// Computing.
    pub compute_infer: Total,
    /// Handing over, the wait for a slow caller included.
    pub compute_output: Total,
    /// Both, of those that were sent.
    pub success: Total,
    /// Errors in place of a response.
    pub fail: Total,
    /// Ends in place of a response.
    pub empty_response: Total,
    /// Callers that took no more.
    pub cancel: Total,
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

/// The numbers at one moment, with the meaning that the reference server gives them.
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
    /// By position of the response from 0, for a decoupled model.
    pub responses: BTreeMap<usize, ResponseTotals>,
    /// Failed requests by kind, those refused by the model's checks included.
    pub failures: BTreeMap<Kind, u64>,
}

/// Collects the statistics of one model version.
#[derive(Debug, Default)]
pub struct ModelStats {
    /// Written once per batch by an instance and once per failure by a waiter; held for a few adds only.
    totals: Mutex<Snapshot>,
    /// Count nowhere by default.
    metrics: ModelMetrics,
}

impl ModelStats {
    /// Statistics at zero that also count in the series of `model`'s `version`; `tags` are further labels.
    pub fn new(metrics: &Metrics, model: &str, version: Version, tags: &BTreeMap<String, String>) -> Self {
        Self { totals: Mutex::default(), metrics: metrics.model(model, version, tags) }
    }

    /// Records how long the load took, from the command to the first instance that could run.
    pub fn loaded(&self, took: Duration) {
        self.metrics.loaded(took);
    }

    /// Records that a request began to wait; each is counted once more in [`ModelStats::requests_left`].
    pub fn request_waits(&self) {
        self.metrics.pending.increment(1.0);
    }

    /// Records that `count` requests wait no longer: taken for execution, or taken back.
    pub fn requests_left(&self, count: usize) {
        self.metrics.pending.decrement(count as f64);
    }

    /// Records one execution and the requests that it answered.
    pub fn batch_finished(&self, batch: &BatchTimes, requests: impl IntoIterator<Item = RequestTimes>) {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let metrics = &self.metrics;
        let mut totals = self.totals.lock();
        let before = Sums::of(&totals);
        totals.last_inference_ms = now_ms;
        totals.execution_count += 1;
        let by_rows = totals.batches.entry(batch.rows).or_default();
        by_rows.compute_input.add(1, batch.compute_input);
        by_rows.compute_infer.add(1, batch.compute_infer);
        by_rows.compute_output.add(1, batch.compute_output);
        self.add_answered(&mut totals, batch, requests);
        let after = Sums::of(&totals);
        drop(totals);

        metrics.executions.increment(1);
        metrics.batch_rows.record(batch.rows as f64);
        metrics
            .compute_seconds
            .record((batch.compute_input + batch.compute_infer + batch.compute_output).as_secs_f64());
        after.count_since(&before, metrics);
    }

    /// Records one answered request whose execution is recorded already.
    pub fn request_answered(&self, batch: &BatchTimes, request: RequestTimes) {
        let mut totals = self.totals.lock();
        let before = Sums::of(&totals);
        self.add_answered(&mut totals, batch, [request]);
        let after = Sums::of(&totals);
        drop(totals);
        after.count_since(&before, &self.metrics);
    }

    fn add_answered(
        &self,
        totals: &mut Snapshot,
        batch: &BatchTimes,
        requests: impl IntoIterator<Item = RequestTimes>,
    ) {
        let mut answered = 0;
        for request in requests {
            answered += 1;
            totals.inference_count += request.rows as u64;
            totals.success.add(1, request.total);
            totals.queue.add(1, request.queue);
            self.metrics.request_seconds.record(request.total.as_secs_f64());
            self.metrics.queue_seconds.record(request.queue.as_secs_f64());
        }
        totals.compute_input.add(answered, batch.compute_input);
        totals.compute_infer.add(answered, batch.compute_infer);
        totals.compute_output.add(answered, batch.compute_output);
    }

    /// Records the responses of one request to a decoupled model; the request itself is recorded as any other.
    pub fn request_responded(&self, responses: &Responses) {
        if let Some(first) = responses.first {
            self.metrics.first_response_ms.record(first.as_secs_f64() * 1e3);
        }
        let mut totals = self.totals.lock();
        for (index, &(computing, handing_over)) in responses.times.iter().enumerate() {
            let at = totals.responses.entry(index).or_default();
            at.compute_infer.add(1, computing);
            at.compute_output.add(1, handing_over);
            at.success.add(1, computing + handing_over);
        }
        if responses.count >= RESPONSES_KEPT {
            return;
        }
        let mut end = |part: fn(&mut ResponseTotals) -> &mut Total, took| {
            part(totals.responses.entry(responses.count).or_default()).add(1, took);
        };
        match responses.end {
            ResponsesEnd::Data => {}
            ResponsesEnd::Empty(took) => end(|at| &mut at.empty_response, took),
            ResponsesEnd::Failed(took) => end(|at| &mut at.fail, took),
            ResponsesEnd::Cancelled(took) => end(|at| &mut at.cancel, took),
        }
    }

    /// Records a request that failed after its checks, `total` after its arrival.
    pub fn request_failed(&self, kind: Kind, total: Duration) {
        self.metrics.failed(kind);
        let mut totals = self.totals.lock();
        totals.fail.add(1, total);
        *totals.failures.entry(kind).or_default() += 1;
    }

    /// Records a request that the model's checks refused; `fail` does not count it, as in the reference server.
    pub fn request_refused(&self, kind: Kind) {
        self.metrics.failed(kind);
        *self.totals.lock().failures.entry(kind).or_default() += 1;
    }

    /// The numbers now.
    pub fn snapshot(&self) -> Snapshot {
        self.totals.lock().clone()
    }
}

/// The sums behind the metrics' counters, in the metrics' units: what is added to a counter is the difference of two,
/// so that rounding to microseconds is done on the sum and loses nothing however short the single times are.
struct Sums {
    success: u64,
    rows: u64,
    times_us: [u64; 5],
}

impl Sums {
    fn of(totals: &Snapshot) -> Self {
        let times = [totals.success, totals.queue, totals.compute_input, totals.compute_infer, totals.compute_output];
        Self { success: totals.success.count, rows: totals.inference_count, times_us: times.map(|time| time.ns / 1000) }
    }

    fn count_since(&self, before: &Sums, metrics: &ModelMetrics) {
        metrics.success.increment(self.success - before.success);
        metrics.inferences.increment(self.rows - before.rows);
        let counters =
            [&metrics.request_us, &metrics.queue_us, &metrics.input_us, &metrics.infer_us, &metrics.output_us];
        for (counter, (after, before)) in counters.into_iter().zip(self.times_us.iter().zip(before.times_us)) {
            counter.increment(after - before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of all series whose line starts with `prefix`.
    fn values(metrics: &Metrics, prefix: &str) -> Vec<f64> {
        let text = metrics.render();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect()
    }

    fn answer_one(stats: &ModelStats, total: Duration) {
        let batch = BatchTimes { rows: 1, compute_infer: total, ..BatchTimes::default() };
        stats.batch_finished(&batch, [RequestTimes { rows: 1, queue: Duration::ZERO, total }]);
    }

    #[test]
    fn counters_go_on_through_a_reload_while_statistics_start_again() {
        let metrics = Metrics::new();
        let stats = || ModelStats::new(&metrics, "m", 1, &BTreeMap::new());
        answer_one(&stats(), Duration::from_millis(1));
        let reloaded = stats();
        answer_one(&reloaded, Duration::from_millis(1));
        assert_eq!(reloaded.snapshot().success.count, 1);
        assert_eq!(values(&metrics, "nv_inference_request_success{"), [2.0]);
    }

    #[test]
    fn times_below_a_microsecond_add_up() {
        let metrics = Metrics::new();
        let stats = ModelStats::new(&metrics, "m", 1, &BTreeMap::new());
        for _ in 0..1000 {
            answer_one(&stats, Duration::from_nanos(300));
        }
        assert_eq!(values(&metrics, "nv_inference_compute_infer_duration_us{"), [300.0]);
    }

    #[test]
    fn every_request_ends_in_exactly_one_counter() {
        let metrics = Metrics::new();
        let stats = ModelStats::new(&metrics, "m", 1, &BTreeMap::new());
        answer_one(&stats, Duration::from_millis(1));
        for kind in Kind::ALL {
            stats.request_failed(kind, Duration::from_millis(1));
            stats.request_refused(kind);
        }
        let failed = 2.0 * Kind::ALL.len() as f64;
        assert_eq!(values(&metrics, "nv_inference_request_success{"), [1.0]);
        assert_eq!(values(&metrics, "nv_inference_request_failure{").iter().sum::<f64>(), failed);
        assert_eq!(values(&metrics, "nereid_request_failures_total{").iter().sum::<f64>(), failed);
    }

    #[test]
    fn histograms_have_each_request_and_each_execution() {
        let metrics = Metrics::new();
        let stats = ModelStats::new(&metrics, "m", 1, &BTreeMap::new());
        let request = RequestTimes { rows: 2, ..RequestTimes::default() };
        stats.batch_finished(&BatchTimes { rows: 4, ..BatchTimes::default() }, [request, request]);
        assert_eq!(values(&metrics, "nereid_request_duration_seconds_count{"), [2.0]);
        assert_eq!(values(&metrics, "nereid_compute_duration_seconds_count{"), [1.0]);
        assert_eq!(values(&metrics, "nereid_batch_rows_sum{"), [4.0]);
    }

    #[test]
    fn responses_count_by_their_position_and_the_end_at_the_next() {
        let metrics = Metrics::new();
        let stats = ModelStats::new(&metrics, "m", 1, &BTreeMap::new());
        let ms = Duration::from_millis;
        let two = Responses { first: Some(ms(200)), count: 2, times: vec![(ms(3), ms(1)); 2], ..Responses::default() };
        stats.request_responded(&Responses { end: ResponsesEnd::Empty(ms(5)), ..two.clone() });
        stats.request_responded(&Responses { end: ResponsesEnd::Cancelled(ms(7)), ..two });
        stats.request_responded(&Responses { end: ResponsesEnd::Failed(ms(9)), ..Responses::default() });
        let at = stats.snapshot().responses;
        assert_eq!(at.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(at[&1].success, Total { count: 2, ns: 8_000_000 });
        assert_eq!(at[&1].compute_infer, Total { count: 2, ns: 6_000_000 });
        assert_eq!((at[&0].fail.count, at[&2].empty_response.ns, at[&2].cancel.count), (1, 5_000_000, 1));
        assert_eq!(values(&metrics, "nv_inference_first_response_histogram_ms_bucket{"), [0.0, 2.0, 2.0, 2.0, 2.0]);
    }

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
