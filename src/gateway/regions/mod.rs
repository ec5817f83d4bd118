//! Shared memory of clients on the same machine: what they registered, and the parts that requests use.
//!
//! A region is a part of a POSIX shared memory object under a name. Inputs are read in place, outputs are written once.
//! A region that was unregistered stays mapped until the last request that uses it has ended. Regions belong to nobody:
//! every client may use, see and unregister all of them, so all of this is off unless the operator says otherwise, and
//! a client that may use it is trusted with the data of the others. Does not know messages. Begin with [`Regions`].

mod fault;
mod mapping;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use self::mapping::{Failure, Mapping};
use crate::error::{Error, Kind, Result};
use crate::telemetry::metrics::{Metrics, RegionMetrics};

/// Keys that begin so belong to Triton's Python backend, whose memory no client may touch.
const RESERVED_PREFIX: &str = "triton_python_backend_shm_region_";

/// The longest name of a region.
const NAME_BYTES_MAX: usize = 1024;

/// The regions of one server.
pub struct Regions {
    /// How many there may be; `None` if clients may not share memory at all.
    limit: Option<usize>,
    metrics: RegionMetrics,
    state: Mutex<State>,
}

/// What is registered. A registration is looked up and made in one piece, so that no name is taken twice.
#[derive(Default)]
struct State {
    by_name: BTreeMap<String, Arc<Region>>,
}

/// One registered region.
pub struct Region {
    /// Its name.
    pub name: String,
    /// The key of the shared memory object.
    pub key: String,
    /// Where it begins in the object.
    pub offset: u64,
    mapping: Arc<Mapping>,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("name", &self.name).field("key", &self.key).finish_non_exhaustive()
    }
}

/// What a client asks to be registered.
#[derive(Clone, Copy, Debug)]
pub struct Registration<'a> {
    /// The name that requests will use.
    pub name: &'a str,
    /// The key of the shared memory object.
    pub key: &'a str,
    /// Where the region begins in the object.
    pub offset: u64,
    /// How many bytes it has.
    pub byte_size: u64,
}

impl Regions {
    /// No regions and no way to register any.
    pub fn off() -> Self {
        Self::new(None, &Metrics::off())
    }

    /// At most `limit` regions; `None` for no shared memory with clients.
    pub fn new(limit: Option<usize>, metrics: &Metrics) -> Self {
        Self { limit, metrics: metrics.regions(), state: Mutex::default() }
    }

    /// Whether clients may share memory.
    ///
    /// # Errors
    /// [`Kind::Unimplemented`] if they may not, with what would change it.
    pub fn check_enabled(&self) -> Result<()> {
        self.limit.map(|_| ()).ok_or_else(disabled)
    }

    /// Maps a part of a shared memory object under a name.
    ///
    /// # Errors
    /// If clients may not share memory, the name is taken, the limit is reached, or the object does not have that part.
    pub fn register(&self, wanted: Registration<'_>) -> Result<()> {
        let limit = self.limit.ok_or_else(disabled)?;
        let name = wanted.name;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the name of a shared memory region has 1 to {NAME_BYTES_MAX} bytes, not {}",
                name.len()
            )));
        }
        let mut state = self.state.lock();
        if state.by_name.contains_key(name) {
            return Err(Error::new(Kind::AlreadyExists, format!("shared memory region '{name}' already in manager")));
        }
        if state.by_name.len() >= limit {
            return Err(Error::unavailable(format!(
                "{limit} shared memory regions are registered, which is the limit"
            )));
        }
        let mapping = map(wanted)?;
        let region = Region { name: name.to_owned(), key: wanted.key.to_owned(), offset: wanted.offset, mapping };
        state.by_name.insert(name.to_owned(), Arc::new(region));
        self.metrics.registered(state.by_name.len());
        Ok(())
    }

    /// Forgets the region of that name, or all for an empty name. One that is not there is forgotten already.
    pub fn unregister(&self, name: &str) {
        let mut state = self.state.lock();
        let forgotten = match name {
            "" => std::mem::take(&mut state.by_name).into_values().collect(),
            _ => Vec::from_iter(state.by_name.remove(name)),
        };
        self.metrics.registered(state.by_name.len());
        // Unmapping takes its time; the others need not wait for it.
        drop(state);
        drop(forgotten);
    }

    /// The region of that name, or all for an empty name.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not registered.
    pub fn list(&self, name: &str) -> Result<Vec<Arc<Region>>> {
        let state = self.state.lock();
        if name.is_empty() {
            return Ok(state.by_name.values().cloned().collect());
        }
        let region = state.by_name.get(name).cloned();
        let missing = || Error::not_found(format!("Unable to find system shared memory region: '{name}'"));
        Ok(vec![region.ok_or_else(missing)?])
    }

    /// The `byte_size` bytes of a region from `offset` on, for one request.
    ///
    /// # Errors
    /// If clients may not share memory, there is no such region, or it does not have these bytes.
    pub fn window(&self, name: &str, offset: i64, byte_size: i64) -> Result<Window> {
        self.check_enabled()?;
        let region = self.state.lock().by_name.get(name).cloned();
        let region =
            region.ok_or_else(|| Error::not_found(format!("Unable to find shared memory region: '{name}'")))?;
        let total = region.mapping.len();
        let outside = |what| Error::invalid(format!("Invalid {what} for shared memory region: '{name}'"));
        let offset = usize::try_from(offset).ok().filter(|&offset| offset < total).ok_or_else(|| outside("offset"))?;
        let len = usize::try_from(byte_size).ok().filter(|&len| len <= total - offset);
        let len = len.ok_or_else(|| outside("offset + byte size"))?;
        let window = Window { region, offset, len, metrics: self.metrics.clone() };
        window.check()?;
        Ok(window)
    }
}

fn map(wanted: Registration<'_>) -> Result<Arc<Mapping>> {
    let Registration { name, key, offset, byte_size } = wanted;
    if key.trim_start_matches('/').starts_with(RESERVED_PREFIX) {
        return Err(Error::invalid(format!(
            "cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved prefix \
             '{RESERVED_PREFIX}'"
        )));
    }
    let mapping = Mapping::open(key, offset, byte_size).map_err(|failure| match failure {
        Failure::Key => Error::invalid(format!("'{key}' is not the key of a shared memory object")),
        Failure::Open(reason) => {
            let reason = std::io::Error::from(reason);
            Error::invalid(format!("Unable to open shared memory region: '{key}' ({reason})"))
        }
        Failure::Size => Error::invalid(format!("failed to register shared memory region '{name}': invalid args")),
        Failure::Map(reason) => {
            Error::invalid(format!("failed to register shared memory region '{name}': it cannot be mapped: {reason}"))
        }
    })?;
    Ok(Arc::new(mapping))
}

fn disabled() -> Error {
    Error::new(
        Kind::Unimplemented,
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
    )
}

impl Region {
    /// How many bytes it has.
    pub fn byte_size(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Where it lies in the server's address space.
    pub fn address(&self) -> usize {
        self.mapping.address()
    }
}

/// A part of a region that one request uses; the region stays mapped as long as this lives.
#[derive(Clone)]
pub struct Window {
    region: Arc<Region>,
    offset: usize,
    len: usize,
    metrics: RegionMetrics,
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

    /// The bytes in place, which the client can change at any time: for numbers only.
    ///
    /// [`Window::check`] tells after the use whether they were there.
    pub fn view(&self) -> Bytes {
        self.metrics.viewed(self.len);
        self.region.mapping.view(self.offset, self.len)
    }

    /// A copy of the bytes as they are now, for what has a structure to check.
    ///
    /// # Errors
    /// Those of [`Window::check`].
    pub fn copy(&self) -> Result<Bytes> {
        let copy = self.region.mapping.copy_out(self.offset, self.len);
        self.metrics.copied(self.len);
        self.check()?;
        Ok(copy)
    }

    /// Writes `data`, which is not longer than the window, to its beginning.
    ///
    /// # Errors
    /// Those of [`Window::check`], before and after.
    pub fn place(&self, data: &Bytes) -> Result<()> {
        assert!(data.len() <= self.len, "the caller checked the size");
        self.check()?;
        self.region.mapping.copy_in(self.offset, data);
        self.metrics.placed(data.len());
        self.check()
    }

    /// Whether the region's memory is there, and was at every access.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if the client has shortened its object, or there was no memory left for it.
    pub fn check(&self) -> Result<()> {
        match self.region.mapping.is_whole() {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "the memory of shared memory region '{}' is gone: its object was truncated, or there is no room for it",
                self.region.name
            ))),
        }
    }
}
