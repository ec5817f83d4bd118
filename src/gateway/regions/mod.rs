//! Shared memory of clients on the same machine: what they registered, and the parts that requests use.
//!
//! A region is a part of a POSIX shared memory object, or memory of a CUDA device, under a name; the names are one set.
//! Inputs are read in place, outputs are written once; from and to a device both are copied. A region that was
//! unregistered stays open until the last request that uses it has ended. Regions belong to nobody: every client may
//! use, see and unregister all of them, so all of this is off unless the operator says otherwise, and a client that may
//! use it is trusted with the data of the others. Does not know messages. Begin with [`Regions`].

mod cuda;
mod fault;
mod mapping;
#[cfg(test)]
mod tests;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use self::cuda::{DeviceMemory, HANDLE_BYTES, Runtime};
use self::mapping::{Failure, Mapping};
use crate::error::{Error, Kind, Result};
use crate::telemetry::metrics::{Metrics, RegionMetrics};

pub use self::window::Window;

/// Keys that begin so belong to Triton's Python backend, whose memory no client may touch.
const RESERVED_PREFIX: &str = "triton_python_backend_shm_region_";

/// The longest name of a region.
const NAME_BYTES_MAX: usize = 1024;

/// The regions of one server.
pub struct Regions {
    /// How many there may be; `None` if clients may not share memory at all.
    limit: Option<usize>,
    metrics: RegionMetrics,
    /// CUDA, or why there is none.
    cuda: fn() -> std::result::Result<&'static Runtime, String>,
    state: Mutex<State>,
}

/// What is registered. A name is looked up and taken in one piece, so that none is taken twice.
#[derive(Default)]
struct State {
    by_name: BTreeMap<String, Arc<Region>>,
}

/// One registered region.
struct Region {
    name: String,
    memory: Memory,
}

/// What a region is made of.
enum Memory {
    Object(Object),
    Device(DeviceMemory),
}

/// A part of a POSIX shared memory object.
struct Object {
    key: String,
    offset: u64,
    mapping: Arc<Mapping>,
}

/// What is known of a region of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStatus {
    /// Its name.
    pub name: String,
    /// The key of the shared memory object.
    pub key: String,
    /// Where it begins in the object.
    pub offset: u64,
    /// How many bytes it has.
    pub byte_size: u64,
    /// Where it lies in the server's address space.
    pub address: usize,
}

/// What is known of a region of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// The number of the device.
    pub device: i32,
    /// How many bytes it has.
    pub byte_size: u64,
}

/// What a client asks to be registered of an object.
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

/// What a client asks to be registered of a CUDA device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRegistration<'a> {
    /// The name that requests will use.
    pub name: &'a str,
    /// The handle that CUDA made for other processes.
    pub handle: &'a [u8],
    /// The number of the device.
    pub device: i64,
    /// How many bytes the region has.
    pub byte_size: u64,
}

impl Regions {
    /// No regions and no way to register any.
    pub fn off() -> Self {
        Self::new(None, &Metrics::off())
    }

    /// At most `limit` regions; `None` for no shared memory with clients.
    pub fn new(limit: Option<usize>, metrics: &Metrics) -> Self {
        Self { limit, metrics: metrics.regions(), cuda: cuda::runtime, state: Mutex::default() }
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
        self.add(wanted.name, || map(wanted).map(Memory::Object))
    }

    /// Opens memory of a CUDA device under a name. The first time this loads CUDA, which takes seconds.
    ///
    /// # Errors
    /// If clients may not share memory, the name is taken, the limit is reached, there is no such device, or it does
    /// not have that memory.
    pub fn register_device(&self, wanted: DeviceRegistration<'_>) -> Result<()> {
        let refused = |why: String| {
            Error::invalid(format!("failed to register CUDA shared memory region '{}': {why}", wanted.name))
        };
        self.add(wanted.name, || self.open(wanted).map(Memory::Device).map_err(refused))
    }

    fn open(&self, wanted: DeviceRegistration<'_>) -> std::result::Result<DeviceMemory, String> {
        let DeviceRegistration { handle, device, byte_size, .. } = wanted;
        let handle =
            handle.try_into().map_err(|_| format!("its handle has {} bytes, not {HANDLE_BYTES}", handle.len()))?;
        if byte_size == 0 {
            return Err("it has no bytes".to_owned());
        }
        let runtime = (self.cuda)().map_err(|reason| format!("there is no CUDA device ({reason})"))?;
        DeviceMemory::open(runtime, handle, device, byte_size)
    }

    /// Puts what `open` gives under a name.
    fn add(&self, name: &str, open: impl FnOnce() -> Result<Memory>) -> Result<()> {
        let limit = self.limit.ok_or_else(disabled)?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the name of a shared memory region has 1 to {NAME_BYTES_MAX} bytes, not {}",
                name.len()
            )));
        }
        self.state.lock().check_free(name, limit)?;
        // Opening takes its time; the others need not wait for it. Until it is done somebody else may take the name.
        let region = Region { name: name.to_owned(), memory: open()? };
        let mut state = self.state.lock();
        if let Err(refusal) = state.check_free(name, limit) {
            drop(state);
            return Err(refusal);
        }
        state.by_name.insert(name.to_owned(), Arc::new(region));
        self.metrics.registered(state.by_name.len());
        Ok(())
    }

    /// Forgets the region of an object of that name, or all for an empty name. One that is not there is forgotten
    /// already.
    pub fn unregister(&self, name: &str) {
        self.forget(name, |memory| matches!(memory, Memory::Object(_)));
    }

    /// As [`Regions::unregister`], for regions of devices.
    pub fn unregister_device(&self, name: &str) {
        self.forget(name, |memory| matches!(memory, Memory::Device(_)));
    }

    fn forget(&self, name: &str, is_meant: impl Fn(&Memory) -> bool) {
        let mut state = self.state.lock();
        let meant = |region: &Region| (name.is_empty() || region.name == name) && is_meant(&region.memory);
        let forgotten: Vec<_> = state.by_name.extract_if(.., |_, region| meant(region)).collect();
        self.metrics.registered(state.by_name.len());
        // Closing takes its time; the others need not wait for it.
        drop(state);
        drop(forgotten);
    }

    /// The region of an object of that name, or all for an empty name.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not registered.
    pub fn list(&self, name: &str) -> Result<Vec<ObjectStatus>> {
        self.find("system", name, |region| match &region.memory {
            Memory::Object(object) => Some(ObjectStatus {
                name: region.name.clone(),
                key: object.key.clone(),
                offset: object.offset,
                byte_size: object.mapping.len() as u64,
                address: object.mapping.address(),
            }),
            Memory::Device(_) => None,
        })
    }

    /// The region of a device of that name, or all for an empty name.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not registered.
    pub fn list_devices(&self, name: &str) -> Result<Vec<DeviceStatus>> {
        self.find("cuda", name, |region| match &region.memory {
            Memory::Object(_) => None,
            Memory::Device(memory) => Some(DeviceStatus {
                name: region.name.clone(),
                device: memory.device(),
                byte_size: memory.len() as u64,
            }),
        })
    }

    fn find<T>(&self, kind: &str, name: &str, status: impl Fn(&Region) -> Option<T>) -> Result<Vec<T>> {
        let state = self.state.lock();
        if name.is_empty() {
            return Ok(state.by_name.values().filter_map(|region| status(region)).collect());
        }
        let found = state.by_name.get(name).and_then(|region| status(region));
        let missing = || Error::not_found(format!("Unable to find {kind} shared memory region: '{name}'"));
        Ok(vec![found.ok_or_else(missing)?])
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
        let total = region.memory.len();
        let outside = |what| Error::invalid(format!("Invalid {what} for shared memory region: '{name}'"));
        let offset = usize::try_from(offset).ok().filter(|&offset| offset < total).ok_or_else(|| outside("offset"))?;
        let len = usize::try_from(byte_size).ok().filter(|&len| len <= total - offset);
        let len = len.ok_or_else(|| outside("offset + byte size"))?;
        let window = Window { region, offset, len, metrics: self.metrics.clone() };
        window.check()?;
        Ok(window)
    }
}

impl State {
    /// Whether one more region of that name can be registered.
    fn check_free(&self, name: &str, limit: usize) -> Result<()> {
        if self.by_name.contains_key(name) {
            return Err(Error::new(Kind::AlreadyExists, format!("shared memory region '{name}' already in manager")));
        }
        if self.by_name.len() >= limit {
            return Err(Error::unavailable(format!(
                "{limit} shared memory regions are registered, which is the limit"
            )));
        }
        Ok(())
    }
}

impl Memory {
    fn len(&self) -> usize {
        match self {
            Memory::Object(object) => object.mapping.len(),
            Memory::Device(memory) => memory.len(),
        }
    }
}

fn map(wanted: Registration<'_>) -> Result<Object> {
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
    Ok(Object { key: key.to_owned(), offset, mapping: Arc::new(mapping) })
}

fn disabled() -> Error {
    Error::new(
        Kind::Unimplemented,
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
    )
}
