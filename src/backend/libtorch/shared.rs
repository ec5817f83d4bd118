//! Open modules by the content of their files, so that equal ones are opened once, whatever versions or models they are of.
//!
//! A module is equal to another if their files are, by SHA-256, and all that decides what becomes of the file at its load.
//! Who comes while it is being opened waits. The table does not keep a module open; its [`Share`]s do, and the oldest of
//! them is the one that is charged for the memory. Its weights leave when all who have it want them to, and come back for
//! the first who needs them. Begin with [`Table::open`].

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
use super::storages::Weights;
use crate::backend::Spill;
use crate::error::{Error, Result};
use crate::model::{Device, Footprint};

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
    /// The bytes of host memory that its load has taken beside them: its code and compiled graph.
    pub skeleton: u64,
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
    device: Device,
    /// Locked for a few moves.
    shares: Mutex<Shares>,
    /// Once somebody has looked at them; `None` if they cannot leave. Locked while they move.
    weights: Mutex<Option<Option<Weights>>>,
}

/// The numbers of those who have a module, in the order in which they came.
#[derive(Default)]
struct Shares {
    present: BTreeSet<u64>,
    /// Those of them who do not need the weights for now.
    away: BTreeSet<u64>,
    /// How many bytes of weights have left, while they have.
    out: Option<u64>,
    next: u64,
}

impl Shares {
    /// Who is charged for what the module holds: the oldest who needs the weights, if they are there and anybody does.
    fn charged(&self) -> Option<u64> {
        let needs = |number: &&u64| self.out.is_some() || !self.away.contains(*number);
        self.present.iter().find(needs).or(self.present.first()).copied()
    }

    fn are_all_away(&self) -> bool {
        self.away.len() == self.present.len()
    }
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
        let Ok((content, stamp)) = read(path) else { return Ok(Share::of(&Arc::new(Held::new(make()?, form.device)))) };
        let place = {
            let mut places = self.places.lock();
            places.retain(|_, place| place.is_wanted());
            Arc::clone(places.entry((content, form)).or_default())
        };
        let mut held = place.0.lock();
        if let Some(held) = held.upgrade() {
            let share = Share::of(&held);
            share.page_in()?;
            return Ok(share);
        }
        let made = Arc::new(Held::new(make()?, form.device));
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
    fn new(opened: Opened, device: Device) -> Self {
        Self { opened, device, shares: Mutex::default(), weights: Mutex::default() }
    }

    /// What is held while so many bytes of weights are out.
    fn without(&self, out: u64) -> Footprint {
        let mut stays = Footprint::on(self.device, self.opened.bytes.saturating_sub(out));
        // What was on a device is on the host then, what was on the host is in a file.
        let on_host = if self.device == Device::Cpu { 0 } else { out };
        stays.add(&Footprint::on(Device::Cpu, self.opened.skeleton + on_host));
        stays
    }

    /// The weights, if they can leave and that is worth it: what stays must be little.
    fn with_weights<T>(&self, work: impl FnOnce(&mut Weights) -> T) -> Option<T> {
        let mut weights = self.weights.lock();
        let weights = weights.get_or_insert_with(|| {
            Weights::of(&self.opened.module, self.device).unwrap_or_else(|error| {
                tracing::debug!(%error, "weights cannot be told from what callers have");
                None
            })
        });
        weights.as_mut().filter(|weights| is_worth_it(weights.bytes(), self.opened.bytes)).map(work)
    }
}

/// Whether enough leaves with `out` of `all` bytes: who pages a model out means to have nearly all of its memory.
fn is_worth_it(out: u64, all: u64) -> bool {
    out > 0 && out >= all - all / 8
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

    /// What this share is charged for: all that the module holds, or nothing.
    pub fn footprint(&self) -> Footprint {
        let shares = self.held.shares.lock();
        match (shares.charged() == Some(self.number), shares.out) {
            (false, _) => Footprint::on(self.held.device, 0),
            (true, None) => Footprint::on(self.held.device, self.held.opened.bytes),
            (true, Some(out)) => self.held.without(out),
        }
    }

    /// What the module would hold without its weights, and how many bytes of them would go to a file; `None` if they
    /// cannot leave.
    pub fn paged(&self) -> Option<(Footprint, u64)> {
        let out = self.held.with_weights(|weights| weights.bytes())?;
        Some((self.held.without(out), if self.held.device == Device::Cpu { out } else { 0 }))
    }

    /// This share does not need the weights for now; with the last one that does, they leave. Blocking.
    ///
    /// # Errors
    /// Why they cannot; then nothing has changed.
    pub fn page_out(&self, spill: Option<&Arc<Spill>>) -> Result<()> {
        let out = self.held.with_weights(|weights| {
            let is_last = {
                let mut shares = self.held.shares.lock();
                shares.away.insert(self.number);
                shares.are_all_away()
            };
            if is_last {
                if let Err(error) = weights.out(spill) {
                    self.held.shares.lock().away.remove(&self.number);
                    return Err(error);
                }
                self.held.shares.lock().out = Some(weights.bytes());
            }
            Ok(())
        });
        out.unwrap_or_else(|| Err(Error::internal("the weights cannot leave")))
    }

    /// This share needs the weights; they come back if they have left. Blocking.
    ///
    /// # Errors
    /// Why they could not come back; then they are where they were.
    pub fn page_in(&self) -> Result<()> {
        // Whoever has them leave decides while this waits, or sees that this share needs them.
        let mut weights = self.held.weights.lock();
        if let Some(Some(weights)) = &mut *weights {
            weights.back()?;
        }
        let mut shares = self.held.shares.lock();
        shares.out = None;
        shares.away.remove(&self.number);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.held.shares.lock();
        shares.present.remove(&self.number);
        shares.away.remove(&self.number);
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
