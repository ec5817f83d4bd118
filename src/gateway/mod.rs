//! The pipeline that every request takes on its way from a protocol to the engine, administration included.
//!
//! Refuses new inference once the server is stopping, and turns outputs into classes where a request asks for them.
//! Does not know wire formats. Begin with [`Gateway::infer`].

mod classify;
pub mod regions;
pub mod request_memory;

use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use self::regions::Regions;
use self::request_memory::{Portion, RequestMemory};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::infer::{Infer, Request, RequestedOutput, Responses};
use crate::model::Version;
use crate::telemetry::logging;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Tracer;

pub use crate::engine::{Handle, IndexEntry, Overrides, State};

/// The one way to the engine.
pub struct Gateway {
    engine: Arc<Engine>,
    regions: Regions,
    /// `None` if nothing bounds it.
    request_memory: Option<RequestMemory>,
    draining: CancellationToken,
    tracer: Arc<Tracer>,
    log: Arc<logging::Control>,
}

impl Gateway {
    /// A gateway to `engine`, without shared memory, traces and a bound on the memory of requests, and with a log that is not
    /// its own.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            regions: Regions::off(),
            request_memory: None,
            draining: CancellationToken::new(),
            tracer: Arc::default(),
            log: Arc::default(),
        }
    }

    /// The same with these traces and this log.
    #[must_use]
    pub fn telling(self, tracer: Arc<Tracer>, log: Arc<logging::Control>) -> Self {
        Self { tracer, log, ..self }
    }

    /// What traces requests.
    pub fn tracer(&self) -> &Arc<Tracer> {
        &self.tracer
    }

    /// What decides which log lines there are.
    pub fn log(&self) -> &logging::Control {
        &self.log
    }

    /// This gateway with the shared memory of `regions`.
    #[must_use]
    pub fn with_regions(self, regions: Regions) -> Self {
        Self { regions, ..self }
    }

    /// This gateway with this bound on what requests hold together.
    #[must_use]
    pub fn with_request_memory(self, memory: RequestMemory) -> Self {
        Self { request_memory: Some(memory), ..self }
    }

    /// What a request that begins to be read holds, which grows as it comes.
    pub fn portion(&self) -> Portion {
        self.request_memory.as_ref().map(RequestMemory::portion).unwrap_or_default()
    }

    /// The clients' shared memory.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// From now on refuses new inference; what was accepted goes on.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Resolves once [`Gateway::drain`] was called.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Cancelled once [`Gateway::drain`] was called.
    pub fn drain_token(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Whether new inference is refused because the server is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Starts one request; see [`Infer::infer`].
    pub fn infer(&self, request: Request) -> Responses {
        if self.is_draining() {
            let error = stopping();
            self.refused(error.kind());
            return refusal(error);
        }
        if request.outputs.iter().all(|output| output.classification == 0) {
            return self.engine.infer(request);
        }
        self.infer_classes(request)
    }

    fn infer_classes(&self, request: Request) -> Responses {
        let handle = match self.engine.find(&request.model, request.version) {
            Ok(handle) => handle,
            Err(error) => {
                self.refused(error.kind());
                return refusal(error);
            }
        };
        let wanted: Vec<RequestedOutput> = request.outputs.clone();
        let responses = self.engine.infer(request);
        Box::pin(responses.map(move |response| classify::response(response?, &wanted, &handle.config)))
    }

    /// Counts a request that was refused before it reached a model.
    pub fn refused(&self, kind: Kind) {
        let metrics = self.engine.metrics();
        let _received = metrics.request_received();
        metrics.request_unrouted(kind);
    }

    /// The counters of this server.
    pub fn metrics(&self) -> &Metrics {
        self.engine.metrics()
    }

    /// All metrics in Prometheus' text format; empty if nothing is counted.
    pub fn metrics_text(&self) -> String {
        self.engine.metrics().render()
    }

    /// The model version that a request for `name` would get.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`] or [`crate::error::Kind::Unavailable`], with which of both is not there.
    pub fn find(&self, name: &str, version: Option<Version>) -> Result<Arc<Handle>> {
        self.engine.find(name, version)
    }

    /// Whether the server is ready for requests: all its models are, and it is not stopping.
    pub fn ready(&self) -> bool {
        !self.is_draining() && self.engine.ready()
    }

    /// The engine's readiness and its changes; does not know of [`Gateway::drain`].
    pub fn readiness(&self) -> tokio::sync::watch::Receiver<bool> {
        self.engine.readiness()
    }

    /// Whether there is a model of that name, ready or not.
    pub fn knows(&self, name: &str) -> bool {
        self.engine.knows(name)
    }

    /// The versions of a model that are ready, ascending.
    pub fn versions_ready(&self, name: &str) -> Vec<Version> {
        self.engine.versions_ready(name)
    }

    /// Every model version with its state, or only those that are ready.
    pub async fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        self.engine.index(ready_only).await
    }

    /// The model versions whose statistics are asked for; an empty name means all that are ready.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if there is no such model or version.
    pub fn statistics(&self, name: &str, version: Option<Version>) -> Result<Vec<Arc<Handle>>> {
        self.engine.statistics(name, version)
    }

    /// Loads or reloads a model and waits until that is done.
    ///
    /// # Errors
    /// Why it could not be loaded, or may not be.
    pub async fn load(&self, name: &str, overrides: Overrides) -> Result<()> {
        if self.is_draining() {
            return Err(stopping());
        }
        self.engine.load(name, overrides).await
    }

    /// Takes a model out of service; with `dependents` also the models that only it needs.
    ///
    /// # Errors
    /// If models may not be unloaded by request.
    pub async fn unload(&self, name: &str, dependents: bool) -> Result<()> {
        self.engine.unload(name, dependents).await
    }
}

fn stopping() -> Error {
    Error::unavailable("Server is stopping, scheduler for model has stopped accepting new inference requests")
}

fn refusal(error: Error) -> Responses {
    Box::pin(futures_util::stream::iter([Err(error)]))
}
