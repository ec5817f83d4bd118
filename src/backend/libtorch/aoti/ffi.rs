//! The part of the shim that runs packages (`shim_aoti.h`), declared as it is, and the library that they look for.
//!
//! `package` makes these functions safe.
#![allow(missing_docs, reason = "the mirrored structs are documented in shim_aoti.h")]

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use libloading::os::unix::RTLD_LOCAL;

use super::super::ffi::{Loaded, RawTensor, Text, loaded, open_embedded};
use crate::error::{Error, Result};

/// The empty `libtorch.so`, as built by build.rs from `libtorch.c`.
static LIBTORCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libtorch.so"));
static NAMED: OnceLock<Result<()>> = OnceLock::new();

/// `nt_package`, opaque.
#[repr(C)]
pub struct RawPackage(c_void);

type Failure = *mut c_char;

/// `nt_aoti_api`: one field for each function, in the order of `shim_aoti.h`.
#[repr(C)]
pub struct AotiApi {
    pub size: usize,
    pub package_load: unsafe extern "C" fn(Text, usize, *mut *mut RawPackage) -> Failure,
    pub package_run: unsafe extern "C" fn(
        *const RawPackage,
        *const *const RawTensor,
        usize,
        *mut c_void,
        extern "C" fn(*mut c_void, *mut RawTensor),
    ) -> Failure,
    pub package_free: unsafe extern "C" fn(*mut RawPackage),
}

/// libtorch, and with it a library named `libtorch.so`.
///
/// Packages name that one among those that they need, only to have the others that the server has loaded. The real one
/// would load CUDA.
///
/// # Errors
/// Those of [`loaded`].
pub fn ready() -> Result<&'static Loaded> {
    let loaded = loaded()?;
    let named = NAMED.get_or_init(|| {
        let library = open_embedded(LIBTORCH, c"nereid-libtorch", RTLD_LOCAL).map_err(Error::internal)?;
        std::mem::forget(library);
        Ok(())
    });
    named.clone().map(|()| loaded)
}
