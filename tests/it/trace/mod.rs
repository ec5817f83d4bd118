//! Traces of a real server, seen where they end: in a file and at a collector, next to answers and logs.

mod collector;
mod file;
mod otlp;
mod settings;

use bytes::Bytes;
use nereid::protocol::v2::wire::grpc_inference_service_client::GrpcInferenceServiceClient;
use nereid::protocol::v2::wire::model_infer_request::InferInputTensor;
use nereid::protocol::v2::wire::{ModelInferRequest, ModelInferResponse};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::process::Process;
use crate::support;

type Client = GrpcInferenceServiceClient<Channel>;

/// A repository of two identity models, `m` and `n`.
fn repository() -> TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    for name in ["m", "n"] {
        support::write_model(root.path(), name, &support::identity_config(""), &[1]);
    }
    root
}

async fn client(server: &Process) -> Client {
    let address = format!("http://{}", server.address("grpc"));
    Client::new(Endpoint::from_shared(address).expect("an address").connect().await.expect("the server listens"))
}

/// A right request for a model, with the id `mine`.
fn request(model: &str) -> ModelInferRequest {
    let input = InferInputTensor {
        name: "IN".to_owned(),
        datatype: "UINT8".to_owned(),
        shape: vec![1, 4],
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        id: "mine".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![Bytes::from_static(&[1, 2, 3, 4])],
        ..ModelInferRequest::default()
    }
}

/// Infers with these headers.
async fn infer(
    client: &mut Client,
    request: ModelInferRequest,
    headers: &[(&'static str, &'static str)],
) -> Result<Response<ModelInferResponse>, Status> {
    let mut request = Request::new(request);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("a header's value"));
    }
    client.model_infer(request).await
}
