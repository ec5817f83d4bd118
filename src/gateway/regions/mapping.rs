//! A part of a client's shared memory object in the server's address space.
//!
//! The client goes on to own the memory: it may change any byte at any time, and it may shorten the object. So nothing
//! here promises what the bytes are, only that reading and writing them does no harm. Who must rely on what it has read
//! copies it out first. Begin with [`Mapping::open`].

use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FileType, Mode, fstat};
use rustix::io::Errno;
use rustix::shm::{self, OFlags};

use super::fault::Watched;

/// The longest name of an object that Linux has.
const KEY_BYTES_MAX: usize = 255;

/// Why an object cannot be mapped.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// No object has such a key.
    Key,
    /// The object cannot be opened.
    Open(Errno),
    /// The object is smaller than the part that is asked for.
    Size,
    /// The system does not map it.
    Map(String),
}

/// A mapped part of an object; dropping it unmaps.
pub struct Mapping {
    // In this order: the watch ends before its addresses can get another meaning.
    watched: Watched,
    memory: MmapRaw,
    file: OwnedFd,
    /// Where the part ends in the object.
    end: u64,
}

impl Mapping {
    /// Maps `len` bytes of the object `key` from `offset` on.
    pub fn open(key: &str, offset: u64, len: u64) -> Result<Self, Failure> {
        let name = key.strip_prefix('/').unwrap_or(key);
        if name.is_empty() || name.len() > KEY_BYTES_MAX || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(Failure::Key);
        }
        let end = offset.checked_add(len).filter(|_| len > 0).ok_or(Failure::Size)?;
        let size = usize::try_from(len).map_err(|_| Failure::Size)?;
        // As in the C library: a link would lead out of the directory of the objects, a pipe would wait for its peer.
        let flags = OFlags::RDWR | OFlags::from_bits_retain((libc::O_NOFOLLOW | libc::O_NONBLOCK) as u32);
        let file = shm::open(format!("/{name}"), flags, Mode::empty()).map_err(Failure::Open)?;
        if object_bytes(&file).ok_or(Failure::Open(Errno::INVAL))? < end {
            return Err(Failure::Size);
        }
        let memory = MmapOptions::new().offset(offset).len(size).map_raw(&file);
        let memory = memory.map_err(|error| Failure::Map(error.to_string()))?;
        let page = rustix::param::page_size();
        let start = memory.as_mut_ptr() as usize / page * page;
        let pages_end = (memory.as_mut_ptr() as usize + size).next_multiple_of(page);
        Ok(Self { watched: Watched::over(start, pages_end - start), memory, file, end })
    }

    /// Whether the object still has the bytes that are mapped, and had them at every access so far.
    pub fn is_whole(&self) -> bool {
        !self.watched.is_torn() && object_bytes(&self.file).is_some_and(|bytes| bytes >= self.end)
    }

    /// How many bytes are mapped.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Where the mapping lies in the server's address space.
    pub fn address(&self) -> usize {
        self.memory.as_ptr() as usize
    }

    /// `len` bytes from `offset` on, in place; they keep the mapping. The client can change them at any time.
    pub fn view(self: &Arc<Self>, offset: usize, len: usize) -> Bytes {
        self.assert_holds(offset, len);
        Bytes::from_owner(View { mapping: self.clone(), offset, len })
    }

    /// A copy of `len` bytes from `offset` on, which stays as it is.
    pub fn copy_out(&self, offset: usize, len: usize) -> Bytes {
        self.assert_holds(offset, len);
        let mut copy = Vec::with_capacity(len);
        // SAFETY: both ranges hold `len` bytes, the first by the assertion, and the second is new memory.
        unsafe {
            ptr::copy_nonoverlapping(self.memory.as_ptr().add(offset), copy.as_mut_ptr(), len);
            copy.set_len(len);
        }
        copy.into()
    }

    /// Writes `data`, which may be a view of this very mapping, from `offset` on.
    pub fn copy_in(&self, offset: usize, data: &Bytes) {
        self.assert_holds(offset, data.len());
        // SAFETY: both ranges hold as many bytes, and `copy` allows them to overlap. Others may write at the same time,
        // the client above all: then any mixture may result, of bytes that are valid whatever they are.
        unsafe { ptr::copy(data.as_ptr(), self.memory.as_mut_ptr().add(offset), data.len()) };
    }

    fn assert_holds(&self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.memory.len()), "the registry checked the bounds");
    }
}

/// The size of a shared memory object; `None` if it is something else.
fn object_bytes(file: &OwnedFd) -> Option<u64> {
    let stat = fstat(file).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(u64::try_from(stat.st_size).ok()?)
}

/// What keeps a mapping while somebody reads it.
struct View {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was checked when the view was made, and the mapping lives as long as the view does; every
        // byte is a valid `u8`. That the client may write meanwhile is outside of what Rust can promise, as with every
        // mapped file: so these bytes are numbers that are read once, and nothing is concluded from one reading for
        // another; whatever has a structure to check is taken by `copy_out`, and native code gets a copy by
        // `Batch::single`.
        unsafe { std::slice::from_raw_parts(self.mapping.memory.as_ptr().add(self.offset), self.len) }
    }
}
