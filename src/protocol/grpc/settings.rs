//! The settings of the gRPC front end.

use std::time::Duration;

/// What can be set of the gRPC front end; every limit has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name that ServerMetadata answers.
    pub server_id: String,
    /// The threads that serve connections, each of them its own; 0 for the runtime of the caller.
    pub threads: usize,
    /// The most bytes of one message from a client.
    pub request_bytes_max: usize,
    /// The most bytes of one message to a client.
    pub response_bytes_max: usize,
    /// The most connections at a time; more wait until one closes.
    pub connections_max: usize,
    /// The most calls at a time on one connection; the client holds back more.
    pub calls_max: u32,
    /// The most requests at a time on one ModelStreamInfer stream; more are not read until one is answered.
    pub stream_requests_max: usize,
    /// The largest HTTP/2 frame that a client may send, in bytes; a tensor that lies in one frame is never copied.
    pub frame_bytes: u32,
    /// How many bytes of one call a client may send ahead.
    pub call_window_bytes: u32,
    /// How many bytes of all calls of a connection a client may send ahead.
    pub connection_window_bytes: u32,
    /// How long a new connection may take to begin to speak HTTP/2 (`--grpc-handshake-timeout`).
    pub handshake_timeout: Duration,
    /// How often a silent connection is asked for a sign of life (`--grpc-keepalive-time`).
    pub keepalive_interval: Duration,
    /// How long the sign of life may take (`--grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// How old a connection may become before its client is asked to open a new one
    /// (`--grpc-max-connection-age`); `None` for any age.
    pub connection_age_max: Option<Duration>,
    /// How long the calls of a connection past its age may go on (`--grpc-max-connection-age-grace`); `None` for any
    /// time.
    pub connection_age_grace: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            server_id: "nereid".to_owned(),
            threads: 0,
            request_bytes_max: i32::MAX as usize,
            response_bytes_max: i32::MAX as usize,
            connections_max: 4096,
            calls_max: 4096,
            stream_requests_max: 1024,
            frame_bytes: 1 << 20,
            call_window_bytes: 16 << 20,
            connection_window_bytes: 64 << 20,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(7200),
            keepalive_timeout: Duration::from_secs(20),
            connection_age_max: None,
            connection_age_grace: None,
        }
    }
}
