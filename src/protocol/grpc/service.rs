//! The inference service: every RPC of `inference.GRPCInferenceService`, each one line to where it is answered.

use std::sync::Arc;

use futures_core::Stream;
use http::HeaderMap;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::messages::Message;
use super::settings::Settings;
use super::stream::{self, Infers, Options};
use super::timeout;
use crate::gateway::Gateway;
use crate::protocol::status;
use crate::protocol::v2::context::Context;
use crate::protocol::v2::forward::Forward;
use crate::protocol::v2::wire::grpc_inference_service_server::GrpcInferenceService;
use crate::protocol::v2::wire::*;
use crate::protocol::v2::{admin, log, metadata, shared_memory, trace};

/// Answers the inference service's RPCs through the gateway.
pub struct InferenceService {
    gateway: Arc<Gateway>,
    server_id: String,
    forward: Forward,
    response_bytes_max: usize,
    stream_requests_max: usize,
}

impl InferenceService {
    /// The service in front of `gateway`.
    pub fn new(gateway: Arc<Gateway>, settings: &Settings) -> Self {
        Self {
            gateway,
            server_id: settings.server_id.clone(),
            forward: settings.forward.clone(),
            response_bytes_max: settings.response_bytes_max,
            stream_requests_max: settings.stream_requests_max,
        }
    }

    /// The responses to the requests of a stream, which came with `headers`.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the server is stopping; `INVALID_ARGUMENT` for a timeout that is none.
    pub fn infers<S>(&self, headers: &HeaderMap, context: Context, messages: S) -> Result<Infers<S>, Status>
    where
        S: Stream<Item = Result<Message, Status>> + Send + Unpin,
    {
        if self.gateway.is_draining() {
            return Err(stream::stopping());
        }
        let options = Options {
            requests_max: self.stream_requests_max,
            response_bytes_max: self.response_bytes_max,
            end_at_error: headers.get("triton_grpc_error").is_some_and(|value| value == "true"),
            deadline: timeout::deadline(headers).map_err(|error| status::grpc(&error))?,
            context,
            forwarded: self.forward.parameters(headers),
        };
        Ok(Infers::new(self.gateway.clone(), messages, options))
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: crate::error::Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(|error| status::grpc(&error))
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: self.gateway.ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        answer(metadata::model_ready(&self.gateway, &request.into_inner()))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answer<ServerMetadataResponse> {
        Ok(Response::new(metadata::server(&self.server_id)))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Answer<ModelMetadataResponse> {
        answer(metadata::model(&self.gateway, &request.into_inner()))
    }

    async fn model_infer(&self, _: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        Err(elsewhere())
    }

    type ModelStreamInferStream = BoxStream<ModelStreamInferResponse>;

    async fn model_stream_infer(
        &self,
        _: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        Err(elsewhere())
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Answer<ModelConfigResponse> {
        answer(metadata::config(&self.gateway, &request.into_inner()))
    }

    async fn model_statistics(&self, request: Request<ModelStatisticsRequest>) -> Answer<ModelStatisticsResponse> {
        answer(metadata::statistics(&self.gateway, &request.into_inner()))
    }

    async fn repository_index(&self, request: Request<RepositoryIndexRequest>) -> Answer<RepositoryIndexResponse> {
        answer(admin::index(&self.gateway, &request.into_inner()).await)
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        answer(admin::load(&self.gateway, request.into_inner()).await)
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        answer(admin::unload(&self.gateway, request.into_inner()).await)
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<SystemSharedMemoryStatusRequest>,
    ) -> Answer<SystemSharedMemoryStatusResponse> {
        answer(shared_memory::system_status(&self.gateway, request.get_ref()))
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Answer<SystemSharedMemoryRegisterResponse> {
        answer(shared_memory::system_register(&self.gateway, request.get_ref()))
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<SystemSharedMemoryUnregisterResponse> {
        answer(shared_memory::system_unregister(&self.gateway, request.get_ref()))
    }

    async fn cuda_shared_memory_status(
        &self,
        request: Request<CudaSharedMemoryStatusRequest>,
    ) -> Answer<CudaSharedMemoryStatusResponse> {
        answer(shared_memory::cuda_status(&self.gateway, request.get_ref()))
    }

    async fn cuda_shared_memory_register(
        &self,
        request: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Answer<CudaSharedMemoryRegisterResponse> {
        answer(shared_memory::cuda_register(&self.gateway, request.into_inner()).await)
    }

    async fn cuda_shared_memory_unregister(
        &self,
        request: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<CudaSharedMemoryUnregisterResponse> {
        answer(shared_memory::cuda_unregister(&self.gateway, request.get_ref()))
    }

    async fn trace_setting(&self, request: Request<TraceSettingRequest>) -> Answer<TraceSettingResponse> {
        answer(trace::settings(&self.gateway, request.into_inner()))
    }

    async fn log_settings(&self, request: Request<LogSettingsRequest>) -> Answer<LogSettingsResponse> {
        answer(log::settings(&self.gateway, request.into_inner()))
    }
}

/// What the generated service answers to inference, which no call reaches: `dispatch.rs` has its own way.
fn elsewhere() -> Status {
    Status::unimplemented("inference is not answered here")
}
