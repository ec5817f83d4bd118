//! What the cache holds: entries within a number of bytes, of which the least recently used give way. Pure.
//!
//! Knows keys, owners and sizes, not what is kept. Time is an argument. Begin with [`Store::put`].

use std::collections::HashMap;

use crate::infer::Instant;

/// What an entry is found by: a digest of everything that decides the answer.
pub type Key = [u8; 32];

/// No slot.
const NONE: usize = usize::MAX;

/// Entries by key, in the order of their last use.
#[derive(Debug)]
pub struct Store<V> {
    bytes_max: usize,
    bytes: usize,
    index: HashMap<Key, usize>,
    /// Those that are not in `free` are a list from `newest` to `oldest`.
    slots: Vec<Slot<V>>,
    free: Vec<usize>,
    newest: usize,
    oldest: usize,
}

#[derive(Debug)]
struct Slot<V> {
    key: Key,
    owner: u64,
    /// `None` in a free slot.
    value: Option<V>,
    bytes: usize,
    expires: Option<Instant>,
    newer: usize,
    older: usize,
}

/// One entry to keep.
#[derive(Debug)]
pub struct Kept<V> {
    /// What it is found by.
    pub key: Key,
    /// Whose it is; see [`Store::forget`].
    pub owner: u64,
    /// What is kept.
    pub value: V,
    /// What it takes, beside [`Store::ENTRY_BYTES`].
    pub bytes: usize,
    /// When it is too old.
    pub expires: Option<Instant>,
}

/// What a search came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<V> {
    /// The entry, which is now the most recently used.
    Hit(V),
    /// It was there and is too old; it is gone now.
    Expired(V),
    /// Nothing.
    Miss,
}

impl<V: Clone> Store<V> {
    /// What each entry takes for its own place: a slot, and its part of the table of keys with the room that such a table
    /// leaves empty.
    pub const ENTRY_BYTES: usize = size_of::<Slot<V>>() + size_of::<usize>() + 2 * size_of::<(Key, usize)>();

    /// An empty store for so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// How many bytes they take, their places included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether an entry of this size could be held at all.
    pub fn fits(&self, bytes: usize) -> bool {
        bytes.saturating_add(Self::ENTRY_BYTES) <= self.bytes_max
    }

    /// The entry of `key`, unless it is too old by `now`.
    pub fn get(&mut self, key: &Key, now: Instant) -> Found<V> {
        let Some(&at) = self.index.get(key) else { return Found::Miss };
        if self.slots[at].expires.is_some_and(|expires| expires <= now) {
            return self.take(at).map_or(Found::Miss, Found::Expired);
        }
        self.unlink(at);
        self.link(at);
        self.slots[at].value.clone().map_or(Found::Miss, Found::Hit)
    }

    /// Keeps an entry in place of an older one of its key; gives what had to go for it, least recently used first. What
    /// does not fit at all comes back itself.
    ///
    /// What is given back should be dropped where nobody waits.
    pub fn put(&mut self, kept: Kept<V>) -> Vec<V> {
        if !self.fits(kept.bytes) {
            return vec![kept.value];
        }
        let bytes = kept.bytes + Self::ENTRY_BYTES;
        let mut gone: Vec<V> = self.index.get(&kept.key).copied().and_then(|at| self.take(at)).into_iter().collect();
        while self.bytes + bytes > self.bytes_max {
            gone.extend(self.take(self.oldest));
        }
        let slot = Slot {
            key: kept.key,
            owner: kept.owner,
            value: Some(kept.value),
            bytes,
            expires: kept.expires,
            newer: NONE,
            older: NONE,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.index.insert(kept.key, at);
        self.bytes += bytes;
        self.link(at);
        gone
    }

    /// Gives all entries of an owner, which are no longer held.
    pub fn forget(&mut self, owner: u64) -> Vec<V> {
        let of_owner = |slot: &Slot<V>| slot.owner == owner && slot.value.is_some();
        let all = self.slots.iter().enumerate().filter(|(_, slot)| of_owner(slot));
        let all: Vec<usize> = all.map(|(at, _)| at).collect();
        let gone = all.into_iter().filter_map(|at| self.take(at)).collect();
        if self.index.is_empty() {
            // Room for many small entries is not kept for ever.
            *self = Self::new(self.bytes_max);
        }
        gone
    }

    fn take(&mut self, at: usize) -> Option<V> {
        self.unlink(at);
        let slot = &mut self.slots[at];
        self.bytes -= slot.bytes;
        self.index.remove(&slot.key);
        self.free.push(at);
        slot.value.take()
    }

    /// Takes a slot out of the list.
    fn unlink(&mut self, at: usize) {
        let (newer, older) = (self.slots[at].newer, self.slots[at].older);
        match self.slots.get_mut(newer) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Puts a slot at the new end of the list.
    fn link(&mut self, at: usize) {
        let older = self.newest;
        (self.slots[at].newer, self.slots[at].older) = (NONE, older);
        match self.slots.get_mut(older) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const ENTRY: usize = Store::<u32>::ENTRY_BYTES;

    fn key(number: u8) -> Key {
        [number; 32]
    }

    fn kept(number: u8, value: u32, bytes: usize) -> Kept<u32> {
        Kept { key: key(number), owner: u64::from(number % 2), value, bytes, expires: None }
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let now = Instant::now();
        let mut store = Store::new(2 * (ENTRY + 10));
        assert_eq!(store.put(kept(1, 1, 10)), [0; 0]);
        assert_eq!(store.put(kept(2, 2, 10)), [0; 0]);
        assert_eq!(store.get(&key(1), now), Found::Hit(1));
        assert_eq!(store.put(kept(3, 3, 10)), [2]);
        assert_eq!(store.get(&key(2), now), Found::Miss);
        assert_eq!((store.len(), store.bytes()), (2, 2 * (ENTRY + 10)));
    }

    #[test]
    fn what_does_not_fit_drives_nothing_out() {
        let mut store = Store::new(2 * ENTRY);
        store.put(kept(1, 1, 10));
        assert_eq!(store.put(kept(2, 2, ENTRY + 1)), [2]);
        assert_eq!(store.get(&key(1), Instant::now()), Found::Hit(1));
    }

    #[test]
    fn an_entry_that_is_too_old_is_gone() {
        let (mut store, now) = (Store::new(1 << 20), Instant::now());
        let second = Duration::from_secs(1);
        store.put(Kept { expires: Some(now + second), ..kept(1, 1, 10) });
        assert_eq!(store.get(&key(1), now + second / 2), Found::Hit(1));
        assert_eq!(store.get(&key(1), now + second), Found::Expired(1));
        assert_eq!((store.get(&key(1), now), store.bytes()), (Found::Miss, 0));
    }

    /// What a caller may do.
    #[derive(Clone, Debug)]
    enum Step {
        Get(u8),
        Put(u8, usize, Option<u64>),
        Forget(u64),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..12u8).prop_map(Step::Get),
            4 => (0..12u8, 0..3 * ENTRY, proptest::option::of(1..20u64))
                .prop_map(|(key, bytes, ttl)| Step::Put(key, bytes, ttl)),
            1 => (0..2u64).prop_map(Step::Forget),
            2 => (0..10u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Held against a list that is searched from end to end: newest first.
        #[test]
        fn it_holds_what_a_plain_list_would(steps in proptest::collection::vec(step(), 1..200)) {
            let bytes_max = 6 * ENTRY;
            let mut store = Store::new(bytes_max);
            let mut list: Vec<Kept<u32>> = Vec::new();
            let mut now = Instant::now();
            for (value, step) in (0u32..).zip(steps) {
                match step {
                    Step::Get(number) => {
                        let at = list.iter().position(|kept| kept.key == key(number));
                        let expected = match at.map(|at| list.remove(at)) {
                            None => Found::Miss,
                            Some(old) if old.expires.is_some_and(|expires| expires <= now) => Found::Expired(old.value),
                            Some(kept) => {
                                let value = kept.value;
                                list.insert(0, kept);
                                Found::Hit(value)
                            }
                        };
                        prop_assert_eq!(store.get(&key(number), now), expected);
                    }
                    Step::Put(number, bytes, ttl) => {
                        let make = || Kept {
                            expires: ttl.map(|ttl| now + Duration::from_millis(ttl)),
                            ..kept(number, value, bytes)
                        };
                        let mut gone = Vec::new();
                        if bytes + ENTRY > bytes_max {
                            gone.push(value);
                        } else {
                            let at = list.iter().position(|kept| kept.key == key(number));
                            gone.extend(at.map(|at| list.remove(at).value));
                            list.insert(0, make());
                            let held = |list: &[Kept<u32>]| list.iter().map(|kept| kept.bytes + ENTRY).sum::<usize>();
                            while held(&list) > bytes_max {
                                gone.extend(list.pop().map(|kept| kept.value));
                            }
                        }
                        prop_assert_eq!(store.put(make()), gone);
                    }
                    Step::Forget(owner) => {
                        let mut gone = store.forget(owner);
                        let mut expected: Vec<u32> =
                            list.iter().filter(|kept| kept.owner == owner).map(|kept| kept.value).collect();
                        list.retain(|kept| kept.owner != owner);
                        gone.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(gone, expected);
                    }
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                }
                prop_assert_eq!(store.len(), list.len());
                prop_assert_eq!(store.bytes(), list.iter().map(|kept| kept.bytes + ENTRY).sum::<usize>());
                prop_assert!(store.bytes() <= bytes_max);
            }
        }
    }
}
