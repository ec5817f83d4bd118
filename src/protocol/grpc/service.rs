//! The inference service: every RPC of `inference.GRPCInferenceService`, each one line to where it is answered.

use std::sync::Arc;

use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::settings::Settings;
use super::stream::{Infers, Options};
use super::whole::Portions;
use super::{encode, framing, timeout};
use crate::gateway::Gateway;
use crate::infer::Instant;
use crate::protocol::status;
use crate::protocol::v2::context::Context;
use crate::protocol::v2::decode::Arrival;
use crate::protocol::v2::forward::Forward;
use crate::protocol::v2::wire::grpc_inference_service_server::GrpcInferenceService;
use crate::protocol::v2::wire::*;
use crate::protocol::v2::{admin, infer, log, metadata, shared_memory, trace};

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

    /// Reached by compressed calls only; others take the short way of `dispatch.rs`.
    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        let deadline = timeout::deadline(request.metadata().as_ref()).map_err(|error| status::grpc(&error))?;
        let context = context(&request);
        let portion = portions(&request).next();
        let arrival = Arrival { at: Instant::now(), deadline, context: context.clone(), portion };
        let forwarded = self.forward.parameters(request.metadata().as_ref());
        let mut message = request.into_inner();
        message.parameters.extend(forwarded);
        let response = infer::unary(&self.gateway, message, arrival).await;
        context.sending();
        let message = encode::response(response.map_err(|error| status::grpc(&error))?);
        match message.encoded_len() {
            length if length > self.response_bytes_max => {
                Err(framing::response_too_large(length, self.response_bytes_max))
            }
            _ => Ok(Response::new(message)),
        }
    }

    type ModelStreamInferStream = Infers<Streaming<ModelInferRequest>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        if self.gateway.is_draining() {
            return Err(Status::unavailable("GRPC server is shutting down and has stopped accepting new requests."));
        }
        let deadline = timeout::deadline(request.metadata().as_ref()).map_err(|error| status::grpc(&error))?;
        let options = Options {
            requests_max: self.stream_requests_max,
            response_bytes_max: self.response_bytes_max,
            end_at_error: request.metadata().get("triton_grpc_error").is_some_and(|value| value == "true"),
            deadline,
            context: context(&request),
            portions: portions(&request),
            forwarded: self.forward.parameters(request.metadata().as_ref()),
        };
        Ok(Response::new(Infers::new(self.gateway.clone(), request.into_inner(), options)))
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

/// What `dispatch.rs` has learned from the call's headers.
fn context<T>(request: &Request<T>) -> Context {
    request.extensions().get().cloned().unwrap_or_default()
}

/// What the call's messages hold.
fn portions<T>(request: &Request<T>) -> Portions {
    request.extensions().get().cloned().unwrap_or_default()
}
