//! KServe v2 over gRPC, with Triton's extensions.
//!
//! [`serve`] accepts connections (`transport`); each call goes by its path (`dispatch`) to ModelInfer's short way
//! (`framing`, `infer`) or to the generated service (`service`, which delegates to `metadata`, `admin`, `stream`).
//! `decode` and `encode` are the only places where wire messages and the server's own types meet.

mod admin;
mod bounds;
mod codec;
mod contents;
pub mod decode;
mod dispatch;
mod encode;
mod framing;
mod handshake;
mod health;
mod infer;
mod metadata;
mod parameters;
mod service;
mod settings;
mod stream;
mod timeout;
mod transport;
mod workers;

pub use settings::Settings;
pub use transport::serve;

pub mod probe;

/// The messages and services of `proto/grpc_service.proto`, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// The messages and service of `proto/health.proto`, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod health_wire {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}
