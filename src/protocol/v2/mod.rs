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

/// How much is decompressed before other tasks of the same network thread have their turn: a fraction of a millisecond.
pub const TURN_BYTES: usize = 64 << 10;

/// The most memory that is reserved for what is announced, where less than a quarter of it has come.
pub const RESERVED_MAX: usize = 4 << 20;

/// The memory to reserve for what may follow where so many bytes `came` and `most` more may, of which nobody says how many
/// will. After a few steps it is all of that: each step is a copy of what came, for which other tasks wait, and what is
/// reserved and not used is no memory yet.
pub fn room_for_more(came: usize, most: usize) -> usize {
    most.min(if came < RESERVED_MAX { came } else { 15 * came })
}

/// The messages and services of `proto/grpc_service.proto`, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}
