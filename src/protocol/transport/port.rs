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
use super::crowd::{Crowd, Seldom};
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
    /// every call has ended and its answer was sent. Who takes nothing of an answer for some seconds is cut off, and after
    /// a second who does not end its connection although nothing that came from it is unanswered, such as a peer that is
    /// silent or never finishes its request.
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] if the listener breaks.
    pub async fn serve<S: Service>(self, service: S, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let Self { listener, workers, settings, tls, metrics } = self;
        let shared = Arc::new(Shared::new(service, settings, tls, metrics));
        let mut room = Room {
            shared: shared.clone(),
            workers,
            connections: JoinSet::new(),
            crowd: Crowd::default(),
            warned: Seldom::default(),
        };
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
    /// That nothing can be accepted.
    warned: Seldom,
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

    /// Waits until another attempt may go better: a connection that failed before it was accepted concerns nobody, and
    /// whatever else is wrong with the network or the system's memory passes.
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] if the listener itself is broken.
    async fn accept_failed(&mut self, error: io::Error) -> Result<()> {
        let port = self.shared.settings.name;
        match error.raw_os_error() {
            None | Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK) => {
                return Err(Error::internal(format!("the {port} listener broke: {error}")));
            }
            Some(libc::ECONNABORTED | libc::ECONNRESET | libc::EINTR) => return Ok(()),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => drop(self.crowd.make_room()),
            Some(_) => {}
        }
        if self.warned.now() {
            tracing::warn!(%error, port, "cannot accept connections for now");
        }
        tokio::select! {
            Some(_) = self.connections.join_next() => {}
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::service::tests::Silent;
    use super::*;

    fn room() -> Room<Silent> {
        let shared = Arc::new(Shared::new(Silent, Settings::http(), None, PortMetrics::default()));
        let workers = Arc::new(Workers::start(0).expect("nothing to start"));
        Room { shared, workers, connections: JoinSet::new(), crowd: Crowd::default(), warned: Seldom::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_broken_listener_ends_its_port() {
        let mut room = room();
        for passes in [libc::EPROTO, libc::ENETDOWN, libc::EHOSTUNREACH, libc::EPERM, libc::EMFILE, libc::ECONNABORTED]
        {
            room.accept_failed(io::Error::from_raw_os_error(passes)).await.expect("it passes");
        }
        for lasts in [libc::EBADF, libc::EINVAL, libc::ENOTSOCK] {
            let error = room.accept_failed(io::Error::from_raw_os_error(lasts)).await.expect_err("it lasts");
            assert!(error.message().starts_with("the http listener broke: "), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn out_of_files_one_connection_at_a_time_is_sent_away() {
        let mut room = room();
        let peers: Vec<_> = (0..10).map(|_| Peer::new()).collect();
        peers.iter().for_each(|peer| room.crowd.add(peer));
        let gone = || peers.iter().filter(|peer| peer.is_leaving()).count();
        let start = Instant::now();
        room.accept_failed(io::Error::from_raw_os_error(libc::EMFILE)).await.expect("it passes");
        assert_eq!((gone(), start.elapsed()), (1, RETRY_INTERVAL), "nobody has left, so that it waits");
        room.connections.spawn(async {});
        room.accept_failed(io::Error::from_raw_os_error(libc::EMFILE)).await.expect("it passes");
        assert_eq!((gone(), start.elapsed()), (2, RETRY_INTERVAL), "somebody has left");
        assert!(!room.warned.now(), "it was said");
    }
}
