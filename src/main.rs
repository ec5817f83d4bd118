//! The executable: the allocator, and the command line.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// For the server and, because it replaces `malloc`, for libtorch too.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Read by jemalloc before `main`. By default it gives large memory back at once, and a model's activations, which are
/// large, would be fetched from the system again for each batch.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8; 21] = b"oversize_threshold:0\0";

fn main() -> ExitCode {
    nereid::cli::main()
}
