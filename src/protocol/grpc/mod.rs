//! KServe v2 over gRPC, with Triton's extensions.
//!
//! [`Dispatch`] is what a [`Port`](super::transport::Port) serves; each call goes by its path to ModelInfer's short way
//! (`framing`) or to the generated service (`service`, `stream`). What calls mean is `protocol::v2`'s affair; `head`
//! and `encode` make messages out of the server's own responses.

mod bounds;
mod codec;
mod compressed;
mod dispatch;
mod encode;
mod ending;
mod framing;
mod head;
mod health;
mod methods;
mod service;
mod settings;
mod stream;
mod timeout;
mod whole;

pub use dispatch::Dispatch;
pub use methods::METHODS;
pub use settings::Settings;

pub mod probe;

/// The messages and service of `proto/health.proto`, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod health_wire {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

#[cfg(test)]
mod allocations_tests;
