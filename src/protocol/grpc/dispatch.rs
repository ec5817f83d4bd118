//! Routes one HTTP/2 request to its service by path.
//!
//! An uncompressed ModelInfer, nearly all of the traffic, is answered here without tonic's codec and layers;
//! a compressed one and ModelStreamInfer take tonic's way with a codec that bounds requests, and everything else goes
//! to the generated services. Begin with [`Dispatch::answer`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use http_body_util::combinators::MapErr;
use parking_lot::Mutex;
use prost::Message;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::codec::CompressionEncoding;
use tonic::server::Grpc;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use super::codec::InferCodec;
use super::compressed::Encoding;
use super::ending::{self, BodyEnding, Ending};
use super::health::HealthService;
use super::health_wire::health_server::HealthServer;
use super::service::InferenceService;
use super::settings::Settings;
use super::whole::{Portions, Whole};
use super::{framing, methods, timeout};
use crate::error::{Error, Kind, Result};
use crate::gateway::Gateway;
use crate::infer::Instant;
use crate::model::schema;
use crate::protocol::category::Category;
use crate::protocol::restricted::{Refusal, Restrictions};
use crate::protocol::status;
use crate::protocol::transport::{self, BodyError, Service};
use crate::protocol::v2::context::{Context as RequestContext, REQUEST_ID};
use crate::protocol::v2::decode::Arrival;
use crate::protocol::v2::forward::Forward;
use crate::protocol::v2::infer;
use crate::protocol::v2::unread::Unread;
use crate::protocol::v2::wire::grpc_inference_service_server::{
    GrpcInferenceService as _, GrpcInferenceServiceServer, SERVICE_NAME,
};
use crate::telemetry::metrics::Answers;
use crate::telemetry::trace::Protocol;

const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// The beginning of the paths of the reflection services, whose calls are streams.
const REFLECTION: &str = "/grpc.reflection.";
/// What tonic takes by default, as it does for health and reflection.
const OTHERS_BYTES_MAX: usize = 4 << 20;

/// Answers every call of every connection.
pub struct Dispatch {
    gateway: Arc<Gateway>,
    inference: Arc<InferenceService>,
    forward: Forward,
    request_bytes_max: usize,
    response_bytes_max: usize,
    restrictions: Restrictions,
    services: Routes,
    answers: Answers,
    /// One token for each inference whose request was read and whose answer was not yet handed to the transport.
    inferences: TaskTracker,
}

impl Dispatch {
    /// The services in front of `gateway`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] if our own descriptors cannot be read.
    pub fn new(gateway: Arc<Gateway>, settings: &Settings) -> Result<Self> {
        let inference = Arc::new(InferenceService::new(gateway.clone(), settings));
        let generated = GrpcInferenceServiceServer::from_arc(inference.clone())
            .max_decoding_message_size(settings.request_bytes_max)
            .max_encoding_message_size(usize::MAX)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate);
        let health = HealthServer::new(HealthService::new(gateway.clone()));
        let reflection =
            || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(schema::DESCRIPTORS);
        let broken = |error| Error::internal(format!("the descriptors of the services are broken: {error}"));
        let services = Routes::new(generated)
            .add_service(health)
            .add_service(reflection().build_v1().map_err(broken)?)
            .add_service(reflection().build_v1alpha().map_err(broken)?)
            .prepare();
        Ok(Self {
            answers: ending::answers(gateway.metrics()),
            gateway,
            inference,
            forward: settings.forward.clone(),
            request_bytes_max: settings.request_bytes_max,
            response_bytes_max: settings.response_bytes_max,
            restrictions: settings.restrictions.clone(),
            services,
            inferences: TaskTracker::new(),
        })
    }

    async fn answer(&self, request: Request<transport::Body>) -> Response<Body> {
        let ending = Ending::of(&self.answers, request.uri().path());
        if let Err(refused) = self.permit(request.uri().path(), request.headers()) {
            ending.with(refused.code());
            return refused.into_http();
        }
        let context = RequestContext::of(&self.gateway, Protocol::Grpc, request.headers());
        let id = context.header_given();
        let mut response = self.route(request, context).await;
        let is_framed = matches!(response.body(), Body::Framed { .. });
        match is_framed {
            true => ending.with(Code::Ok),
            false => {
                let ending = ending.with_body(response.headers());
                if let Body::Boxed { ending: of_body, .. } = response.body_mut() {
                    *of_body = ending;
                }
            }
        }
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    /// # Errors
    /// `UNAVAILABLE`, as the reference server has it, if the call needs a secret that these headers do not have.
    fn permit(&self, path: &str, headers: &HeaderMap) -> Result<(), Status> {
        if self.restrictions.is_empty() {
            return Ok(());
        }
        let Some(category) = methods::category(path) else { return Ok(()) };
        self.restrictions.check(category, headers).map_err(|Refusal(header)| {
            if category == Category::Inference {
                self.gateway.refused(Kind::Unavailable);
            }
            Status::unavailable(format!("This protocol is restricted, expecting header '{header}'"))
        })
    }

    async fn route(&self, mut request: Request<transport::Body>, context: RequestContext) -> Response<Body> {
        if request.uri().path() == MODEL_INFER && !is_compressed(request.headers()) {
            return match self.model_infer(request, &context).await {
                Ok((body, inference)) => {
                    let mut response = Response::new(Body::Framed { body, _inference: inference, _context: context });
                    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                    response
                }
                Err(status) => status.into_http(),
            };
        }
        request.extensions_mut().insert(context);
        match request.uri().path() {
            MODEL_INFER => return self.compressed(request).await,
            MODEL_STREAM_INFER => return self.stream(request).await,
            _ => {}
        }
        let path = request.uri().path();
        let is_stream = path.starts_with(REFLECTION);
        let is_own = path.strip_prefix('/').is_some_and(|path| path.starts_with(SERVICE_NAME));
        let bytes_max = if is_own { self.request_bytes_max } else { OTHERS_BYTES_MAX };
        let (request, _portions) = self.readable(request, is_stream, bytes_max);
        match self.services.clone().oneshot(request).await {
            Ok(response) => response.map(|body| Body::Boxed { body, _inference: None, ending: None }),
            Err(never) => match never {},
        }
    }

    /// `request` with whole messages, and errors as tonic has them; and what its messages hold, which the services of
    /// inference find among its extensions.
    fn readable(
        &self,
        request: Request<transport::Body>,
        is_stream: bool,
        bytes_max: usize,
    ) -> (Request<Whole<TonicBody>>, Portions) {
        let (mut head, body) = request.into_parts();
        let body = if is_stream { body.patient() } else { body };
        let body = body.map_err(body_status as fn(BodyError) -> Status);
        let body = Whole::new(body, bytes_max, Encoding::take(&mut head.headers), self.gateway.portion());
        let portions = body.portions();
        head.extensions.insert(portions.clone());
        (Request::from_parts(head, body), portions)
    }

    /// tonic's way for a service whose requests are bounded.
    fn tonic<Answer: Message + Send + 'static>(&self) -> Grpc<InferCodec<Answer>> {
        Grpc::new(InferCodec::default())
            .max_decoding_message_size(self.request_bytes_max)
            // The service itself refuses what is larger, with the message that clients know.
            .max_encoding_message_size(usize::MAX)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
    }

    async fn compressed(&self, request: Request<transport::Body>) -> Response<Body> {
        let unread = Arc::new(Mutex::new(Some(Unread::new(self.gateway.clone()))));
        let infer = tower::service_fn(|request| {
            // It was read: from here on the service counts.
            if let Some(unread) = unread.lock().take() {
                unread.read();
            }
            let (service, token) = (self.inference.clone(), self.inferences.token());
            async move {
                let _in_flight = token;
                service.model_infer(request).await
            }
        });
        let (request, _portions) = self.readable(request, false, self.request_bytes_max);
        let response = self.tonic().unary(infer, request).await;
        if let Some(unread) = unread.lock().take() {
            let code =
                Status::from_header_map(response.headers()).map_or(Code::InvalidArgument, |status| status.code());
            unread.refuse(kind(code));
        }
        response.map(|body| Body::Boxed { body, _inference: None, ending: None })
    }

    /// A stream that is refused as a whole counts as one request, whatever it would have held; one that is taken counts
    /// each request that it reads.
    async fn stream(&self, request: Request<transport::Body>) -> Response<Body> {
        let token = self.inferences.token();
        let infer = tower::service_fn(|request| {
            let service = self.inference.clone();
            async move { service.model_stream_infer(request).await }
        });
        let (request, _) = self.readable(request, true, self.request_bytes_max);
        let response = self.tonic().streaming(infer, request).await;
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.gateway.refused(kind(status.code()));
        }
        response.map(|body| Body::Boxed { body, _inference: Some(token), ending: None })
    }

    /// A response beyond the limit counts as answered: the model did its work.
    async fn model_infer(
        &self,
        request: Request<transport::Body>,
        context: &RequestContext,
    ) -> Result<(framing::Body, TaskTrackerToken), Status> {
        let (head, mut body) = request.into_parts();
        let unread = Unread::new(self.gateway.clone());
        let read = async {
            let deadline = timeout::deadline(&head.headers).map_err(|error| status::grpc(&error))?;
            let mut portion = self.gateway.portion();
            let reading = framing::read(&mut body, self.request_bytes_max, &mut portion);
            let message = timeout::before(deadline, reading).await?;
            Ok::<_, Status>((deadline, message, portion))
        };
        let (deadline, mut message, portion) = match read.await {
            Ok(read) => read,
            Err(status) => {
                let kind = kind(status.code());
                unread.refuse(kind);
                context.refused(&Error::new(kind, status.message().to_owned()));
                return Err(status);
            }
        };
        unread.read();
        self.forward.add(&head.headers, &mut message.parameters);
        let inference = self.inferences.token();
        let arrival = Arrival { at: Instant::now(), deadline, context: context.clone(), portion };
        let response = infer::unary(&self.gateway, message, arrival).await.map_err(|error| status::grpc(&error))?;
        context.sending();
        let body = framing::Body::new(response, self.response_bytes_max)?;
        Ok((body, inference))
    }
}

impl Service for Dispatch {
    type Body = Body;

    async fn call(&self, request: Request<transport::Body>) -> Response<Body> {
        self.answer(request).await
    }

    /// Resolves once no inference is in flight, those within streams included; a request that was not read to its end
    /// is none. Calls made after that must be refused, which [`Gateway::drain`] sees to.
    async fn ended(&self) {
        self.inferences.close();
        self.inferences.wait().await;
    }
}

/// A body with errors as tonic has them.
type TonicBody = MapErr<transport::Body, fn(BodyError) -> Status>;

fn body_status(error: BodyError) -> Status {
    match error {
        BodyError::Broken(error) => Status::from_error(error.into()),
        BodyError::TimedOut(_) => Status::deadline_exceeded(error.to_string()),
    }
}

/// What a request that could not be read is counted as: the caller's mistake, whatever code gRPC has for it.
pub fn kind(code: Code) -> Kind {
    match code {
        Code::Cancelled => Kind::Cancelled,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::Unimplemented => Kind::Unimplemented,
        Code::Unavailable => Kind::Unavailable,
        _ => Kind::InvalidArgument,
    }
}

/// Whether messages of the call may be compressed, which is the generated service's to undo.
fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity")
}

/// The body of an answer.
#[derive(Debug, Default)]
pub enum Body {
    /// Nothing: all is in the headers.
    #[default]
    Empty,
    /// One message of our own framing; in flight, and being sent, as long as this is.
    Framed { body: framing::Body, _inference: TaskTrackerToken, _context: RequestContext },
    /// What a generated service answers, and for an inference that it is in flight.
    Boxed { body: tonic::body::Body, _inference: Option<TaskTrackerToken>, ending: Option<BodyEnding> },
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Framed { body, .. } => Pin::new(body).poll_frame(ctx).map_err(|never| match never {}),
            Body::Boxed { body, ending, .. } => {
                let frame = Pin::new(body).poll_frame(ctx);
                if let (Poll::Ready(Some(Ok(frame))), Some(ending)) = (&frame, ending)
                    && let Some(trailers) = frame.trailers_ref()
                {
                    ending.trailers(trailers);
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Framed { body, .. } => body.is_end_stream(),
            Body::Boxed { body, .. } => body.is_end_stream(),
        }
    }
}
