//! The weights of a module that nobody runs: moved out of their device, and back.
//!
//! The module itself stays, with its compiled graph; only the memory of its tensors leaves, and each tensor finds it in its
//! storage again. What was on the host goes to a file, what was on a device to host memory. Begin with [`Weights::of`].

use std::ffi::c_void;
use std::io::{self, Read as _, Write as _};
use std::ptr;
use std::sync::Arc;

use super::device::device_number;
use super::ffi::{self, Api, RawStorages};
use super::module::Module;
use crate::backend::spill::{SpareFile, Spill, SpillFile};
use crate::error::{Error, Result};
use crate::model::Device;

/// The memory of a module's tensors on one device.
struct Storages {
    raw: *mut RawStorages,
    api: &'static Api,
}

// SAFETY: it is reference counts and pointers of libtorch's, which any thread may use; `&mut` lets one do so at a time.
unsafe impl Send for Storages {}

impl Drop for Storages {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live handle of the shim and freed only here.
        unsafe { (self.api.storages_free)(self.raw) };
    }
}

/// A file, and why it could not be used.
struct Way<'a> {
    file: &'a mut SpillFile,
    failure: Option<io::Error>,
}

impl Way<'_> {
    fn went(&mut self, moved: io::Result<()>) -> i32 {
        let failed = i32::from(moved.is_err());
        self.failure = moved.err();
        failed
    }

    /// What the shim says, or why the file could not be used.
    fn said(&self, by_shim: Result<()>) -> Result<()> {
        match &self.failure {
            Some(error) => Err(Error::unavailable(format!("weights cannot be moved: {error}"))),
            None => by_shim,
        }
    }
}

extern "C" fn write(context: *mut c_void, data: *mut u8, bytes: u64) -> i32 {
    // SAFETY: `context` is the way of the call that is under way, and nobody else's; the shim passes that much memory of a
    // storage, to which nobody writes meanwhile.
    let (way, data) = unsafe { (&mut *context.cast::<Way<'_>>(), std::slice::from_raw_parts(data, bytes as usize)) };
    let moved = way.file.write_all(data);
    way.went(moved)
}

extern "C" fn skip(_context: *mut c_void, _data: *mut u8, _bytes: u64) -> i32 {
    0
}

extern "C" fn read(context: *mut c_void, data: *mut u8, bytes: u64) -> i32 {
    // SAFETY: as above; the memory is new, and nobody else has it.
    let (way, data) =
        unsafe { (&mut *context.cast::<Way<'_>>(), std::slice::from_raw_parts_mut(data, bytes as usize)) };
    let moved = way.file.read_exact(data);
    way.went(moved)
}

/// Where weights are.
enum Place {
    /// On their device, and perhaps still in the file from where they came back: modules that write to their weights have
    /// none that can leave.
    Device(Option<SpareFile>),
    /// In host memory.
    Host,
    /// In a file.
    File(SpillFile),
}

/// A module's weights, which can leave.
pub struct Weights {
    storages: Storages,
    device: Device,
    bytes: u64,
    place: Place,
}

impl Weights {
    /// Those of this module; `None` if callers may have a part of them.
    ///
    /// # Errors
    /// If libtorch cannot say.
    pub fn of(module: &Module, device: Device) -> Result<Option<Self>> {
        let api = ffi::api()?;
        let (mut raw, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: the module's handle is live; both results are written when the call succeeds.
        api.check(unsafe { (api.storages_of)(module.raw(), device_number(device), &raw mut raw, &raw mut bytes) })?;
        let made = || Self { storages: Storages { raw, api }, device, bytes, place: Place::Device(None) };
        Ok((!raw.is_null()).then(made))
    }

    /// How much can leave.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Has them leave; those on the host go to `spill`. Blocking. Until [`Weights::back`], nobody may run the module or
    /// read its tensors.
    ///
    /// # Errors
    /// Why they could not; then they are where they were.
    pub fn out(&mut self, spill: Option<&Arc<Spill>>) -> Result<()> {
        let Place::Device(spare) = &mut self.place else { return Ok(()) };
        if self.device != Device::Cpu {
            // SAFETY: `raw` is live, nobody runs the module, and nothing is passed on.
            let copied = unsafe { (self.storages.api.storages_out)(self.storages.raw, ptr::null_mut(), None) };
            self.storages.api.check(copied)?;
            self.place = Place::Host;
            return Ok(());
        }
        let spill = spill.ok_or_else(|| Error::unavailable("there is no directory for weights"))?;
        let written = spare.take().and_then(SpareFile::take);
        let pass: extern "C" fn(*mut c_void, *mut u8, u64) -> i32 = if written.is_some() { skip } else { write };
        let mut file = written.map_or_else(|| spill.file(self.bytes), Ok)?;
        let mut way = Way { file: &mut file, failure: None };
        // SAFETY: `raw` is live and nobody runs the module; `way` outlives the call, in which only `pass` uses it.
        let failure = unsafe { (self.storages.api.storages_out)(self.storages.raw, (&raw mut way).cast(), Some(pass)) };
        let said = self.storages.api.check(failure);
        way.said(said)?;
        self.place = Place::File(file);
        Ok(())
    }

    /// Brings them back. Blocking.
    ///
    /// # Errors
    /// Why they could not; then they are where they were.
    pub fn back(&mut self) -> Result<()> {
        let api = self.storages.api;
        match &mut self.place {
            Place::Device(_) => return Ok(()),
            // SAFETY: `raw` is live, nobody runs the module, and nothing is passed on.
            Place::Host => api.check(unsafe { (api.storages_in)(self.storages.raw, ptr::null_mut(), None) })?,
            Place::File(file) => {
                file.rewind()?;
                let mut way = Way { file, failure: None };
                // SAFETY: as above; `way` outlives the call, in which only `read` uses it.
                let failure = unsafe { (api.storages_in)(self.storages.raw, (&raw mut way).cast(), Some(read)) };
                let said = api.check(failure);
                way.said(said)?;
            }
        }
        self.place = match std::mem::replace(&mut self.place, Place::Device(None)) {
            Place::File(file) => Place::Device(Some(file.spare())),
            Place::Device(_) | Place::Host => Place::Device(None),
        };
        Ok(())
    }
}
