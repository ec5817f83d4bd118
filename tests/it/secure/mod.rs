//! Who may reach the server and how: secrets, certificates, kinds of ports, and peers that mean no good.

mod certificates;
mod matrix;
mod ports;
mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nereid::engine::{Control, Engine};
use nereid::error::Result;
use nereid::gateway::Gateway;
use nereid::protocol::grpc::{self, Dispatch};
use nereid::protocol::http::{self as rest, Rest};
use nereid::protocol::restricted::Restrictions;
use nereid::protocol::transport::{Address, Listener, Options, Port, Service, Settings, Tls, Workers};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::support::{self, within};

/// An engine with the usual models, and the ports in front of it.
struct Site {
    engine: Arc<Engine>,
    gateway: Arc<Gateway>,
    root: TempDir,
    shutdown: CancellationToken,
    serving: Vec<JoinHandle<Result<()>>>,
}

impl Site {
    async fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        support::write_usual_models(root.path());
        let (engine, failed) = support::engine(root.path(), Control::None).await;
        assert!(failed.is_empty(), "{failed:?}");
        let gateway = Arc::new(Gateway::new(engine.clone()));
        Self { engine, gateway, root, shutdown: CancellationToken::new(), serving: Vec::new() }
    }

    fn grpc(&self, restrictions: Restrictions) -> Dispatch {
        let settings = grpc::Settings { restrictions, ..grpc::Settings::default() };
        Dispatch::new(self.gateway.clone(), &settings).expect("the descriptors are whole")
    }

    fn rest(&self, settings: rest::Settings) -> Rest {
        Rest::new(self.gateway.clone(), settings)
    }

    /// Serves on `address`, and gives where that is.
    fn serve_at(&mut self, address: &Address, service: impl Service, settings: Settings, tls: Option<Tls>) -> Address {
        let listener = Listener::bind(address, Options { reuse_port: true }).expect("a free address");
        let address = listener.address().clone();
        let workers = Arc::new(Workers::start(0).expect("nothing to start"));
        let port = Port { listener, workers, settings, tls, metrics: Default::default() };
        self.serving.push(tokio::spawn(port.serve(service, self.shutdown.clone().cancelled_owned())));
        address
    }

    /// Serves on a free port.
    fn serve(&mut self, service: impl Service, settings: Settings, tls: Option<Tls>) -> SocketAddr {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        match self.serve_at(&any.into(), service, settings, tls) {
            Address::Tcp(address) => address,
            Address::Unix(path) => panic!("{} is not a port", path.display()),
        }
    }

    async fn stop(self) {
        self.gateway.drain();
        self.shutdown.cancel();
        for serving in self.serving {
            within(serving).await.expect("no panic").expect("it ends well");
        }
        within(self.engine.stop()).await;
        drop(self.root);
    }
}

/// One connection over HTTP/2; dropping it closes it.
struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
}

impl Http2 {
    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> hyper::Result<Self> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        Ok(Self { sender, connection: tokio::spawn(async { drop(connection.await) }) })
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        within(self.sender.send_request(request)).await
    }

    /// Calls a method without a message's contents; gives the status if it comes before any answer.
    async fn call(&mut self, path: &str, headers: &[(&str, &str)]) -> hyper::Result<Option<Status>> {
        let response = self.send(call(path, headers)).await?;
        Ok(Status::from_header_map(response.headers()))
    }

    /// Asks over gRPC whether the server is alive.
    async fn is_live(&mut self) -> bool {
        let path = "/inference.GRPCInferenceService/ServerLive";
        let Ok(response) = self.send(call(path, &[])).await else { return false };
        let Ok(body) = within(response.into_body().collect()).await else { return false };
        // A header of five bytes, and field 1: true.
        body.to_bytes() == [0, 0, 0, 0, 2, 8, 1][..]
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// An empty message for a method of gRPC.
fn call(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("http://nereid{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from_static(&[0; 5]))).expect("well formed")
}

/// Sends one request over HTTP/1.1, on a connection of its own.
async fn http1(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Bytes>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async { drop(connection.await) });
    let answered = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    let answered = within(answered).await;
    connection.abort();
    answered
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "nereid").body(Full::default()).expect("well formed")
}

/// Runs `future` for all of `items` at a time.
async fn all<T, F: Future<Output = T>>(items: impl IntoIterator<Item = F>) -> Vec<T> {
    within(futures_util::future::join_all(items)).await
}
