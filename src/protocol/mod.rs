//! The wire protocols: decode, hand to the gateway, encode. Wire types live only here.

pub mod category;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod restricted;
pub mod single_port;
pub mod status;
pub mod transport;
pub mod v2;
