//! Routes one HTTP/2 request to its service by path.
//!
//! ModelInfer, nearly all of the traffic, is answered here without tonic's codec and layers, the requests of
//! ModelStreamInfer are read without them, and everything else goes to the generated services. Begin with
//! [`Dispatch::answer`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::codec::{Codec as _, EncodeBody};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::ServiceExt as _;

use super::compressed::Encoding;
use super::ending::{self, BodyEnding, Ending};
use super::health::HealthService;
use super::health_wire::health_server::HealthServer;
use super::messages::{Count, Kept, Messages, Whole};
use super::service::InferenceService;
use super::settings::Settings;
use super::{framing, methods, timeout};
use crate::error::{Error, Kind, Result};
use crate::gateway::Gateway;
use crate::gateway::request_memory::Portion;
use crate::infer::Instant;
use crate::model::schema;
use crate::protocol::category::Category;
use crate::protocol::restricted::{Refusal, Restrictions};
use crate::protocol::status;
use crate::protocol::transport::{self, Service};
use crate::protocol::v2::context::{Context as RequestContext, REQUEST_ID};
use crate::protocol::v2::decode::Arrival;
use crate::protocol::v2::forward::Forward;
use crate::protocol::v2::infer;
use crate::protocol::v2::unread::Unread;
use crate::protocol::v2::wire::grpc_inference_service_server::{GrpcInferenceServiceServer, SERVICE_NAME};
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
            .max_encoding_message_size(usize::MAX);
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

    async fn route(&self, request: Request<transport::Body>, context: RequestContext) -> Response<Body> {
        let (head, body) = request.into_parts();
        let answer = match head.uri.path() {
            MODEL_INFER => self.model_infer(head, body, context).await,
            MODEL_STREAM_INFER => self.model_stream_infer(head, body, context),
            _ => self.other(head, body).await,
        };
        answer.unwrap_or_else(Status::into_http)
    }

    /// What the generated services answer.
    ///
    /// # Errors
    /// Those of [`Encoding::take`].
    async fn other(&self, mut head: Parts, body: transport::Body) -> Result<Response<Body>, Status> {
        let path = head.uri.path();
        let count = if path.starts_with(REFLECTION) { Count::Any } else { Count::One };
        let is_own = path.strip_prefix('/').is_some_and(|path| path.starts_with(SERVICE_NAME));
        let bytes_max = if is_own { self.request_bytes_max } else { OTHERS_BYTES_MAX };
        let encoding = Encoding::take(&mut head.headers)?;
        let messages = Messages::new(body, count, bytes_max, encoding, self.gateway.portion());
        let kept = Kept::default();
        let request = Request::from_parts(head, Whole::new(messages, kept.clone()));
        let response = self.services.clone().oneshot(request).await;
        drop(kept);
        match response {
            Ok(response) => Ok(response.map(|body| Body::Boxed { body, _inference: None, ending: None })),
            Err(never) => match never {},
        }
    }

    /// A stream that is refused as a whole counts as one request, whatever it would have held; one that is taken counts
    /// each request that it reads.
    ///
    /// # Errors
    /// If it is refused as a whole.
    fn model_stream_infer(
        &self,
        mut head: Parts,
        body: transport::Body,
        context: RequestContext,
    ) -> Result<Response<Body>, Status> {
        let token = self.inferences.token();
        let responses = Encoding::take(&mut head.headers).and_then(|encoding| {
            let portion = self.gateway.portion();
            let messages = Messages::new(body, Count::Any, self.request_bytes_max, encoding, portion);
            self.inference.infers(&head.headers, context, messages)
        });
        let responses = responses.inspect_err(|status| self.gateway.refused(kind(status.code())))?;
        let encoder = ProstCodec::<_, ()>::default().encoder();
        // The stream itself refuses what is larger than allowed, with the message that clients know.
        let body = EncodeBody::new_server(encoder, responses, None, Default::default(), Some(usize::MAX));
        let body = tonic::body::Body::new(body);
        Ok(grpc(Body::Boxed { body, _inference: Some(token), ending: None }))
    }

    /// A response beyond the limit counts as answered: the model did its work.
    ///
    /// # Errors
    /// Whatever is wrong with the request, or why it could not be executed.
    async fn model_infer(
        &self,
        mut head: Parts,
        body: transport::Body,
        context: RequestContext,
    ) -> Result<Response<Body>, Status> {
        let unread = Unread::new(self.gateway.clone());
        let read = async {
            let deadline = timeout::deadline(&head.headers).map_err(|error| status::grpc(&error))?;
            let encoding = Encoding::take(&mut head.headers)?;
            let messages = Messages::new(body, Count::One, self.request_bytes_max, encoding, self.gateway.portion());
            let message = timeout::before(deadline, messages.only()).await?;
            Ok::<_, Status>((framing::request(message)?, deadline))
        };
        let ((mut message, portion), deadline) = match read.await {
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
        Ok(grpc(Body::Framed { body, _inference: inference, _context: context }))
    }
}

/// An answer with this body.
fn grpc(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl Service for Dispatch {
    type Body = Body;

    async fn call(&self, request: Request<transport::Body>) -> Response<Body> {
        self.answer(request).await
    }

    fn portion(&self) -> Portion {
        self.gateway.portion()
    }

    /// Resolves once no inference is in flight, those within streams included; a request that was not read to its end
    /// is none. Calls made after that must be refused, which [`Gateway::drain`] sees to.
    async fn ended(&self) {
        self.inferences.close();
        self.inferences.wait().await;
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

    /// At least what is there; hyper would write an exact size into the headers.
    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        if let Body::Framed { body, .. } = self {
            hint.set_lower(body.remaining());
        }
        hint
    }
}
