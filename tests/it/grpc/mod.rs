//! The gRPC front end, by the generated client over a real connection: a server over a repository of identity models.

mod admin;
mod deadline;
mod decode;
mod decoupled;
mod describe;
mod health;
mod infer;
mod reflection;
mod stream;
mod transport;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nereid::engine::{Control, Engine};
use nereid::error::Result;
use nereid::gateway::Gateway;
use nereid::protocol::grpc::{Settings, serve};
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

use crate::support;

/// How long one execution of the model `slow` takes.
const SLOW: Duration = Duration::from_millis(300);

/// Longer than anything takes that does not hang.
const PATIENCE: Duration = Duration::from_secs(20);

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

    /// Serves the usual models: `pair` (FP32 and INT32 of 4 elements), `text` (strings), `slow` (one at a time),
    /// `free` (FP32 without a batch dimension, any size), `versions` (1 and 3) and the example `repeat_int32`.
    async fn with(control: Control, settings: Settings) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let delay =
            format!("parameters {{ key: \"identity.delay_us\" value {{ string_value: \"{}\" }} }}", SLOW.as_micros());
        for (name, config, versions) in [
            ("pair", identity("max_batch_size: 8", &[("FP32", "4"), ("INT32", "4")]), &[1][..]),
            ("text", identity("max_batch_size: 8", &[("STRING", "-1")]), &[1]),
            ("slow", identity(&format!("max_batch_size: 1 {delay}"), &[("FP32", "-1")]), &[1]),
            ("free", identity("max_batch_size: 0", &[("FP32", "-1")]), &[1]),
            ("repeat_int32", include_str!("../../../model_repository/repeat_int32/config.pbtxt").to_owned(), &[1]),
            ("versions", identity("max_batch_size: 8 version_policy { all {} }", &[("FP32", "-1")]), &[1, 3]),
        ] {
            support::write_model(root.path(), name, &config, versions);
        }
        let (engine, failed) = support::engine(root.path(), control).await;
        assert!(failed.is_empty(), "{failed:?}");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let gateway = Arc::new(Gateway::new(engine.clone()));
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, gateway.clone(), settings, shutdown.clone().cancelled_owned()));
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

/// The configuration of an identity model with these inputs (`INPUT0`, …), and outputs of the same kind.
fn identity(more: &str, tensors: &[(&str, &str)]) -> String {
    let mut config = format!("backend: \"identity\" {more}\n");
    for (index, (dtype, dims)) in tensors.iter().enumerate() {
        for (field, name) in [("input", "INPUT"), ("output", "OUTPUT")] {
            config += &format!("{field} {{ name: \"{name}{index}\" data_type: TYPE_{dtype} dims: [{dims}] }}\n");
        }
    }
    config
}

/// Fails the test instead of hanging it.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing takes this long")
}

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
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
