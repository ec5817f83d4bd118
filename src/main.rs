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
    for (name, value) in spinning().into_iter().chain(instructions()) {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var(name, value) };
    }
    nereid::cli::main()
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

/// How long libtorch's threads spin, where nobody has said it. Libtorch, loaded later, reads it once.
///
/// Threads that share its operations wait for each other some hundred times in an execution, mostly for microseconds. To
/// sleep each time costs more than to spin: a third of the time of one sentence through the encoder. But by default they
/// spin for milliseconds, which is lost where the processors have other work: that sentence took 590 ms instead of 39 ms
/// on two busy cores. So they spin for at most half a millisecond; where more of them are there than processors, for a
/// twentieth of that.
fn spinning() -> Vec<(&'static str, &'static str)> {
    let spinning = [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "20000")];
    if spinning.iter().any(|(name, _)| is_set(name)) { Vec::new() } else { spinning.to_vec() }
}

/// Keeps libtorch's oneDNN off the processor's matrix tiles where it would not know how large they are.
///
/// Some virtual machines have AMX, and hide the leaf of CPUID that describes its tiles. oneDNN configures none then, and
/// the first product of bf16 matrices ends the process by SIGILL.
fn instructions() -> Option<(&'static str, &'static str)> {
    (has_amx_without_tiles() && !is_set("ONEDNN_MAX_CPU_ISA")).then_some(("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"))
}

/// Leaves 7 and 0x1d as in Intel's Software Developer's Manual, volume 2, CPUID.
#[cfg(target_arch = "x86_64")]
fn has_amx_without_tiles() -> bool {
    use std::arch::x86_64::__cpuid_count;
    const FEATURES: u32 = 7;
    const AMX_TILE: u32 = 1 << 24;
    const TILES: u32 = 0x1d;
    let leaves = __cpuid_count(0, 0).eax;
    let has_amx = leaves >= FEATURES && __cpuid_count(FEATURES, 0).edx & AMX_TILE != 0;
    has_amx && (leaves < TILES || __cpuid_count(TILES, 0).eax == 0)
}

#[cfg(not(target_arch = "x86_64"))]
fn has_amx_without_tiles() -> bool {
    false
}
