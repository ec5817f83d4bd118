//! A package's code as a safe Rust value, for inputs that were checked.

use std::ffi::c_void;
use std::path::Path;
use std::ptr;

use super::super::ffi::{Api, RawTensor, Text};
use super::super::handle::Handle;
use super::ffi::{self, AotiApi, RawPackage};
use crate::error::Result;

/// Loaded code with its weights.
pub struct Package {
    raw: *mut RawPackage,
    api: &'static Api,
    aoti: &'static AotiApi,
}

// SAFETY: a package may be used and dropped on any thread.
unsafe impl Send for Package {}
// SAFETY: it gives each of several executions at once a runner of its own, behind a lock.
unsafe impl Sync for Package {}

impl Drop for Package {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live handle of the shim and freed only here.
        unsafe { (self.aoti.package_free)(self.raw) };
    }
}

impl Package {
    /// Loads the library of a package, which may run so many executions at once. The file is not needed afterwards.
    ///
    /// This runs code of the package's: the caller has asked whether it may.
    ///
    /// # Errors
    /// If libtorch or the library cannot be loaded.
    pub fn load(library: &Path, runners: usize) -> Result<Self> {
        let loaded = ffi::ready()?;
        let path = library.as_os_str().as_encoded_bytes();
        let path = Text { data: path.as_ptr(), len: path.len() };
        let mut raw = ptr::null_mut();
        // SAFETY: the path is read during the call only; `raw` is written when it succeeds.
        loaded.api.check(unsafe { (loaded.aoti.package_load)(path, runners, &raw mut raw) })?;
        Ok(Self { raw, api: loaded.api, aoti: loaded.aoti })
    }

    /// Runs it. Waits while as many executions as it may run are under way.
    ///
    /// # Errors
    /// What the code reports.
    ///
    /// # Safety
    /// The inputs have the types and shapes that the package was built for, and are dense and in host memory: its code
    /// does not look.
    pub unsafe fn run(&self, inputs: &[Handle]) -> Result<Vec<Handle>> {
        struct Outputs(Vec<Handle>, &'static Api);
        extern "C" fn each(context: *mut c_void, raw: *mut RawTensor) {
            // SAFETY: `context` is the value below, borrowed by nobody else during the call.
            let Outputs(outputs, api) = unsafe { &mut *context.cast::<Outputs>() };
            // SAFETY: the tensor is ours from here on.
            outputs.push(unsafe { Handle::of(raw, api) });
        }
        let raw: Vec<*const RawTensor> = inputs.iter().map(|input| input.raw().cast_const()).collect();
        let mut outputs = Outputs(Vec::new(), self.api);
        // SAFETY: all handles are live, the length is that of the vector, and `each` is called during the call only; the
        // caller vouches for the rest.
        self.api.check(unsafe {
            (self.aoti.package_run)(self.raw, raw.as_ptr(), raw.len(), (&raw mut outputs).cast(), each)
        })?;
        Ok(outputs.0)
    }
}
