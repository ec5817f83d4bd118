//! Memory of CUDA devices that clients on the same machine share by a handle (CUDA IPC).
//!
//! Nothing is linked against CUDA: its runtime and driver are looked for when the first such region is registered.
//! libtorch has loaded the same runtime by then if it is in use; else the usual library path must have it. Tensors pass
//! through the host's memory, and each copy waits for what its device does before. Which device is in use is a matter
//! of each thread: so everything here names its device first, and leaves it set, because everybody else who uses CUDA
//! in this process names his, too. Knows no regions. Begin with [`DeviceMemory::open`].

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use bytes::Bytes;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// How long a handle is, `CUDA_IPC_HANDLE_SIZE`.
pub const HANDLE_BYTES: usize = 64;

/// The runtimes whose functions are those below, the one of our libtorch first.
const RUNTIMES: &[&str] = &["libcudart.so.13", "libcudart.so.12"];
const DRIVERS: &[&str] = &["libcuda.so.1"];

/// `cudaIpcMemLazyEnablePeerAccess`, the only flag that there is.
const LAZY_PEER_ACCESS: c_uint = 1;
/// `cudaMemcpyHostToDevice`.
const TO_DEVICE: c_int = 1;
/// `cudaMemcpyDeviceToHost`.
const TO_HOST: c_int = 2;

/// `cudaIpcMemHandle_t`, which functions take by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawHandle {
    pub reserved: [u8; HANDLE_BYTES],
}

/// The functions of CUDA that are used here; all but the last are the runtime's.
pub struct Runtime {
    /// `cudaGetDeviceCount`.
    pub device_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    /// `cudaSetDevice`.
    pub set_device: unsafe extern "C" fn(c_int) -> c_int,
    /// `cudaIpcOpenMemHandle`.
    pub open_handle: unsafe extern "C" fn(*mut *mut c_void, RawHandle, c_uint) -> c_int,
    /// `cudaIpcCloseMemHandle`.
    pub close_handle: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// `cudaMemcpy`.
    pub copy: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int) -> c_int,
    /// `cudaStreamSynchronize`.
    pub synchronize: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// `cudaGetErrorString`.
    pub error_text: unsafe extern "C" fn(c_int) -> *const c_char,
    /// `cudaGetLastError`.
    pub last_error: unsafe extern "C" fn() -> c_int,
    /// `cuMemGetAddressRange_v2` of the driver; addresses of devices are 64-bit numbers there.
    pub address_range: unsafe extern "C" fn(*mut u64, *mut usize, u64) -> c_int,
}

/// CUDA as this process has it; loaded at the first call, and looked for again as long as it was not found.
///
/// # Errors
/// One line that says what is missing.
pub fn runtime() -> Result<&'static Runtime, String> {
    static LOADED: OnceLock<Runtime> = OnceLock::new();
    match LOADED.get() {
        Some(runtime) => Ok(runtime),
        None => load().map(|runtime| LOADED.get_or_init(|| runtime)),
    }
}

fn load() -> Result<Runtime, String> {
    let (runtime, driver) = (open_first(RUNTIMES)?, open_first(DRIVERS)?);
    // SAFETY: each name is that of a function that has, in every version that `RUNTIMES` and `DRIVERS` allow, the
    // signature of the field that it is put into; the libraries are never unloaded once all of them were found.
    let functions = unsafe {
        Runtime {
            device_count: symbol(&runtime, c"cudaGetDeviceCount")?,
            set_device: symbol(&runtime, c"cudaSetDevice")?,
            open_handle: symbol(&runtime, c"cudaIpcOpenMemHandle")?,
            close_handle: symbol(&runtime, c"cudaIpcCloseMemHandle")?,
            copy: symbol(&runtime, c"cudaMemcpy")?,
            synchronize: symbol(&runtime, c"cudaStreamSynchronize")?,
            error_text: symbol(&runtime, c"cudaGetErrorString")?,
            last_error: symbol(&runtime, c"cudaGetLastError")?,
            address_range: symbol(&driver, c"cuMemGetAddressRange_v2")?,
        }
    };
    std::mem::forget((runtime, driver));
    Ok(functions)
}

/// Loads the first of the libraries that is there.
fn open_first(names: &[&str]) -> Result<Library, String> {
    let mut reasons = Vec::new();
    for name in names {
        // SAFETY: CUDA's libraries may run their initialisers on any thread, and may be closed as long as nobody has
        // called them.
        match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok(library),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(reasons.join("; "))
}

/// A function of a library.
///
/// # Safety
/// `F` is a pointer to a function, with the signature that the function of that name has, and the library stays as long
/// as it is used.
unsafe fn symbol<F: Copy>(library: &Library, name: &CStr) -> Result<F, String> {
    // SAFETY: as the caller promises.
    let found = unsafe { library.get::<F>(name.to_bytes_with_nul()) };
    found.map(|function| *function).map_err(|error| error.to_string())
}

impl Runtime {
    fn check(&self, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: takes nothing. It makes CUDA forget the error, so that nobody else on this thread takes it for his.
        unsafe { (self.last_error)() };
        // SAFETY: gives a terminated text of its own that stays, for numbers that it does not know, too.
        let text = unsafe { CStr::from_ptr((self.error_text)(status)) };
        Err(format!("{}, CUDA error {status}", text.to_string_lossy()))
    }

    /// The device of that number.
    fn device(&self, wanted: i64) -> Result<c_int, String> {
        let mut count = 0;
        // SAFETY: writes one number to a live place.
        let counted = self.check(unsafe { (self.device_count)(&raw mut count) });
        let none = |reason: &str| format!("there is no CUDA device ({reason})");
        counted.map_err(|reason| none(&reason))?;
        if count < 1 {
            return Err(none("the runtime finds none"));
        }
        let device = c_int::try_from(wanted).ok().filter(|device| (0..count).contains(device));
        device.ok_or_else(|| format!("there is no CUDA device {wanted}, the last one is {}", count - 1))
    }

    fn select(&self, device: c_int) -> Result<(), String> {
        // SAFETY: takes a number, which CUDA checks.
        self.check(unsafe { (self.set_device)(device) })
    }
}

/// A client's memory on a device, opened in this process; dropping it closes it.
pub struct DeviceMemory {
    runtime: &'static Runtime,
    device: c_int,
    /// Where it lies; of no use outside of CUDA's functions.
    address: usize,
    len: usize,
}

impl DeviceMemory {
    /// Opens the first `byte_size` bytes of the memory that `handle` stands for.
    ///
    /// # Errors
    /// One line that says why there is no such memory.
    pub fn open(
        runtime: &'static Runtime,
        handle: [u8; HANDLE_BYTES],
        device: i64,
        byte_size: u64,
    ) -> Result<Self, String> {
        let device = runtime.device(device)?;
        runtime.select(device)?;
        let mut address = ptr::null_mut();
        let handle = RawHandle { reserved: handle };
        // SAFETY: writes an address to a live place. The handle is a copy, of bytes whose meaning CUDA checks.
        let opened = unsafe { (runtime.open_handle)(&raw mut address, handle, LAZY_PEER_ACCESS) };
        runtime.check(opened).map_err(|reason| format!("its handle cannot be opened ({reason})"))?;
        // From here on dropping it closes it; nothing of it can be used until its size is known.
        let mut memory = Self { runtime, device, address: address as usize, len: 0 };
        let available = memory.available()?;
        let fits = usize::try_from(byte_size).ok().filter(|&len| len <= available);
        memory.len = fits.ok_or_else(|| format!("its memory has {available} bytes, not {byte_size}"))?;
        Ok(memory)
    }

    /// How many bytes lie between the address and the end of the memory that was shared. A client may say otherwise.
    fn available(&self) -> Result<usize, String> {
        let (mut base, mut bytes, address) = (0, 0, self.address as u64);
        // SAFETY: writes two numbers to live places; the address is only looked up, in the context that opening it has
        // made this thread's.
        let status = unsafe { (self.runtime.address_range)(&raw mut base, &raw mut bytes, address) };
        let before = address.checked_sub(base).and_then(|before| usize::try_from(before).ok());
        match before.and_then(|before| bytes.checked_sub(before)) {
            Some(available) if status == 0 => Ok(available),
            _ => Err(format!("the size of its memory cannot be found (CUDA driver error {status})")),
        }
    }

    /// The device on which it lies.
    pub fn device(&self) -> i32 {
        self.device
    }

    /// How many bytes may be used.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A copy of `len` bytes from `offset` on, in the host's memory.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn read(&self, offset: usize, len: usize) -> Result<Bytes, String> {
        self.assert_holds(offset, len);
        if len == 0 {
            return Ok(Bytes::new());
        }
        self.runtime.select(self.device)?;
        let mut copy = Vec::<u8>::with_capacity(len);
        let from = (self.address + offset) as *const c_void;
        // SAFETY: both ranges hold `len` bytes, the first by the assertion and by what `open` found out, and the second
        // is new memory. Copying to the host ends before the call does. The client may write meanwhile, or free the
        // memory: then CUDA gives an error or any bytes.
        self.runtime.check(unsafe { (self.runtime.copy)(copy.as_mut_ptr().cast(), from, len, TO_HOST) })?;
        // SAFETY: the copy has filled them all.
        unsafe { copy.set_len(len) };
        Ok(copy.into())
    }

    /// Writes `data` from `offset` on; afterwards the client can read it.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), String> {
        self.assert_holds(offset, data.len());
        if data.is_empty() {
            return Ok(());
        }
        self.runtime.select(self.device)?;
        let to = (self.address + offset) as *mut c_void;
        // SAFETY: as for `read`; `data` is only read, and CUDA has its bytes when the call ends.
        self.runtime.check(unsafe { (self.runtime.copy)(to, data.as_ptr().cast(), data.len(), TO_DEVICE) })?;
        // The bytes may still be on their way to the device, and the client is in a process that would not wait.
        // SAFETY: null is the stream that `cudaMemcpy` uses.
        self.runtime.check(unsafe { (self.runtime.synchronize)(ptr::null_mut()) })
    }

    fn assert_holds(&self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "the registry checked the bounds");
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let selected = self.runtime.select(self.device);
        // SAFETY: the address came from opening a handle and is closed once; nothing refers to it any more.
        let close = || self.runtime.check(unsafe { (self.runtime.close_handle)(self.address as *mut c_void) });
        if let Err(reason) = selected.and_then(|()| close()) {
            tracing::warn!(device = self.device, reason, "memory of a CUDA device stays open");
        }
    }
}
