//! How object stores are reached: the HTTP client that the server has anyway, with TLS by rustls and the system's roots.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt as _;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use parking_lot::Mutex;
use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

use super::page;

/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How many keys that no file can have are told of.
const ODD_KEYS_TOLD_MAX: usize = 100;

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
    /// Keys that were told of, each with its store; behind a lock because models are looked for at the same time.
    told: Mutex<BTreeSet<(String, String)>>,
    /// Why nobody can be trusted in TLS; `None` if the system has certificates.
    untrusting: Option<String>,
}

/// What TLS trusts, or why it is nothing.
type Trusting = io::Result<ConfigBuilder<ClientConfig, WantsClientCert>>;

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
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|error| object_store::Error::Generic { store: "object store", source: Box::new(error) })?;
        let trusting = builder.clone().with_native_roots();
        Ok(HttpClient::new(Service::new(builder, trusting, self.silence_max)))
    }
}

impl Service {
    /// Without certificates of the system only what is not TLS can be reached.
    fn new(builder: ConfigBuilder<ClientConfig, WantsVerifier>, trusting: Trusting, silence_max: Duration) -> Self {
        let (trusting, untrusting) = match trusting {
            Ok(trusting) => (trusting, None),
            Err(error) => {
                let why = format!("the system's certificates cannot be read: {error}");
                (builder.with_root_certificates(RootCertStore::empty()), Some(why))
            }
        };
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_MAX));
        let builder = HttpsConnectorBuilder::new().with_tls_config(trusting.with_no_client_auth());
        let https = builder.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https);
        Self { client, silence_max, told: Mutex::default(), untrusting }
    }

    /// A page of a listing as `object_store` can read it.
    fn readable(&self, store: &str, page: Bytes) -> Bytes {
        let Ok(text) = std::str::from_utf8(&page) else { return page };
        let (kept, odd) = page::without_odd_keys(text);
        if odd.is_empty() {
            return page;
        }
        let mut told = self.told.lock();
        for key in odd {
            if told.len() < ODD_KEYS_TOLD_MAX && told.insert((store.to_owned(), key.clone())) {
                tracing::warn!("the object '{key}' in '{store}' is ignored: no file can have that name");
            }
        }
        kept.into()
    }
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(why) = self.untrusting.as_ref().filter(|_| request.uri().scheme_str() == Some("https")) {
            // Of a kind that is not tried again.
            return Err(HttpError::new(HttpErrorKind::Unknown, Fault(why.clone())));
        }
        let listed = page::is_asked_by(request.uri()).then(|| {
            let uri = request.uri();
            format!("{}{}", uri.authority().map_or("", |authority| authority.as_str()), uri.path())
        });
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
        if let Some(store) = listed.filter(|_| parts.status.is_success()) {
            let page = body.collect().await?.to_bytes();
            // The length is another one if anything was taken out.
            parts.headers.remove(CONTENT_LENGTH);
            return Ok(HttpResponse::from_parts(parts, self.readable(&store, page).into()));
        }
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn without_certificates_only_tls_is_refused() {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("they fit the provider");
        let none = Err(io::Error::new(io::ErrorKind::NotFound, "no certificates"));
        let service = Service::new(builder, none, Duration::from_secs(10));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let call = |scheme: &str| {
            let request = http::Request::get(format!("{scheme}://{address}/")).body(HttpRequestBody::empty());
            service.call(request.expect("a URL"))
        };
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        };
        let (plain, ()) = tokio::join!(call("http"), serve);
        assert_eq!(plain.expect("it needs no certificates").status(), 200);
        let error = call("https").await.expect_err("nobody is trusted");
        assert_eq!(error.kind(), HttpErrorKind::Unknown);
        let said = Fault::of(&error).0;
        assert!(said.contains("the system's certificates cannot be read: no certificates"), "{said}");
    }
}
