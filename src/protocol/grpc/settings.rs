//! The settings of the gRPC front end; those of its connections are the transport's.

use crate::protocol::restricted::Restrictions;
use crate::protocol::v2::forward::Forward;

/// What can be set of the gRPC front end; every limit of a call has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name that ServerMetadata answers.
    pub server_id: String,
    /// The metadata that becomes parameters of a request (`--grpc-header-forward-pattern`).
    pub forward: Forward,
    /// The most bytes of one message from a client.
    pub request_bytes_max: usize,
    /// The most bytes of one message to a client.
    pub response_bytes_max: usize,
    /// The most requests at a time on one ModelStreamInfer stream; more are not read until one is answered.
    pub stream_requests_max: usize,
    /// Which calls need a secret (`--grpc-restricted-protocol`).
    pub restrictions: Restrictions,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            server_id: "nereid".to_owned(),
            forward: Forward::default(),
            request_bytes_max: i32::MAX as usize,
            response_bytes_max: i32::MAX as usize,
            stream_requests_max: 1024,
            restrictions: Restrictions::default(),
        }
    }
}
