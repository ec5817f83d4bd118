//! The executable: what must be settled before anything else runs, and the command line.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// For the server and, because it replaces `malloc`, for libtorch too.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Read by jemalloc before `main`. By default it gives large memory back at once, and a model's activations, which are
/// large, would be fetched from the system again for each batch. What nobody has used for ten seconds is given back by a
/// thread of its own, since instances that idle free nothing.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8; 44] = b"oversize_threshold:0,background_thread:true\0";

fn main() -> ExitCode {
    let chosen = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().any(|name| std::env::var_os(name).is_some());
    if !chosen {
        // By default the threads that share one of libtorch's operations spin while they wait for each other. When the
        // processors have other work too, and a server's always have, most of the time goes there: one sentence through
        // the encoder on two busy cores took 590 ms instead of 39 ms. Libtorch, loaded later, reads this once.
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var("OMP_WAIT_POLICY", "PASSIVE") };
    }
    nereid::cli::main()
}
