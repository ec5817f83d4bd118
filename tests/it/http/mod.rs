//! The HTTP front end over a real connection: a server over a repository of identity models.

mod compress;
mod generate;
mod health;
mod infer;
mod memory;
mod models;
mod regions;
mod repository;
mod settings;
mod shared_memory;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nereid::engine::{Control, Engine};
use nereid::error::Result;
use nereid::gateway::Gateway;
use nereid::gateway::regions::Regions;
use nereid::protocol::http::{Rest, Settings};
use nereid::protocol::transport::{Listener, Port, Settings as Limits, Workers};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{self, within};

/// The most regions of shared memory.
const REGIONS_MAX: usize = 8;

/// An HTTP server in this process.
struct Served {
    address: SocketAddr,
    engine: Arc<Engine>,
    gateway: Arc<Gateway>,
    root: TempDir,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<()>>,
}

impl Served {
    /// Serves the models of [`support::write_usual_models`] with the default settings.
    async fn start() -> Self {
        Self::with(Control::None, Settings::default()).await
    }

    /// As [`Served::start`], with other settings.
    async fn with(control: Control, settings: Settings) -> Self {
        Self::limited(control, settings, Limits::http()).await
    }

    /// As [`Served::with`], on a port with these limits.
    async fn limited(control: Control, settings: Settings, limits: Limits) -> Self {
        Self::build(control, settings, limits, None).await
    }

    /// As [`Served::start`], with so many bytes for all requests.
    async fn bounded(request_memory: usize) -> Self {
        Self::build(Control::None, Settings::default(), Limits::http(), Some(request_memory)).await
    }

    async fn build(control: Control, settings: Settings, limits: Limits, request_memory: Option<usize>) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        support::write_usual_models(root.path());
        let (engine, failed) = support::engine(root.path(), control).await;
        assert!(failed.is_empty(), "{failed:?}");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let regions = Regions::new(Some(REGIONS_MAX), engine.metrics());
        let gateway = Gateway::new(engine.clone()).with_regions(regions);
        let gateway = Arc::new(support::bounded(gateway, request_memory));
        let shutdown = CancellationToken::new();
        let workers = Arc::new(Workers::start(0).expect("nothing to start"));
        let listener = Listener::try_from(listener).expect("it is bound");
        let port = Port { listener, workers, settings: limits, tls: None, metrics: Default::default() };
        let rest = Rest::new(gateway.clone(), settings);
        let serving = tokio::spawn(port.serve(rest, shutdown.clone().cancelled_owned()));
        Self { address, engine, gateway, root, shutdown, serving }
    }

    /// Sends one request on a connection of its own; the answer has begun, and ends early if the task is aborted.
    async fn begin(&self, request: Request<Full<Bytes>>) -> (Response<Incoming>, JoinHandle<()>) {
        let stream = TcpStream::connect(self.address).await.expect("the server listens");
        let (mut sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.expect("it speaks HTTP");
        let connection = tokio::spawn(async move { drop(connection.await) });
        (within(sender.send_request(request)).await.expect("an answer"), connection)
    }

    /// Sends one request on a connection of its own.
    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (response, connection) = self.begin(request).await;
        let (head, body) = response.into_parts();
        let body = within(body.collect()).await.expect("the whole answer").to_bytes();
        let _ = connection.await;
        Answer { status: head.status, headers: head.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, "")).await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        self.send(request(Method::POST, path, body.to_owned())).await
    }

    /// Stops in the order of a real server, and waits until all has ended.
    async fn stop(self) {
        self.gateway.drain();
        self.shutdown.cancel();
        within(self.serving).await.expect("it does not panic").expect("it ends well");
        within(self.engine.stop()).await;
    }
}

/// What the server answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The body of an answer that went well.
    fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }

    /// The message of an error.
    fn error(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("a body of JSON");
        assert_eq!(self.headers["content-type"], "application/json");
        body["error"].as_str().expect("an error").to_owned()
    }
}

fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "nereid");
    request.body(Full::new(body.into())).expect("well formed")
}
