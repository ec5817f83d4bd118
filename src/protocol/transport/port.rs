//! Accepts connections, gives each to a worker, and ends them gracefully.
//!
//! Every connection is a task that [`Port::serve`] owns and waits for.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::connection::{Connection, Shared};
use super::crowd::Crowd;
use super::listener::{Listener, Socket};
use super::peer::Peer;
use super::service::Service;
use super::settings::Settings;
use super::tls::Tls;
use super::workers::Workers;
use crate::error::{Error, Result};
use crate::telemetry::metrics::PortMetrics;

/// How long to wait before the next attempt when nothing can be accepted for now.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How long connections have to end at a stop once nothing that came is unanswered.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Where a front end is reached.
pub struct Port {
    /// Accepts its connections.
    pub listener: Listener,
    /// Serve them.
    pub workers: Arc<Workers>,
    /// Its limits.
    pub settings: Settings,
    /// Its encryption; `None` for none.
    pub tls: Option<Tls>,
    /// What counts its connections and bytes.
    pub metrics: PortMetrics,
}

impl Port {
    /// Serves `service` until `shutdown` resolves; then refuses connections, lets each client know, and returns once
    /// every call has ended. Who does not end its connection although nothing that came from it is unanswered, such as
    /// a peer that is silent or never finishes its request, is cut off after a second.
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] if the listener breaks.
    pub async fn serve<S: Service>(self, service: S, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let Self { listener, workers, settings, tls, metrics } = self;
        let shared = Arc::new(Shared::new(service, settings, tls, metrics));
        let mut room = Room { shared: shared.clone(), workers, connections: JoinSet::new(), crowd: Crowd::default() };
        let watching = watch(shared.tls.as_ref());
        tokio::pin!(shutdown, watching);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                never = &mut watching => match never {},
                Some(_) = room.connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok(socket) if room.make(shutdown.as_mut()).await => room.admit(socket),
                    Ok(_) => break,
                    Err(error) => room.accept_failed(error).await?,
                },
            }
        }
        drop(listener);
        shared.stop.cancel();
        room.empty().await;
        Ok(())
    }
}

/// Keeps the certificate up to date, if there is one.
async fn watch(tls: Option<&Tls>) -> Infallible {
    match tls {
        Some(tls) => tls.watch().await,
        None => std::future::pending().await,
    }
}

/// The connections of a port.
struct Room<S> {
    shared: Arc<Shared<S>>,
    workers: Arc<Workers>,
    connections: JoinSet<()>,
    crowd: Crowd,
}

impl<S: Service> Room<S> {
    fn admit(&mut self, socket: Socket) {
        let peer = Peer::new();
        self.crowd.add(&peer);
        let place = self.workers.place();
        let handle = place.handle.clone();
        let connection = Connection { shared: self.shared.clone(), peer, _place: place };
        self.connections.spawn_on(connection.serve(socket), &handle);
    }

    /// Waits until there is room for one more connection; false if the `shutdown` comes first.
    async fn make(&mut self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> bool {
        let Settings { name, connections_max, .. } = self.shared.settings;
        while self.connections.len() >= connections_max {
            if self.crowd.make_room() {
                self.crowd.warn(name, connections_max);
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return false,
                _ = self.connections.join_next() => {}
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
        }
        true
    }

    /// A connection that failed before it was accepted concerns nobody; too many open files pass.
    async fn accept_failed(&mut self, error: io::Error) -> Result<()> {
        match error.kind() {
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted => Ok(()),
            _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                tracing::warn!(%error, port = self.shared.settings.name, "cannot accept connections for now");
                let wait = if self.crowd.make_room() { Duration::ZERO } else { RETRY_INTERVAL };
                tokio::time::sleep(wait).await;
                Ok(())
            }
            _ => Err(Error::internal(format!("the {} listener broke: {error}", self.shared.settings.name))),
        }
    }

    /// Waits for the end of all connections, which were asked to end.
    async fn empty(mut self) {
        let unused = async {
            self.shared.service.ended().await;
            while self.crowd.is_owed() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            tokio::time::sleep(CLOSE_TIME).await;
        };
        tokio::select! {
            () = async { while self.connections.join_next().await.is_some() {} } => return,
            () = unused => {}
        }
        tracing::debug!(connections = self.connections.len(), "cutting off connections that do not end");
        self.connections.shutdown().await;
    }
}
