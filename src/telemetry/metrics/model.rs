//! The handles of one model version's series.
//!
//! Made when the version is loaded, so that counting on a request's way is nothing but additions.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram as Summary};

use super::histogram::Histogram;
use super::sequences::SequenceGauges;
use super::series::Series;
use super::*;
use crate::model::{ModelConfig, Scheduling};

/// The handles of one model version's series; [`super::super::stats`] counts with them. The default counts nowhere.
#[derive(Debug)]
pub(in crate::telemetry) struct ModelMetrics {
    pub success: Counter,
    pub inferences: Counter,
    pub executions: Counter,
    pub out_of_memory: Counter,
    pub pending: Gauge,
    pub running: Gauge,
    pub request_us: Counter,
    pub queue_us: Counter,
    pub input_us: Counter,
    pub infer_us: Counter,
    pub output_us: Counter,
    pub request_seconds: Histogram,
    pub queue_seconds: Histogram,
    pub compute_seconds: Histogram,
    pub batch_rows: Histogram,
    pub first_response_ms: Histogram,
    pub summaries: Option<Summaries>,
    pub cache: CacheLookups,
    pub sequences: SequenceGauges,
    load_secs: Gauge,
    coarse_failures: [Counter; COARSE_REASONS.len()],
    failures: [Counter; Kind::ALL.len()],
}

/// Quantiles of times in microseconds.
#[derive(Debug)]
pub(in crate::telemetry) struct Summaries {
    pub request: Summary,
    pub queue: Summary,
    pub input: Summary,
    pub infer: Summary,
    pub output: Summary,
}

/// What a model's requests find in the response cache; counts nowhere for a model that does not use it.
#[derive(Debug)]
pub(in crate::telemetry) struct CacheLookups {
    pub hits: Counter,
    pub misses: Counter,
    pub shared: Counter,
    pub hit_us: Counter,
    pub miss_us: Counter,
    /// Quantiles of the times of hits, and of misses.
    pub summaries: Option<(Summary, Summary)>,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        Self::register(&Series::new(None, Vec::new()), &Settings::default(), &ModelConfig::new("", ""))
    }
}

impl ModelMetrics {
    pub(super) fn register(series: &Series<'_>, settings: &Settings, config: &ModelConfig) -> Self {
        let latency = |family| if settings.counter_latencies { series.counter(family) } else { Counter::noop() };
        let histogram = |family: &Family, bounds: &[f64]| {
            series.histogram(family, config.histogram_buckets.get(family.0).map_or(bounds, Vec::as_slice))
        };
        let first_response = settings.histogram_latencies && config.decoupled;
        Self {
            success: series.counter(&SUCCESS),
            inferences: series.counter(&INFERENCES),
            executions: series.counter(&EXECUTIONS),
            out_of_memory: series.counter(&OUT_OF_MEMORY),
            pending: series.gauge(&PENDING),
            running: series.gauge(&RUNNING),
            request_us: latency(&REQUEST_US),
            queue_us: latency(&QUEUE_US),
            input_us: latency(&INPUT_US),
            infer_us: latency(&INFER_US),
            output_us: latency(&OUTPUT_US),
            request_seconds: histogram(&REQUEST_SECONDS, &SECONDS),
            queue_seconds: histogram(&QUEUE_SECONDS, &SECONDS),
            compute_seconds: histogram(&COMPUTE_SECONDS, &SECONDS),
            batch_rows: histogram(&BATCH_ROWS, &ROWS),
            first_response_ms: match first_response {
                true => histogram(&FIRST_RESPONSE_MS, &FIRST_RESPONSE),
                false => Histogram::default(),
            },
            summaries: settings.summary_latencies.then(|| Summaries::register(series)),
            cache: CacheLookups::register(series, settings, config.response_cache),
            sequences: match config.scheduling {
                Scheduling::Sequence(_) => SequenceGauges::register(series),
                _ => SequenceGauges::register(&Series::new(None, Vec::new())),
            },
            load_secs: series.gauge(&LOAD_SECS),
            coarse_failures: COARSE_REASONS.map(|reason| series.with("reason", reason).counter(&FAILURE)),
            failures: Kind::ALL.map(|kind| series.with("reason", reason(kind)).counter(&FAILURES)),
        }
    }

    /// Counts one refused or failed request, once by its exact kind and once by the reference server's reason.
    pub fn failed(&self, kind: Kind) {
        self.coarse_failures[coarse_reason(kind)].increment(1);
        self.failures[index(kind)].increment(1);
    }

    /// Sets the duration of the last load.
    pub fn loaded(&self, took: Duration) {
        self.load_secs.set(took.as_secs_f64());
    }
}

impl Summaries {
    fn register(series: &Series<'_>) -> Self {
        Self {
            request: series.summary(&REQUEST_SUMMARY),
            queue: series.summary(&QUEUE_SUMMARY),
            input: series.summary(&INPUT_SUMMARY),
            infer: series.summary(&INFER_SUMMARY),
            output: series.summary(&OUTPUT_SUMMARY),
        }
    }
}

impl CacheLookups {
    fn register(series: &Series<'_>, settings: &Settings, used: bool) -> Self {
        let nowhere = Series::new(None, Vec::new());
        let series = if used { series } else { &nowhere };
        let latency = |family| if settings.counter_latencies { series.counter(family) } else { Counter::noop() };
        let summaries = (used && settings.summary_latencies)
            .then(|| (series.summary(&CACHE_HIT_SUMMARY), series.summary(&CACHE_MISS_SUMMARY)));
        Self {
            hits: series.counter(&CACHE_HITS),
            misses: series.counter(&CACHE_MISSES),
            shared: series.counter(&CACHE_SHARED),
            hit_us: latency(&CACHE_HIT_US),
            miss_us: latency(&CACHE_MISS_US),
            summaries,
        }
    }
}

/// Requests that are being executed until this is dropped.
#[derive(Debug)]
#[must_use = "the execution counts as ended when this is dropped"]
pub struct Running {
    gauge: Gauge,
    requests: f64,
}

impl Running {
    pub(in crate::telemetry) fn of(gauge: &Gauge, requests: usize) -> Self {
        let requests = requests as f64;
        gauge.increment(requests);
        Self { gauge: gauge.clone(), requests }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gauge.decrement(self.requests);
    }
}

/// The histograms whose bounds a model may set.
pub const MODEL_HISTOGRAMS: [&str; 5] =
    [FIRST_RESPONSE_MS.0, REQUEST_SECONDS.0, QUEUE_SECONDS.0, COMPUTE_SECONDS.0, BATCH_ROWS.0];
