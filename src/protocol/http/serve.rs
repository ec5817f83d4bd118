//! Accepts connections, speaks HTTP/1.1 or HTTP/2 on them, and ends them gracefully.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{App, Settings, router};
use crate::gateway::Gateway;

/// How long a connection may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a failure to accept, which is a lack of file descriptors and does not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves HTTP on `listener` until `shutdown` resolves; then accepts no more and returns once every answer is sent.
pub async fn serve(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send,
) {
    let connections_max = settings.connections_max;
    let router = router(App::new(gateway, settings));
    let stop = CancellationToken::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let full = connections.len() >= connections_max;
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, router.clone(), stop.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    stop.cancel();
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection broke");
    }
}
