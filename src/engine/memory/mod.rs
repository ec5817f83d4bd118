//! The memory of all devices, which loads share: reserved before a load, corrected by what was measured, given back when
//! the last who holds the version drops it.
//!
//! [`ledger`] keeps the books (pure), a [`Lease`] is one version's part, and [`Line`] is a load that waits for memory.
//! `host` says how much there is. What leaves to make room is decided elsewhere.

mod host;
mod lease;
pub mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use self::lease::Watch;
pub(super) use self::lease::{Lease, Leased};
use self::ledger::{Ahead, EntryId, Holder, Ledger, Phase, Place};
use super::Key;
use crate::backend::libtorch;
use crate::model::{Device, Footprint, Residency};
use crate::telemetry::metrics::{MemoryMetrics, Metrics};

/// How long a load that waits for memory sleeps before it looks again: nobody tells when a version becomes idle, so that
/// requests need not.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long one does that stands behind others, for each of them: it looks whether they wait for each other.
const LOOK_BEHIND: Duration = Duration::from_millis(20);
const LOOK_BEHIND_MAX: Duration = Duration::from_millis(500);

/// The part of a device's memory that models may take where nobody says how much; the rest is for what executions need,
/// and for the system.
const SHARE: f64 = 0.8;

/// What of the host's memory is not for models in any case, as long as it is no more than half. A process that served 100
/// models under a limit of 921 MB took 536 MB more: libtorch, what four loads at a time need for a moment, activations, and
/// the compiled modules of models that are paged out.
const HOST_OWN: u64 = 512 << 20;

/// How much memory models may take on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// A part of what there is, from 0 to 1.
    Fraction(f64),
}

/// The memory of all devices.
pub(super) struct Memory {
    limits: BTreeMap<Device, MemoryLimit>,
    metrics: Metrics,
    /// Held for a few additions, by loader threads and by whoever drops a lease.
    books: Mutex<Books>,
    changed: Condvar,
    /// Held from a measurement until it is in the books, so that none is written over a newer one.
    measuring: Mutex<()>,
}

#[derive(Default)]
struct Books {
    ledger: Ledger,
    /// How often they were written to.
    changes: u64,
    /// One for each device that was asked for; what its series show is what the ledger says.
    told: BTreeMap<Device, MemoryMetrics>,
    /// The models behind the entries.
    watches: BTreeMap<EntryId, Weak<Watch>>,
}

impl Memory {
    pub(super) fn new(limits: BTreeMap<Device, MemoryLimit>, metrics: &Metrics) -> Arc<Self> {
        let (books, changed, measuring) = (Mutex::default(), Condvar::new(), Mutex::default());
        Arc::new(Self { limits, metrics: metrics.clone(), books, changed, measuring })
    }

    /// Stands in line with all that a load needs, one part for each version.
    pub(super) fn line_up(
        self: &Arc<Self>,
        (key, residency): (&Key, Residency),
        parts: Vec<(Holder, Footprint)>,
    ) -> Line {
        let need = ledger::sum(parts.iter().map(|(_, bytes)| bytes));
        need.bytes.keys().for_each(|device| self.find_out(*device));
        let place = self.books.lock().ledger.wait(key, residency, need.clone());
        Line { memory: self.clone(), place, parts, need }
    }

    /// Finds out how much there is on a device, if that is not known yet.
    pub(super) fn find_out(&self, device: Device) {
        if self.books.lock().told.contains_key(&device) {
            return;
        }
        let limit = match self.limits.get(&device).copied() {
            Some(MemoryLimit::Bytes(bytes)) => Some(bytes),
            Some(MemoryLimit::Fraction(part)) => total(device).map(|total| share(total, part)),
            None => total(device).map(|total| safe_share(device, total)),
        };
        let told = self.metrics.memory(&device.to_string());
        match limit {
            Some(limit) => told.limited(limit),
            None => tracing::warn!(%device, "nothing limits the memory of models: its size is unknown"),
        }
        let mut books = self.books.lock();
        books.told.insert(device, told);
        if let Some(limit) = limit {
            books.ledger.limit(device, limit);
        }
    }

    /// Writes into the books, and wakes who waits.
    fn write<T>(&self, write: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut books = self.books.lock();
        let result = write(&mut books.ledger);
        books.changes += 1;
        books.tell();
        self.changed.notify_all();
        result
    }

    /// An entry is given back; what its model shared with others is theirs from the same moment on.
    fn release(&self, id: EntryId) {
        self.books.lock().watches.remove(&id);
        self.write_measured(|ledger| ledger.release(id));
    }

    /// From now on an entry is what this model holds.
    fn watch(&self, id: EntryId, watch: &Arc<Watch>) {
        self.books.lock().watches.insert(id, Arc::downgrade(watch));
        // Who had what it shares with others may have gone since it was measured.
        self.write_measured(|_| {});
    }

    /// A model has changed places, which may be no more than that it leaves to others what it shares with them.
    fn settle(&self, id: EntryId) {
        self.write_measured(|ledger| ledger.settle(id));
    }

    /// Writes into the books, and what all models hold then.
    fn write_measured(&self, write: impl FnOnce(&mut Ledger)) {
        let _measuring = self.measuring.lock();
        let measured = self.measure();
        self.write(|ledger| {
            write(ledger);
            measured.iter().for_each(|(id, measured)| ledger.correct(*id, measured));
        });
    }

    /// What all models hold now.
    fn measure(&self) -> Vec<(EntryId, Footprint)> {
        let watched = self.books.lock().watches.clone();
        let watched = watched.into_iter().filter_map(|(id, watch)| Some((id, watch.upgrade()?)));
        watched.filter_map(|(id, watch)| Some((id, watch.measure(&self.metrics)?))).collect()
    }

    /// Makes room for what an entry will hold in another place, beside what it holds.
    fn grow(&self, id: EntryId, measured: &Footprint) -> bool {
        measured.bytes.keys().for_each(|device| self.find_out(*device));
        self.write(|ledger| {
            let more = ledger::excess(measured, &ledger.of(id));
            ledger.grow(id, &more)
        })
    }

    /// Writes down that a model leaves.
    pub(super) fn leave(&self, key: &Key) {
        self.write(|ledger| ledger.leave_all(key));
    }

    /// Writes down that a load of a model was given up, which may never give back what it has reserved.
    pub(super) fn give_up(&self, key: &Key) {
        self.write(|ledger| ledger.stick_reserved(key));
    }

    /// The models whose leaving would not give back all that they hold: executions that were given up have not ended.
    pub(super) fn hanging(&self) -> BTreeSet<Key> {
        let watched = self.books.lock().watches.clone();
        let hanging = watched.iter().filter(|(_, watch)| watch.upgrade().is_some_and(|watch| watch.hangs()));
        let hanging: Vec<EntryId> = hanging.map(|(id, _)| *id).collect();
        let key = |ledger: &Ledger, id| ledger.holder(id).map(|holder| holder.key.clone());
        self.read(|ledger| hanging.into_iter().filter_map(|id| key(ledger, id)).collect())
    }

    /// Whether the books say what they said when memory was lacking.
    pub(super) fn is_as_of(&self, lack: &Lack) -> bool {
        self.books.lock().changes == lack.changes
    }

    /// Reads the books.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&self.books.lock().ledger)
    }

    fn commit(&self, id: EntryId, measured: &Footprint) -> bool {
        // A model may take memory of a device that nobody expected it to.
        measured.bytes.keys().for_each(|device| self.find_out(*device));
        self.write(|ledger| ledger.commit(id, measured))
    }
}

impl Books {
    fn tell(&self) {
        for (device, told) in &self.told {
            let bytes = |phase| self.ledger.bytes(*device, phase);
            let used = bytes(Phase::Held) + bytes(Phase::Leaving) + bytes(Phase::Stuck);
            told.holds(bytes(Phase::Reserved) + used, used);
        }
    }
}

fn share(total: u64, part: f64) -> u64 {
    (total as f64 * part) as u64
}

/// What models may take of so many bytes where nobody says how much.
fn safe_share(device: Device, total: u64) -> u64 {
    let own = match device {
        Device::Cpu => HOST_OWN.min(total / 2),
        Device::Cuda(_) => 0,
    };
    share(total, SHARE).min(total - own)
}

/// The bytes of the host's memory, or of the control group's that the process is in; `None` if nobody says.
pub fn host_memory() -> Option<u64> {
    total(Device::Cpu)
}

/// The bytes that there are on a device; `None` if nobody says.
fn total(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => host::memory_total(),
        Device::Cuda(index) => libtorch::cuda_memory(index).ok().map(|(_, total)| total),
    }
}

/// A load that waits for memory; dropping it gives its place up.
pub(super) struct Line {
    memory: Arc<Memory>,
    place: Place,
    parts: Vec<(Holder, Footprint)>,
    need: Footprint,
}

/// Why a load cannot have its memory now.
pub(super) struct Lack {
    /// What has to be given back first, beyond what will be soon.
    pub(super) bytes: Footprint,
    /// Whether others, who stand before it, wait for the same memory.
    pub(super) is_behind: bool,
    /// All who stand before it.
    pub(super) ahead: Vec<Ahead>,
    /// Who holds it, for people.
    pub(super) why: String,
    changes: u64,
}

impl Line {
    /// All parts, in their order.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) fn reserve(&self) -> Result<Vec<Lease>, Lack> {
        // Whoever waits gains nothing by this, and is not woken.
        let mut books = self.memory.books.lock();
        let Some(ids) = books.ledger.reserve(self.place, &self.parts) else {
            let (ledger, changes) = (&books.ledger, books.changes);
            let (bytes, is_behind) = (ledger.lacking(self.place), ledger.is_behind(self.place));
            let (ahead, why) = (ledger.ahead(self.place), ledger.describe(&self.need));
            return Err(Lack { bytes, is_behind, ahead, why, changes });
        };
        books.changes += 1;
        books.tell();
        Ok(ids.into_iter().zip(&self.parts).map(|(id, (holder, _))| Lease::new(&self.memory, id, holder)).collect())
    }

    /// Stands before all others from now on.
    pub(super) fn go_first(&self) {
        self.memory.write(|ledger| ledger.go_first(self.place));
    }

    /// Blocks until something has changed, or may have. Those far behind look seldom, and whoever has come first at once.
    pub(super) fn wait(&self) {
        let mut books = self.memory.books.lock();
        let is_behind = |books: &mut Books| books.ledger.is_behind(self.place);
        if is_behind(&mut books) {
            let ahead = u32::try_from(books.ledger.count_ahead(self.place)).unwrap_or(u32::MAX);
            let seldom = LOOK_BEHIND.saturating_mul(ahead).min(LOOK_BEHIND_MAX);
            self.memory.changed.wait_while_for(&mut books, is_behind, seldom);
        } else {
            self.memory.changed.wait_for(&mut books, LOOK_AGAIN);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.memory.write(|ledger| ledger.give_up(self.place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_host_keeps_room_for_the_server_itself() {
        const MIB: u64 = 1 << 20;
        let of_host = |mib: u64| safe_share(Device::Cpu, mib * MIB) / MIB;
        assert_eq!([512, 1024, 2048, 10_000].map(of_host), [256, 512, 1536, 8000]);
        assert_eq!(safe_share(Device::Cuda(0), 1000), 800);
    }
}
