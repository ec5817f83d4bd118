//! What the table promises, by example and for any order of events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

type Numbers = Table<u8, u32, Option<u64>>;

const IDLE: Duration = Duration::from_secs(1);

fn table(instances: usize, slots: usize) -> Numbers {
    Table::new(Bounds { instances, slots, requests_max: 100, idle_max: IDLE })
}

fn arriving(id: u8, start: bool, end: bool) -> Arriving<u8, u32> {
    Arriving { id: Some(id), start, end, request: u32::from(id) }
}

fn pushed(table: &mut Numbers, id: u8, start: bool, end: bool) -> Pushed {
    table.push(arriving(id, start, end)).expect("taken in")
}

/// The ids and slots that could run, by instance.
fn ready(table: &Numbers, instance: usize) -> Vec<(u32, usize)> {
    table.ready(instance).map(|ready| (ready.seated.request, ready.slot)).collect()
}

#[test]
fn sequences_spread_over_instances_and_the_next_wait_for_a_slot() {
    let mut table = table(2, 2);
    for id in 0..5 {
        pushed(&mut table, id, true, false);
    }
    assert_eq!(ready(&table, 0), [(0, 0), (2, 1)]);
    assert_eq!(ready(&table, 1), [(1, 0), (3, 1)]);
    assert_eq!((table.backlogged(), table.seated()), (1, 4));
}

#[test]
fn requests_of_a_sequence_run_one_at_a_time_in_order_and_its_slot_is_free_behind_the_last() {
    let (mut table, now) = (table(1, 1), Instant::now());
    let first = pushed(&mut table, 7, true, false);
    let second = pushed(&mut table, 7, false, true);
    assert_eq!(first.key, second.key);
    assert_eq!(table.take(first.key).map(|seated| (seated.number, seated.start)), Some((first.number, true)));
    assert_eq!(ready(&table, 0), []);
    table.done(first.key, now);
    assert_eq!(table.take(first.key).map(|seated| (seated.number, seated.end)), Some((second.number, true)));
    assert_eq!(table.seated(), 1);
    table.done(first.key, now);
    assert_eq!(table.seated(), 0);
}

#[test]
fn who_does_not_start_a_sequence_must_have_started_it_before() {
    let mut table = table(1, 1);
    assert_eq!(table.push(arriving(1, false, false)).map_err(|(why, _)| why), Err(Refusal::NotStarted));
    pushed(&mut table, 1, true, true);
    assert_eq!(table.push(arriving(1, false, false)).map_err(|(why, _)| why), Err(Refusal::NotStarted));
}

#[test]
fn a_second_start_ends_the_former_sequence_behind_what_waits_and_takes_its_slot() {
    let (mut table, now) = (table(1, 1), Instant::now());
    let former = pushed(&mut table, 1, true, false);
    pushed(&mut table, 2, true, false);
    let next = pushed(&mut table, 1, true, false);
    assert!(next.superseded && next.key != former.key);
    table.take(former.key).expect("it waits");
    table.done(former.key, now);
    assert_eq!(table.ready(0).map(|ready| ready.key).collect::<Vec<_>>(), [next.key]);
    table.take(next.key).expect("it waits");
    table.done(next.key, now);
    let idle = pushed(&mut table, 1, true, false);
    assert_eq!(table.ready(0).map(|ready| ready.key).collect::<Vec<_>>(), [idle.key]);
}

#[test]
fn an_idle_sequence_ends_at_its_time_and_a_busy_one_does_not() {
    let (mut table, now) = (table(1, 1), Instant::now());
    let first = pushed(&mut table, 1, true, false);
    pushed(&mut table, 2, true, false);
    table.take(first.key);
    assert_eq!((table.expire(now + 10 * IDLE), table.next_expiry()), (0, None));
    table.done(first.key, now);
    assert_eq!((table.expire(now + IDLE / 2), table.next_expiry()), (0, Some(now + IDLE)));
    assert_eq!(table.expire(now + IDLE), 1);
    assert_eq!(ready(&table, 0), [(2, 0)]);
    assert_eq!(table.push(arriving(1, false, false)).map_err(|(why, _)| why), Err(Refusal::NotStarted));
}

#[test]
fn a_sequence_that_is_ended_gives_back_what_waits_and_its_place() {
    let mut table = table(1, 1);
    let slot = pushed(&mut table, 1, true, false);
    let waits = pushed(&mut table, 2, true, false);
    pushed(&mut table, 2, false, false);
    assert_eq!(table.end(waits.key).len(), 2);
    assert_eq!((table.waiting(), table.backlogged()), (1, 0));
    table.take(slot.key);
    assert_eq!(table.waits(slot.key, slot.number), Some(false));
    assert_eq!(table.end(slot.key).len(), 0);
    assert_eq!((table.seated(), table.waits(slot.key, slot.number)), (0, None));
}

#[test]
fn a_full_table_takes_nothing_and_a_closed_one_works_off_its_backlog() {
    let now = Instant::now();
    let mut table = Numbers::new(Bounds { instances: 1, slots: 1, requests_max: 2, idle_max: IDLE });
    let first = pushed(&mut table, 1, true, false);
    let second = pushed(&mut table, 2, true, false);
    assert_eq!(table.push(arriving(3, true, false)).map_err(|(why, _)| why), Err(Refusal::Full));
    table.close();
    assert_eq!(table.push(arriving(1, false, false)).map_err(|(why, _)| why), Err(Refusal::Closed));
    for key in [first.key, second.key] {
        assert!(!table.is_done(0));
        table.take(key).expect("it has the slot");
        table.done(key, now);
    }
    assert!(table.is_done(0));
}

#[test]
fn an_instance_that_is_withdrawn_keeps_its_sequences_and_gets_no_others() {
    let (mut table, now) = (table(2, 1), Instant::now());
    let kept = pushed(&mut table, 1, true, false);
    table.withdraw(0);
    pushed(&mut table, 2, true, false);
    pushed(&mut table, 3, true, false);
    assert_eq!((ready(&table, 0), ready(&table, 1)), (vec![(1, 0)], vec![(2, 0)]));
    assert!(!table.is_done(0));
    table.take(kept.key);
    table.end(kept.key);
    table.done(kept.key, now);
    assert!(table.is_done(0) && !table.is_done(1));
    table.join(0);
    assert_eq!(ready(&table, 0), [(3, 0)]);
}

#[test]
fn an_instance_of_a_closed_table_stays_for_who_is_behind_a_sequence_of_a_withdrawn_one() {
    let (mut table, now) = (table(2, 1), Instant::now());
    let former = pushed(&mut table, 1, true, false);
    pushed(&mut table, 1, true, false);
    table.withdraw(0);
    table.close();
    assert!(!table.is_done(1), "it has nothing yet");
    table.take(former.key);
    table.done(former.key, now);
    assert_eq!((ready(&table, 0), ready(&table, 1)), (vec![], vec![(1, 0)]));
}

#[test]
fn who_joins_under_a_new_number_gets_the_backlog_and_nobody_who_was_withdrawn_comes_back() {
    let mut table = table(2, 1);
    table.withdraw(0);
    pushed(&mut table, 1, true, false);
    pushed(&mut table, 2, true, false);
    table.join(2);
    assert_eq!((ready(&table, 0), ready(&table, 2)), (vec![], vec![(2, 0)]));
    assert!(table.is_done(0) && !table.is_done(2));
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Push { id: u8, start: bool, end: bool },
    PushAlone,
    Run(usize),
    Done { again: bool, parked: bool },
    Unpark,
    End(usize),
    Wait(u64),
    Withdraw,
    Join,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u8..6, any::<bool>(), prop::bool::weighted(0.3)).prop_map(|(id, start, end)| Event::Push { id, start, end }),
        1 => Just(Event::PushAlone),
        6 => (0usize..2).prop_map(Event::Run),
        6 => (prop::bool::weighted(0.2), any::<bool>()).prop_map(|(again, parked)| Event::Done { again, parked }),
        1 => Just(Event::Unpark),
        1 => (0usize..8).prop_map(Event::End),
        1 => (0u64..2000).prop_map(Event::Wait),
        1 => Just(Event::Withdraw),
        1 => Just(Event::Join),
    ]
}

/// What was seen from outside.
#[derive(Default)]
struct Seen {
    /// Requests that were taken in and are not over.
    open: BTreeSet<u64>,
    running: Vec<(Key, Seated<u32>, usize)>,
    parked: Vec<Key>,
    places: BTreeMap<Key, (usize, usize)>,
    last_run: BTreeMap<Key, u64>,
}

impl Seen {
    fn run(&mut self, table: &mut Numbers, instance: usize) {
        let found: Vec<_> = table.ready(instance).map(|ready| (ready.key, ready.slot, ready.seated.number)).collect();
        assert!(found.is_sorted_by_key(|(_, _, number)| *number));
        for (key, slot, number) in found {
            assert!(self.running.iter().all(|(other, _, _)| *other != key), "one request of a sequence at a time");
            assert_eq!(*self.places.entry(key).or_insert((instance, slot)), (instance, slot), "a slot is kept");
            assert!(self.last_run.insert(key, number).is_none_or(|last| last <= number), "in order");
            let seated = table.take(key).expect("it is ready");
            assert!(self.open.contains(&seated.number));
            self.running.push((key, seated, instance));
        }
    }

    fn done(&mut self, table: &mut Numbers, (again, parked): (bool, bool), now: Instant) {
        for (key, seated, _) in std::mem::take(&mut self.running) {
            let number = seated.number;
            let over = match again {
                true => table.again(key, seated, parked).is_some(),
                false => {
                    table.done(key, now);
                    true
                }
            };
            if over {
                self.open.remove(&number);
            } else if parked {
                self.parked.push(key);
            }
        }
    }

    fn left(&mut self, ended: Vec<Seated<u32>>) {
        for seated in ended {
            assert!(self.open.remove(&seated.number), "each request leaves once");
        }
    }
}

fn check(table: &Numbers, seen: &Seen) {
    let seats = table.instances.iter().enumerate();
    let seated: Vec<(usize, usize, Key)> = seats
        .flat_map(|(instance, seats)| {
            seats.slots.iter().enumerate().filter_map(move |(slot, key)| Some((instance, slot, (*key)?)))
        })
        .collect();
    for (instance, slot, key) in &seated {
        assert_eq!(table.sequences[key].place, Place::Slot { instance: *instance, slot: *slot });
        assert!(!table.free.contains(&(*slot, *instance)));
    }
    let staffed = table.instances.iter().filter(|seats| !seats.withdrawn);
    let free: usize = staffed.map(|seats| seats.slots.iter().filter(|slot| slot.is_none()).count()).sum();
    assert_eq!(table.free.len(), free, "every slot is free or has a sequence");
    assert!(table.backlog.is_empty() || free == 0, "nobody waits for a slot that is free");
    let in_slots = table.sequences.values().filter(|sequence| matches!(sequence.place, Place::Slot { .. })).count();
    assert_eq!(in_slots, seated.len());
    let waiting: usize = table.sequences.values().map(|sequence| sequence.waiting.len()).sum();
    let orphans = seen.running.iter().filter(|(key, _, _)| !table.sequences.contains_key(key)).count();
    let running = table.sequences.values().filter(|sequence| sequence.running.is_some()).count();
    assert_eq!(table.waiting(), waiting);
    assert_eq!(seen.open.len(), waiting + running + orphans, "no request is lost");
    for (key, sequence) in &table.sequences {
        let rests = sequence.waiting.is_empty() && sequence.running.is_none();
        assert!(!rests || sequence.open, "a sequence at its end is gone");
        assert_eq!(sequence.idle_since.is_some(), rests);
        assert!(!rests || matches!(sequence.place, Place::Slot { .. }), "who waits for a slot has a request");
        assert_eq!(table.idle.iter().any(|(_, idle)| idle == key), rests);
    }
}

proptest! {
    #[test]
    fn whatever_happens_no_slot_and_no_request_is_lost(events in prop::collection::vec(event(), 1..120)) {
        let (mut table, mut seen, mut now) = (table(2, 2), Seen::default(), Instant::now());
        for event in events {
            match event {
                Event::Push { id, start, end } => {
                    if let Ok(pushed) = table.push(arriving(id, start, end)) {
                        seen.open.insert(pushed.number);
                    }
                }
                Event::PushAlone => {
                    let alone = Arriving { id: None, ..arriving(9, true, false) };
                    seen.open.extend(table.push(alone).map(|pushed| pushed.number));
                }
                Event::Run(instance) => seen.run(&mut table, instance),
                Event::Done { again, parked } => seen.done(&mut table, (again, parked), now),
                Event::Unpark => std::mem::take(&mut seen.parked).into_iter().for_each(|key| table.unpark(key)),
                Event::End(index) => {
                    if let Some(key) = table.sequences.keys().nth(index).copied() {
                        seen.left(table.end(key));
                    }
                }
                Event::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    table.expire(now);
                }
                Event::Withdraw => table.withdraw(1),
                Event::Join => table.join(1),
            }
            check(&table, &seen);
        }
        // The end: everything that was taken in runs, and nothing is left.
        table.join(1);
        table.close();
        std::mem::take(&mut seen.parked).into_iter().for_each(|key| table.unpark(key));
        seen.done(&mut table, (false, false), now);
        while table.waiting() > 0 {
            (0..2).for_each(|instance| seen.run(&mut table, instance));
            prop_assert!(!seen.running.is_empty(), "what waits can run");
            seen.done(&mut table, (false, false), now);
        }
        check(&table, &seen);
        prop_assert!(seen.open.is_empty() && table.sequences.is_empty() && table.by_id.is_empty());
        prop_assert_eq!(table.free.len(), 4);
        prop_assert!(table.is_done(0) && table.is_done(1));
    }
}
