//! Open modules by the content of their files, so that equal ones are opened once, whatever versions or models they are of.
//!
//! A module is equal to another if their files are, by SHA-256, and all that decides what becomes of the file at its load.
//! Who comes while it is being opened waits. The table does not keep a module open; its [`Share`]s do, and the oldest of
//! them is the one that is charged for the memory. Begin with [`Table::open`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use ring::digest;

use super::module::{Effects, Module, Schema};
use super::options::{Optimize, Options, Precision};
use crate::error::Result;
use crate::model::Device;

/// How much of a file is read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A module as it is served.
pub struct Opened {
    /// Its weights and graph.
    pub module: Arc<Module>,
    /// What `forward` of its file takes and returns.
    pub schema: Schema,
    /// What an execution may write to.
    pub effects: Effects,
    /// The bytes of its weights.
    pub bytes: u64,
}

/// What becomes of a file at its load, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    device: Device,
    optimize: Optimize,
    precision: Precision,
    // The graph is compiled for these at its first executions.
    inference_mode: bool,
    optimized_executor: bool,
}

impl Form {
    /// As these options ask for.
    pub fn of(options: &Options, device: Device) -> Self {
        let Options { optimize, precision, inference_mode, optimized_executor, .. } = *options;
        Self { device, optimize, precision, inference_mode, optimized_executor }
    }
}

/// What a file holds.
type Content = [u8; digest::SHA256_OUTPUT_LEN];

/// The modules that are open.
#[derive(Default)]
pub struct Table {
    places: Mutex<HashMap<(Content, Form), Arc<Place>>>,
}

/// Where a module is while somebody has it; locked while it is being opened.
#[derive(Default)]
struct Place(Mutex<Weak<Held>>);

struct Held {
    opened: Opened,
    shares: Mutex<Shares>,
}

/// The numbers of those who have a module, in the order in which they came.
#[derive(Default)]
struct Shares {
    present: BTreeSet<u64>,
    next: u64,
}

/// A part in an open module, which is closed with the last of them.
pub struct Share {
    held: Arc<Held>,
    number: u64,
}

impl Table {
    /// The module of the file at `path`: one that is open already, or what `make` opens. Blocking.
    ///
    /// # Errors
    /// Those of `make`, which each caller hears of his own; what cannot be read is `make`'s to say.
    pub fn open(&self, path: &Path, form: Form, make: impl FnOnce() -> Result<Opened>) -> Result<Share> {
        let Ok((content, stamp)) = read(path) else { return Ok(Share::of(&Arc::new(Held::new(make()?)))) };
        let place = {
            let mut places = self.places.lock();
            places.retain(|_, place| place.is_wanted());
            Arc::clone(places.entry((content, form)).or_default())
        };
        let mut held = place.0.lock();
        if let Some(held) = held.upgrade() {
            return Ok(Share::of(&held));
        }
        let made = Arc::new(Held::new(make()?));
        // If the file was replaced meanwhile, nobody knows the content of what was opened.
        if self::stamp(path).is_ok_and(|now| now == stamp) {
            *held = Arc::downgrade(&made);
        }
        Ok(Share::of(&made))
    }

    /// How many modules are open or being opened.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.places.lock().values().filter(|place| place.is_wanted()).count()
    }
}

impl Place {
    /// Whether somebody has its module, or is on the way to it.
    fn is_wanted(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || self.0.try_lock().is_none_or(|held| held.strong_count() > 0)
    }
}

impl Held {
    fn new(opened: Opened) -> Self {
        Self { opened, shares: Mutex::default() }
    }
}

impl Share {
    fn of(held: &Arc<Held>) -> Self {
        let mut shares = held.shares.lock();
        let number = shares.next;
        shares.next += 1;
        shares.present.insert(number);
        drop(shares);
        Self { held: Arc::clone(held), number }
    }

    /// Whether this is the oldest share, which counts the module's memory as its own.
    pub fn is_charged(&self) -> bool {
        self.held.shares.lock().present.first() == Some(&self.number)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.shares.lock().present.remove(&self.number);
    }
}

impl Deref for Share {
    type Target = Opened;

    fn deref(&self) -> &Opened {
        &self.held.opened
    }
}

/// What tells that a file was written to or replaced.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(path: &Path) -> io::Result<Stamp> {
    let of = std::fs::metadata(path)?;
    Ok((of.dev(), of.ino(), of.len(), (of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec())))
}

/// The digest of a file's content, and the stamp from before it was read.
fn read(path: &Path) -> io::Result<(Content, Stamp)> {
    let stamp = stamp(path)?;
    let mut file = File::open(path)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => context.update(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let content = context.finish();
    Ok((content.as_ref().try_into().map_err(io::Error::other)?, stamp))
}
