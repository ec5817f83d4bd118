//! Traces of single requests, into files or to an OpenTelemetry collector.
//!
//! A [`Tracer`] decides which requests are traced and hands what it learns of them to one task, which writes. When
//! nothing is traced a request costs one atomic load. Begin with [`Tracer::start`]; protocols meet [`Trace`].

mod file;
mod otlp;
mod record;
mod settings;
mod span;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use opentelemetry::trace::SpanContext;
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use parking_lot::RwLock;
use tokio::sync::mpsc;

pub use self::otlp::{Settings as OtlpSettings, Transport};
pub use self::record::{Caller, Protocol, Record, Start, Trace};
use self::settings::Store;
pub use self::settings::{Change, Level, Update, Values};
pub use self::writer::Writing;
use crate::error::Result;
use crate::telemetry::metrics::{Metrics, Traced};

/// What kind of traces a server makes; fixed at its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Files of the reference server's own format.
    #[default]
    Triton,
    /// Spans for a collector.
    OpenTelemetry,
}

impl Mode {
    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Triton => "triton",
            Mode::OpenTelemetry => "opentelemetry",
        }
    }
}

/// How a server traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What kind of traces.
    pub mode: Mode,
    /// What is traced, until somebody changes it.
    pub values: Values,
    /// Where traces go in mode triton; without it there are none.
    pub file: Option<PathBuf>,
    /// Where traces go in mode opentelemetry.
    pub otlp: OtlpSettings,
    /// The most traces that wait to be written to files; more are dropped.
    pub queue_size_max: usize,
    /// The most bytes that are kept of all tensors of one trace.
    pub tensor_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            values: Values::default(),
            file: None,
            otlp: OtlpSettings::default(),
            queue_size_max: 2048,
            tensor_bytes_max: 64 << 10,
        }
    }
}

/// Decides what is traced, and passes on what was.
#[derive(Debug)]
pub struct Tracer {
    settings: Settings,
    /// Whether any request may be traced, as `store` says; all that an untraced request looks at.
    on: AtomicBool,
    store: RwLock<Store>,
    last_id: AtomicU64,
    /// To the task that writes; `None` if traces have nowhere to go.
    queue: Option<mpsc::Sender<Record>>,
    metrics: Metrics,
}

impl Default for Tracer {
    /// Traces nothing, and remembers what it is told.
    fn default() -> Self {
        Self::new(Settings::default(), None, Metrics::off())
    }
}

impl Tracer {
    /// A tracer with these settings, and the task that writes for it. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if the collector's URL cannot be used.
    pub fn start(settings: Settings, metrics: Metrics) -> Result<(Arc<Self>, Option<Writing>)> {
        let Some((queue, writing)) = writer::start(&settings, &metrics)? else {
            return Ok((Arc::new(Self::new(settings, None, metrics)), None));
        };
        Ok((Arc::new(Self::new(settings, Some(queue), metrics)), Some(writing)))
    }

    fn new(settings: Settings, queue: Option<mpsc::Sender<Record>>, metrics: Metrics) -> Self {
        let store = Store::new(settings.values);
        let on = AtomicBool::new(queue.is_some() && store.is_on());
        Self { settings, on, store: RwLock::new(store), last_id: AtomicU64::new(0), queue, metrics }
    }

    /// How it was started.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The settings of a model; of the server without a name. A count is what is left of it.
    pub fn values(&self, model: Option<&str>) -> Values {
        self.store.read().values(model)
    }

    /// Changes the settings of a model, or the server's, which hold for models that have none of their own.
    pub fn change(&self, model: Option<&str>, change: Change) {
        let mut store = self.store.write();
        store.change(model, change);
        if store.is_on() && self.queue.is_none() {
            tracing::warn!(
                "traces have no file to go to and are not made; the server needs --trace-config triton,file="
            );
        }
        self.on.store(self.queue.is_some() && store.is_on(), Ordering::Relaxed);
    }

    /// Whether any request may be traced.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The caller's span, by the W3C headers; in mode triton they are not looked at.
    pub fn parent(&self, traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
        match self.settings.mode {
            Mode::Triton => None,
            Mode::OpenTelemetry => otlp::parent(traceparent, tracestate),
        }
    }

    /// Decides whether a request is traced; gives the trace's number and how it is.
    fn sample(&self, model: &str, forced: bool) -> Option<(u64, Values)> {
        let values = self.store.read().sample(model, forced)?;
        Some((self.next_id(), values))
    }

    /// A number that no other trace has.
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn tensor_bytes_max(&self) -> usize {
        self.settings.tensor_bytes_max
    }

    /// Passes a record on; if too many wait it is dropped and counted.
    fn record(&self, record: Record) {
        if self.queue.as_ref().is_none_or(|queue| queue.try_send(record).is_err()) {
            self.metrics.traced(Traced::Dropped, 1);
        }
    }
}

/// A request id that nobody else has: 128 random bits, in hexadecimal digits.
pub fn random_id() -> Arc<str> {
    RandomIdGenerator::default().new_trace_id().to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::{Follow as _, Instant, Request};

    fn always() -> Values {
        let level = Level { timestamps: true, tensors: false };
        Values { level, rate: 1, ..Values::default() }
    }

    /// A request by no protocol for the model `m`, over at once.
    fn request(tracer: &Arc<Tracer>) {
        let now = Instant::now();
        let caller = Caller { protocol: Protocol::Http, request_id: "r".into(), parent: None, since: now };
        let trace = Trace::new(tracer.clone(), caller);
        trace.start(Start { model: "m", id: "", arrived: now });
        trace.sending();
    }

    #[tokio::test]
    async fn traces_that_find_no_room_are_dropped_and_counted() {
        let metrics = Metrics::new();
        let (queue, mut records) = mpsc::channel(1);
        let settings = Settings { values: always(), ..Settings::default() };
        let tracer = Arc::new(Tracer::new(settings, Some(queue), metrics.clone()));
        for _ in 0..3 {
            request(&tracer);
        }
        assert_eq!(metrics.count(Traced::Dropped), 2);
        let record = records.recv().await.expect("the first one");
        assert_eq!((record.id, record.shown_id(), record.version), (1, "r", None));
        assert_eq!(record.error.as_deref(), Some("cancelled by the caller"));
        let names: Vec<_> = record.stamps.iter().map(|(name, _)| *name).collect();
        let expected = ["HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "REQUEST_END", "HTTP_SEND_START"];
        assert_eq!((&names[..5], names[5]), (&expected[..], "HTTP_SEND_END"));
    }

    #[tokio::test]
    async fn what_a_request_is_passed_on_as_has_a_trace_below_its_own() {
        let (queue, mut records) = mpsc::channel(8);
        let settings = Settings { values: always(), ..Settings::default() };
        let tracer = Arc::new(Tracer::new(settings, Some(queue), Metrics::off()));
        let now = Instant::now();
        let caller = Caller { protocol: Protocol::Grpc, request_id: "r".into(), parent: None, since: now };
        let trace = Trace::new(tracer.clone(), caller);
        trace.start(Start { model: "ensemble", id: "mine", arrived: now });
        let below = trace.passed_on(&Request { id: "mine".to_owned(), ..Request::new("first", now) });
        let further = below.passed_on(&Request::new("second", now));
        further.failed(&crate::error::Error::internal("no luck"));
        drop((further, below, trace));
        let mut all = Vec::new();
        while let Ok(record) = records.try_recv() {
            all.push(record);
        }
        let seen: Vec<_> = all.iter().map(|record| (record.model.as_str(), record.id, record.above)).collect();
        assert_eq!(seen, [("second", 3, Some(2)), ("first", 2, Some(1)), ("ensemble", 1, None)]);
        assert!(all.iter().all(|record| record.span.trace_id() == all[0].span.trace_id()));
        assert_eq!((all[0].parent, all[1].parent), (Some(all[1].model_span), Some(all[2].model_span)));
        assert_eq!((all[0].error.as_deref(), all[1].shown_id()), (Some("no luck"), "mine"));
        let names: Vec<_> = all[0].stamps.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["REQUEST_START", "INFER_RESPONSE_COMPLETE", "REQUEST_END"]);
        let spans = span::spans(&all[1]);
        assert_eq!(spans.iter().map(|span| &*span.name).collect::<Vec<_>>(), ["first"]);
        assert_eq!(spans[0].span_context.span_id(), all[1].model_span);
    }

    fn soon() -> Instant {
        Instant::now() + std::time::Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_collector_that_is_not_there_costs_its_traces_and_not_the_stop() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        for url in [format!("http://{address}/v1/traces"), format!("grpc://{address}")] {
            let metrics = Metrics::new();
            let otlp = OtlpSettings { url, ..OtlpSettings::default() };
            let settings = Settings { mode: Mode::OpenTelemetry, values: always(), otlp, ..Settings::default() };
            let (tracer, writing) = Tracer::start(settings, metrics.clone()).expect("nothing is wrong with it");
            request(&tracer);
            assert!(writing.expect("traces have a collector").stop(soon()).await);
            assert_eq!(metrics.count(Traced::Failed), 1);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_counted_and_what_waits_at_the_stop_is_written() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (path, traced) in [
            (folder.path().join("trace.json"), Traced::Written),
            (folder.path().join("nowhere/trace.json"), Traced::Failed),
        ] {
            let metrics = Metrics::new();
            let settings = Settings { values: always(), file: Some(path), ..Settings::default() };
            let (tracer, writing) = Tracer::start(settings, metrics.clone()).expect("nothing is wrong with it");
            request(&tracer);
            request(&tracer);
            assert!(writing.expect("traces have a file").stop(soon()).await);
            assert_eq!(metrics.count(traced), 2, "{traced:?}");
            request(&tracer);
            assert_eq!(metrics.count(Traced::Dropped), 1);
        }
    }

    #[test]
    fn without_somewhere_to_go_nothing_is_traced() {
        let tracer = Tracer::default();
        assert!(!tracer.is_on());
        tracer.change(None, Change { level: Update::Set(always().level), ..Change::default() });
        assert!(!tracer.is_on());
        assert!(tracer.values(None).level.is_on());
    }

    #[test]
    fn a_callers_trace_counts_in_mode_opentelemetry_only() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(Tracer::default().parent(parent, None).is_none());
        let settings = Settings { mode: Mode::OpenTelemetry, ..Settings::default() };
        assert!(Tracer::new(settings, None, Metrics::off()).parent(parent, None).is_some());
    }
}
