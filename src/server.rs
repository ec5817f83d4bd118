//! Puts the rooms together, serves, and stops in order.
//!
//! A stop goes: not ready -> refuse new requests -> finish those in flight -> close the front ends -> unload -> end.
//! A second signal ends the process at once.

mod front_ends;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::front_ends::{FrontEnd, FrontEnds};
use crate::backend::libtorch::aoti;
use crate::backend::{Backend, identity, libtorch, onnx};
use crate::config::{self, Config};
use crate::engine::{self, Control, Engine, MemoryLimit};
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use crate::gateway::regions::Regions;
use crate::gateway::request_memory::RequestMemory;
use crate::infer::Instant;
use crate::model::Device;
use crate::repository::{CudaDevices, Facts, Roots};
use crate::telemetry::metrics::{Metrics, Outcomes};
use crate::telemetry::trace::{Tracer, Writing};
use crate::telemetry::{host, logging};

/// What traces may take to be written at the stop if its time is over.
const FLUSH_TIME_MIN: Duration = Duration::from_secs(1);

/// The kinds of model files that this server runs, with ONNX Runtime at this path or where it usually is, and packages of
/// native code if they are allowed.
pub fn backends(onnxruntime: Option<PathBuf>, allow_aoti: bool) -> Vec<Arc<dyn Backend>> {
    vec![
        Arc::new(identity::Identity),
        Arc::new(libtorch::LibTorch::default()),
        Arc::new(aoti::Aoti::new(allow_aoti)),
        Arc::new(onnx::Onnx::new(onnxruntime)),
    ]
}

/// Serves until a signal asks to stop. Prints the addresses on standard output at once, and again when every model was
/// tried.
///
/// # Errors
/// If the server cannot start, a model fails to load or a repository cannot be read and the settings make that fatal, a
/// front end ended by itself, or requests had to be abandoned because a stop took longer than it may.
pub async fn run(config: Config) -> Result<()> {
    logging::install(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.mkl_fast_path {
        libtorch::use_mkl_fast_path();
    }
    let exit_timeout = config.exit_timeout;
    let exit_on_error = config.exit_on_error;
    let stop = stop_signals()?;
    let server = Server::bind(&config)?;
    println!("nereid live:{}", server.addresses());
    let broken = server.front_ends.broken.clone();
    let failed = tokio::select! {
        failed = server.load() => failed?,
        () = stop.cancelled() => return server.stop(exit_timeout).await,
        () = broken.cancelled() => return server.give_up(exit_timeout).await,
    };
    if !failed.is_empty() && exit_on_error {
        server.stop(exit_timeout).await?;
        let names: Vec<_> = failed.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Error::internal(format!("failed to load all models: {}", names.join(", "))));
    }
    println!("{}", server.greeting());
    tokio::select! {
        () = stop.cancelled() => server.stop(exit_timeout).await,
        () = broken.cancelled() => server.give_up(exit_timeout).await,
    }
}

/// The signals that ask to stop, as a stream.
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

/// Cancelled by the first signal; a second one ends the process, whatever the server is doing by then.
fn stop_signals() -> Result<CancellationToken> {
    let listen = |kind| signal(kind).map_err(|error| Error::internal(format!("cannot listen for signals: {error}")));
    let mut signals =
        StopSignals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? };
    let stop = CancellationToken::new();
    let first = stop.clone();
    tokio::spawn(async move {
        signals.recv().await;
        first.cancel();
        signals.recv().await;
        tracing::warn!("second signal, ending at once");
        std::process::exit(1);
    });
    Ok(stop)
}

impl StopSignals {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("received SIGTERM"),
            _ = self.interrupt.recv() => tracing::info!("received SIGINT"),
        }
    }
}

/// A server whose ports are open.
pub struct Server {
    engine: Arc<Engine>,
    gateway: Arc<Gateway>,
    front_ends: FrontEnds,
    host: Option<JoinHandle<()>>,
    traces: Option<Writing>,
}

impl Server {
    /// Opens the ports and serves; no model is loaded yet, so the server is live and not ready.
    ///
    /// # Errors
    /// If a port or the log file cannot be opened, or traces cannot be sent where they should.
    pub fn bind(config: &Config) -> Result<Self> {
        // Without a front end nobody would ever take the samples away.
        let metrics =
            config.metrics.as_ref().map_or_else(Metrics::off, |metrics| Metrics::of(metrics.settings.clone()));
        let engine = Arc::new(Engine::new(engine_settings(config)?, metrics.clone()));
        let (tracer, traces) = Tracer::start(config.trace.clone(), metrics.clone())?;
        let log = logging::install(&config.log)?;
        let regions = Regions::new(config.client_regions_max, &metrics);
        let gateway = Gateway::new(engine.clone()).with_regions(regions).telling(tracer, log);
        let gateway = Arc::new(match request_bytes(config.request_memory) {
            Some(limit) => gateway.with_request_memory(RequestMemory::new(limit, metrics.request_memory())),
            None => {
                tracing::warn!("nothing limits the memory of requests: the host's is unknown");
                gateway
            }
        });
        let front_ends = FrontEnds::open(config, &gateway, &metrics)?;
        let sample = |interval| tokio::spawn(host::sample_every(interval, metrics.clone(), libtorch::cuda_allocated));
        let host = config.metrics.as_ref().and_then(|metrics| metrics.host_interval).map(sample);
        Ok(Self { engine, gateway, front_ends, host, traces })
    }

    /// Loads what should be loaded at the start; gives the models that could not be, and the repositories that could not be
    /// read, each with its reason.
    ///
    /// # Errors
    /// If no repository can be read.
    pub async fn load(&self) -> Result<Vec<(String, Error)>> {
        self.engine.start().await
    }

    /// What an operator reads first: the addresses, and one command to try.
    fn greeting(&self) -> String {
        let mut line = format!("nereid ready:{}", self.addresses());
        if let Some(address) = self.front_ends.address("grpc") {
            line.push_str(&format!("\ntry: nereid health --grpc {}", address.for_clients()));
        }
        line
    }

    /// Where each front end is reached.
    fn addresses(&self) -> String {
        self.front_ends.addresses.iter().map(|(name, address)| format!(" {name}={address}")).collect()
    }

    /// Stops because a port accepts nothing any more: who started the process can start another one.
    async fn give_up(self, timeout: Duration) -> Result<()> {
        self.stop(timeout).await?;
        Err(Error::internal("a front end ended by itself"))
    }

    /// Stops in order, within `timeout`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] if requests had to be abandoned because time ran out.
    pub async fn stop(self, timeout: Duration) -> Result<()> {
        let Self { engine, gateway, front_ends: FrontEnds { inference, metrics, .. }, host, traces } = self;
        let deadline = Instant::now() + timeout;
        tracing::info!(
            timeout_seconds = timeout.as_secs_f64(),
            "stopping: new requests are refused, accepted ones finish"
        );
        gateway.drain();
        // What a scheduler is held for cannot come any more.
        engine.release();
        engine.end_fetches();
        let drained = async {
            futures_util::future::join_all(inference.into_iter().map(FrontEnd::stop)).await;
            engine.stop().await;
        };
        let in_time = tokio::time::timeout(timeout, drained).await.is_ok();
        if !in_time {
            engine.abort();
        }
        let outcomes = engine.metrics().outcomes();
        if let Some(host) = host {
            host.abort();
        }
        if let Some(traces) = traces {
            let deadline = deadline.max(Instant::now() + FLUSH_TIME_MIN);
            if !traces.stop(deadline).await {
                tracing::warn!("the last traces could not be written in time");
            }
        }
        if let Some(metrics) = metrics {
            let _ = tokio::time::timeout(Duration::from_secs(1), metrics.stop()).await;
        }
        if let Some(Outcomes { received, answered, refused }) = outcomes {
            tracing::info!(received, answered, refused, "requests since the start");
        }
        if in_time {
            tracing::info!("stopped");
            return Ok(());
        }
        Err(Error::internal(format!("requests were still in flight {} s after the stop began", timeout.as_secs_f64())))
    }
}

/// How many bytes requests may hold together; `None` if that depends on the host's memory and nobody says how much it has.
///
/// By default an eighth of it, which is half of what models leave of a large host, and of a small one what libtorch leaves
/// of their half.
fn request_bytes(limit: Option<MemoryLimit>) -> Option<usize> {
    let part = |part: f64| engine::host_memory().map(|total| (total as f64 * part) as u64);
    let bytes = match limit {
        Some(MemoryLimit::Bytes(bytes)) => Some(bytes),
        Some(MemoryLimit::Fraction(fraction)) => part(fraction),
        None => part(1.0 / 8.0),
    };
    bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The CUDA devices that models may use. Without libtorch there are none, and its models say so when they load.
pub fn cuda_devices() -> CudaDevices {
    CudaDevices::new(|| {
        let devices = libtorch::devices().unwrap_or_else(|error| {
            tracing::error!("{error}");
            Vec::new()
        });
        let cuda = devices.into_iter().filter_map(|device| match device {
            Device::Cpu => None,
            Device::Cuda(index) => Some(index),
        });
        cuda.collect()
    })
}

fn engine_settings(config: &Config) -> Result<engine::Settings> {
    let backends = backends(config.onnxruntime.clone(), config.allow_aoti);
    let repository = &config.repository;
    let roots = Roots::open(&repository.roots, &repository.remote, &tokio::runtime::Handle::current())?;
    let queue_size = repository.queue_size_default;
    let (rate_limits, host_policies) =
        (config.instances.rate_limits.clone(), config.instances.host_policies.keys().cloned().collect());
    Ok(engine::Settings {
        roots,
        namespacing: repository.namespacing,
        control: match &repository.control {
            config::Control::None => Control::None,
            config::Control::Poll(interval) => Control::Poll(*interval),
            config::Control::Explicit(config::Startup::All) => Control::Explicit(None),
            config::Control::Explicit(config::Startup::Named(names)) => Control::Explicit(Some(names.clone())),
        },
        load_threads: repository.load_threads,
        load_retries: repository.load_retries,
        load_time_max: repository.load_time_max,
        gpu_limits: repository.gpu_limits.clone(),
        demands_max: repository.queue_size_default,
        memory_limits: repository.memory_limits.clone(),
        spill: repository.spill.clone(),
        override_bytes_max: repository.override_bytes_max,
        auto_complete: repository.auto_complete,
        config_name: repository.config_name.clone(),
        strict_readiness: config.strict_readiness,
        responses: engine::ResponseLimits {
            waiting_max: repository.responses_max,
            stall_max: repository.response_stall,
        },
        hold: engine::Hold { queued: repository.delay_scheduler, backlog: repository.backlog_delay_scheduler },
        instances: config.instances.clone(),
        cache: config.cache.clone(),
        facts: Facts { rate_limits, host_policies, ..engine::facts(&backends, cuda_devices(), queue_size) },
        backends,
    })
}
