//! The books of memory: what fits, in which order, and that a limit holds whatever is done.

use proptest::prelude::*;

use super::*;

const CPU: Device = Device::Cpu;
const GPU: Device = Device::Cuda(0);

fn ledger(bytes: u64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.limit(CPU, bytes);
    ledger
}

fn holder(name: &str) -> Holder {
    Holder { key: Key::of(name), version: 1, residency: Residency::Resident }
}

/// Stands in line.
fn stand(ledger: &mut Ledger, need: Footprint) -> Place {
    ledger.wait(&Key::of("m"), Residency::Resident, need)
}

/// Stands in line and reserves at once.
fn reserve(ledger: &mut Ledger, name: &str, bytes: u64) -> Result<EntryId, Place> {
    let need = Footprint::on(CPU, bytes);
    let place = stand(ledger, need.clone());
    match ledger.reserve(place, &[(holder(name), need)]) {
        Some(ids) => Ok(ids[0]),
        None => Err(place),
    }
}

#[test]
fn what_does_not_fit_says_how_much_there_is_and_who_holds_it() {
    let mut ledger = ledger(1_000_000);
    for (name, bytes) in [("small", 200_000), ("large", 600_000)] {
        let id = reserve(&mut ledger, name, bytes).expect("it fits");
        assert!(ledger.commit(id, &Footprint::on(CPU, bytes)));
    }
    assert!(reserve(&mut ledger, "new", 300_000).is_err());
    assert_eq!(
        ledger.describe(&Footprint::on(CPU, 300_000)),
        "needs 0.3 MB on cpu, where 0.2 MB of 1.0 MB are free: \
         'large' version 1 holds 0.6 MB, 'small' version 1 holds 0.2 MB"
    );
}

#[test]
fn many_holders_are_summed_up() {
    let mut ledger = ledger(7_000_000);
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        reserve(&mut ledger, name, 1_000_000).expect("it fits");
    }
    let described = ledger.describe(&Footprint::on(CPU, 1));
    assert!(described.contains("'a' version 1 holds 1.0 MB"), "{described}");
    assert!(described.ends_with("2 more hold 2.0 MB"), "{described}");
}

#[test]
fn a_smaller_measure_makes_room_and_a_larger_one_has_to_fit() {
    let mut ledger = ledger(100);
    let first = reserve(&mut ledger, "first", 80).expect("it fits");
    assert!(ledger.commit(first, &Footprint::on(CPU, 50)));
    let second = reserve(&mut ledger, "second", 40).expect("there is room again");
    assert!(!ledger.commit(second, &Footprint::on(CPU, 51)));
    assert!(ledger.commit(second, &Footprint::on(CPU, 50)));
    assert_eq!(ledger.bytes(CPU, Phase::Held), 100);
}

#[test]
fn an_unlimited_device_takes_anything() {
    let mut ledger = ledger(10);
    let need = Footprint::on(GPU, u64::MAX / 2);
    let place = stand(&mut ledger, need.clone());
    assert!(ledger.reserve(place, &[(holder("m"), need)]).is_some());
}

#[test]
fn who_came_first_is_served_first_on_the_same_device_only() {
    let mut ledger = ledger(100);
    ledger.limit(GPU, 100);
    let held = reserve(&mut ledger, "held", 60).expect("it fits");
    let large = reserve(&mut ledger, "large", 80).expect_err("it does not fit");
    let small = reserve(&mut ledger, "small", 10).expect_err("it is not its turn");
    assert_eq!((ledger.is_behind(large), ledger.is_behind(small)), (false, true));
    let other = Footprint::on(GPU, 10);
    let place = stand(&mut ledger, other.clone());
    assert!(ledger.reserve(place, &[(holder("other"), other)]).is_some(), "nobody waits for that device");
    assert_eq!(ledger.lacking(large), Footprint::on(CPU, 40));
    assert_eq!(ledger.lacking(small), Footprint::on(CPU, 50));
    ledger.leave(held);
    assert_eq!(ledger.lacking(small), Footprint::default(), "it will be free soon");
    ledger.release(held);
    assert!(ledger.reserve(large, &[(holder("large"), Footprint::on(CPU, 80))]).is_some());
    assert!(ledger.reserve(small, &[(holder("small"), Footprint::on(CPU, 10))]).is_some());
}

#[test]
fn nobody_waits_for_what_a_load_that_was_given_up_has_reserved() {
    let mut ledger = ledger(100);
    let held = reserve(&mut ledger, "m", 10).expect("it fits");
    assert!(ledger.commit(held, &Footprint::on(CPU, 10)));
    let reserved = reserve(&mut ledger, "m", 50).expect("it fits");
    let for_a_moment = reserve(&mut ledger, "m", 5).expect("it fits");
    ledger.leave(for_a_moment);
    ledger.stick_reserved(&Key::of("m"));
    assert_eq!([Phase::Held, Phase::Stuck].map(|phase| ledger.bytes(CPU, phase)), [10, 55]);
    ledger.release(reserved);
    ledger.release(for_a_moment);
    assert_eq!(ledger.bytes(CPU, Phase::Stuck), 0);
}

#[test]
fn nobody_waits_for_weights_that_come_back_in_a_load_that_was_given_up() {
    let mut ledger = ledger(100);
    let stayed = reserve(&mut ledger, "m", 10).expect("it fits");
    assert!(ledger.commit(stayed, &Footprint::on(CPU, 10)));
    let comes_back = reserve(&mut ledger, "m", 50).expect("it fits");
    ledger.join(stayed, comes_back);
    assert_eq!(ledger.bytes(CPU, Phase::Reserved), 60);
    ledger.stick_reserved(&Key::of("m"));
    assert_eq!((ledger.bytes(CPU, Phase::Stuck), ledger.staying().count()), (60, 0));
    ledger.settle(stayed);
    assert_eq!(ledger.bytes(CPU, Phase::Held), 60);
}

#[test]
fn who_is_behind_knows_who_stands_before_it_and_can_go_first() {
    let mut ledger = ledger(100);
    reserve(&mut ledger, "held", 60).expect("it fits");
    let first = reserve(&mut ledger, "first", 80).expect_err("it does not fit");
    let second = reserve(&mut ledger, "second", 10).expect_err("it is not its turn");
    let third = reserve(&mut ledger, "third", 41).expect_err("it does not fit");
    let lacking: Vec<_> = ledger.ahead(third).into_iter().map(|ahead| ahead.lacking).collect();
    assert_eq!(lacking, [Some(Footprint::on(CPU, 40)), None]);
    assert_eq!(ledger.ahead(first), []);
    ledger.go_first(third);
    assert!(ledger.reserve(third, &[(holder("third"), Footprint::on(CPU, 41))]).is_none(), "there is no room");
    ledger.go_first(second);
    assert_eq!([first, second, third].map(|place| ledger.count_ahead(place)), [2, 0, 1]);
    assert!(ledger.reserve(second, &[(holder("second"), Footprint::on(CPU, 10))]).is_some());
    ledger.go_first(second);
    assert_eq!([first, third].map(|place| ledger.count_ahead(place)), [1, 0], "it has left the line");
}

#[test]
fn nobody_waits_for_what_may_never_be_given_back_and_it_is_free_once_it_is() {
    let mut ledger = ledger(100);
    let stuck = reserve(&mut ledger, "stuck", 60).expect("it fits");
    ledger.leave(stuck);
    let place = reserve(&mut ledger, "new", 50).expect_err("it does not fit");
    assert_eq!(ledger.lacking(place), Footprint::default());
    ledger.stick(stuck);
    ledger.leave(stuck);
    assert_eq!((ledger.lacking(place), ledger.bytes(CPU, Phase::Stuck)), (Footprint::on(CPU, 10), 60));
    assert_eq!((ledger.held_by(&Key::of("stuck")), ledger.staying().count()), (Footprint::default(), 0));
    assert!(ledger.describe(&Footprint::on(CPU, 50)).ends_with("'stuck' version 1 holds 60 bytes"));
    ledger.release(stuck);
    assert!(ledger.reserve(place, &[(holder("new"), Footprint::on(CPU, 50))]).is_some());
}

#[test]
fn what_is_paged_out_has_room_in_both_places_first_and_stays_in_the_other() {
    let mut ledger = ledger(100);
    ledger.limit(GPU, 100);
    let place = stand(&mut ledger, Footprint::on(GPU, 80));
    let id = ledger.reserve(place, &[(holder("m"), Footprint::on(GPU, 80))]).expect("it fits")[0];
    ledger.leave(id);
    let blocker = reserve(&mut ledger, "blocker", 50).expect("it fits");
    assert!(!ledger.grow(id, &Footprint::on(CPU, 51)));
    assert!(ledger.grow(id, &Footprint::on(CPU, 50)));
    assert_eq!((ledger.of(id).of(GPU), ledger.of(id).of(CPU)), (80, 50));
    ledger.correct(id, &Footprint::on(GPU, 80));
    assert_eq!(ledger.of(id).of(CPU), 50, "what is measured meanwhile takes no room away");
    ledger.settle(id);
    ledger.correct(id, &Footprint::on(CPU, 45));
    assert_eq!((ledger.bytes(GPU, Phase::Leaving), ledger.bytes(CPU, Phase::Held)), (0, 45));
    ledger.release(blocker);
    assert_eq!(ledger.held_by(&Key::of("m")), Footprint::on(CPU, 45));
}

#[test]
fn the_parts_of_a_load_are_reserved_together_or_not_at_all() {
    let mut ledger = ledger(100);
    let parts = [(holder("m"), Footprint::on(CPU, 60)), (holder("m"), Footprint::on(CPU, 60))];
    let place = stand(&mut ledger, Footprint::on(CPU, 120));
    assert!(ledger.reserve(place, &parts).is_none());
    assert_eq!(ledger.bytes(CPU, Phase::Reserved), 0);
}

/// What happens to the books, by the number of an entry or of a place in line.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64, u64),
    Reserve(usize),
    GiveUp(usize),
    Commit(usize, u64, u64),
    Leave(usize),
    Stick(usize),
    Page(usize, u64, u64),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..80_u64, 0..80_u64).prop_map(|(cpu, gpu)| Step::Wait(cpu, gpu)),
        (0..8_usize).prop_map(Step::Reserve),
        (0..8_usize).prop_map(Step::GiveUp),
        (0..8_usize, 0..80_u64, 0..80_u64).prop_map(|(at, cpu, gpu)| Step::Commit(at, cpu, gpu)),
        (0..8_usize).prop_map(Step::Leave),
        (0..8_usize).prop_map(Step::Stick),
        (0..8_usize, 0..80_u64, 0..80_u64).prop_map(|(at, cpu, gpu)| Step::Page(at, cpu, gpu)),
        (0..8_usize).prop_map(Step::Release),
    ]
}

fn both(cpu: u64, gpu: u64) -> Footprint {
    let each = [(CPU, cpu), (GPU, gpu)].into_iter().filter(|(_, bytes)| *bytes > 0);
    Footprint { bytes: each.collect() }
}

proptest! {
    /// Whatever is done, no device is given out beyond its limit, and once all is released nothing is held.
    #[test]
    fn the_limits_hold_and_everything_comes_back(steps in proptest::collection::vec(step(), 0..200)) {
        let mut ledger = ledger(100);
        ledger.limit(GPU, 70);
        let (mut line, mut entries): (Vec<(Place, Footprint)>, Vec<EntryId>) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Wait(cpu, gpu) => line.push((stand(&mut ledger, both(cpu, gpu)), both(cpu, gpu))),
                Step::Reserve(at) if at < line.len() => {
                    let (place, need) = line[at].clone();
                    if let Some(ids) = ledger.reserve(place, &[(holder("m"), need)]) {
                        entries.extend(ids);
                        line.remove(at);
                    }
                }
                Step::GiveUp(at) if at < line.len() => ledger.give_up(line.remove(at).0),
                Step::Commit(at, cpu, gpu) if at < entries.len() => {
                    let before = [CPU, GPU].map(|device| ledger.free(device, ledger.limits[&device]));
                    let done = ledger.commit(entries[at], &both(cpu, gpu));
                    let after = [CPU, GPU].map(|device| ledger.free(device, ledger.limits[&device]));
                    prop_assert!(done || before == after);
                }
                Step::Leave(at) if at < entries.len() => ledger.leave(entries[at]),
                Step::Stick(at) if at < entries.len() => ledger.stick(entries[at]),
                Step::Page(at, cpu, gpu) if at < entries.len() => {
                    // Room for the other place first, and what was there before is given back.
                    let (before, after) = (ledger.of(entries[at]), both(cpu, gpu));
                    match ledger.grow(entries[at], &excess(&after, &before)) {
                        true => {
                            ledger.settle(entries[at]);
                            ledger.correct(entries[at], &after);
                        }
                        false => prop_assert_eq!(ledger.of(entries[at]), before),
                    }
                }
                Step::Release(at) if at < entries.len() => ledger.release(entries.remove(at)),
                _ => {}
            }
            for device in [CPU, GPU] {
                let phases = [Phase::Reserved, Phase::Held, Phase::Leaving, Phase::Stuck];
                let held: u64 = phases.map(|phase| ledger.bytes(device, phase)).iter().sum();
                prop_assert!(held <= ledger.limits[&device]);
            }
        }
        entries.into_iter().for_each(|id| ledger.release(id));
        line.into_iter().for_each(|(place, _)| ledger.give_up(place));
        prop_assert!(ledger.entries.is_empty() && ledger.line.is_empty());
    }

    /// The first in line gets what it waits for as soon as so much is given back as it lacks.
    #[test]
    fn what_is_lacking_is_exactly_what_is_in_the_way(held in 0..=100_u64, need in 1..=100_u64) {
        let mut ledger = ledger(100);
        let id = reserve(&mut ledger, "held", held).expect("it fits");
        prop_assert!(ledger.commit(id, &Footprint::on(CPU, held)));
        match reserve(&mut ledger, "new", need) {
            Ok(_) => prop_assert!(held + need <= 100),
            Err(place) => {
                let lacking = ledger.lacking(place).of(CPU);
                prop_assert_eq!(lacking, held + need - 100);
                prop_assert!(ledger.commit(id, &Footprint::on(CPU, held - lacking)));
                let parts = [(holder("new"), Footprint::on(CPU, need))];
                prop_assert!(ledger.reserve(place, &parts).is_some());
            }
        }
    }
}
