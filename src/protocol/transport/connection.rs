//! One connection, from its first byte to its end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::body::Body;
use super::clock::{self, Clock, Late, Limits};
use super::last::Last;
use super::listener::Socket;
use super::peer::{Call, Doing, Peer};
use super::preface::{self, Beginning, Version};
use super::service::{Answer, Service};
use super::settings::{Protocols, Settings};
use super::stream::Stream;
use super::tls::Tls;
use super::wire::Wire;
use super::workers::Place;
use crate::telemetry::metrics::PortMetrics;

/// How long an idle connection that is to end has to say goodbye.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// How long a peer may take nothing of what is sent to it when the server stops.
const STUCK_TIME: Duration = Duration::from_secs(5);

/// The most header lines that hyper takes if nobody says otherwise.
const HEADERS_MAX: usize = 100;

/// The largest buffer for what comes over HTTP/1.1, unless the head of a request may be larger.
const BUFFER_BYTES: usize = 256 << 10;

/// What all connections of a port share.
pub struct Shared<S> {
    pub service: S,
    pub settings: Settings,
    pub tls: Option<Tls>,
    pub stop: CancellationToken,
    metrics: PortMetrics,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl<S> Shared<S> {
    /// Connections to `service` within `settings`.
    pub fn new(service: S, settings: Settings, tls: Option<Tls>, metrics: PortMetrics) -> Self {
        let (http1, http2) = (http1_builder(&settings), http2_builder(&settings));
        Self { service, settings, tls, stop: CancellationToken::new(), metrics, http1, http2 }
    }
}

fn http1_builder(settings: &Settings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The clock sees to the times: it tells idle connections from unfinished heads.
        .header_read_timeout(None)
        .max_header_size(settings.head_bytes_max)
        .max_buf_size(settings.head_bytes_max.max(BUFFER_BYTES));
    // Any other number than its own costs hyper an allocation for each request.
    if settings.headers_max != HEADERS_MAX {
        builder.max_headers(settings.headers_max);
    }
    builder
}

fn http2_builder(settings: &Settings) -> http2::Builder<TokioExecutor> {
    let http2 = &settings.http2;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(http2.calls_max)
        // Callers that give up before their calls are seen here are no attack yet: by default, at 20 of them the whole
        // connection ends, with the calls of all others on it.
        .max_pending_accept_reset_streams(http2.calls_max as usize)
        .max_frame_size(http2.frame_bytes)
        .initial_stream_window_size(http2.call_window_bytes)
        .initial_connection_window_size(http2.connection_window_bytes)
        .keep_alive_interval(http2.keepalive_interval)
        .keep_alive_timeout(http2.keepalive_timeout)
        .max_header_list_size(u32::try_from(settings.head_bytes_max).unwrap_or(u32::MAX))
        .max_send_buf_size(http2.frame_bytes as usize)
        .auto_date_header(false);
    builder
}

/// One connection.
pub struct Connection<S> {
    pub shared: Arc<Shared<S>>,
    pub peer: Arc<Peer>,
    /// Kept so that the worker knows its load.
    pub _place: Place,
}

impl<S: Service> Connection<S> {
    /// Serves the connection until its client has gone, or is sent away, or its last call ended after a stop.
    pub async fn serve(self, accepted: Socket) {
        let settings = &self.shared.settings;
        let _open = self.shared.metrics.opened();
        let opening = tokio::time::timeout(settings.handshake_timeout, self.open(accepted));
        let opened = tokio::select! {
            opened = opening => opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            () = self.peer.leaving() => Err(io::ErrorKind::QuotaExceeded.into()),
        };
        let (shared, peer) = (self.shared.clone(), self.peer.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let call = Call::begin(&peer);
            let request = request.map(|incoming| Body::new(incoming, shared.settings.body_timeout, &peer));
            let shared = shared.clone();
            async move {
                let response = shared.service.call(request).await;
                let portion = shared.service.portion();
                Ok::<_, Infallible>(response.map(|body| Answer::begin(body, call, portion)))
            }
        });
        let ended = match opened {
            Ok((Version::Http1, _, _)) if settings.protocols == Protocols::Http2 => {
                return tracing::debug!(port = settings.name, "connection that does not speak HTTP/2");
            }
            Ok((Version::Http1, stream, beginning)) => {
                let io = self.io(stream, beginning);
                let serving = pin!(Last::new(self.shared.http1.serve_connection(io, service)));
                self.drive(serving, Some(settings.head_timeout), |serving| serving.graceful_shutdown()).await
            }
            Ok((Version::Http2, stream, beginning)) => {
                let io = self.io(stream, beginning);
                let serving = pin!(Last::new(self.shared.http2.serve_connection(io, service)));
                self.drive(serving, None, |serving| serving.graceful_shutdown()).await
            }
            Err(error) => return tracing::debug!(port = settings.name, %error, "connection not opened"),
        };
        if let Err(error) = ended {
            tracing::debug!(port = settings.name, %error, "connection broke");
        }
    }

    async fn open(&self, accepted: Socket) -> io::Result<(Version, Stream, Beginning)> {
        let socket = accepted.here()?;
        let mut stream = match &self.shared.tls {
            None => Stream::Plain(socket),
            Some(tls) => Stream::Tls(Box::new(tls.acceptor().accept(socket).await?)),
        };
        let (version, beginning) = preface::read(&mut stream).await?;
        Ok((version, stream, beginning))
    }

    fn io(&self, stream: Stream, beginning: Beginning) -> TokioIo<Wire<Stream>> {
        let Shared { settings, metrics, .. } = &*self.shared;
        TokioIo::new(Wire::new((stream, beginning), self.peer.clone(), settings.send_timeout, metrics.clone()))
    }

    /// Polls `serving` to its end, which `graceful` asks it for when the time has come.
    async fn drive<F>(
        &self,
        mut serving: Pin<&mut Last<F>>,
        head: Option<Duration>,
        graceful: impl Fn(Pin<&mut F>),
    ) -> hyper::Result<()>
    where
        F: Future<Output = hyper::Result<()>> + Unpin,
    {
        // What comes from the peer is seen before it is asked whether the connection is to end.
        let rest = match serving.as_mut().or(self.asked_to_end(head)).await {
            Either::Left(ended) => return ended,
            Either::Right(None) => return Ok(()),
            Either::Right(Some(rest)) => rest,
        };
        graceful(serving.as_mut().inner());
        match serving.or(self.given_up(rest)).await {
            Either::Left(ended) => ended,
            Either::Right(()) => Ok(()),
        }
    }

    /// Resolves once the connection is to end, with what it may still do; `None` for nothing.
    async fn asked_to_end(&self, head: Option<Duration>) -> Option<Rest> {
        let settings = &self.shared.settings;
        let mut clock = Clock::new(self.peer.clone(), Limits { head, idle: settings.idle_timeout });
        let is_timed = head.is_some() || settings.idle_timeout.is_some();
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Some(Rest::Calls { unused: None }),
            () = after(settings.age_max) => match settings.age_grace {
                Some(time) => Some(Rest::Time(time)),
                None => Some(Rest::Calls { unused: None }),
            },
            () = self.peer.leaving() => match self.peer.doing() {
                Doing::Opening | Doing::Stalled => None,
                Doing::Idle | Doing::Busy => Some(Rest::Calls { unused: Some(CLOSE_TIME) }),
            },
            late = std::future::poll_fn(|ctx| clock.poll_late(ctx)), if is_timed => match late {
                Late::Head => None,
                Late::Idle => Some(Rest::Calls { unused: Some(CLOSE_TIME) }),
            },
            () = clock::stuck(&self.peer, settings.send_timeout) => {
                tracing::debug!(port = settings.name, "closing a connection whose peer takes nothing of its answers");
                None
            }
        }
    }

    /// Resolves once the connection, which was asked to end, has had what it may.
    async fn given_up(&self, rest: Rest) {
        let Shared { settings, stop, .. } = &*self.shared;
        let rest = async {
            match rest {
                Rest::Time(time) => tokio::time::sleep(time).await,
                Rest::Calls { unused: Some(time) } => clock::unused(&self.peer, time).await,
                Rest::Calls { unused: None } => std::future::pending().await,
            }
        };
        let stuck_at_stop = async {
            stop.cancelled().await;
            clock::stuck(&self.peer, Some(STUCK_TIME)).await;
        };
        tokio::select! {
            () = rest => {}
            () = clock::stuck(&self.peer, settings.send_timeout) => {}
            () = stuck_at_stop => {}
        }
    }
}

/// What a connection that was asked to end may still do.
enum Rest {
    /// Go on for this time.
    Time(Duration),
    /// Answer its calls, and be without any for a time; `None` for any time, in which the port may cut it off.
    Calls { unused: Option<Duration> },
}

/// Waits for `time`; for ever if there is none.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::task::Poll;

    use super::super::service::tests::Silent;
    use super::super::workers::Workers;
    use super::*;

    fn connection() -> Connection<Silent> {
        let shared = Arc::new(Shared::new(Silent, Settings::http(), None, PortMetrics::default()));
        let place = Workers::start(0).expect("nothing to start").place();
        Connection { shared, peer: Peer::new(), _place: place }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_begins_as_its_connection_is_sent_away_is_answered() {
        let connection = connection();
        let peer = &connection.peer;
        drop(Call::begin(peer));
        peer.send_away();
        let call = RefCell::new(None);
        let answering = after(Some(10 * CLOSE_TIME));
        let mut answering = pin!(answering);
        let answered = Cell::new(false);
        // The head of a request is there when the connection is looked at next, and its answer takes its time.
        let serving = std::future::poll_fn(|ctx| {
            let mut call = call.borrow_mut();
            if !answered.get() {
                call.get_or_insert_with(|| Call::begin(peer));
                std::task::ready!(answering.as_mut().poll(ctx));
                answered.set(true);
                *call = None;
            }
            Poll::Pending
        });
        connection.drive(pin!(Last::new(serving)), None, |_| ()).await.expect("it ends well");
        assert!(answered.get(), "its connection was cut off");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_gives_up_who_takes_nothing_of_its_answers() {
        let connection = connection();
        connection.shared.stop.cancel();
        let mut call = Call::begin(&connection.peer);
        let _piece =
            super::super::piece::Piece::new(bytes::Bytes::from_static(b"answer"), call.answer(), Default::default());
        let start = tokio::time::Instant::now();
        let serving = pin!(Last::new(std::future::pending()));
        connection.drive(serving, None, |_| ()).await.expect("it ends well");
        assert!((STUCK_TIME..2 * STUCK_TIME).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
}
