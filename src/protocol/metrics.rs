//! `GET /metrics` over HTTP, on a port of its own.
//!
//! Begin with [`serve`]. What the text says is [`crate::telemetry::metrics`]'s affair; here are only limits and statuses.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::time::MissedTickBehavior;

use super::transport::{Body, Port, Service};
use crate::error::Result;
use crate::telemetry::metrics::Metrics;

/// How often samples of summaries are moved to where they take no room.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Serves `GET /metrics` on `port` until `shutdown` is ready and the responses on their way are sent.
///
/// # Errors
/// [`crate::error::Kind::Internal`] if the listener breaks.
pub async fn serve(port: Port, metrics: Metrics, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
    let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut serving = std::pin::pin!(port.serve(Page(metrics.clone()), shutdown));
    loop {
        tokio::select! {
            ended = &mut serving => return ended,
            _ = upkeep.tick() => metrics.upkeep(),
        }
    }
}

struct Page(Metrics);

impl Service for Page {
    type Body = Full<Bytes>;

    async fn call(&self, request: Request<Body>) -> Response<Full<Bytes>> {
        answer(&request, &self.0)
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "only /metrics is served here\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood here\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(Full::new(Bytes::from(metrics.render())));
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

fn plain(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::super::transport::{Settings, Workers};
    use super::*;
    use crate::telemetry::metrics::PortMetrics;

    /// A server, and what ends it when dropped.
    async fn start() -> (std::net::SocketAddr, oneshot::Sender<()>, JoinHandle<Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let workers = Workers::start(0).expect("nothing to start").into();
        let port = Port {
            listener: listener.try_into().expect("it is bound"),
            workers,
            settings: Settings::metrics(),
            tls: None,
            metrics: PortMetrics::default(),
        };
        let server = tokio::spawn(serve(port, Metrics::new(), async { drop(stopped.await) }));
        (address, stop, server)
    }

    async fn ask(address: std::net::SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        stream.write_all(head.as_bytes()).await.expect("the server reads");
        let mut response = String::new();
        stream.read_to_string(&mut response).await.expect("the server answers and closes");
        response
    }

    #[tokio::test]
    async fn metrics_are_served_by_get_and_nothing_else_is() {
        let (address, stop, server) = start().await;

        let good = ask(address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n") && good.contains("nereid_build_info"), "{good}");
        let elsewhere = ask(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(elsewhere.starts_with("HTTP/1.1 404 "), "{elsewhere}");
        let posted = ask(address, "POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("allow: GET, HEAD"), "{posted}");
        let long =
            format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2 * Settings::metrics().head_bytes_max));
        let refused = ask_or_reset(address, &long).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431 "), "{refused}");

        drop(stop);
        server.await.expect("no panic").expect("the server ends");
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_idle_connection_does_not_hold_up_the_stop() {
        let (address, stop, server) = start().await;
        let mut idle = TcpStream::connect(address).await.expect("the server listens");
        idle.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("the server reads");
        idle.read_exact(&mut [0; 12]).await.expect("a status line");
        drop(stop);
        server.await.expect("no panic").expect("the server ends");
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_is_not_waited_for_long() {
        let (address, stop, server) = start().await;
        let ended =
            tokio::time::timeout(2 * Settings::metrics().head_timeout, ask_or_reset(address, "GET /metrics HTT"));
        assert!(!ended.await.expect("the server closes").starts_with("HTTP/1.1 200"));
        drop(stop);
        server.await.expect("no panic").expect("the server ends");
    }

    /// Like [`ask`], for a request that the server may cut off while it is still being written.
    async fn ask_or_reset(address: std::net::SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        let _ = stream.write_all(head.as_bytes()).await;
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response).await;
        String::from_utf8_lossy(&response).into_owned()
    }
}
