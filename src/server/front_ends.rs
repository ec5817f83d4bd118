//! What listens: opens the ports of gRPC, HTTP and metrics as the settings say, and ends them again.

use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::error::Result;
use crate::gateway::Gateway;
use crate::protocol::grpc::Dispatch;
use crate::protocol::http::Rest;
use crate::protocol::single_port::SinglePort;
use crate::protocol::transport::{Address, Listener, Options, Port, Tls, Workers};
use crate::protocol::{grpc, http, metrics};
use crate::telemetry::metrics::Metrics;

/// The front ends of a server, serving.
pub struct FrontEnds {
    /// Where each of them is reached, by its name.
    pub addresses: Vec<(&'static str, Address)>,
    /// Those that take part in serving models.
    pub inference: Vec<FrontEnd>,
    /// The one that is wanted until all is over.
    pub metrics: Option<FrontEnd>,
    /// Cancelled once one of them has ended by itself, which it has said in the log.
    pub broken: CancellationToken,
}

/// A front end's task and the way to end it.
pub struct FrontEnd {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl FrontEnd {
    fn start<F: Future<Output = Result<()>> + Send + 'static>(
        name: &'static str,
        broken: CancellationToken,
        serve: impl FnOnce(CancellationToken) -> F,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let serving = serve(shutdown.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(front_end = name, %error, "front end ended");
                broken.cancel();
            }
        });
        Self { shutdown, task }
    }

    /// Accepts no more, and returns when all calls have ended.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let _ = self.task.await;
    }
}

impl FrontEnds {
    /// Opens the ports and serves.
    ///
    /// # Errors
    /// If a port cannot be opened.
    pub fn open(config: &Config, gateway: &Arc<Gateway>, metrics: &Metrics) -> Result<Self> {
        allow_files();
        let workers = Arc::new(Workers::start(config.threads)?);
        let broken = CancellationToken::new();
        let mut front_ends = Self { addresses: Vec::new(), inference: Vec::new(), metrics: None, broken };
        let dispatch = |settings: &config::Grpc| Dispatch::new(gateway.clone(), &grpc_settings(config, settings));
        let rest = |settings: &config::Http| Rest::new(gateway.clone(), http_settings(config, settings));
        match (&config.grpc, &config.http) {
            (Some(grpc), Some(http)) if config.single_port => {
                let port = front_ends.port("http", &http.port, &workers, metrics)?;
                front_ends.addresses.push(("grpc", port.listener.address().clone()));
                let both = SinglePort { grpc: dispatch(grpc)?, rest: rest(http) };
                front_ends.serve("http", |shutdown| port.serve(both, shutdown.cancelled_owned()));
            }
            (grpc, http) => {
                if let Some(grpc) = grpc {
                    let port = front_ends.port("grpc", &grpc.port, &workers, metrics)?;
                    let dispatch = dispatch(grpc)?;
                    front_ends.serve("grpc", |shutdown| port.serve(dispatch, shutdown.cancelled_owned()));
                }
                if let Some(http) = http {
                    let port = front_ends.port("http", &http.port, &workers, metrics)?;
                    let rest = rest(http);
                    front_ends.serve("http", |shutdown| port.serve(rest, shutdown.cancelled_owned()));
                }
            }
        }
        if let Some(settings) = &config.metrics {
            let port = front_ends.port("metrics", &settings.port, &workers, metrics)?;
            let metrics = metrics.clone();
            let serve = |shutdown: CancellationToken| metrics::serve(port, metrics, shutdown.cancelled_owned());
            front_ends.metrics = Some(FrontEnd::start("metrics", front_ends.broken.clone(), serve));
        }
        Ok(front_ends)
    }

    /// Where the front end of that name is reached, if it is there.
    pub fn address(&self, name: &str) -> Option<&Address> {
        self.addresses.iter().find(|(each, _)| *each == name).map(|(_, address)| address)
    }

    fn port(
        &mut self,
        name: &'static str,
        port: &config::Port,
        workers: &Arc<Workers>,
        metrics: &Metrics,
    ) -> Result<Port> {
        let listener = Listener::bind(&port.address, Options { reuse_port: port.reuse })?;
        self.addresses.push((name, listener.address().clone()));
        let tls = port.tls.clone().map(|files| Tls::load(files, port.settings.protocols));
        let tls = tls.transpose().map_err(|error| error.context(format!("TLS of {name}")))?;
        let (workers, settings, metrics) = (workers.clone(), port.settings.clone(), metrics.port(name));
        Ok(Port { listener, workers, settings, tls, metrics })
    }

    fn serve<F: Future<Output = Result<()>> + Send + 'static>(
        &mut self,
        name: &'static str,
        serve: impl FnOnce(CancellationToken) -> F,
    ) {
        self.inference.push(FrontEnd::start(name, self.broken.clone(), serve));
    }
}

/// Asks the system for as many open files as it grants: each connection is one, and the usual limit of a process is less
/// than that of the connections.
fn allow_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, limit = current, "open files stay limited");
    }
}

fn grpc_settings(config: &Config, grpc: &config::Grpc) -> grpc::Settings {
    grpc::Settings {
        server_id: config.id.clone(),
        request_bytes_max: grpc.request_bytes_max,
        response_bytes_max: grpc.response_bytes_max,
        stream_requests_max: grpc.stream_requests_max,
        restrictions: grpc.restrictions.clone(),
        forward: grpc.forward.clone(),
    }
}

fn http_settings(config: &Config, http: &config::Http) -> http::Settings {
    http::Settings {
        server_id: config.id.clone(),
        console: http.console,
        model_control_mode: match config.repository.control {
            config::Control::None => "none",
            config::Control::Poll(_) => "poll",
            config::Control::Explicit(_) => "explicit",
        },
        request_bytes_max: http.request_bytes_max,
        forward: http.forward.clone(),
        restrictions: http.restrictions.clone(),
        cors_origins: http.cors_origins.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[tokio::test]
    async fn one_that_ends_by_itself_is_told_and_one_that_is_stopped_is_not() {
        let broken = CancellationToken::new();
        let stopped = FrontEnd::start("grpc", broken.clone(), |shutdown| async move {
            shutdown.cancelled().await;
            Ok(())
        });
        stopped.stop().await;
        assert!(!broken.is_cancelled());
        let _ended = FrontEnd::start("http", broken.clone(), |_| async { Err(Error::internal("the listener broke")) });
        broken.cancelled().await;
    }
}
