//! Sends spans to an OpenTelemetry collector, by OTLP over HTTP or gRPC.
//!
//! Which of them, the scheme of the URL says. Also reads the W3C headers by which a caller says that it traces.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};

use crate::error::{Error, Result};

/// The longest time that sending one batch may take, what is tried again included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where spans go, and how they are gathered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The collector: `http://HOST:PORT/PATH` for OTLP over HTTP, `grpc://HOST:PORT` for OTLP over gRPC.
    pub url: String,
    /// What the spans say about this process, beside and over its name.
    pub resource: Vec<(String, String)>,
    /// The most spans that wait to be sent; more are dropped.
    pub queue_size_max: usize,
    /// The longest time that spans are gathered.
    pub schedule_delay: Duration,
    /// The most spans that are sent at once.
    pub batch_size_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "http://localhost:4318/v1/traces".to_owned(),
            resource: Vec::new(),
            queue_size_max: 2048,
            schedule_delay: Duration::from_secs(5),
            batch_size_max: 512,
        }
    }
}

/// What carries spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Protobuf messages posted to a path.
    Http,
    /// The collector's gRPC service.
    Grpc,
}

impl Transport {
    /// The transport of a URL.
    ///
    /// # Errors
    /// The reason, if it is none that spans can be sent to.
    pub fn of(url: &str) -> std::result::Result<Self, String> {
        let transport = match url.split_once("://").map(|(scheme, _)| scheme) {
            Some("http") => Transport::Http,
            Some("grpc") => Transport::Grpc,
            Some("https" | "grpcs") => return Err("cannot be TLS; run a collector beside the server".to_owned()),
            _ => return Err("begins with neither http:// nor grpc://".to_owned()),
        };
        let uri: http::Uri = endpoint(url).parse().map_err(|error| format!("is no URL: {error}"))?;
        match uri.host() {
            Some(host) if !host.is_empty() => Ok(transport),
            _ => Err("names no host".to_owned()),
        }
    }
}

/// The URL as HTTP knows it; gRPC is HTTP as well.
fn endpoint(url: &str) -> String {
    url.strip_prefix("grpc://").map_or_else(|| url.to_owned(), |rest| format!("http://{rest}"))
}

/// The way to the collector.
#[derive(Debug)]
pub struct Exporter {
    exporter: SpanExporter,
}

impl Exporter {
    /// Connects when there is something to send. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if the URL cannot be used.
    pub fn new(settings: &Settings) -> Result<Self> {
        let wrong = |reason: String| Error::invalid(format!("trace url '{}' {reason}", settings.url));
        let endpoint = endpoint(&settings.url);
        let exporter = match Transport::of(&settings.url).map_err(wrong)? {
            Transport::Http => {
                let builder = SpanExporter::builder().with_http().with_endpoint(endpoint);
                builder.with_protocol(opentelemetry_otlp::Protocol::HttpBinary).with_timeout(EXPORT_TIMEOUT).build()
            }
            Transport::Grpc => {
                let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
                builder.with_protocol(opentelemetry_otlp::Protocol::Grpc).with_timeout(EXPORT_TIMEOUT).build()
            }
        };
        let mut exporter = exporter.map_err(|error| wrong(format!("cannot be used: {error}")))?;
        let resource = settings.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let own = Resource::builder_empty().with_service_name("nereid");
        exporter.set_resource(&own.with_attributes(resource).build());
        Ok(Self { exporter })
    }

    /// Sends spans.
    ///
    /// # Errors
    /// Why the collector has not taken them.
    pub async fn send(&self, spans: Vec<SpanData>) -> std::result::Result<(), String> {
        match tokio::time::timeout(EXPORT_TIMEOUT, self.exporter.export(spans)).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer in {} s", EXPORT_TIMEOUT.as_secs())),
        }
    }
}

/// The caller's span by the headers `traceparent` and `tracestate`; `None` if they name none.
pub fn parent(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut headers = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    headers.extend(tracestate.map(|state| ("tracestate".to_owned(), state.to_owned())));
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_chooses_the_transport() {
        assert_eq!(Transport::of("http://localhost:4318/v1/traces"), Ok(Transport::Http));
        assert_eq!(Transport::of("grpc://collector:4317"), Ok(Transport::Grpc));
        for url in ["https://collector", "localhost:4318", "http://", "grpc://a b", ""] {
            assert!(Transport::of(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_callers_span_is_read_and_nonsense_is_none() {
        let span = parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("a=1")).expect("valid");
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.span_id().to_string(), "b7ad6b7169203331");
        assert_eq!(span.trace_state().get("a"), Some("1"));
        for nonsense in ["", "00", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "zz-0-0-0"] {
            assert_eq!(parent(nonsense, None), None, "{nonsense}");
        }
    }
}
