//! KServe v2 over gRPC, with Triton's extensions.
//!
//! [`Dispatch`] is what a [`Port`](super::transport::Port) serves; inference has a way of its own (`messages`,
//! `framing`, `stream`), everything else goes to the generated service (`service`). What calls mean is `protocol::v2`'s affair; `head`
//! and `encode` make messages out of the server's own responses.

mod bounds;
mod compressed;
mod dispatch;
mod encode;
mod ending;
mod framing;
mod head;
mod health;
mod messages;
mod methods;
mod service;
mod settings;
mod stream;
mod timeout;

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
