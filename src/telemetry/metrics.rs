//! Every metric's name, type, labels and help, and the handles that count.
//!
//! A [`Metrics`] is one server's own registry (never a global one), so that several servers can live in one process.
//! It does not know who counts: [`super::stats`] does for models, `server.rs` for the host. Names that start with
//! `nv_` are those of the reference server, with its meanings and units; ours start with `nereid_` and use seconds.

mod cache;
mod histogram;
mod instances;
mod memory;
mod model;
mod regions;
mod request_memory;
mod sequences;
mod series;
mod settings;
mod traffic;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use metrics::{Counter, Gauge, Label};

use self::series::{Registry, Series};
use crate::error::Kind;
use crate::model::{ModelConfig, Version};

pub use self::cache::{CacheMetrics, Evicted};
pub use self::instances::{BusyTime, InstancesMetrics, LimiterMetrics, ResourceMetrics};
pub use self::memory::{HeldBytes, MemoryMetrics, OnDemandMetrics, PageMetrics};
pub(super) use self::model::ModelMetrics;
pub use self::model::{MODEL_HISTOGRAMS, Running};
pub use self::regions::RegionMetrics;
pub use self::request_memory::RequestMemoryMetrics;
pub use self::sequences::{Held, Slots, SlotsTold};
pub use self::settings::Settings;
pub use self::traffic::{Answers, OpenConnection, PortMetrics};

/// A metric's name and what it counts.
struct Family(&'static str, &'static str);

// Per model version; labels `model`, `version` and the model's own tags.
const SUCCESS: Family = Family("nv_inference_request_success", "Requests answered");
const FAILURE: Family = Family("nv_inference_request_failure", "Requests refused or failed, by reason");
const INFERENCES: Family = Family("nv_inference_count", "Inferences performed: the rows of all answered requests");
const EXECUTIONS: Family = Family("nv_inference_exec_count", "Model executions: a batch counts once");
const REQUEST_US: Family =
    Family("nv_inference_request_duration_us", "Time from arrival to response of answered requests, in microseconds");
const QUEUE_US: Family = Family("nv_inference_queue_duration_us", "Time answered requests waited, in microseconds");
const INPUT_US: Family =
    Family("nv_inference_compute_input_duration_us", "Time to prepare inputs of answered requests, in microseconds");
const INFER_US: Family =
    Family("nv_inference_compute_infer_duration_us", "Time to execute answered requests, in microseconds");
const OUTPUT_US: Family =
    Family("nv_inference_compute_output_duration_us", "Time to hand over responses, in microseconds");
const PENDING: Family = Family("nv_inference_pending_request_count", "Requests that wait for execution");
const RUNNING: Family = Family("nereid_requests_running", "Requests that are being executed");
const LOAD_SECS: Family = Family("nv_model_load_duration_secs", "Duration of the version's last load, in seconds");
const FIRST_RESPONSE_MS: Family = Family(
    "nv_inference_first_response_histogram_ms",
    "Time from arrival to the first response of requests to decoupled models, in milliseconds",
);
const REQUEST_SUMMARY: Family = Family(
    "nv_inference_request_summary_us",
    "Quantiles of the time from arrival to response of answered requests, in microseconds",
);
const QUEUE_SUMMARY: Family =
    Family("nv_inference_queue_summary_us", "Quantiles of the time answered requests waited, in microseconds");
const INPUT_SUMMARY: Family =
    Family("nv_inference_compute_input_summary_us", "Quantiles of the time to prepare inputs, in microseconds");
const INFER_SUMMARY: Family =
    Family("nv_inference_compute_infer_summary_us", "Quantiles of the time to execute, in microseconds");
const OUTPUT_SUMMARY: Family =
    Family("nv_inference_compute_output_summary_us", "Quantiles of the time to hand over responses, in microseconds");
const CACHE_HITS: Family = Family("nv_cache_num_hits_per_model", "Requests answered from the response cache");
const CACHE_MISSES: Family =
    Family("nv_cache_num_misses_per_model", "Requests executed because the response cache had no answer");
const CACHE_HIT_US: Family =
    Family("nv_cache_hit_duration_per_model", "Time of lookups in the response cache that hit, in microseconds");
const CACHE_MISS_US: Family = Family(
    "nv_cache_miss_duration_per_model",
    "Time of lookups in the response cache that missed and of putting the answers in, in microseconds",
);
const CACHE_HIT_SUMMARY: Family =
    Family("nv_cache_hit_summary_per_model", "Quantiles of the time of lookups that hit, in microseconds");
const CACHE_MISS_SUMMARY: Family =
    Family("nv_cache_miss_summary_per_model", "Quantiles of the time of lookups that missed, in microseconds");
const CACHE_SHARED: Family =
    Family("nereid_cache_shared_total", "Requests answered by the execution of an equal one that was under way");
const REQUEST_SECONDS: Family =
    Family("nereid_request_duration_seconds", "Time from arrival to response of answered requests");
const QUEUE_SECONDS: Family = Family("nereid_queue_duration_seconds", "Time answered requests waited");
const COMPUTE_SECONDS: Family =
    Family("nereid_compute_duration_seconds", "Time of executions from preparing inputs to handing over responses");
const BATCH_ROWS: Family = Family("nereid_batch_rows", "Rows of executions");
const FAILURES: Family =
    Family("nereid_request_failures_total", "Requests refused or failed, by exact reason; each counts once");
const INSTANCES: Family = Family("nereid_instances", "Instances that execute, or are ready to");
const INSTANCES_LOST: Family = Family(
    "nereid_instances_lost_total",
    "Instances given up because an execution did not end in its time, or a device failed",
);
const OUT_OF_MEMORY: Family = Family(
    "nereid_out_of_memory_total",
    "Executions, whole or parts of a batch, that needed more memory than there was",
);
const INSTANCE_BUSY_US: Family =
    Family("nereid_instance_busy_us_total", "Time that an instance has executed, in microseconds");
const MODEL_MEMORY: Family = Family("nereid_model_memory_bytes", "Bytes that a model version holds, by device");
const SEQUENCE_SLOTS: Family = Family("nereid_sequence_slots", "Slots for sequences");
const SEQUENCE_SLOTS_USED: Family = Family("nereid_sequence_slots_used", "Slots that have a sequence");
const SEQUENCE_BACKLOG: Family = Family("nereid_sequence_backlog", "Sequences that wait for a slot");
const SEQUENCE_STATE_BYTES: Family =
    Family("nereid_sequence_state_bytes", "Bytes of the states that are kept between the requests of sequences");

// Of the server as a whole.
const LIMITER_WAITING: Family =
    Family("nereid_rate_limiter_waiting", "Instances that have a batch and wait for resources of the rate limiter");
const LIMITER_RESOURCES: Family = Family("nereid_rate_limiter_resources", "How much there is of a resource");
const LIMITER_USED: Family = Family("nereid_rate_limiter_resources_used", "How much of a resource is held");
const DEVICE_LIMIT: Family = Family("nereid_memory_limit_bytes", "Bytes that models may hold on a device");
const DEVICE_RESERVED: Family = Family(
    "nereid_memory_reserved_bytes",
    "Bytes of a device that are given out: those that models hold, and those that loads will take",
);
const EVICTIONS: Family =
    Family("nereid_evictions_total", "Models that left because a load needed their memory; requests bring them back");
const PAGED_MODELS: Family = Family(
    "nereid_paged_models",
    "Models that left with their weights in a cheaper place, from where they come back soon",
);
const PAGE_SECONDS: Family = Family(
    "nereid_page_seconds",
    "Time that it took to move the weights of a model out, or in and to serve it again, by direction; waits for memory \
     do not count",
);
const PAGE_BYTES: Family = Family("nereid_page_bytes_total", "Bytes of weights that were moved, by direction");
const PAGE_FAILURES: Family =
    Family("nereid_page_failures_total", "Models whose weights could not be moved; they were dropped, or loaded anew");
const SPILL_BYTES: Family = Family("nereid_spill_bytes", "Bytes of the files of weights that left the host");
const DEMANDS: Family = Family(
    "nereid_on_demand_requests_total",
    "Requests to models on demand: those that found the model there (hit), and waits for a model to be loaded (miss)",
);
const DEMAND_LOADS: Family = Family("nereid_on_demand_loads_total", "Loads that requests have waited for, by result");
const DEMAND_SECONDS: Family =
    Family("nereid_on_demand_wait_seconds", "Time that requests have waited for models to be loaded");
const ALLOCATED: Family =
    Family("nereid_allocator_used_bytes", "Bytes of a CUDA device that tensors have, by libtorch's own count");
const ALLOCATOR_KEPT: Family =
    Family("nereid_allocator_kept_bytes", "Bytes of a CUDA device that libtorch's allocator has, used or not");
const DEVICE_USED: Family = Family("nereid_memory_used_bytes", "Bytes of a device that models hold");
const RECEIVED: Family =
    Family("nereid_requests_received_total", "Inference requests that arrived, whatever became of them");
const IN_FLIGHT: Family = Family("nereid_requests_in_flight", "Inference requests that have no final answer yet");
const UNROUTED: Family =
    Family("nereid_unrouted_requests_total", "Requests refused before a model version was found for them, by reason");
const REQUEST_MEMORY: Family = Family(
    "nereid_request_memory_bytes",
    "Bytes of requests that are being read or wait for their answers, as they are when decompressed, and of answers that are being sent",
);
const REQUEST_MEMORY_LIMIT: Family =
    Family("nereid_request_memory_limit_bytes", "Bytes that requests and answers may hold together");
const REQUEST_MEMORY_REFUSALS: Family = Family(
    "nereid_request_memory_refusals_total",
    "Requests refused because requests held as many bytes as they may, or one would alone",
);
const REGIONS: Family = Family("nereid_shared_memory_regions", "Regions of shared memory that clients have registered");
const REGION_BYTES: Family = Family(
    "nereid_shared_memory_bytes_total",
    "Bytes of tensors in shared memory: inputs read in place (viewed) or copied, outputs placed",
);
const CACHE_ENTRIES: Family = Family("nereid_cache_entries", "Responses in the response cache");
const CACHE_BYTES: Family = Family("nereid_cache_bytes", "Bytes that the response cache holds, bookkeeping included");
const CACHE_LIMIT: Family = Family("nereid_cache_limit_bytes", "Bytes that the response cache may hold");
const CACHE_EVICTIONS: Family =
    Family("nereid_cache_evictions_total", "Responses that left the response cache, by reason");
const CONNECTIONS: Family = Family("nereid_connections", "Open connections, by port");
const CONNECTIONS_TOTAL: Family = Family("nereid_connections_total", "Connections that were accepted, by port");
const NETWORK_BYTES: Family =
    Family("nereid_network_bytes_total", "Bytes of HTTP that came and went, by port and direction");
const GRPC_ANSWERS: Family = Family("nereid_grpc_responses_total", "Ended gRPC calls, by method and status code");
const HTTP_ANSWERS: Family = Family("nereid_http_responses_total", "HTTP responses, by route and status code");
const LOADS: Family = Family("nereid_model_loads_total", "Loads of model versions, by result");
const UNLOADS: Family = Family("nereid_model_unloads_total", "Unloads of model versions");
const TRACES: Family = Family("nereid_traces_total", "Traces of requests, by what became of them");
const BUILD: Family = Family("nereid_build_info", "Always 1; the labels say what is running");

// Of the host and the process.
const CPU_UTILIZATION: Family = Family("nv_cpu_utilization", "CPU utilization of the host (0.0 - 1.0)");
const MEMORY_TOTAL: Family = Family("nv_cpu_memory_total_bytes", "Memory of the host in bytes");
const MEMORY_USED: Family = Family("nv_cpu_memory_used_bytes", "Memory in use on the host in bytes");
const PROCESS_RESIDENT: Family = Family("process_resident_memory_bytes", "Resident memory of the server");
const PROCESS_FDS: Family = Family("process_open_fds", "Open file descriptors of the server");
const PROCESS_THREADS: Family = Family("process_threads", "Threads of the server");

/// Upper bounds of the histograms of durations, in seconds.
const SECONDS: [f64; 17] =
    [5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of the histogram of rows.
const ROWS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Upper bounds of the histogram of first responses, in milliseconds: the reference server's.
const FIRST_RESPONSE: [f64; 4] = [100.0, 500.0, 2000.0, 5000.0];

/// The values of the label `reason` by exact kind, in the order of [`Kind::ALL`].
fn reason(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidArgument => "invalid",
        Kind::NotFound => "not_found",
        Kind::AlreadyExists => "already_exists",
        Kind::Unimplemented => "unimplemented",
        Kind::Unavailable => "unavailable",
        Kind::QueueFull => "queue_full",
        Kind::BudgetExceeded => "budget",
        Kind::TimedOut => "timeout",
        Kind::DeadlineExceeded => "deadline",
        Kind::Cancelled => "cancelled",
        Kind::Backend => "backend",
        Kind::OutOfMemory => "memory",
        Kind::DeviceLost => "device",
        Kind::Internal => "internal",
    }
}

/// The reference server's four reasons of `nv_inference_request_failure`.
const COARSE_REASONS: [&str; 4] = ["REJECTED", "CANCELED", "BACKEND", "OTHER"];

/// The index of the kind in [`COARSE_REASONS`].
fn coarse_reason(kind: Kind) -> usize {
    match kind {
        Kind::InvalidArgument | Kind::Unimplemented | Kind::QueueFull | Kind::BudgetExceeded | Kind::TimedOut => 0,
        Kind::DeadlineExceeded | Kind::Cancelled => 1,
        Kind::Backend | Kind::OutOfMemory | Kind::DeviceLost => 2,
        Kind::NotFound | Kind::AlreadyExists | Kind::Unavailable | Kind::Internal => 3,
    }
}

/// The metrics of one server. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` counts nowhere.
    registry: Option<Registry>,
    settings: Settings,
    received: Counter,
    in_flight: Gauge,
    /// One for each of [`Kind::ALL`].
    unrouted: [Counter; Kind::ALL.len()],
    loads: Counter,
    load_failures: Counter,
    unloads: Counter,
    /// One for each of [`Traced::ALL`].
    traces: [Counter; Traced::ALL.len()],
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own with the server's counters at zero. Needs [`Metrics::upkeep`] from time to time.
    pub fn new() -> Self {
        Self::of(Settings::default())
    }

    /// The same with these settings.
    pub fn of(settings: Settings) -> Self {
        Self::with(Some(Registry::new(&settings)), settings)
    }

    /// Counts nowhere and holds nothing: for a server that serves no metrics, so that no samples heap up.
    pub fn off() -> Self {
        Self::with(None, Settings::default())
    }

    fn with(registry: Option<Registry>, settings: Settings) -> Self {
        let server = Series::new(registry.as_ref(), Vec::new());
        server.with("version", env!("CARGO_PKG_VERSION")).gauge(&BUILD).set(1.0);
        let shared = Shared {
            received: server.counter(&RECEIVED),
            in_flight: server.gauge(&IN_FLIGHT),
            unrouted: Kind::ALL.map(|kind| server.with("reason", reason(kind)).counter(&UNROUTED)),
            loads: server.with("result", "success").counter(&LOADS),
            load_failures: server.with("result", "failure").counter(&LOADS),
            unloads: server.counter(&UNLOADS),
            traces: Traced::ALL.map(|traced| server.with("result", traced.label()).counter(&TRACES)),
            settings,
            registry,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Everything in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        self.shared.registry.as_ref().map(Registry::render).unwrap_or_default()
    }

    /// What became of all requests so far, for the log of a stop; `None` if nothing is counted.
    pub fn outcomes(&self) -> Option<Outcomes> {
        self.shared.registry.as_ref()?;
        let text = self.render();
        let sum = |family: &Family| {
            let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(family.0));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        Some(Outcomes { received: sum(&RECEIVED), answered: sum(&SUCCESS), refused: sum(&FAILURES) + sum(&UNROUTED) })
    }

    /// Moves the samples of summaries to where they take no room; call it about once a second, whether anybody scrapes
    /// or not.
    pub fn upkeep(&self) {
        if let Some(registry) = &self.shared.registry {
            registry.upkeep();
        }
    }

    /// Counts an inference request's arrival; it is in flight until the result is dropped.
    pub fn request_received(&self) -> InFlight {
        self.shared.received.increment(1);
        self.shared.in_flight.increment(1.0);
        InFlight(self.shared.in_flight.clone())
    }

    /// Counts a request that was refused before a model version was found: undecodable, unknown model, not ready.
    ///
    /// No model label: the name is the caller's to invent, and every new one would be a series for ever.
    pub fn request_unrouted(&self, kind: Kind) {
        self.shared.unrouted[index(kind)].increment(1);
    }

    /// Counts a version that became ready.
    pub fn version_loaded(&self) {
        self.shared.loads.increment(1);
    }

    /// Counts a version that could not be loaded.
    pub fn version_load_failed(&self) {
        self.shared.load_failures.increment(1);
    }

    /// Counts a version that was unloaded.
    pub fn version_unloaded(&self) {
        self.shared.unloads.increment(1);
    }

    /// Counts traces that were written or lost.
    pub(super) fn traced(&self, traced: Traced, count: u64) {
        self.shared.traces[traced as usize].increment(count);
    }

    /// The series of the clients' shared memory.
    pub fn regions(&self) -> RegionMetrics {
        RegionMetrics::register(&self.series(Vec::new()))
    }

    /// The series of the memory that requests take.
    pub fn request_memory(&self) -> RequestMemoryMetrics {
        RequestMemoryMetrics::register(&self.series(Vec::new()))
    }

    /// How many traces were counted so.
    #[cfg(test)]
    pub(super) fn count(&self, traced: Traced) -> u64 {
        let begin = format!("{}{{result=\"{}\"}} ", TRACES.0, traced.label());
        let text = self.render();
        let value = text.lines().find_map(|line| line.strip_prefix(&begin)).and_then(|value| value.parse().ok());
        value.unwrap_or_default()
    }

    /// The gauges of the host and the process.
    pub(super) fn host(&self) -> HostGauges {
        let server = self.series(Vec::new());
        HostGauges {
            cpu_utilization: server.gauge(&CPU_UTILIZATION),
            memory_total: server.gauge(&MEMORY_TOTAL),
            memory_used: server.gauge(&MEMORY_USED),
            process_resident: server.gauge(&PROCESS_RESIDENT),
            process_fds: server.gauge(&PROCESS_FDS),
            process_threads: server.gauge(&PROCESS_THREADS),
        }
    }

    /// The series of one model version; the same series again after a reload, so that counters never go back.
    pub(super) fn model(&self, config: &ModelConfig, version: Version) -> ModelMetrics {
        let labels = version_labels(&config.name, version, &config.metric_tags);
        ModelMetrics::register(&self.series(labels), &self.shared.settings, config)
    }

    /// The series of the response cache.
    pub fn cache(&self) -> CacheMetrics {
        CacheMetrics::register(&self.series(Vec::new()))
    }

    /// The series of the port of this name.
    pub fn port(&self, name: &'static str) -> PortMetrics {
        PortMetrics::register(&self.series(vec![Label::from_static_parts("port", name)]))
    }

    /// What gRPC calls end with; `methods` are all that are told apart.
    pub fn grpc_answers(&self, methods: impl Iterator<Item = &'static str>) -> Answers {
        Answers::new(self.clone(), &GRPC_ANSWERS, ("method", "code"), methods)
    }

    /// What HTTP requests are answered with; `routes` are all that are told apart.
    pub fn http_answers(&self, routes: impl Iterator<Item = &'static str>) -> Answers {
        Answers::new(self.clone(), &HTTP_ANSWERS, ("route", "code"), routes)
    }

    fn series(&self, labels: Vec<Label>) -> Series<'_> {
        Series::new(self.shared.registry.as_ref(), labels)
    }
}

/// The labels of all series of one model version: which it is, and the model's own tags.
fn version_labels(model: &str, version: Version, tags: &BTreeMap<String, String>) -> Vec<Label> {
    let own = [("model".to_owned(), model.to_owned()), ("version".to_owned(), version.to_string())];
    let tags = tags.iter().map(|(name, value)| (name.clone(), value.clone()));
    own.into_iter().chain(tags).map(|(name, value)| Label::new(name, value)).collect()
}

/// What became of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traced {
    /// It is in a file, or a collector has it.
    Written,
    /// Too many others waited to be written.
    Dropped,
    /// The file or the collector did not take it.
    Failed,
}

impl Traced {
    /// All of them, in declaration order.
    const ALL: [Traced; 3] = [Traced::Written, Traced::Dropped, Traced::Failed];

    fn label(self) -> &'static str {
        match self {
            Traced::Written => "written",
            Traced::Dropped => "dropped",
            Traced::Failed => "failed",
        }
    }
}

/// Sums over all models. Once nothing is in flight, `received` is the sum of the other two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcomes {
    /// Requests that arrived.
    pub received: u64,
    /// Requests that were answered by their model.
    pub answered: u64,
    /// Requests that were refused or failed, for whatever reason.
    pub refused: u64,
}

/// A request that has no final answer yet; dropping it is the answer.
#[derive(Debug)]
#[must_use = "the request counts as answered when this is dropped"]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// The gauges that [`super::host`] sets.
pub(super) struct HostGauges {
    pub cpu_utilization: Gauge,
    pub memory_total: Gauge,
    pub memory_used: Gauge,
    pub process_resident: Gauge,
    pub process_fds: Gauge,
    pub process_threads: Gauge,
}

/// The position of the kind in [`Kind::ALL`], which is in declaration order.
fn index(kind: Kind) -> usize {
    kind as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Allocated, Device};

    #[test]
    fn every_kind_is_at_its_index() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(index(kind), at);
        }
    }

    #[test]
    fn two_servers_in_one_process_count_apart() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.request_unrouted(Kind::NotFound);
        let line = |metrics: &Metrics, value| {
            let expected = format!("{}{{reason=\"not_found\"}} {value}", UNROUTED.0);
            assert!(metrics.render().lines().any(|line| line == expected), "{expected}");
        };
        line(&one, 1);
        line(&other, 0);
    }

    #[test]
    fn a_request_is_in_flight_until_its_guard_is_dropped() {
        let metrics = Metrics::new();
        let in_flight = |metrics: &Metrics| {
            let text = metrics.render();
            let value = text.lines().find_map(|line| line.strip_prefix(IN_FLIGHT.0)?.strip_prefix(' '));
            value.map(str::to_owned)
        };
        let guard = metrics.request_received();
        assert_eq!(in_flight(&metrics).as_deref(), Some("1"));
        drop(guard);
        assert_eq!(in_flight(&metrics).as_deref(), Some("0"));
    }

    #[test]
    fn outcomes_are_summed_over_models_and_reasons() {
        let metrics = Metrics::new();
        let models = ["a", "b"].map(|name| metrics.model(&ModelConfig::new(name, "identity"), 1));
        for model in &models {
            drop(metrics.request_received());
            model.success.increment(1);
        }
        for kind in [Kind::TimedOut, Kind::QueueFull] {
            drop(metrics.request_received());
            models[0].failed(kind);
        }
        drop(metrics.request_received());
        metrics.request_unrouted(Kind::NotFound);
        assert_eq!(metrics.outcomes(), Some(Outcomes { received: 5, answered: 2, refused: 3 }));
    }

    #[test]
    fn metrics_that_are_off_hold_nothing() {
        let metrics = Metrics::off();
        metrics.request_unrouted(Kind::NotFound);
        assert_eq!(metrics.render(), "");
        assert_eq!(metrics.outcomes(), None);
    }

    #[test]
    fn every_series_has_help_and_type() {
        let metrics =
            Metrics::of(Settings { summary_latencies: true, histogram_latencies: true, ..Settings::default() });
        let _server =
            (metrics.host(), metrics.regions(), metrics.request_memory(), metrics.cache(), metrics.port("grpc"));
        let _on_demand = metrics.on_demand();
        let _limiter = metrics.limiter().resource("r", "global");
        let _memory = (metrics.memory("cpu"), metrics.held(&ModelConfig::new("m", "identity"), 1, "cpu", 1));
        metrics.allocated(&Allocated { device: Device::Cuda(0), used: 1, kept: 2 });
        let tags = BTreeMap::from([("_team".to_owned(), "search".to_owned())]);
        let _busy = metrics.instances("m", 1, &tags).busy(0, "cpu");
        let config = ModelConfig::new("m", "identity");
        let config = ModelConfig { metric_tags: tags, response_cache: true, decoupled: true, ..config };
        let model = metrics.model(&config, 1);
        model.summaries.as_ref().expect("they are on").queue.record(1.0);
        metrics.grpc_answers(["M"].into_iter()).good(0, || "OK".to_owned());
        metrics.http_answers(["/"].into_iter()).other(0, 404, || "404".to_owned());
        let text = metrics.render();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let described =
                |name: &str| text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} "));
            assert!(described(name) || family.is_some_and(described), "{line}");
        }
        assert!(text.contains("_team=\"search\""));
        assert!(text.contains("nereid_allocator_kept_bytes{device=\"cuda:0\"} 2"), "{text}");
        assert!(text.contains("nereid_grpc_responses_total{method=\"M\",code=\"OK\"} 1"), "{text}");
        assert!(text.contains("nereid_http_responses_total{route=\"/\",code=\"404\"} 1"), "{text}");
    }
}
