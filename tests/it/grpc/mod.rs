//! The gRPC front end, by the generated client over a real connection: a server over a repository of identity models.

mod admin;
mod aoti;
mod deadline;
mod decode;
mod decoupled;
mod describe;
mod health;
mod infer;
mod memory;
mod onnx;
mod reflection;
mod shared_memory;
mod stream;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nereid::engine::{Control, Engine};
use nereid::error::Result;
use nereid::gateway::Gateway;
use nereid::gateway::regions::Regions;
use nereid::protocol::grpc::{Dispatch, Settings};
use nereid::protocol::transport::{Listener, Port, Settings as Limits, Workers};
use nereid::protocol::v2::wire::grpc_inference_service_client::GrpcInferenceServiceClient;
use nereid::protocol::v2::wire::infer_parameter::ParameterChoice;
use nereid::protocol::v2::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use nereid::protocol::v2::wire::{InferParameter, ModelInferRequest};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::support::{self, PATIENCE, SLOW, identity, until, within};

type Client = GrpcInferenceServiceClient<Channel>;

/// A gRPC server in this process.
struct Served {
    address: SocketAddr,
    engine: Arc<Engine>,
    gateway: Arc<Gateway>,
    root: TempDir,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<()>>,
}

impl Served {
    /// Serves the usual models with the default settings.
    async fn start() -> Self {
        Self::with(Control::None, Settings::default()).await
    }

    /// Serves the models of [`support::write_usual_models`].
    async fn with(control: Control, settings: Settings) -> Self {
        Self::build(control, settings, Limits::grpc(), None, None).await
    }

    /// As [`Served::with`], on a port with these limits.
    async fn limited(control: Control, settings: Settings, limits: Limits) -> Self {
        Self::build(control, settings, limits, None, None).await
    }

    /// Serves the usual models, and lets clients register as many regions of shared memory.
    async fn sharing(regions_max: usize) -> Self {
        Self::build(Control::None, Settings::default(), Limits::grpc(), Some(regions_max), None).await
    }

    /// As [`Served::start`], with so many bytes for all requests.
    async fn bounded(request_memory: usize) -> Self {
        Self::build(Control::None, Settings::default(), Limits::grpc(), None, Some(request_memory)).await
    }

    async fn build(
        control: Control,
        settings: Settings,
        limits: Limits,
        regions_max: Option<usize>,
        request_memory: Option<usize>,
    ) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        support::write_usual_models(root.path());
        let (engine, failed) = support::engine(root.path(), control).await;
        assert!(failed.is_empty(), "{failed:?}");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let regions = Regions::new(regions_max, engine.metrics());
        let gateway = Gateway::new(engine.clone()).with_regions(regions);
        let gateway = Arc::new(support::bounded(gateway, request_memory));
        let shutdown = CancellationToken::new();
        let workers = Arc::new(Workers::start(0).expect("nothing to start"));
        let port = Port {
            listener: Listener::try_from(listener).expect("it is bound"),
            workers,
            settings: limits,
            tls: None,
            metrics: Default::default(),
        };
        let dispatch = Dispatch::new(gateway.clone(), &settings).expect("the descriptors are whole");
        let serving = tokio::spawn(port.serve(dispatch, shutdown.clone().cancelled_owned()));
        Self { address, engine, gateway, root, shutdown, serving }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("the server listens")
    }

    async fn client(&self) -> Client {
        Client::new(self.channel().await).max_decoding_message_size(usize::MAX)
    }

    /// Stops in the order of a real server, and waits until all has ended.
    async fn stop(self) {
        self.gateway.drain();
        self.shutdown.cancel();
        within(self.serving).await.expect("it does not panic").expect("it ends well");
        within(self.engine.stop()).await;
    }
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

/// A request with raw contents for all its inputs.
fn request(model: &str, inputs: &[(&str, &str, &[i64], &[u8])]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: inputs.iter().map(|(name, datatype, shape, _)| input(name, datatype, shape)).collect(),
        raw_input_contents: inputs.iter().map(|(.., raw)| Bytes::copy_from_slice(raw)).collect(),
        ..ModelInferRequest::default()
    }
}

/// A right request for the model `pair`.
fn pair() -> ModelInferRequest {
    request("pair", &[("INPUT0", "FP32", &[1, 4], &[1; 16]), ("INPUT1", "INT32", &[1, 4], &[2; 16])])
}

/// A right request for the model `slow`.
fn slow() -> ModelInferRequest {
    request("slow", &[("INPUT0", "FP32", &[1, 1], &[1; 4])])
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn wanted(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor { name: name.to_owned(), ..InferRequestedOutputTensor::default() }
}

/// The code and message of a refusal.
fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

/// Calls `method` with a body of any bytes, below the generated client and its own checks; gives the status.
async fn call(served: &Served, method: &str, headers: &[(&str, &str)], body: Bytes) -> Status {
    let stream = TcpStream::connect(served.address).await.expect("the server listens");
    let builder = http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("it speaks HTTP/2");
    let connection = tokio::spawn(connection);
    let mut asked = Request::post(format!("http://{}/inference.GRPCInferenceService/{method}", served.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    let asked = asked.body(Full::new(body)).expect("well formed");
    let answer = within(sender.send_request(asked)).await.expect("answered");
    let (head, body) = answer.into_parts();
    let trailers = body.collect().await.expect("it ends well").trailers().cloned().unwrap_or_default();
    connection.abort();
    let status = Status::from_header_map(&head.headers).or_else(|| Status::from_header_map(&trailers));
    status.expect("every answer has a status")
}

/// A message with its header.
fn framed(message: &[u8], length: u32, compressed: u8) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(compressed);
    framed.put_u32(length);
    framed.put_slice(message);
    framed.freeze()
}
