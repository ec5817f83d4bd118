//! How object stores are reached: the HTTP client that the server has anyway, with TLS by rustls and the system's roots.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use rustls::crypto::ring;

/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Makes clients that give up on a server that says nothing for this long.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) silence_max: Duration,
}

/// The headers of a response, for who gets the object and not the response.
#[derive(Clone, Debug)]
pub(super) struct Headers(pub(super) http::HeaderMap);

#[derive(Debug)]
struct Service {
    client: Client<HttpsConnector<Tcp>, HttpRequestBody>,
    silence_max: Duration,
}

/// An error in one line, its causes included.
#[derive(Debug)]
struct Fault(String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl Fault {
    fn of(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.contains(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        Self(text)
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_MAX));
        let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(ring::default_provider());
        let builder = builder.map_err(|error| object_store::Error::Generic {
            store: "object store",
            source: format!("the system's certificates cannot be read: {error}").into(),
        })?;
        let https = builder.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https);
        Ok(HttpClient::new(Service { client, silence_max: self.silence_max }))
    }
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = match tokio::time::timeout(self.silence_max, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
                return Err(HttpError::new(kind, Fault::of(&error)));
            }
            Err(_) => {
                let fault = Fault(format!("no answer in {} s", self.silence_max.as_secs_f64()));
                return Err(HttpError::new(HttpErrorKind::Timeout, fault));
            }
        };
        let (mut parts, body) = response.into_parts();
        parts.extensions.insert(Headers(parts.headers.clone()));
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, Fault::of(&error)));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}
