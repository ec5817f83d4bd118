//! The limits of a port: whatever a peer may take its time over, or send much of, has one.

use std::time::Duration;

/// What is understood on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/2 only, as gRPC needs it.
    Http2,
    /// HTTP/1.1 and HTTP/2, told apart by their first bytes.
    Both,
}

/// What can be set of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The front end's name in the log.
    pub name: &'static str,
    /// What is understood.
    pub protocols: Protocols,
    /// The most connections at a time. At the limit those that do nothing are closed, and if there are none more wait.
    pub connections_max: usize,
    /// How long a new connection may take over TLS and the first bytes of HTTP.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take over HTTP/1.1.
    pub head_timeout: Duration,
    /// How long a connection may be without a call; `None` for any time.
    pub idle_timeout: Option<Duration>,
    /// How long the body of a request may stop arriving while it is waited for; `None` for any time.
    pub body_timeout: Option<Duration>,
    /// How long a peer may take nothing of what is sent to it; `None` for any time.
    pub send_timeout: Option<Duration>,
    /// The most bytes of the head of a request.
    pub head_bytes_max: usize,
    /// The most header lines of a request over HTTP/1.1.
    pub headers_max: usize,
    /// How old a connection may become before its client is asked to open a new one; `None` for any age.
    pub age_max: Option<Duration>,
    /// How long the calls of a connection past its age may go on; `None` for any time.
    pub age_grace: Option<Duration>,
    /// What HTTP/2 has beside.
    pub http2: Http2,
}

/// What can be set of HTTP/2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// The most calls at a time on one connection; the client holds back more.
    pub calls_max: u32,
    /// The largest frame that a client may send, in bytes; a tensor that lies in one frame is never copied.
    pub frame_bytes: u32,
    /// How many bytes of one call a client may send ahead.
    pub call_window_bytes: u32,
    /// How many bytes of all calls of a connection a client may send ahead.
    pub connection_window_bytes: u32,
    /// How often a silent connection is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long the sign of life may take.
    pub keepalive_timeout: Duration,
}

impl Settings {
    /// The defaults for gRPC.
    pub fn grpc() -> Self {
        Self {
            name: "grpc",
            protocols: Protocols::Http2,
            connections_max: 4096,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            idle_timeout: None,
            body_timeout: Some(Duration::from_secs(60)),
            send_timeout: Some(Duration::from_secs(120)),
            head_bytes_max: 16 << 10,
            headers_max: 100,
            age_max: None,
            age_grace: None,
            http2: Http2::default(),
        }
    }

    /// The defaults for HTTP.
    pub fn http() -> Self {
        Self {
            name: "http",
            protocols: Protocols::Both,
            idle_timeout: Some(Duration::from_secs(120)),
            head_bytes_max: 64 << 10,
            ..Self::grpc()
        }
    }

    /// The defaults for metrics: few connections, and short times, so that peers which never complete a request cannot
    /// keep scrapes out.
    pub fn metrics() -> Self {
        Self {
            name: "metrics",
            connections_max: 256,
            handshake_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_secs(60)),
            head_bytes_max: 16 << 10,
            headers_max: 64,
            ..Self::http()
        }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            calls_max: 4096,
            frame_bytes: 1 << 20,
            call_window_bytes: 16 << 20,
            connection_window_bytes: 64 << 20,
            keepalive_interval: Duration::from_secs(7200),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}
