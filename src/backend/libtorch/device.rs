//! Where models run: the host and CUDA devices, and threads that are prepared for them.

use super::ffi;
use crate::error::{Error, Result};
use crate::model::{Allocated, Device};

/// libtorch's number for a device, as the shim counts.
pub(super) fn device_number(device: Device) -> i32 {
    match device {
        Device::Cpu => -1,
        Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
    }
}

/// The device of this number.
pub(super) fn device_of(number: i32) -> Device {
    u32::try_from(number).map_or(Device::Cpu, Device::Cuda)
}

/// Prepares the calling thread for running models on `device` with `threads` cores for each operation.
pub fn begin_thread(device: Device, threads: usize) -> Result<()> {
    let api = ffi::api()?;
    let threads = i32::try_from(threads.max(1)).unwrap_or(i32::MAX);
    // SAFETY: takes only numbers.
    api.check(unsafe { (api.thread_begin)(device_number(device), threads) })
}

/// The devices that models can run on: the host, and each CUDA device.
pub fn devices() -> Result<Vec<Device>> {
    let loaded = ffi::loaded()?;
    let mut count = 0;
    if loaded.cuda {
        // SAFETY: `count` is written before the call returns; the CUDA part was loaded before.
        loaded.api.check(unsafe { (loaded.api.cuda_count)(&raw mut count) })?;
    }
    let cuda = (0..u32::try_from(count).unwrap_or(0)).map(Device::Cuda);
    Ok(std::iter::once(Device::Cpu).chain(cuda).collect())
}

/// The free and all memory of a CUDA device, in bytes.
pub fn cuda_memory(index: u32) -> Result<(u64, u64)> {
    let loaded = ffi::loaded()?;
    if !loaded.cuda {
        return Err(Error::unavailable(format!("there is no device cuda:{index}")));
    }
    let (mut free, mut total) = (0, 0);
    let device = device_number(Device::Cuda(index));
    // SAFETY: both are written before the call returns.
    loaded.api.check(unsafe { (loaded.api.cuda_memory)(device, &raw mut free, &raw mut total) })?;
    Ok((free, total))
}

/// What libtorch's allocator has of each CUDA device that it has used; nothing while libtorch is not loaded.
pub fn cuda_allocated() -> Vec<Allocated> {
    let Some(loaded) = ffi::if_loaded().filter(|loaded| loaded.cuda) else { return Vec::new() };
    let cuda = devices().unwrap_or_default().into_iter().filter(|device| *device != Device::Cpu);
    let allocated = cuda.filter_map(|device| {
        let (mut used, mut kept) = (0, 0);
        // SAFETY: both are written when the call succeeds; the CUDA part was loaded before.
        let asked = unsafe { (loaded.api.cuda_allocated)(device_number(device), &raw mut used, &raw mut kept) };
        // It fails for a device on which nothing was allocated yet.
        loaded.api.check(asked).ok().map(|()| Allocated { device, used, kept })
    });
    allocated.collect()
}

/// Gives unused memory of libtorch's CUDA allocator back.
pub fn empty_cuda_cache() -> Result<()> {
    match ffi::if_loaded() {
        // SAFETY: takes nothing; the CUDA part was loaded before.
        Some(loaded) if loaded.cuda => loaded.api.check(unsafe { (loaded.api.cuda_empty_cache)() }),
        _ => Ok(()),
    }
}
