//! The settings of what listens: gRPC, HTTP and metrics, and that no two of them want the same port.

use std::time::Duration;

use http::HeaderValue;

use super::{Config, Port, Reader, metrics, restricted};
use crate::protocol::restricted::Restrictions;
use crate::protocol::transport::{Address, Settings};
use crate::protocol::v2::forward::Forward;
use crate::telemetry;

/// The gRPC front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// Where to listen, within which limits.
    pub port: Port,
    /// The largest request message in bytes.
    pub request_bytes_max: usize,
    /// The largest response message in bytes.
    pub response_bytes_max: usize,
    /// Requests at a time on one stream; more are not read until one is answered.
    pub stream_requests_max: usize,
    /// Which calls need a secret.
    pub restrictions: Restrictions,
    /// The metadata that becomes parameters of a request.
    pub forward: Forward,
}

/// The HTTP front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where to listen, within which limits.
    pub port: Port,
    /// Whether there is a console.
    pub console: bool,
    /// The largest request body in bytes, also when it is decompressed.
    pub request_bytes_max: usize,
    /// The headers that become parameters of a request.
    pub forward: Forward,
    /// Which routes need a secret.
    pub restrictions: Restrictions,
    /// The origins of pages that may call from a browser.
    pub cors_origins: Vec<HeaderValue>,
}

/// The metrics front end.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Where to listen, within which limits.
    pub port: Port,
    /// Time between samples of the host; `None` for no samples.
    pub host_interval: Option<Duration>,
    /// How times are counted.
    pub settings: telemetry::metrics::Settings,
}

impl Grpc {
    /// What the settings say of it.
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let grpc = Self {
            port: Port::read(reader, "grpc-address", Settings::grpc()),
            request_bytes_max: reader.number("grpc-max-request-bytes") as usize,
            response_bytes_max: reader.number("grpc-max-response-bytes") as usize,
            stream_requests_max: reader.number("grpc-max-stream-requests") as usize,
            restrictions: restricted::read(reader, "grpc-restricted-protocol", "triton-grpc-protocol-"),
            forward: forward(reader, "grpc-header-forward-pattern"),
        };
        reader.truth("allow-grpc").then_some(grpc)
    }
}

impl Http {
    /// What the settings say of it.
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let http = Self {
            port: Port::read(reader, "http-address", Settings::http()),
            console: reader.truth("allow-console"),
            request_bytes_max: reader.number("http-max-input-size") as usize,
            forward: forward(reader, "http-header-forward-pattern"),
            restrictions: restricted::read(reader, "http-restricted-api", ""),
            cors_origins: cors_origins(reader),
        };
        reader.truth("allow-http").then_some(http)
    }
}

impl Metrics {
    /// What the settings say of it.
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let own_address = reader.optional("metrics-address").is_some();
        let address = if own_address { "metrics-address" } else { "http-address" };
        let interval = Duration::from_millis(reader.number("metrics-interval-ms"));
        let (settings, mistakes) = metrics::read(&reader.list("metrics-config"));
        let origin = reader.typed.origin("metrics-config");
        for mistake in mistakes {
            reader.mistake(&origin, mistake);
        }
        let metrics = Self {
            settings,
            port: Port::read(reader, address, Settings::metrics()),
            host_interval: reader.truth("allow-cpu-metrics").then_some(interval),
        };
        reader.truth("allow-metrics").then_some(metrics)
    }
}

fn forward(reader: &mut Reader, flag: &'static str) -> Forward {
    Forward::new(&reader.optional(flag).unwrap_or_default()).unwrap_or_else(|reason| {
        let origin = reader.typed.origin(flag);
        reader.mistake(&origin, reason);
        Forward::default()
    })
}

fn cors_origins(reader: &mut Reader) -> Vec<HeaderValue> {
    reader.each("http-cors-origin", |text| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_origin = text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']));
        let origin = HeaderValue::from_str(text).ok().filter(|_| is_origin);
        origin.ok_or_else(|| "is not *, nor http:// or https:// and a host".to_owned())
    })
}

/// Notes it as a mistake if no protocol is left, or if two front ends want the same port.
pub(super) fn check_ports(config: &Config, reader: &mut Reader) {
    if config.grpc.is_none() && config.http.is_none() {
        let origin = reader.typed.origin("allow-grpc");
        reader.mistake(&origin, "no protocol is left to serve inference with");
    }
    if config.single_port && (config.grpc.is_none() || config.http.is_none()) {
        let origin = reader.typed.origin("single-port");
        reader.mistake(&origin, "needs both gRPC and HTTP");
    }
    let listening: Vec<(&str, &Address)> = [
        ("grpc-port", config.grpc.as_ref().filter(|_| !config.single_port).map(|grpc| &grpc.port)),
        ("http-port", config.http.as_ref().map(|http| &http.port)),
        ("metrics-port", config.metrics.as_ref().map(|metrics| &metrics.port)),
    ]
    .into_iter()
    .filter_map(|(flag, port)| Some((flag, &port?.address)))
    .collect();
    for (at, (flag, one)) in listening.iter().enumerate() {
        for (other_flag, other) in &listening[at + 1..] {
            if one.overlaps(other) {
                let (origin, other) = (reader.typed.origin(flag), reader.typed.origin(other_flag));
                let what = one.port().map_or_else(|| one.to_string(), |port| port.to_string());
                reader.mistake(&origin, format!("{what} is also the port of {other}"));
            }
        }
    }
}
