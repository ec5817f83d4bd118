//! A part of a region that one request uses.
//!
//! Hides where the memory is: that of the host is read in place, that of a device is copied to the host and back.
//! Begin with [`Window::view`].

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Memory, Region};
use crate::error::{Error, Result};
use crate::telemetry::metrics::RegionMetrics;

/// A part of a region that one request uses; the region stays open as long as this lives.
#[derive(Clone)]
pub struct Window {
    pub(super) region: Arc<Region>,
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) metrics: RegionMetrics,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {} of region '{}'", self.len, self.offset, self.region.name)
    }
}

impl Window {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes in place, which the client can change at any time: for numbers only. `None` for those of a device.
    ///
    /// [`Window::check`] tells after the use whether they were there.
    pub fn view(&self) -> Option<Bytes> {
        let Memory::Object(object) = &self.region.memory else { return None };
        self.metrics.viewed(self.len);
        Some(object.mapping.view(self.offset, self.len))
    }

    /// Whether these bytes lie in it, or some of them do.
    pub fn holds(&self, bytes: &Bytes) -> bool {
        let Memory::Object(object) = &self.region.memory else { return false };
        let (begin, other) = (object.mapping.address() + self.offset, bytes.as_ptr() as usize);
        other < begin + self.len && begin < other + bytes.len()
    }

    /// A copy of the bytes as they are now, for what has a structure to check.
    ///
    /// # Errors
    /// Those of [`Window::check`]; [`crate::error::Kind::Internal`] if a device does not give them.
    pub fn copy(&self) -> Result<Bytes> {
        let copy = match &self.region.memory {
            Memory::Object(object) => object.mapping.copy_out(self.offset, self.len),
            Memory::Device(memory) => {
                memory.read(self.offset, self.len).map_err(|reason| self.failed("read", &reason))?
            }
        };
        self.metrics.copied(self.len);
        self.check()?;
        Ok(copy)
    }

    /// Writes `data`, which is not longer than the window, to its beginning.
    ///
    /// # Errors
    /// Those of [`Window::check`], before and after; [`crate::error::Kind::Internal`] if a device does not take it.
    pub fn place(&self, data: &Bytes) -> Result<()> {
        assert!(data.len() <= self.len, "the caller checked the size");
        self.check()?;
        match &self.region.memory {
            Memory::Object(object) => object.mapping.copy_in(self.offset, data),
            Memory::Device(memory) => {
                memory.write(self.offset, data).map_err(|reason| self.failed("written", &reason))?;
            }
        }
        self.metrics.placed(data.len());
        self.check()
    }

    /// Whether the region's memory is there, and was at every access. What a device lacks shows at the access itself.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if the client has shortened its object, or there was no memory left for
    /// it.
    pub fn check(&self) -> Result<()> {
        match &self.region.memory {
            Memory::Object(object) if !object.mapping.is_whole() => Err(Error::invalid(format!(
                "the memory of shared memory region '{}' is gone: its object was truncated, or there is no room for it",
                self.region.name
            ))),
            Memory::Object(_) | Memory::Device(_) => Ok(()),
        }
    }

    fn failed(&self, what: &str, reason: &str) -> Error {
        let name = &self.region.name;
        Error::internal(format!("the memory of CUDA shared memory region '{name}' cannot be {what}: {reason}"))
    }
}
