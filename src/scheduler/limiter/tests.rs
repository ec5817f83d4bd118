//! What the books promise, whatever order instances ask in; and threads that wait for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::ledger::Stock;
use super::*;
use crate::error::Kind;
use crate::model::{Place, Resource};

fn limit(priority: u32, resources: &[(&str, bool, u32)]) -> RateLimit {
    let resource = |(name, global, count): &(&str, bool, u32)| Resource {
        name: (*name).to_owned(),
        global: *global,
        count: *count,
    };
    RateLimit { resources: resources.iter().map(resource).collect(), priority }
}

fn amount(name: &str, count: u32) -> Amount {
    Amount { name: name.to_owned(), count, device: None }
}

/// Lets those that hold end one after the other, and asks again at once; gives how often each had its turn.
fn turns(ledger: &mut Ledger, claims: &[ClaimId], rounds: usize) -> BTreeMap<ClaimId, usize> {
    let mut turns = BTreeMap::new();
    claims.iter().for_each(|id| ledger.ask(*id));
    for _ in 0..rounds {
        for id in claims {
            if ledger.holds(*id) {
                *turns.entry(*id).or_default() += 1;
                ledger.give_back(*id, true, true);
            }
        }
    }
    turns
}

#[test]
fn by_default_there_is_as_much_as_the_largest_claim_needs() {
    let mut ledger = Ledger::default();
    let small = ledger.register(Device::Cpu, &limit(1, &[("R", false, 2)])).expect("fits");
    let large = ledger.register(Device::Cpu, &limit(1, &[("r", false, 4)])).expect("fits");
    let key = ("r".to_owned(), Place::On(Device::Cpu));
    assert_eq!(ledger.stocks()[&key], Stock { total: 4, used: 0 });
    ledger.ask(small);
    ledger.ask(large);
    assert!(ledger.holds(small) && !ledger.holds(large));
    ledger.give_back(small, true, false);
    assert_eq!(ledger.stocks()[&key], Stock { total: 4, used: 4 });
}

#[test]
fn a_resource_is_of_each_device_unless_it_is_global() {
    let mut ledger = Ledger::new(vec![amount("R", 1), amount("G", 1)]);
    let on = |ledger: &mut Ledger, device, name, global| {
        let id = ledger.register(device, &limit(1, &[(name, global, 1)])).expect("fits");
        ledger.ask(id);
        ledger.holds(id)
    };
    assert!(on(&mut ledger, Device::Cuda(0), "R", false));
    assert!(on(&mut ledger, Device::Cuda(1), "R", false));
    assert!(!on(&mut ledger, Device::Cuda(1), "R", false));
    assert!(on(&mut ledger, Device::Cuda(0), "G", true));
    assert!(!on(&mut ledger, Device::Cuda(1), "G", true));
}

#[test]
fn who_needs_more_than_there_is_or_another_kind_is_refused() {
    let mut ledger = Ledger::new(vec![amount("R", 2)]);
    let refused = ledger.register(Device::Cpu, &limit(1, &[("R", false, 3)])).expect_err("too much");
    assert_eq!(refused.kind(), Kind::InvalidArgument);
    assert!(refused.message().contains("is limited to 2 which will prevent scheduling"), "{refused}");
    ledger.register(Device::Cpu, &limit(1, &[("R", false, 2)])).expect("fits");
    let refused = ledger.register(Device::Cpu, &limit(1, &[("R", true, 1)])).expect_err("another kind");
    assert!(refused.message().contains("is present as both global and device-specific"), "{refused}");
}

#[test]
fn one_of_weight_two_has_half_the_turns_of_one_of_weight_one() {
    let mut ledger = Ledger::new(vec![amount("R", 1)]);
    let claims: Vec<ClaimId> = [1, 2, 4]
        .into_iter()
        .map(|weight| ledger.register(Device::Cpu, &limit(weight, &[("R", false, 1)])).expect("fits"))
        .collect();
    let turns = turns(&mut ledger, &claims, 1000);
    let share = |at: usize| turns[&claims[at]] as f64 / turns[&claims[0]] as f64;
    assert!((share(1) - 0.5).abs() < 0.01 && (share(2) - 0.25).abs() < 0.01, "{turns:?}");
}

#[test]
fn small_claims_never_starve_a_large_one() {
    let mut ledger = Ledger::new(vec![amount("R", 3)]);
    let mut claims: Vec<ClaimId> =
        (0..6).map(|_| ledger.register(Device::Cpu, &limit(1, &[("R", false, 1)])).expect("fits")).collect();
    claims.push(ledger.register(Device::Cpu, &limit(1, &[("R", false, 3)])).expect("fits"));
    let turns = turns(&mut ledger, &claims, 700);
    let (most, least) = (turns.values().max().expect("many"), turns.values().min().expect("many"));
    assert!(turns.len() == 7 && most - least <= 2, "{turns:?}");
}

#[test]
fn a_turn_that_was_not_used_counts_for_nothing() {
    let mut ledger = Ledger::new(vec![amount("R", 1)]);
    let [one, other] = [1, 1].map(|w| ledger.register(Device::Cpu, &limit(w, &[("R", false, 1)])).expect("fits"));
    ledger.ask(one);
    ledger.ask(other);
    ledger.give_back(one, false, true);
    ledger.give_back(other, true, true);
    assert!(ledger.holds(one), "it is still its turn");
}

/// What an instance does to the books; the number says which one.
#[derive(Clone, Copy, Debug)]
enum Act {
    Ask(usize),
    Leave(usize),
    GiveBack(usize, bool, bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0usize..6).prop_map(Act::Ask),
        1 => (0usize..6).prop_map(Act::Leave),
        3 => (0usize..6, any::<bool>(), any::<bool>()).prop_map(|(id, used, again)| Act::GiveBack(id, used, again)),
    ]
}

/// What six instances on two devices need of two resources, one of them global.
fn limits() -> impl Strategy<Value = Vec<(u32, u32, u32, u32)>> {
    proptest::collection::vec((0u32..2, 1u32..4, 0u32..4, 1u32..4), 6)
}

proptest! {
    #[test]
    fn nothing_is_given_twice_and_nobody_waits_for_nothing(
        limits in limits(),
        given in proptest::option::of(3u32..6),
        acts in proptest::collection::vec(act(), 0..200),
    ) {
        let amounts = given.map(|count| vec![amount("A", count), amount("B", count)]).unwrap_or_default();
        let mut ledger = Ledger::new(amounts);
        let claims: Vec<ClaimId> = limits.iter().map(|(device, a, b, weight)| {
            let limit = limit(*weight, &[("A", false, *a), ("B", true, *b)]);
            ledger.register(Device::Cuda(*device), &limit).expect("at most three of each")
        }).collect();
        for act in acts {
            match act {
                Act::Ask(at) => ledger.ask(claims[at]),
                Act::Leave(at) => {
                    let held = ledger.holds(claims[at]);
                    prop_assert_eq!(ledger.leave(claims[at]), !held);
                }
                Act::GiveBack(at, used, again) => ledger.give_back(claims[at], used, again),
            }
            for (key, Stock { total, used }) in ledger.stocks() {
                prop_assert!(used <= total, "{key:?}: {used} of {total}");
            }
            let holding = claims.iter().filter(|id| ledger.holds(**id)).count();
            prop_assert!(holding > 0 || ledger.waiting() == 0, "all is free and somebody waits");
        }
        // When all that hold end, one after the other, everybody in line has its turn: no deadlock, no starvation.
        let waiting: Vec<ClaimId> = claims.iter().copied().filter(|id| !ledger.holds(*id)).collect();
        waiting.iter().for_each(|id| ledger.ask(*id));
        for _ in 0..claims.len() {
            let held: Vec<ClaimId> = claims.iter().copied().filter(|id| ledger.holds(*id)).collect();
            held.iter().for_each(|id| ledger.give_back(*id, true, false));
        }
        prop_assert_eq!(ledger.waiting(), 0);
        prop_assert!(ledger.stocks().values().all(|stock| stock.used == 0));
    }

    #[test]
    fn whoever_asks_has_its_turn_however_the_others_go_on(
        limits in limits(),
        order in proptest::collection::vec(0usize..6, 400),
    ) {
        let mut ledger = Ledger::default();
        let claims: Vec<ClaimId> = limits.iter().map(|(device, a, b, weight)| {
            ledger.register(Device::Cuda(*device), &limit(*weight, &[("A", false, *a), ("B", true, *b)])).expect("fits")
        }).collect();
        claims.iter().for_each(|id| ledger.ask(*id));
        let mut last = vec![0; claims.len()];
        for (step, at) in order.into_iter().cycle().take(2000).enumerate() {
            if ledger.holds(claims[at]) {
                last[at] = step;
                ledger.give_back(claims[at], true, true);
            }
        }
        // Weights are at most 3: in 1000 steps everybody had a turn, if its end was ever in the order at all.
        let missed: Vec<usize> = (0..claims.len()).filter(|at| last[*at] < 1000 && !ledger.holds(claims[*at])).collect();
        let stuck: Vec<usize> = (0..claims.len()).filter(|at| ledger.holds(claims[*at]) && last[*at] < 1000).collect();
        prop_assert!(missed.is_empty() || !stuck.is_empty(), "{missed:?} wait though nobody holds for ever");
    }
}

#[test]
fn threads_never_hold_more_than_there_is() {
    let limiter = Arc::new(Limiter::new(vec![amount("R", 2)], &Metrics::new()));
    let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let claim = limiter.claim(Device::Cpu, &limit(1, &[("R", false, 1)])).expect("fits").expect("it needs one");
            let (held, most) = (&held, &most);
            scope.spawn(move || {
                for _ in 0..200 {
                    let mut permit = claim.acquire(|| true).expect("wanted");
                    permit.used();
                    most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    held.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[test]
fn a_wait_ends_when_nothing_is_left_to_do() {
    let limiter = Arc::new(Limiter::new(Vec::new(), &Metrics::new()));
    let claim = || limiter.claim(Device::Cpu, &limit(1, &[("R", false, 1)])).expect("fits").expect("it needs one");
    let (holder, waiter) = (claim(), claim());
    let permit = holder.acquire(|| true).expect("it is free");
    let asked = AtomicBool::new(false);
    let wanted = || !asked.swap(true, Ordering::SeqCst);
    assert!(waiter.acquire(wanted).is_none());
    assert_eq!(limiter.ledger.lock().waiting(), 0);
    drop(permit);
    assert!(waiter.acquire(|| true).is_some());
}

#[test]
fn a_wait_ends_however_often_the_line_moves() {
    let limiter = Arc::new(Limiter::new(Vec::new(), &Metrics::new()));
    let claim = |name| limiter.claim(Device::Cpu, &limit(1, &[(name, false, 1)])).expect("fits").expect("it needs one");
    let (holder, waiter, other) = (claim("R"), claim("R"), claim("S"));
    let _permit = holder.acquire(|| true).expect("it is free");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| waiter.acquire(|| false).is_none());
        let began = Instant::now();
        while !waiting.is_finished() && began.elapsed() < Duration::from_secs(10) {
            drop(other.acquire(|| true));
        }
        assert!(waiting.is_finished(), "it still stands in line");
        assert!(waiting.join().expect("it does not panic"), "nothing was free");
    });
}

#[test]
fn what_needs_nothing_has_no_claim_and_what_ends_gives_back() {
    let limiter = Arc::new(Limiter::new(Vec::new(), &Metrics::new()));
    assert!(limiter.claim(Device::Cpu, &limit(3, &[])).expect("nothing").is_none());
    let claim = limiter.claim(Device::Cpu, &limit(1, &[("R", false, 1)])).expect("fits").expect("it needs one");
    let permit = claim.acquire(|| true).expect("it is free");
    drop(claim);
    drop(permit);
    assert!(limiter.ledger.lock().stocks().is_empty());
}
