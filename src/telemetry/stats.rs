//! The statistics of one model version: exact counts and durations, cumulative since its load.
//!
//! The instance records each batch once, for all protocols alike; who waits for a request records its failure.
//! Readers take a [`Snapshot`]. The model's metrics are counted at the same places; unlike the statistics they go on
//! through a reload, so a new [`ModelStats`] of the same version continues the same series.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::metrics::{Held, Metrics, ModelMetrics, Running, SlotsTold};
use crate::error::Kind;
use crate::model::{ModelConfig, Version};

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

/// One request that the response cache answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheHit {
    /// How long it took to look.
    pub lookup: Duration,
    /// How long it waited for the execution of an equal request; zero if the answer was there.
    pub waited: Duration,
    /// From arrival until the response was there.
    pub total: Duration,
    /// Whether it is the answer of an equal request that was under way.
    pub shared: bool,
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
    /// Requests answered without an execution of their own: by the response cache, or by that of an equal request. By
    /// the time of looking up.
    pub cache_hit: Total,
    /// Requests executed after the response cache had no answer, by the time of looking up and of putting in.
    pub cache_miss: Total,
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
    /// Statistics at zero that also count in the series of this model's `version`.
    pub fn new(metrics: &Metrics, config: &ModelConfig, version: Version) -> Self {
        Self { totals: Mutex::default(), metrics: metrics.model(config, version) }
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

    /// Records that an execution of so many requests began, which goes on until the result is dropped.
    pub fn execution_began(&self, requests: usize) -> Running {
        Running::of(&self.metrics.running, requests)
    }

    /// Records that an execution, or a part of one, needed more memory than there was.
    pub fn ran_out_of_memory(&self) {
        self.metrics.out_of_memory.increment(1);
    }

    /// Where a scheduler tells of its slots for sequences.
    pub fn slots(&self) -> SlotsTold {
        self.metrics.sequences.part()
    }

    /// Records that so many bytes of states are kept, until the result is dropped.
    pub fn states_kept(&self, bytes: usize) -> Held {
        self.metrics.sequences.hold(bytes)
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
            if let Some(summaries) = &self.metrics.summaries {
                summaries.request.record(micros(request.total));
                summaries.queue.record(micros(request.queue));
                summaries.input.record(micros(batch.compute_input));
                summaries.infer.record(micros(batch.compute_infer));
                summaries.output.record(micros(batch.compute_output));
            }
        }
        totals.compute_input.add(answered, batch.compute_input);
        totals.compute_infer.add(answered, batch.compute_infer);
        totals.compute_output.add(answered, batch.compute_output);
    }

    /// Records a request that the response cache answered.
    pub fn cache_hit(&self, hit: &CacheHit) {
        let metrics = &self.metrics;
        let mut totals = self.totals.lock();
        let before = Sums::of(&totals);
        totals.success.add(1, hit.total);
        totals.queue.add(1, hit.waited);
        totals.cache_hit.add(1, hit.lookup);
        let after = Sums::of(&totals);
        drop(totals);

        metrics.request_seconds.record(hit.total.as_secs_f64());
        metrics.queue_seconds.record(hit.waited.as_secs_f64());
        if let Some(summaries) = &metrics.summaries {
            summaries.request.record(micros(hit.total));
            summaries.queue.record(micros(hit.waited));
        }
        if let Some((hits, _)) = &metrics.cache.summaries {
            hits.record(micros(hit.lookup));
        }
        metrics.cache.hits.increment(1);
        metrics.cache.shared.increment(u64::from(hit.shared));
        after.count_since(&before, metrics);
    }

    /// Records that a request was not in the response cache; `took` is what it has cost to look and to put its answer in.
    pub fn cache_missed(&self, took: Duration) {
        let metrics = &self.metrics;
        let mut totals = self.totals.lock();
        let before = Sums::of(&totals);
        totals.cache_miss.add(1, took);
        let after = Sums::of(&totals);
        drop(totals);
        if let Some((_, misses)) = &metrics.cache.summaries {
            misses.record(micros(took));
        }
        metrics.cache.misses.increment(1);
        after.count_since(&before, metrics);
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
    times_us: [u64; 7],
}

impl Sums {
    fn of(totals: &Snapshot) -> Self {
        let Snapshot { success, queue, compute_input, compute_infer, compute_output, cache_hit, cache_miss, .. } =
            totals;
        let times = [success, queue, compute_input, compute_infer, compute_output, cache_hit, cache_miss];
        Self { success: totals.success.count, rows: totals.inference_count, times_us: times.map(|time| time.ns / 1000) }
    }

    fn count_since(&self, before: &Sums, metrics: &ModelMetrics) {
        metrics.success.increment(self.success - before.success);
        metrics.inferences.increment(self.rows - before.rows);
        let ModelMetrics { request_us, queue_us, input_us, infer_us, output_us, cache, .. } = metrics;
        let counters = [request_us, queue_us, input_us, infer_us, output_us, &cache.hit_us, &cache.miss_us];
        for (counter, (after, before)) in counters.into_iter().zip(self.times_us.iter().zip(before.times_us)) {
            counter.increment(after - before);
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Settings;
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
        let stats = || ModelStats::new(&metrics, &ModelConfig::new("m", "identity"), 1);
        answer_one(&stats(), Duration::from_millis(1));
        let reloaded = stats();
        answer_one(&reloaded, Duration::from_millis(1));
        assert_eq!(reloaded.snapshot().success.count, 1);
        assert_eq!(values(&metrics, "nv_inference_request_success{"), [2.0]);
    }

    #[test]
    fn a_hit_is_an_answered_request_without_an_inference() {
        let metrics = Metrics::new();
        let config = ModelConfig { response_cache: true, ..ModelConfig::new("m", "identity") };
        let stats = ModelStats::new(&metrics, &config, 1);
        let ms = Duration::from_millis;
        stats.cache_missed(ms(2));
        answer_one(&stats, ms(9));
        stats.cache_hit(&CacheHit { lookup: ms(1), waited: ms(3), total: ms(4), shared: true });
        let now = stats.snapshot();
        assert_eq!((now.success.count, now.queue, now.compute_infer.count), (2, Total { count: 2, ns: 3_000_000 }, 1));
        assert_eq!((now.inference_count, now.execution_count), (1, 1));
        assert_eq!((now.cache_hit.ns, now.cache_miss.ns), (1_000_000, 2_000_000));
        for (series, value) in [
            ("nv_cache_num_hits_per_model{", 1.0),
            ("nv_cache_num_misses_per_model{", 1.0),
            ("nv_cache_hit_duration_per_model{", 1000.0),
            ("nv_cache_miss_duration_per_model{", 2000.0),
            ("nereid_cache_shared_total{", 1.0),
            ("nv_inference_request_success{", 2.0),
            ("nv_inference_count{", 1.0),
            ("nereid_request_duration_seconds_count{", 2.0),
        ] {
            assert_eq!(values(&metrics, series), [value], "{series}");
        }
    }

    #[test]
    fn times_can_be_summed_summarised_both_or_neither() {
        let texts = [(true, false), (false, true)].map(|(counter_latencies, summary_latencies)| {
            let metrics = Metrics::of(Settings { counter_latencies, summary_latencies, ..Settings::default() });
            let stats = ModelStats::new(&metrics, &ModelConfig::new("m", "identity"), 1);
            answer_one(&stats, Duration::from_millis(5));
            metrics.upkeep();
            // Counting goes on whatever becomes of times.
            assert_eq!(values(&metrics, "nv_inference_request_success{"), [1.0]);
            metrics.render()
        });
        assert!(texts[0].contains("nv_inference_request_duration_us{") && !texts[0].contains("summary_us"));
        assert!(!texts[1].contains("duration_us{"), "{}", texts[1]);
        let line = "nv_inference_request_summary_us{model=\"m\",version=\"1\",quantile=\"0.99\"} ";
        let value = texts[1].lines().find_map(|text| text.strip_prefix(line)).and_then(|text| text.parse().ok());
        assert!(value.is_some_and(|micros: f64| (micros - 5000.0).abs() < 10.0), "{}", texts[1]);
        assert!(texts[1].contains("nv_inference_queue_summary_us_count{model=\"m\",version=\"1\"} 1"));
    }

    #[test]
    fn a_model_may_have_its_own_bounds() {
        let metrics = Metrics::new();
        let buckets = [("nereid_batch_rows".to_owned(), vec![3.0, 5.0])].into();
        let config = ModelConfig { histogram_buckets: buckets, ..ModelConfig::new("m", "identity") };
        let stats = ModelStats::new(&metrics, &config, 1);
        stats.batch_finished(&BatchTimes { rows: 4, ..BatchTimes::default() }, [RequestTimes::default()]);
        assert_eq!(values(&metrics, "nereid_batch_rows_bucket{"), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn times_below_a_microsecond_add_up() {
        let metrics = Metrics::new();
        let stats = ModelStats::new(&metrics, &ModelConfig::new("m", "identity"), 1);
        for _ in 0..1000 {
            answer_one(&stats, Duration::from_nanos(300));
        }
        assert_eq!(values(&metrics, "nv_inference_compute_infer_duration_us{"), [300.0]);
    }

    #[test]
    fn every_request_ends_in_exactly_one_counter() {
        let metrics = Metrics::new();
        let stats = ModelStats::new(&metrics, &ModelConfig::new("m", "identity"), 1);
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
        let stats = ModelStats::new(&metrics, &ModelConfig::new("m", "identity"), 1);
        let request = RequestTimes { rows: 2, ..RequestTimes::default() };
        stats.batch_finished(&BatchTimes { rows: 4, ..BatchTimes::default() }, [request, request]);
        assert_eq!(values(&metrics, "nereid_request_duration_seconds_count{"), [2.0]);
        assert_eq!(values(&metrics, "nereid_compute_duration_seconds_count{"), [1.0]);
        assert_eq!(values(&metrics, "nereid_batch_rows_sum{"), [4.0]);
    }

    #[test]
    fn responses_count_by_their_position_and_the_end_at_the_next() {
        let metrics = Metrics::of(Settings { histogram_latencies: true, ..Settings::default() });
        let stats = ModelStats::new(&metrics, &ModelConfig { decoupled: true, ..ModelConfig::new("m", "identity") }, 1);
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
