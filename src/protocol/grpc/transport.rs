//! Accepts connections, speaks HTTP/2 on them, and ends them gracefully.
//!
//! Every connection is a task that [`serve`] owns and waits for. Knows nothing of what calls mean.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::dispatch::Dispatch;
use super::handshake::Handshake;
use super::settings::Settings;
use super::workers::{Place, Workers};
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use crate::infer::round;

/// How long to wait before the next attempt when the process has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long connections have to end at a stop once no inference is in flight.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Serves gRPC on `listener` until `shutdown` resolves; then refuses connections, lets each client know, and returns
/// once every call has ended. Who does not end its connection although none of its inferences is in flight, such as a
/// peer that is silent or never finishes its request, is cut off after a second.
///
/// Streams end by themselves once `gateway` drains and their requests are answered.
///
/// # Errors
/// [`crate::error::Kind::Internal`] if the listener breaks.
pub async fn serve(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let dispatch = Arc::new(Dispatch::new(gateway, &settings)?);
    let workers = Workers::start(settings.threads)?;
    let builder = builder(&settings);
    let stop = CancellationToken::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let full = connections.len() >= settings.connections_max;
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if full => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, peer)) => {
                    tracing::trace!(%peer, "connection opened");
                    let age = Age { max: settings.connection_age_max, grace: settings.connection_age_grace };
                    let place = workers.place();
                    let handle = place.handle.clone();
                    let dispatch = dispatch.clone();
                    let builder = builder.clone();
                    let handshake_timeout = settings.handshake_timeout;
                    let connection =
                        Connection { builder, dispatch, handshake_timeout, age, stop: stop.clone(), place };
                    connections.spawn_on(connection.serve(stream), &handle);
                }
                Err(error) => accept_failed(error).await?,
            },
        }
    }
    drop(listener);
    stop.cancel();
    let unused = async {
        dispatch.inferences_ended().await;
        tokio::time::sleep(CLOSE_TIME).await;
    };
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = unused => {
            tracing::debug!(connections = connections.len(), "cutting off connections that do not end");
            connections.shutdown().await;
        }
    }
    Ok(())
}

/// A connection that failed before it was accepted concerns nobody; too many open files pass.
async fn accept_failed(error: io::Error) -> Result<()> {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted => Ok(()),
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
            tracing::warn!(%error, "cannot accept connections for now");
            tokio::time::sleep(ACCEPT_RETRY).await;
            Ok(())
        }
        _ => Err(Error::internal(format!("the gRPC listener broke: {error}"))),
    }
}

fn builder(settings: &Settings) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.calls_max)
        .max_frame_size(settings.frame_bytes)
        .initial_stream_window_size(settings.call_window_bytes)
        .initial_connection_window_size(settings.connection_window_bytes)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .max_send_buf_size(settings.frame_bytes as usize)
        .auto_date_header(false);
    builder
}

#[derive(Clone, Copy)]
struct Age {
    max: Option<Duration>,
    grace: Option<Duration>,
}

/// What one connection needs.
struct Connection {
    builder: http2::Builder<TokioExecutor>,
    dispatch: Arc<Dispatch>,
    handshake_timeout: Duration,
    age: Age,
    stop: CancellationToken,
    place: Place,
}

impl Connection {
    /// Serves the connection until its client has gone, or its last call ended after it was told to stop.
    async fn serve(self, accepted: TcpStream) {
        let Self { builder, dispatch, handshake_timeout, age, stop, place: _place } = self;
        // The socket was accepted by another runtime than the one that serves it from now on.
        let stream = match accepted.into_std().and_then(TcpStream::from_std) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "connection lost on its way to a thread"),
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection without TCP_NODELAY");
        }
        let stream = Handshake::new(stream, handshake_timeout);
        let service = service_fn(move |request| {
            let dispatch = dispatch.clone();
            async move { Ok::<_, Infallible>(dispatch.call(request).await) }
        });
        let serving = Last { inner: builder.serve_connection(TokioIo::new(stream), service), waited: false };
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = stop.cancelled() => {
                serving.as_mut().inner().graceful_shutdown();
                serving.await
            }
            () = after(age.max) => {
                serving.as_mut().inner().graceful_shutdown();
                tokio::select! {
                    ended = &mut serving => ended,
                    () = after(age.grace) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection broke");
        }
    }
}

/// Polls `inner` only after every other task that is ready.
///
/// A connection is woken by each of its calls that has something to send. So many calls that are answered at a time are
/// written with one system call instead of one each.
struct Last<F> {
    inner: F,
    waited: bool,
}

impl<F: Unpin> Last<F> {
    fn inner(self: Pin<&mut Self>) -> Pin<&mut F> {
        Pin::new(&mut self.get_mut().inner)
    }
}

impl<F: Future + Unpin> Future for Last<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<F::Output> {
        self.waited = !self.waited;
        if self.waited {
            // A thread that is never without work never waits, and its rounds must end, too.
            round::end();
            // A task that wakes itself goes to the end of the line.
            ctx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.inner().poll(ctx)
    }
}

/// Waits for `time`; for ever if there is none.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
