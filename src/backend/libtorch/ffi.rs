//! Finds libtorch, loads it and the shim, and declares the shim's functions (`shim.h`) as they are.
//!
//! Nothing in the binary is linked against libtorch: it is looked for when first needed, by the usual library path and
//! the binary's rpath, its version is checked, and only then the shim, which is embedded in the binary, is loaded on
//! top. What is wrong with it is therefore an ordinary [`Error`]. Begin with [`api`].
//!
//! `handle`, `module` and `device` make these functions safe.
#![allow(missing_docs, reason = "the mirrored structs are documented in shim.h")]

use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use super::aoti::ffi::AotiApi;
use super::{failure, message};
use crate::error::{Error, Result};

/// The libtorch that the shim was compiled against: major, minor.
pub(super) const VERSION: (u64, u64) = (2, 11);
/// The shim, as built by build.rs.
static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.so"));

/// MKL's fast path, as built by build.rs from `mkl_fast_path.c`.
static MKL_FAST_PATH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mkl_fast_path.so"));
static WANTS_MKL_FAST_PATH: AtomicBool = AtomicBool::new(false);

/// Lets MKL use all instructions that processors of other vendors than Intel have. To be called before libtorch is loaded;
/// without effect afterwards.
pub fn use_mkl_fast_path() {
    WANTS_MKL_FAST_PATH.store(true, Ordering::SeqCst);
}

/// `nt_tensor`, opaque.
#[repr(C)]
pub struct RawTensor(c_void);
/// `nt_module`, opaque.
#[repr(C)]
pub struct RawModule(c_void);
/// `nt_value`, opaque.
#[repr(C)]
pub struct RawValue(c_void);
/// `nt_stream`, opaque.
#[repr(C)]
pub struct RawStream(c_void);

/// `nt_storages`, opaque.
#[repr(C)]
pub struct RawStorages(c_void);

/// `nt_text`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    pub data: *const u8,
    pub len: usize,
}

/// `nt_view`.
#[repr(C)]
pub struct View {
    pub dtype: i32,
    pub device: i32,
    pub ndim: i64,
    pub dims: *const i64,
    pub data: *const u8,
    pub bytes: usize,
}

/// `nt_argument`.
#[repr(C)]
pub struct RawArgument {
    pub name: Text,
    pub kind: Text,
    pub fallback: Text,
    pub returned: i32,
}

/// `nt_weight`.
#[repr(C)]
pub struct RawWeight {
    pub name: Text,
    pub data: *const u8,
    pub bytes: usize,
    pub dtype: i32,
    pub device: i32,
    pub buffer: i32,
}

/// `nt_input`.
#[repr(C)]
pub struct RawInput {
    pub name: Text,
    pub tensor: *const RawTensor,
    pub strings: *const Text,
    pub strings_len: usize,
}

/// `nt_output`.
#[repr(C)]
pub struct RawOutput {
    pub name: Text,
    pub tensor: *mut RawTensor,
    pub strings: *const Text,
    pub strings_len: usize,
    pub kind: Text,
}

/// `nt_run`.
#[repr(C)]
pub struct RawRun {
    pub device: i32,
    pub inference_mode: i32,
    pub optimized_executor: i32,
    pub as_dictionary: i32,
    pub float_type: i32,
    pub in_order: usize,
}

type Failure = *mut c_char;
type Visit<T> = extern "C" fn(*mut c_void, *const T);
/// Moves so many bytes; 0 if it could.
pub type Move = extern "C" fn(*mut c_void, *mut u8, u64) -> i32;

/// `nt_api`: one field for each function, in the order of `shim.h`.
#[repr(C)]
pub struct Api {
    pub size: usize,
    pub text_free: unsafe extern "C" fn(Failure),
    pub configure: unsafe extern "C" fn() -> Failure,
    pub thread_begin: unsafe extern "C" fn(i32, i32) -> Failure,
    pub stream_of_thread: unsafe extern "C" fn(i32, *mut *mut RawStream) -> Failure,
    pub stream_mark: unsafe extern "C" fn(*mut RawStream) -> Failure,
    pub stream_passed: unsafe extern "C" fn(*const RawStream, *mut i32) -> Failure,
    pub stream_wait: unsafe extern "C" fn(*const RawStream, i32) -> Failure,
    pub stream_free: unsafe extern "C" fn(*mut RawStream),
    pub cuda_count: unsafe extern "C" fn(*mut i64) -> Failure,
    pub cuda_memory: unsafe extern "C" fn(i32, *mut u64, *mut u64) -> Failure,
    pub cuda_allocated: unsafe extern "C" fn(i32, *mut u64, *mut u64) -> Failure,
    pub cuda_empty_cache: unsafe extern "C" fn() -> Failure,
    pub tensor_over: unsafe extern "C" fn(
        i32,
        *const i64,
        usize,
        *const u8,
        *mut c_void,
        extern "C" fn(*mut c_void),
        *mut *mut RawTensor,
    ) -> Failure,
    pub tensor_empty: unsafe extern "C" fn(i32, *const i64, usize, i32, *mut *mut RawTensor, *mut *mut u8) -> Failure,
    pub tensor_reuse:
        unsafe extern "C" fn(*const RawTensor, i32, *const i64, usize, *mut *mut RawTensor, *mut *mut u8) -> Failure,
    pub tensor_to: unsafe extern "C" fn(*const RawTensor, i32, *mut *mut RawTensor) -> Failure,
    pub tensor_host: unsafe extern "C" fn(*const RawTensor, i32, i32, *mut *mut RawTensor) -> Failure,
    pub tensor_keep: unsafe extern "C" fn(*const RawTensor, i32, i32, *mut *mut RawTensor) -> Failure,
    pub tensor_parts: unsafe extern "C" fn(*const RawTensor, *const i64, usize, i32, *mut *mut RawTensor) -> Failure,
    pub tensor_join: unsafe extern "C" fn(
        *const *const RawTensor,
        usize,
        i32,
        i32,
        *const i64,
        usize,
        *mut *mut RawTensor,
    ) -> Failure,
    pub tensor_cast: unsafe extern "C" fn(*const RawTensor, i32, *mut *mut RawTensor) -> Failure,
    pub tensor_view: unsafe extern "C" fn(*const RawTensor, *mut View) -> Failure,
    pub tensor_free: unsafe extern "C" fn(*mut RawTensor),
    pub module_new: unsafe extern "C" fn(Text, *mut *mut RawModule) -> Failure,
    pub module_register: unsafe extern "C" fn(*mut RawModule, Text, *const RawTensor, i32) -> Failure,
    pub module_define: unsafe extern "C" fn(*mut RawModule, Text) -> Failure,
    pub module_save: unsafe extern "C" fn(*const RawModule, Text) -> Failure,
    pub module_load: unsafe extern "C" fn(Text, i32, *mut *mut RawModule) -> Failure,
    pub module_copy: unsafe extern "C" fn(*const RawModule, *mut *mut RawModule) -> Failure,
    pub module_freeze: unsafe extern "C" fn(*const RawModule, *mut *mut RawModule) -> Failure,
    pub module_optimize: unsafe extern "C" fn(*const RawModule, *mut *mut RawModule, *mut u64) -> Failure,
    pub module_convert: unsafe extern "C" fn(*mut RawModule, i32) -> Failure,
    pub module_quantize: unsafe extern "C" fn(*const RawModule, *mut *mut RawModule, *mut u64, *mut u64) -> Failure,
    pub module_schema: unsafe extern "C" fn(*const RawModule, *mut c_void, Visit<RawArgument>) -> Failure,
    pub module_weights: unsafe extern "C" fn(*const RawModule, *mut c_void, Visit<RawWeight>) -> Failure,
    pub module_effects: unsafe extern "C" fn(*const RawModule, *mut i32, *mut i32) -> Failure,
    pub module_free: unsafe extern "C" fn(*mut RawModule),
    pub storages_of: unsafe extern "C" fn(*const RawModule, i32, *mut *mut RawStorages, *mut u64) -> Failure,
    pub storages_out: unsafe extern "C" fn(*mut RawStorages, *mut c_void, Option<Move>) -> Failure,
    pub storages_in: unsafe extern "C" fn(*mut RawStorages, *mut c_void, Option<Move>) -> Failure,
    pub storages_free: unsafe extern "C" fn(*mut RawStorages),
    pub run:
        unsafe extern "C" fn(*const RawModule, *const RawRun, *const RawInput, usize, *mut *mut RawValue) -> Failure,
    pub value_outputs: unsafe extern "C" fn(*const RawValue, *mut c_void, Visit<RawOutput>) -> Failure,
    pub value_items:
        unsafe extern "C" fn(*const RawValue, *mut c_void, extern "C" fn(*mut c_void, *mut RawValue)) -> Failure,
    pub value_free: unsafe extern "C" fn(*mut RawValue),
}

/// libtorch as loaded: the shim's functions, and whether its CUDA part is there.
pub struct Loaded {
    /// The shim's functions.
    pub api: &'static Api,
    /// Those that run packages.
    pub aoti: &'static AotiApi,
    /// Whether devices may be asked for. Asking without would break CUDA for the life of the process.
    pub cuda: bool,
}

static LOADED: OnceLock<Result<Loaded>> = OnceLock::new();

/// libtorch if something has loaded it; never loads it.
pub fn if_loaded() -> Option<&'static Loaded> {
    LOADED.get()?.as_ref().ok()
}

/// libtorch, loaded at the first call.
///
/// # Errors
/// One line saying what is missing or wrong; the same at each call.
pub fn loaded() -> Result<&'static Loaded> {
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// The shim's functions.
///
/// # Errors
/// Those of [`loaded`].
pub fn api() -> Result<&'static Api> {
    loaded().map(|loaded| loaded.api)
}

impl Api {
    /// Turns the error text of a shim function into an [`Error`].
    pub fn check(&self, failure: Failure) -> Result<()> {
        if failure.is_null() {
            return Ok(());
        }
        // SAFETY: the shim's error texts are terminated C strings, ours until given back.
        let text = unsafe { CStr::from_ptr(failure) }.to_string_lossy().into_owned();
        // SAFETY: `failure` came from the shim and is given back once; `text` is a copy.
        unsafe { (self.text_free)(failure) };
        Err(failure::of(&text))
    }
}

fn load() -> Result<Loaded> {
    if WANTS_MKL_FAST_PATH.load(Ordering::SeqCst) {
        // Libtorch finds its symbols in the order in which libraries were loaded.
        let library = open_embedded(MKL_FAST_PATH, c"nereid-mkl", RTLD_GLOBAL).map_err(|error| unusable(&error))?;
        std::mem::forget(library);
    }
    open_forever("libtorch_cpu.so".as_ref(), RTLD_GLOBAL).map_err(|error| {
        unusable(&format!(
            "{error}; `make setup` fetches it, or let LD_LIBRARY_PATH name the folder of libtorch_cpu.so"
        ))
    })?;
    check_version()?;
    let cuda = load_cuda();
    let shim = open_embedded(SHIM, c"nereid-torch", RTLD_LOCAL).map_err(|error| unusable(&error))?;
    // SAFETY: the shim exports this function with this signature; it is never unloaded.
    let api = unsafe { shim.get::<unsafe extern "C" fn() -> *const Api>(b"nereid_torch\0").map(|table| &*table()) };
    let api = api.map_err(|error| unusable(&error.to_string()))?;
    assert_eq!(api.size, size_of::<Api>(), "ffi.rs mirrors shim.h");
    // SAFETY: as above.
    let aoti =
        unsafe { shim.get::<unsafe extern "C" fn() -> *const AotiApi>(b"nereid_torch_aoti\0").map(|table| &*table()) };
    let aoti = aoti.map_err(|error| unusable(&error.to_string()))?;
    assert_eq!(aoti.size, size_of::<AotiApi>(), "aoti/ffi.rs mirrors shim_aoti.h");
    std::mem::forget(shim);
    // SAFETY: takes nothing, and is called once, before every other function.
    api.check(unsafe { (api.configure)() })?;
    Ok(Loaded { api, aoti, cuda })
}

fn unusable(why: &str) -> Error {
    Error::unavailable(format!("libtorch {}.{} cannot be used: {}", VERSION.0, VERSION.1, message::one_line(why)))
}

/// Loads a library that stays for the life of the process.
fn open_forever(name: &Path, flags: i32) -> Result<(), String> {
    // SAFETY: libtorch's libraries may run their initialisers on any thread, and are never unloaded.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | flags) };
    std::mem::forget(library.map_err(|error| error.to_string())?);
    Ok(())
}

fn check_version() -> Result<()> {
    let this = Library::this();
    // SAFETY: a function of libtorch's stable C interface with this signature since it exists.
    let version = unsafe { this.get::<unsafe extern "C" fn() -> u64>(b"aoti_torch_abi_version\0").map(|ask| ask()) };
    let Ok(version) = version else { return Err(unusable("the one found is older")) };
    let found = (version >> 56, version >> 48 & 0xff);
    if found == VERSION { Ok(()) } else { Err(unusable(&format!("the one found is {}.{}", found.0, found.1))) }
}

/// Loads the CUDA part where there is a driver. Must come before any question about devices, which libtorch answers
/// once and for all.
fn load_cuda() -> bool {
    let driver = ["/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"];
    if !driver.iter().any(|path| Path::new(path).exists()) {
        return false;
    }
    match open_forever("libtorch_cuda.so".as_ref(), RTLD_GLOBAL) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                error = message::one_line(&error),
                "a CUDA driver but no libtorch for it, using the CPU only"
            );
            false
        }
    }
}

/// Loads an embedded library through a file in memory, so that there is no second file to install or to mix up.
pub(super) fn open_embedded(library: &[u8], name: &CStr, flags: i32) -> Result<Library, String> {
    // SAFETY: the name is a terminated string.
    let mut descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        // Systems that forbid executable files in memory still allow sealed ones to be mapped.
        // SAFETY: as above.
        descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL) };
    }
    if descriptor < 0 {
        return Err(format!("no file in memory for a library: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open and belongs to nobody else.
    let mut file = unsafe { std::fs::File::from_raw_fd(descriptor) };
    file.write_all(library).map_err(|error| format!("cannot write a library to memory: {error}"))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // The system knows libraries by their paths: no other one may get this number.
    std::mem::forget(file);
    // SAFETY: our own code, without initialisers of consequence.
    unsafe { Library::open(Some(path), RTLD_NOW | flags) }.map_err(|error| error.to_string())
}

/// Gives memory that the allocator keeps for later back to the system. Worth it after an unload; takes milliseconds.
pub fn purge() {
    // SAFETY: this control takes and returns nothing; 4096 is jemalloc's fixed number for "all arenas".
    let status = unsafe {
        tikv_jemalloc_sys::mallctl(
            c"arena.4096.purge".as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            0,
        )
    };
    if status != 0 {
        tracing::warn!(status, "the allocator keeps its unused memory");
    }
}

/// What that many bytes of a tensor are by the allocator's count, which rounds up, by a quarter at most.
pub fn allocation_bytes(bytes: u64) -> u64 {
    if bytes == 0 {
        return 0;
    }
    // SAFETY: it computes only, and not from a size of 0; the alignment, libtorch's, is a power of 2.
    let rounded = unsafe { tikv_jemalloc_sys::nallocx(bytes as usize, tikv_jemalloc_sys::MALLOCX_ALIGN(64)) };
    rounded as u64
}

/// The bytes that the calling thread has allocated less those that it has given back, by the allocator's count, which may
/// wrap; `None` if that does not count. Of meaning is the difference of two calls.
pub fn thread_allocated() -> Option<u64> {
    let read = |name: &CStr| {
        let (mut value, mut size) = (0_u64, size_of::<u64>());
        // SAFETY: these controls are read as numbers of 64 bits, whose room and size are given; nothing is written.
        let status = unsafe {
            let value = (&raw mut value).cast();
            tikv_jemalloc_sys::mallctl(name.as_ptr(), value, &raw mut size, std::ptr::null_mut(), 0)
        };
        (status == 0).then_some(value)
    };
    Some(read(c"thread.allocated")?.wrapping_sub(read(c"thread.deallocated")?))
}
