//! Which sequence has which slot, and what waits in it: pure bookkeeping, the time is an argument.
//!
//! A sequence begins with a START request and gets a slot of one instance, which it keeps until it ends; without a free
//! one it stands in the backlog. It ends behind its END request, when nothing came for too long, or when one of its
//! requests is given up. Begin with [`Table::push`]. Nothing here knows tensors, threads, or who waits for an answer:
//! `R` is a request and `S` what is kept for a sequence.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::infer::Instant;

/// One sequence, for as long as it lives; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(u64);

impl Key {
    /// As a number, for who has no use for keys.
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// The key that has this number.
    pub(super) fn of_number(number: u64) -> Self {
        Self(number)
    }
}

/// How much a table holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Instances that have slots.
    pub(super) instances: usize,
    /// Slots of each instance.
    pub(super) slots: usize,
    /// The most requests that wait, in slots and in the backlog.
    pub(super) requests_max: usize,
    /// How long a sequence lives without a request.
    pub(super) idle_max: Duration,
}

/// A request on its way into the table.
#[derive(Clone, Debug)]
pub(super) struct Arriving<I, R> {
    /// The sequence that it belongs to; `None` for one of its own, which this request alone makes up.
    pub(super) id: Option<I>,
    pub(super) start: bool,
    pub(super) end: bool,
    pub(super) request: R,
}

/// A request that waits or runs.
#[derive(Clone, Debug)]
pub(super) struct Seated<R> {
    /// Requests are numbered as they arrive, all sequences together.
    pub(super) number: u64,
    pub(super) start: bool,
    pub(super) end: bool,
    pub(super) request: R,
}

/// What a request is known by after it was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pushed {
    pub(super) key: Key,
    pub(super) number: u64,
    /// It started a sequence while one of the same id was not at its end, which is over now.
    pub(super) superseded: bool,
}

/// A request that can run now.
#[derive(Debug)]
pub(super) struct Ready<'a, R, S> {
    pub(super) key: Key,
    /// The slot of its sequence.
    pub(super) slot: usize,
    pub(super) seated: &'a Seated<R>,
    /// What is kept for its sequence.
    pub(super) state: &'a S,
}

/// Why a request is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// As many requests wait as may.
    Full,
    /// The table is closed.
    Closed,
    /// Nobody knows the sequence, and the request does not start one.
    NotStarted,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Slot {
        instance: usize,
        slot: usize,
    },
    /// Its turn in the backlog.
    Backlog(u64),
    /// It takes the place of the sequence of the same id that was not at its end.
    Behind(Key),
}

#[derive(Debug)]
struct Sequence<I, R, S> {
    id: Option<I>,
    place: Place,
    waiting: VecDeque<Seated<R>>,
    /// The number of its request that runs.
    running: Option<u64>,
    /// Whether further requests may come.
    open: bool,
    /// Whether its first request waits for something else than an instance.
    parked: bool,
    successor: Option<Key>,
    state: S,
    /// As what it stands in its instance's `ready`.
    ready_as: Option<u64>,
    /// As what it stands in `idle`.
    idle_since: Option<Instant>,
}

#[derive(Debug)]
struct Seats {
    slots: Vec<Option<Key>>,
    /// The first waiting requests of its sequences that can run now, by number.
    ready: BTreeMap<u64, Key>,
    /// Whether something came into `ready` since the instance has looked.
    news: bool,
    /// It gets no further sequences.
    withdrawn: bool,
}

/// All sequences of one model version.
#[derive(Debug)]
pub(super) struct Table<I, R, S> {
    bounds: Bounds,
    sequences: BTreeMap<Key, Sequence<I, R, S>>,
    /// The sequences that take further requests.
    by_id: HashMap<I, Key>,
    instances: Vec<Seats>,
    /// Free slots, the lowest first, as slot and instance.
    free: BTreeSet<(usize, usize)>,
    backlog: BTreeMap<u64, Key>,
    idle: BTreeSet<(Instant, Key)>,
    waiting: usize,
    /// How many slots have a sequence.
    seated: usize,
    numbers: u64,
    closed: bool,
}

impl<I: Clone + Eq + Hash, R, S: Default> Table<I, R, S> {
    /// An empty table.
    pub(super) fn new(bounds: Bounds) -> Self {
        let mut table = Self {
            bounds,
            sequences: BTreeMap::new(),
            by_id: HashMap::new(),
            instances: Vec::new(),
            free: BTreeSet::new(),
            backlog: BTreeMap::new(),
            idle: BTreeSet::new(),
            waiting: 0,
            seated: 0,
            numbers: 0,
            closed: false,
        };
        (0..bounds.instances).for_each(|instance| table.join(instance));
        table
    }

    /// Whether no sequence is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// Why not, and the request.
    pub(super) fn push(&mut self, arriving: Arriving<I, R>) -> Result<Pushed, (Refusal, R)> {
        let former = arriving.id.as_ref().and_then(|id| self.by_id.get(id)).copied();
        let refusal = if self.closed {
            Some(Refusal::Closed)
        } else if former.is_none() && !arriving.start {
            Some(Refusal::NotStarted)
        } else if self.waiting >= self.bounds.requests_max {
            Some(Refusal::Full)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Err((refusal, arriving.request));
        }
        let number = self.number();
        let (alone, end) = (arriving.id.is_none(), arriving.end);
        let key = match former.filter(|_| !arriving.start) {
            Some(key) => key,
            None => self.begin(arriving.id, former),
        };
        self.waiting += 1;
        let seated = Seated { number, start: arriving.start, end, request: arriving.request };
        if let Some(sequence) = self.sequences.get_mut(&key) {
            sequence.waiting.push_back(seated);
            if end || alone {
                self.shut(key);
            }
        }
        self.settle(key);
        if let Some(former) = former.filter(|former| *former != key) {
            self.settle(former);
        }
        Ok(Pushed { key, number, superseded: former.is_some_and(|former| former != key) })
    }

    /// A new sequence, in a slot, in the backlog, or behind a former one of the same id, which is over.
    fn begin(&mut self, id: Option<I>, former: Option<Key>) -> Key {
        let key = Key(self.number());
        let place = former.map_or(Place::Backlog(key.0), Place::Behind);
        let sequence = Sequence {
            id: id.clone(),
            place,
            waiting: VecDeque::new(),
            running: None,
            open: true,
            parked: false,
            successor: None,
            state: S::default(),
            ready_as: None,
            idle_since: None,
        };
        self.sequences.insert(key, sequence);
        match former {
            Some(former) => {
                self.shut(former);
                if let Some(former) = self.sequences.get_mut(&former) {
                    former.successor = Some(key);
                }
            }
            None => self.place(key),
        }
        if let Some(id) = id {
            self.by_id.insert(id, key);
        }
        key
    }

    /// Gives a sequence a free slot, or a place in the backlog.
    fn place(&mut self, key: Key) {
        match self.free.pop_first() {
            Some((slot, instance)) => self.seat(key, instance, slot),
            None => {
                self.backlog.insert(key.0, key);
                self.put(key, Place::Backlog(key.0));
            }
        }
    }

    fn seat(&mut self, key: Key, instance: usize, slot: usize) {
        self.seated += 1;
        self.instances[instance].slots[slot] = Some(key);
        self.put(key, Place::Slot { instance, slot });
    }

    fn put(&mut self, key: Key, place: Place) {
        if let Some(sequence) = self.sequences.get_mut(&key) {
            sequence.place = place;
        }
        self.refresh(key);
    }

    /// A sequence takes no further requests.
    fn shut(&mut self, key: Key) {
        let Some(sequence) = self.sequences.get_mut(&key) else { return };
        sequence.open = false;
        if let Some(id) = &sequence.id
            && self.by_id.get(id) == Some(&key)
        {
            self.by_id.remove(id);
        }
    }

    /// A sequence at its end leaves; of any other it is noted whether it can run or is idle.
    fn settle(&mut self, key: Key) {
        let Some(sequence) = self.sequences.get(&key) else { return };
        if sequence.waiting.is_empty() && sequence.running.is_none() && !sequence.open {
            self.leave(key);
        } else {
            self.refresh(key);
        }
    }

    fn refresh(&mut self, key: Key) {
        let Some(sequence) = self.sequences.get_mut(&key) else { return };
        let Place::Slot { instance, .. } = sequence.place else { return };
        let free = sequence.running.is_none();
        let ready = sequence.waiting.front().map(|head| head.number).filter(|_| free && !sequence.parked);
        if ready != sequence.ready_as {
            let seats = &mut self.instances[instance];
            sequence.ready_as.map(|number| seats.ready.remove(&number));
            ready.map(|number| seats.ready.insert(number, key));
            seats.news |= ready.is_some();
            sequence.ready_as = ready;
        }
        if !(free && sequence.waiting.is_empty())
            && let Some(since) = sequence.idle_since.take()
        {
            self.idle.remove(&(since, key));
        }
    }

    /// Removes a sequence; who waits for its place gets it.
    fn leave(&mut self, key: Key) {
        self.shut(key);
        let Some(sequence) = self.sequences.remove(&key) else { return };
        sequence.idle_since.map(|since| self.idle.remove(&(since, key)));
        match sequence.place {
            Place::Slot { instance, slot } => {
                let seats = &mut self.instances[instance];
                sequence.ready_as.map(|number| seats.ready.remove(&number));
                seats.slots[slot] = None;
                self.seated -= 1;
                self.vacated(instance, slot, sequence.successor);
            }
            Place::Backlog(turn) => {
                self.backlog.remove(&turn);
                if let Some(successor) = sequence.successor {
                    self.backlog.insert(turn, successor);
                    self.put(successor, Place::Backlog(turn));
                }
            }
            Place::Behind(former) => {
                if let Some(former) = self.sequences.get_mut(&former) {
                    former.successor = sequence.successor;
                }
                if let Some(successor) = sequence.successor {
                    self.put(successor, Place::Behind(former));
                }
            }
        }
    }

    /// A slot is free: it goes to the successor of who had it, or to the next of the backlog.
    fn vacated(&mut self, instance: usize, slot: usize, successor: Option<Key>) {
        if self.instances[instance].withdrawn {
            if let Some(successor) = successor {
                self.place(successor);
            }
            return;
        }
        match successor.or_else(|| self.backlog.pop_first().map(|(_, key)| key)) {
            Some(next) => self.seat(next, instance, slot),
            None => {
                self.free.insert((slot, instance));
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The requests of an instance that can run now, the oldest first: one for each of its sequences.
    pub(super) fn ready(&self, instance: usize) -> impl Iterator<Item = Ready<'_, R, S>> {
        let ready = self.instances.get(instance).into_iter().flat_map(|seats| seats.ready.values());
        ready.filter_map(|key| {
            let sequence = self.sequences.get(key)?;
            let Place::Slot { slot, .. } = sequence.place else { return None };
            Some(Ready { key: *key, slot, seated: sequence.waiting.front()?, state: &sequence.state })
        })
    }

    /// Whether an instance has got a request that can run now since it has looked.
    pub(super) fn has_news(&self, instance: usize) -> bool {
        self.instances.get(instance).is_some_and(|seats| seats.news && !seats.ready.is_empty())
    }

    /// An instance looks.
    pub(super) fn look(&mut self, instance: usize) {
        if let Some(seats) = self.instances.get_mut(instance) {
            seats.news = false;
        }
    }

    /// Takes the first waiting request of a sequence to run it.
    pub(super) fn take(&mut self, key: Key) -> Option<Seated<R>> {
        let sequence = self.sequences.get_mut(&key)?;
        let taken = sequence.waiting.pop_front()?;
        sequence.running = Some(taken.number);
        self.waiting -= 1;
        self.refresh(key);
        Some(taken)
    }

    /// The request of a sequence that ran is done.
    pub(super) fn done(&mut self, key: Key, now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&key) else { return };
        sequence.running = None;
        self.settle(key);
        if let Some(sequence) = self.sequences.get_mut(&key)
            && sequence.waiting.is_empty()
        {
            sequence.idle_since = Some(now);
            self.idle.insert((now, key));
        }
    }

    /// The request of a sequence that ran is to run again, before all others of the sequence; with `parked` not before
    /// [`Table::unpark`]. Gives it back if the sequence is over.
    pub(super) fn again(&mut self, key: Key, mut seated: Seated<R>, parked: bool) -> Option<Seated<R>> {
        let Some(sequence) = self.sequences.get_mut(&key) else { return Some(seated) };
        (seated.start, seated.end) = (false, false);
        sequence.running = None;
        sequence.parked = parked;
        sequence.waiting.push_front(seated);
        self.waiting += 1;
        self.refresh(key);
        None
    }

    /// What a sequence was parked for is there.
    pub(super) fn unpark(&mut self, key: Key) {
        if let Some(sequence) = self.sequences.get_mut(&key) {
            sequence.parked = false;
            self.refresh(key);
        }
    }

    /// Whether this request of a sequence waits; `Some(false)` while it runs, `None` if it is over.
    pub(super) fn waits(&self, key: Key, number: u64) -> Option<bool> {
        let sequence = self.sequences.get(&key)?;
        if sequence.running == Some(number) {
            return Some(false);
        }
        sequence.waiting.binary_search_by_key(&number, |seated| seated.number).is_ok().then_some(true)
    }

    /// The first waiting request of a sequence.
    pub(super) fn head(&self, key: Key) -> Option<&Seated<R>> {
        self.sequences.get(&key)?.waiting.front()
    }

    /// How many requests of a sequence run or wait; 0 for an unknown one.
    pub(super) fn depth(&self, id: &I) -> usize {
        let sequence = self.by_id.get(id).and_then(|key| self.sequences.get(key));
        sequence.map_or(0, |sequence| sequence.waiting.len() + usize::from(sequence.running.is_some()))
    }

    /// What is kept for a sequence; `None` if it is over.
    pub(super) fn state(&mut self, key: Key) -> Option<&mut S> {
        self.sequences.get_mut(&key).map(|sequence| &mut sequence.state)
    }

    /// Ends a sequence at once and gives what waited in it. A request of it that runs has no sequence any more.
    pub(super) fn end(&mut self, key: Key) -> Vec<Seated<R>> {
        let Some(sequence) = self.sequences.get_mut(&key) else { return Vec::new() };
        let waiting = std::mem::take(&mut sequence.waiting);
        self.waiting -= waiting.len();
        self.leave(key);
        waiting.into()
    }

    /// Ends the sequences that are idle for too long; how many.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let mut ended = 0;
        while let Some(&(since, key)) = self.idle.first()
            && since + self.bounds.idle_max <= now
        {
            self.leave(key);
            ended += 1;
        }
        ended
    }

    /// When the next sequence will be idle for too long.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.idle.first().map(|(since, _)| *since + self.bounds.idle_max)
    }

    /// Takes no further requests; sequences end behind what waits.
    pub(super) fn close(&mut self) {
        self.closed = true;
        let keys: Vec<Key> = self.sequences.keys().copied().collect();
        for key in keys {
            self.shut(key);
            self.settle(key);
        }
    }

    /// Whether [`Table::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends all sequences at once and gives what waited in them.
    pub(super) fn clear(&mut self) -> Vec<Seated<R>> {
        let keys: Vec<Key> = self.sequences.keys().copied().collect();
        keys.into_iter().flat_map(|key| self.end(key)).collect()
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many requests wait in the backlog.
    pub(super) fn backlogged(&self) -> usize {
        self.backlog.values().filter_map(|key| self.sequences.get(key)).map(|sequence| sequence.waiting.len()).sum()
    }

    /// How many slots have a sequence.
    pub(super) fn seated(&self) -> usize {
        self.seated
    }

    /// How many slots there are: those that may get a sequence, and those that have one.
    pub(super) fn slots(&self) -> usize {
        self.seated + self.free.len()
    }

    /// How many sequences stand in the backlog.
    pub(super) fn queued(&self) -> usize {
        self.backlog.len()
    }

    /// The sequences of an instance.
    pub(super) fn seated_at(&self, instance: usize) -> Vec<Key> {
        self.instances.get(instance).map(|seats| seats.slots.iter().flatten().copied().collect()).unwrap_or_default()
    }

    /// Whether an instance has no sequence, and will get none.
    pub(super) fn is_done(&self, instance: usize) -> bool {
        // Who is behind another sequence may get a slot of any instance if that one's is withdrawn.
        let all_seated = || self.sequences.values().all(|sequence| matches!(sequence.place, Place::Slot { .. }));
        self.instances.get(instance).is_none_or(|seats| {
            seats.slots.iter().all(Option::is_none) && (seats.withdrawn || self.closed && all_seated())
        })
    }

    /// How many instances may get sequences.
    pub(super) fn staffed(&self) -> usize {
        self.instances.iter().filter(|seats| !seats.withdrawn).count()
    }

    /// An instance has slots from now on; one that was withdrawn has them again.
    pub(super) fn join(&mut self, instance: usize) {
        while self.instances.len() <= instance {
            self.instances.push(Seats {
                slots: vec![None; self.bounds.slots],
                ready: BTreeMap::new(),
                news: false,
                withdrawn: true,
            });
        }
        let seats = &mut self.instances[instance];
        if !std::mem::take(&mut seats.withdrawn) {
            return;
        }
        let free = seats.slots.iter().enumerate().filter(|(_, sequence)| sequence.is_none());
        self.free.extend(free.map(|(slot, _)| (slot, instance)));
        while !self.free.is_empty()
            && let Some((_, next)) = self.backlog.pop_first()
        {
            self.place(next);
        }
    }

    /// An instance gets no further sequences; it keeps those that it has until they end.
    pub(super) fn withdraw(&mut self, instance: usize) {
        if let Some(seats) = self.instances.get_mut(instance) {
            seats.withdrawn = true;
            self.free.retain(|(_, of)| *of != instance);
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
