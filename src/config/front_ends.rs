//! The settings of what listens: gRPC, HTTP and metrics, and that no two of them want the same port.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Config, Reader};

/// The gRPC front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// Where to listen; port 0 for any that is free.
    pub address: SocketAddr,
    /// The largest request message in bytes.
    pub request_bytes_max: usize,
    /// The largest response message in bytes.
    pub response_bytes_max: usize,
    /// Connections at a time; more wait until one closes.
    pub connections_max: usize,
    /// Calls at a time on one connection.
    pub calls_max: u32,
    /// Requests at a time on one stream; more are not read until one is answered.
    pub stream_requests_max: usize,
    /// Time for a new connection to begin to speak HTTP/2.
    pub handshake_timeout: Duration,
    /// Time without traffic before a ping.
    pub keepalive_time: Duration,
    /// Time until an unanswered ping ends the connection.
    pub keepalive_timeout: Duration,
    /// Time until a connection is asked to end; `None` for never.
    pub connection_age_max: Option<Duration>,
    /// Time from then until it is ended; `None` for no limit.
    pub connection_age_grace: Option<Duration>,
}

/// The HTTP front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where to listen; port 0 for any that is free.
    pub address: SocketAddr,
    /// Whether there is a console.
    pub console: bool,
    /// The largest request body in bytes, also when it is decompressed.
    pub request_bytes_max: usize,
    /// Connections at a time; more wait until one closes.
    pub connections_max: usize,
}

/// The metrics front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where to listen; port 0 for any that is free.
    pub address: SocketAddr,
    /// Time between samples of the host; `None` for no samples.
    pub host_interval: Option<Duration>,
}

impl Grpc {
    /// What the settings say of it.
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let grpc = Self {
            address: reader.address("grpc-address", "grpc-port"),
            request_bytes_max: reader.number("grpc-max-request-bytes") as usize,
            response_bytes_max: reader.number("grpc-max-response-bytes") as usize,
            connections_max: reader.number("grpc-max-connections") as usize,
            calls_max: reader.number("grpc-max-concurrent-streams") as u32,
            stream_requests_max: reader.number("grpc-max-stream-requests") as usize,
            handshake_timeout: Duration::from_millis(reader.number("grpc-handshake-timeout")),
            keepalive_time: Duration::from_millis(reader.number("grpc-keepalive-time")),
            keepalive_timeout: Duration::from_millis(reader.number("grpc-keepalive-timeout")),
            connection_age_max: reader.maybe_number("grpc-max-connection-age").map(Duration::from_millis),
            connection_age_grace: reader.maybe_number("grpc-max-connection-age-grace").map(Duration::from_millis),
        };
        reader.truth("allow-grpc").then_some(grpc)
    }
}

impl Http {
    /// What the settings say of it.
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let http = Self {
            address: reader.address("http-address", "http-port"),
            console: reader.truth("allow-console"),
            request_bytes_max: reader.number("http-max-input-size") as usize,
            connections_max: reader.number("http-max-connections") as usize,
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
        let metrics = Self {
            address: reader.address(address, "metrics-port"),
            host_interval: reader.truth("allow-cpu-metrics").then_some(interval),
        };
        reader.truth("allow-metrics").then_some(metrics)
    }
}

/// Notes it as a mistake if no protocol is left, or if two front ends want the same port.
pub(super) fn check_ports(config: &Config, reader: &mut Reader) {
    if config.grpc.is_none() && config.http.is_none() {
        let origin = reader.typed.origin("allow-grpc");
        reader.mistake(&origin, "no protocol is left to serve inference with");
    }
    let listening: Vec<(&str, SocketAddr)> = [
        ("grpc-port", config.grpc.as_ref().map(|grpc| grpc.address)),
        ("http-port", config.http.as_ref().map(|http| http.address)),
        ("metrics-port", config.metrics.as_ref().map(|metrics| metrics.address)),
    ]
    .into_iter()
    .filter_map(|(flag, address)| Some((flag, address?)))
    .collect();
    for (at, (flag, one)) in listening.iter().enumerate() {
        for (other_flag, other) in &listening[at + 1..] {
            let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
            if one.port() == other.port() && one.port() != 0 && overlap {
                let (origin, other) = (reader.typed.origin(flag), reader.typed.origin(other_flag));
                reader.mistake(&origin, format!("{} is also the port of {other}", one.port()));
            }
        }
    }
}
