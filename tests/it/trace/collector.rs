//! OpenTelemetry collectors that keep what they get: one by gRPC, one by HTTP.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A collector, until it is dropped.
pub struct Collector {
    /// Where to send spans.
    pub url: String,
    got: UnboundedReceiver<ExportTraceServiceRequest>,
    serving: JoinHandle<()>,
}

impl Collector {
    /// OTLP over gRPC.
    pub async fn grpc() -> Self {
        let (listener, address) = listen().await;
        let (sender, got) = unbounded_channel();
        let service = TraceServiceServer::new(Keeper(sender));
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        let serving = tokio::spawn(async move { serving.await.expect("the port is ours") });
        Self { url: format!("grpc://{address}"), got, serving }
    }

    /// OTLP over HTTP.
    pub async fn http() -> Self {
        let (listener, address) = listen().await;
        let (sender, got) = unbounded_channel();
        let router = Router::new().route("/v1/traces", post(keep)).with_state(sender);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("the port is ours") });
        Self { url: format!("http://{address}/v1/traces"), got, serving }
    }

    /// What it has got so far.
    pub fn taken(&mut self) -> Vec<ExportTraceServiceRequest> {
        std::iter::from_fn(|| self.got.try_recv().ok()).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn listen() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

struct Keeper(UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn keep(State(kept): State<UnboundedSender<ExportTraceServiceRequest>>, body: Bytes) -> Vec<u8> {
    let _ = kept.send(ExportTraceServiceRequest::decode(body).expect("a message of spans"));
    ExportTraceServiceResponse::default().encode_to_vec()
}
