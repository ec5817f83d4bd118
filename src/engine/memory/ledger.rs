//! How much memory there is on each device, who holds how much of it, and who waits for it. Pure.
//!
//! A load stands in line with what it needs ([`Ledger::wait`]), reserves all of it or nothing ([`Ledger::reserve`]), and
//! commits what was measured. What is held is never more than the limit; a device without a limit is not counted against
//! anything. Knows no threads: whoever holds an entry releases it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::engine::Key;
use crate::model::{Device, Footprint, Residency, Version};

/// Which version of which model holds an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The model.
    pub key: Key,
    /// The version.
    pub version: Version,
    /// How firmly it is there.
    pub residency: Residency,
}

/// What is done with the memory of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A load fills it.
    Reserved,
    /// The version is there.
    Held,
    /// The version finishes its last requests, and then gives it back.
    Leaving,
    /// The version is gone but for executions that were given up, which may never end: nobody waits for it.
    Stuck,
}

/// The number of an entry.
pub type EntryId = u64;

/// A place in the line of those who wait for memory.
pub type Place = u64;

#[derive(Clone, Debug)]
struct Entry {
    holder: Holder,
    bytes: Footprint,
    phase: Phase,
    /// Whether its model is about to change places: until that is settled, it holds what was made room for, and not what
    /// somebody measures meanwhile.
    moves: bool,
}

/// A load that waits.
#[derive(Clone, Debug)]
struct Waiting {
    place: Place,
    key: Key,
    residency: Residency,
    need: Footprint,
}

/// Somebody who stands before another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The model that is loaded.
    pub key: Key,
    /// How firmly it will be there.
    pub residency: Residency,
    /// What it and those before it lack; `None` if it is not its turn.
    pub lacking: Option<Footprint>,
}

/// The books of all devices, in bytes.
#[derive(Debug, Default)]
pub struct Ledger {
    limits: BTreeMap<Device, u64>,
    entries: BTreeMap<EntryId, Entry>,
    /// First come, first served.
    line: VecDeque<Waiting>,
    next: u64,
}

impl Ledger {
    /// Sets how much there is on a device; without it a device has no limit.
    pub fn limit(&mut self, device: Device, bytes: u64) {
        self.limits.insert(device, bytes);
    }

    /// How much there is on a device, as far as that is known.
    pub fn limit_of(&self, device: Device) -> u64 {
        self.limits.get(&device).copied().unwrap_or(u64::MAX)
    }

    /// Stands in line for so much, for a model that will be so firmly there.
    pub fn wait(&mut self, key: &Key, residency: Residency, need: Footprint) -> Place {
        let place = self.number();
        self.line.push_back(Waiting { place, key: key.clone(), residency, need });
        place
    }

    /// Leaves the line.
    pub fn give_up(&mut self, place: Place) {
        self.line.retain(|waiting| waiting.place != place);
    }

    /// Whether somebody who came earlier waits for memory of the same devices.
    pub fn is_behind(&self, place: Place) -> bool {
        let Some(own) = self.line.iter().find(|waiting| waiting.place == place) else { return false };
        let mut earlier = self.line.iter().take_while(|waiting| waiting.place != place);
        earlier.any(|other| own.need.bytes.keys().any(|device| other.need.bytes.contains_key(device)))
    }

    /// How many wait before this place.
    pub fn count_ahead(&self, place: Place) -> usize {
        self.line.iter().take_while(|waiting| waiting.place != place).count()
    }

    /// All who wait before this place.
    pub fn ahead(&self, place: Place) -> Vec<Ahead> {
        let mut awaited = BTreeSet::new();
        let ahead = |other: &Waiting| {
            let is_behind = other.need.bytes.keys().any(|device| awaited.contains(device));
            awaited.extend(other.need.bytes.keys().copied());
            let lacking = (!is_behind).then(|| self.lacking(other.place));
            Ahead { key: other.key.clone(), residency: other.residency, lacking }
        };
        self.line.iter().take_while(|waiting| waiting.place != place).map(ahead).collect()
    }

    /// Stands before all others from now on.
    pub fn go_first(&mut self, place: Place) {
        let at = self.line.iter().position(|waiting| waiting.place == place);
        if let Some(own) = at.and_then(|at| self.line.remove(at)) {
            self.line.push_front(own);
        }
    }

    /// Reserves all `parts` and leaves the line; `None` if they do not fit, or it is the turn of others.
    pub fn reserve(&mut self, place: Place, parts: &[(Holder, Footprint)]) -> Option<Vec<EntryId>> {
        if self.is_behind(place) || !self.fits(&sum(parts.iter().map(|(_, bytes)| bytes))) {
            return None;
        }
        self.give_up(place);
        let entry = |(holder, bytes): &(Holder, Footprint)| {
            let entry = Entry { holder: holder.clone(), bytes: bytes.clone(), phase: Phase::Reserved, moves: false };
            let id = self.number();
            self.entries.insert(id, entry);
            id
        };
        Some(parts.iter().map(entry).collect())
    }

    /// The entry holds so much from now on; `false`, and as before, if that is more than there is.
    pub fn commit(&mut self, id: EntryId, measured: &Footprint) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        let more = excess(measured, &entry.bytes);
        if !self.fits(&more) {
            return false;
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.bytes = measured.clone();
            entry.phase = Phase::Held;
            entry.moves = false;
        }
        true
    }

    /// The entry holds so much, whatever there is, unless it is about to change.
    pub fn correct(&mut self, id: EntryId, measured: &Footprint) {
        if let Some(entry) = self.entries.get_mut(&id).filter(|entry| !entry.moves) {
            entry.bytes = measured.clone();
        }
    }

    /// The entry will hold so much more beside what it holds; `false`, and as before, if there is not as much.
    pub fn grow(&mut self, id: EntryId, more: &Footprint) -> bool {
        let fits = self.fits(more);
        if let Some(entry) = self.entries.get_mut(&id).filter(|_| fits) {
            entry.bytes.add(more);
            entry.moves = true;
        }
        fits
    }

    /// The entry has changed, and does not leave any more; what it holds can be corrected again.
    pub fn settle(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            (entry.phase, entry.moves) = (Phase::Held, false);
        }
    }

    /// One entry takes over what another one holds, and is about to fill it: until then it is reserved, as the other was.
    pub fn join(&mut self, id: EntryId, other: EntryId) {
        let Some(other) = self.entries.remove(&other) else { return };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.bytes.add(&other.bytes);
            (entry.phase, entry.moves) = (other.phase, true);
        }
    }

    /// The entry is given back soon, unless it is known that it may never be.
    pub fn leave(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.phase != Phase::Stuck) {
            entry.phase = Phase::Leaving;
        }
    }

    /// The entry may never be given back.
    pub fn stick(&mut self, id: EntryId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Stuck;
        }
    }

    /// What a load of the model has reserved, or has for a moment, may never be given back.
    pub fn stick_reserved(&mut self, key: &Key) {
        let of_model = self.entries.values_mut().filter(|entry| entry.holder.key == *key);
        let of_load = of_model.filter(|entry| matches!(entry.phase, Phase::Reserved | Phase::Leaving));
        of_load.for_each(|entry| entry.phase = Phase::Stuck);
    }

    /// All that a model holds is given back soon.
    pub fn leave_all(&mut self, key: &Key) {
        let of_model = self.entries.values_mut().filter(|entry| entry.holder.key == *key);
        of_model.filter(|entry| entry.phase == Phase::Held).for_each(|entry| entry.phase = Phase::Leaving);
    }

    /// The entry is given back.
    pub fn release(&mut self, id: EntryId) {
        self.entries.remove(&id);
    }

    /// Who has an entry.
    pub fn holder(&self, id: EntryId) -> Option<&Holder> {
        self.entries.get(&id).map(|entry| &entry.holder)
    }

    /// How much an entry is.
    pub fn of(&self, id: EntryId) -> Footprint {
        self.entries.get(&id).map(|entry| entry.bytes.clone()).unwrap_or_default()
    }

    /// What a model holds that does not leave yet.
    pub fn held_by(&self, key: &Key) -> Footprint {
        let held = self.entries.values().filter(|entry| entry.holder.key == *key && entry.phase == Phase::Held);
        sum(held.map(|entry| &entry.bytes))
    }

    /// Everything that does not leave yet, and could: who has it, how much it is, and whether a load still fills it.
    pub fn staying(&self) -> impl Iterator<Item = (&Holder, &Footprint, bool)> {
        let staying = self.entries.values().filter(|entry| matches!(entry.phase, Phase::Reserved | Phase::Held));
        staying.map(|entry| (&entry.holder, &entry.bytes, entry.phase == Phase::Reserved))
    }

    /// The bytes of a device in one phase.
    pub fn bytes(&self, device: Device, phase: Phase) -> u64 {
        let entries = self.entries.values().filter(|entry| entry.phase == phase);
        entries.map(|entry| entry.bytes.of(device)).sum()
    }

    /// What this place in line and those before it need beyond what is free or will be soon.
    pub fn lacking(&self, place: Place) -> Footprint {
        let Some(at) = self.line.iter().position(|waiting| waiting.place == place) else { return Footprint::default() };
        let need = sum(self.line.iter().take(at + 1).map(|waiting| &waiting.need));
        let own = &self.line[at].need;
        let mut lacking = Footprint::default();
        for (&device, &limit) in self.limits.iter().filter(|(device, _)| own.of(**device) > 0) {
            let phases = [Phase::Reserved, Phase::Held, Phase::Stuck];
            let stays: u64 = phases.map(|phase| self.bytes(device, phase)).iter().sum();
            let bytes = (stays + need.of(device)).saturating_sub(limit);
            if bytes > 0 {
                lacking.add(&Footprint::on(device, bytes));
            }
        }
        lacking
    }

    /// What is in the way of so much on the devices where it does not fit, for people: the largest holders first.
    pub fn describe(&self, need: &Footprint) -> String {
        let short = |device: &Device| {
            self.limits.get(device).is_some_and(|limit| need.of(*device) > self.free(*device, *limit))
        };
        let devices = need.bytes.keys().filter(|device| short(device));
        let lines = devices.map(|&device| {
            let (limit, needed) = (self.limits.get(&device).copied().unwrap_or_default(), need.of(device));
            let free = self.free(device, limit);
            format!(
                "needs {} on {device}, where {} of {} are free{}",
                megabytes(needed),
                megabytes(free),
                megabytes(limit),
                self.holders(device)
            )
        });
        lines.collect::<Vec<_>>().join("; ")
    }

    fn holders(&self, device: Device) -> String {
        let mut holders: BTreeMap<&Holder, u64> = BTreeMap::new();
        for entry in self.entries.values().filter(|entry| entry.bytes.of(device) > 0) {
            *holders.entry(&entry.holder).or_default() += entry.bytes.of(device);
        }
        let mut holders: Vec<_> = holders.into_iter().collect();
        holders.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let named = holders.iter().take(HOLDERS_NAMED_MAX);
        let named = named
            .map(|(holder, bytes)| format!("'{}' version {} holds {}", holder.key, holder.version, megabytes(*bytes)));
        let mut named: Vec<String> = named.collect();
        let others = &holders[named.len()..];
        if !others.is_empty() {
            let bytes = others.iter().map(|(_, bytes)| bytes).sum();
            named.push(format!("{} more hold {}", others.len(), megabytes(bytes)));
        }
        if named.is_empty() { String::new() } else { format!(": {}", named.join(", ")) }
    }

    fn fits(&self, more: &Footprint) -> bool {
        let mut limited =
            more.bytes.iter().filter_map(|(device, bytes)| Some((*device, *bytes, *self.limits.get(device)?)));
        limited.all(|(device, bytes, limit)| bytes <= self.free(device, limit))
    }

    fn free(&self, device: Device, limit: u64) -> u64 {
        let held: u64 = self.entries.values().map(|entry| entry.bytes.of(device)).sum();
        limit.saturating_sub(held)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Holders that a message names; the others are summed up.
const HOLDERS_NAMED_MAX: usize = 5;

/// All of them together.
pub fn sum<'a>(parts: impl Iterator<Item = &'a Footprint>) -> Footprint {
    parts.fold(Footprint::default(), |mut all, part| {
        all.add(part);
        all
    })
}

/// What `of` has beyond `base`, device by device.
pub fn excess(of: &Footprint, base: &Footprint) -> Footprint {
    let more = of.bytes.iter().map(|(device, bytes)| (*device, bytes.saturating_sub(base.of(*device))));
    Footprint { bytes: more.filter(|(_, bytes)| *bytes > 0).collect() }
}

/// For people: to a tenth of a million bytes, or as they are if they are few.
fn megabytes(bytes: u64) -> String {
    if bytes < 100_000 { format!("{bytes} bytes") } else { format!("{:.1} MB", bytes as f64 / 1e6) }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
