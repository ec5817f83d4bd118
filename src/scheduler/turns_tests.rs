//! The order among levels, without a queue.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn priorities(levels: u64, weights: &[u32], ageing: Option<Duration>) -> Priorities {
    Priorities { levels, default_level: 1, weights: weights.to_vec(), ageing, ..Priorities::default() }
}

fn claim(level: u64, delayed: bool, since: Instant, seq: u64) -> Claim {
    Claim { level, delayed, since, seq }
}

/// The numbers of the claims in the order in which they are served, one row each.
fn served(priorities: &Priorities, now: Instant, mut claims: Vec<Claim>) -> Vec<u64> {
    let mut turns = Turns::new(priorities, &Tally::default(), now);
    let mut order = Vec::new();
    while let Some((index, rank)) =
        claims.iter().map(|claim| turns.rank(*claim)).enumerate().min_by_key(|(_, rank)| *rank)
    {
        turns.serve(rank, 1, true);
        order.push(claims.remove(index).seq);
    }
    order
}

/// How many rows each level gets of `rows` if all levels always wait.
fn shares(weights: &[u32], rows: usize) -> Vec<usize> {
    let priorities = priorities(weights.len() as u64, weights, None);
    let (mut tally, mut got) = (Tally::default(), vec![0; weights.len()]);
    for seq in 0..rows as u64 {
        let mut turns = Turns::new(&priorities, &tally, Instant::now());
        let ranks = (1..=weights.len() as u64).map(|level| turns.rank(claim(level, false, Instant::now(), seq)));
        let rank = ranks.min().expect("there are levels");
        got[rank.level as usize - 1] += 1;
        turns.serve(rank, 1, true);
        tally = turns.into_tally();
    }
    got
}

#[test]
fn strict_priority_goes_by_level_then_what_is_in_time_then_arrival() {
    let now = Instant::now();
    let claims = vec![
        claim(2, false, now, 0),
        claim(1, true, now, 1),
        claim(2, true, now, 2),
        claim(1, false, now, 3),
        claim(2, false, now, 4),
        claim(1, false, now, 5),
    ];
    let hours_later = now + Duration::from_secs(7200);
    assert_eq!(served(&priorities(2, &[], None), hours_later, claims), [3, 5, 1, 0, 4, 2]);
}

#[test]
fn a_request_counts_as_one_level_higher_for_each_interval_that_it_waits() {
    let (began, priorities) = (Instant::now(), priorities(3, &[], Some(10 * MS)));
    let old = claim(3, false, began, 0);
    let before = |waited: Duration, level| {
        let fresh = claim(level, false, began + waited, 1);
        served(&priorities, began + waited, vec![old, fresh]) == [0, 1]
    };
    assert!(!before(9 * MS, 2) && before(10 * MS, 2), "as a second after one interval, and older");
    assert!(!before(19 * MS, 1) && before(20 * MS, 1), "as a first after two");
    assert!(before(1000 * MS, 1), "there is nothing above the first");
}

#[test]
fn a_delayed_request_ages_from_the_moment_of_its_delay() {
    let (began, priorities) = (Instant::now(), priorities(2, &[], Some(10 * MS)));
    let delayed = claim(1, true, began, 0);
    let at = |waited: Duration, level| {
        served(&priorities, began + waited, vec![delayed, claim(level, false, began + waited, 1)])
    };
    assert_eq!(at(9 * MS, 1), [1, 0]);
    assert_eq!(at(9 * MS, 2), [0, 1]);
    assert_eq!(at(10 * MS, 1), [0, 1]);
}

#[test]
fn a_level_that_did_not_wait_has_saved_nothing_up() {
    let priorities = priorities(2, &[1, 1], None);
    let (mut tally, now) = (Tally::default(), Instant::now());
    for seq in 0..1000 {
        let mut turns = Turns::new(&priorities, &tally, now);
        let rank = turns.rank(claim(2, false, now, seq));
        turns.serve(rank, 1, true);
        tally = turns.into_tally();
    }
    let mut turns = Turns::new(&priorities, &tally, now);
    let mut firsts = 0;
    for seq in 1000..1010 {
        let ranks = [1, 2].map(|level| turns.rank(claim(level, false, now, seq)));
        firsts += usize::from(ranks[0] < ranks[1]);
        turns.serve(ranks[0].min(ranks[1]), 1, true);
    }
    assert!((5..=6).contains(&firsts), "half of the turns and not all: {firsts}");
}

proptest! {
    #[test]
    fn levels_that_always_wait_get_their_shares(weights in prop::collection::vec(1u32..50, 2..5)) {
        let rows = 5000;
        let total: u32 = weights.iter().sum();
        for (got, weight) in shares(&weights, rows).into_iter().zip(&weights) {
            let due = rows as f64 * f64::from(*weight) / f64::from(total);
            // Two levels are never more than one turn apart by stride scheduling, so each is by one for each other level.
            let off = (got as f64 - due).abs();
            prop_assert!(off <= weights.len() as f64, "{got} of {rows} by weight {weight} of {total}");
        }
    }

    #[test]
    fn nobody_waits_for_ever_where_requests_age(
        level in 2u64..6, ageing in 1u64..50, gap in 1u64..20,
    ) {
        // One old request of a low level, and a fresh one of the first level at each turn.
        let priorities = priorities(6, &[], Some(Duration::from_millis(ageing)));
        let began = Instant::now();
        let old = claim(level, false, began, 0);
        let turn = (1u64..).find(|turn| {
            let now = began + Duration::from_millis(turn * gap);
            served(&priorities, now, vec![old, claim(1, false, now, *turn)])[0] == 0
        });
        let waited = turn.expect("it comes") * gap;
        prop_assert!(waited < (level - 1) * ageing + gap, "{waited} ms");
    }
}
