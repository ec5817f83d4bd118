//! KServe v2 over gRPC, with Triton's extensions.

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
