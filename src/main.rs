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
        // Threads that share libtorch's operations wait for each other some hundred times in an execution, mostly for
        // microseconds. To sleep each time costs more than to spin: a third of the time of one sentence through the
        // encoder. But by default they spin for milliseconds, which is lost where the processors have other work: that
        // sentence took 590 ms instead of 39 ms on two busy cores. So they spin for at most half a millisecond; where
        // more of them are there than processors, for a twentieth of that. Libtorch, loaded later, reads this once.
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe {
            std::env::set_var("OMP_WAIT_POLICY", "ACTIVE");
            std::env::set_var("GOMP_SPINCOUNT", "20000");
        }
    }
    nereid::cli::main()
}
