//! KServe v2 with Triton's extensions, whatever carries it: the messages, and what each call does.
//!
//! gRPC sends these messages themselves; HTTP reads and writes them as JSON. Both hand them to `infer`, `metadata`,
//! `admin`, `shared_memory`, `trace` and `log`, so that every check and every message exists once. `decode` makes the
//! server's own request out of an inference message. Begin with [`infer`].

pub mod admin;
mod contents;
pub mod context;
pub mod decode;
pub mod forward;
pub mod infer;
pub mod log;
pub mod metadata;
mod outcome;
pub mod parameters;
pub mod shared_memory;
pub mod trace;
pub mod unread;

/// The most inputs, requested outputs, parameters and raw contents of one request, each.
pub const PARTS_MAX: usize = 4096;

/// The messages and services of `proto/grpc_service.proto`, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}
