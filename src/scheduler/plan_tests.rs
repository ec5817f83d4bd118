//! Properties and examples of `plan`.

use proptest::prelude::*;

use super::*;

/// Run times given as a table in milliseconds: entry `n - 1` for `n` rows; nothing beyond it.
struct Table(Vec<u64>);

impl Curve for Table {
    fn cautious(&self, rows: usize) -> Option<Duration> {
        self.usual(rows)
    }

    fn usual(&self, rows: usize) -> Option<Duration> {
        self.0.get(rows - 1).map(|&ms| Duration::from_millis(ms))
    }
}

const MS: Duration = Duration::from_millis(1);

/// Longer than anything in these tests takes.
const BUDGET: Duration = Duration::from_secs(10_000);

fn limits(rows_max: usize) -> Limits {
    Limits { rows_max, preferred_rows: Vec::new(), delay_max: Duration::ZERO, budget: None }
}

fn requests(now: Instant, due_ms: &[Option<u64>]) -> Vec<Waiting> {
    let due = |ms: &Option<u64>| ms.map(|ms| now + Duration::from_millis(ms));
    due_ms.iter().map(|ms| Waiting { rows: 1, arrived: now, due: due(ms) }).collect()
}

fn take(plan: Plan) -> usize {
    match plan {
        Plan::Run { take } => take,
        Plan::Wait { .. } => 0,
    }
}

#[test]
fn without_deadlines_a_batch_takes_all_that_fits() {
    let now = Instant::now();
    assert_eq!(plan(&requests(now, &[None; 5]), &limits(4), &Table(vec![]), now), Plan::Run { take: 4 });
}

#[test]
fn one_request_larger_than_the_limit_runs_alone() {
    let now = Instant::now();
    let waiting = [Waiting { rows: 9, arrived: now, due: None }];
    assert_eq!(plan(&waiting, &limits(4), &Table(vec![]), now), Plan::Run { take: 1 });
}

#[test]
fn a_batch_that_would_be_late_for_a_member_is_cut() {
    let now = Instant::now();
    let waiting = requests(now, &[Some(25), Some(100), Some(100), Some(100)]);
    assert_eq!(plan(&waiting, &limits(4), &Table(vec![10, 20, 30, 40]), now), Plan::Run { take: 2 });
}

#[test]
fn a_smaller_batch_is_taken_if_it_keeps_the_request_behind_in_time() {
    let now = Instant::now();
    let waiting = [
        Waiting { rows: 1, arrived: now, due: Some(now + 100 * MS) },
        Waiting { rows: 2, arrived: now, due: Some(now + 100 * MS) },
        Waiting { rows: 2, arrived: now, due: Some(now + 54 * MS) },
    ];
    let table = Table(vec![10, 20, 35, 40, 80]);
    assert_eq!(plan(&waiting, &limits(4), &table, now), Plan::Run { take: 1 });
}

#[test]
fn growth_stops_at_the_knee() {
    let now = Instant::now();
    let limits = Limits { budget: Some(BUDGET), ..limits(8) };
    let flat_after_two = Table(vec![10, 12, 18, 24, 30, 36, 42, 48]);
    assert_eq!(plan(&requests(now, &[None; 8]), &limits, &flat_after_two, now), Plan::Run { take: 2 });
    let still_growing = Table(vec![10, 10, 10, 10, 10, 10, 10, 10]);
    assert_eq!(plan(&requests(now, &[None; 8]), &limits, &still_growing, now), Plan::Run { take: 8 });
}

#[test]
fn a_batch_takes_at_most_half_of_the_budget() {
    let now = Instant::now();
    let limits = Limits { budget: Some(50 * MS), ..limits(8) };
    let growing = Table(vec![10, 15, 20, 24, 28, 31, 34, 36]);
    assert_eq!(plan(&requests(now, &[None; 8]), &limits, &growing, now), Plan::Run { take: 4 });
}

#[test]
fn an_unseen_row_count_is_tried() {
    let now = Instant::now();
    let limits = Limits { budget: Some(BUDGET), ..limits(8) };
    assert_eq!(plan(&requests(now, &[None; 3]), &limits, &Table(vec![10, 20]), now), Plan::Run { take: 3 });
}

#[test]
fn a_queue_delay_waits_for_more_but_not_past_a_deadline() {
    let now = Instant::now();
    let limits = Limits { delay_max: 50 * MS, ..limits(4) };
    let table = Table(vec![10, 10, 10, 10]);
    let waits = plan(&requests(now, &[None, None]), &limits, &table, now);
    assert_eq!(waits, Plan::Wait { until: now + 50 * MS });
    let hurried = plan(&requests(now, &[Some(30), None]), &limits, &table, now);
    assert_eq!(hurried, Plan::Wait { until: now + 20 * MS - 30 * MS / 8 });
    assert_eq!(take(plan(&requests(now, &[None; 4]), &limits, &table, now)), 4);
    assert_eq!(take(plan(&requests(now, &[None, None]), &limits, &table, now + 50 * MS)), 2);
}

#[test]
fn a_preferred_size_is_sent_at_once() {
    let now = Instant::now();
    let limits = Limits { delay_max: 50 * MS, preferred_rows: vec![2, 4], ..limits(8) };
    let none = Table(vec![]);
    assert!(matches!(plan(&requests(now, &[None]), &limits, &none, now), Plan::Wait { .. }));
    assert_eq!(take(plan(&requests(now, &[None; 2]), &limits, &none, now)), 2);
    assert_eq!(take(plan(&requests(now, &[None; 5]), &limits, &none, now)), 4);
    assert_eq!(take(plan(&requests(now, &[None; 5]), &limits, &none, now + 60 * MS)), 5);
}

#[test]
fn without_a_delay_every_batch_is_cut_to_a_preferred_size() {
    let now = Instant::now();
    let limits = Limits { preferred_rows: vec![4, 8], ..limits(12) };
    let take_of = |count| take(plan(&requests(now, &vec![None; count]), &limits, &Table(vec![]), now));
    assert_eq!([1, 3, 4, 6, 8, 11, 12].map(take_of), [1, 3, 4, 4, 8, 8, 8]);
    let of_rows = |rows: &[usize]| {
        let waiting: Vec<_> = rows.iter().map(|&rows| Waiting { rows, arrived: now, due: None }).collect();
        take(plan(&waiting, &limits, &Table(vec![]), now))
    };
    assert_eq!((of_rows(&[3, 3, 3]), of_rows(&[9, 1])), (2, 1), "no more than the largest, if none is reached");
}

#[test]
fn the_largest_batch_as_the_only_preferred_one_is_no_preference() {
    let now = Instant::now();
    let limits = Limits { preferred_rows: vec![8], ..limits(8) };
    let take_of = |count| take(plan(&requests(now, &vec![None; count]), &limits, &Table(vec![]), now));
    assert_eq!([1, 3, 7, 8, 11].map(take_of), [1, 3, 7, 8, 8]);
}

#[test]
fn no_deadline_is_missed_for_a_preferred_size() {
    let now = Instant::now();
    let limits = Limits { preferred_rows: vec![4], ..limits(8) };
    let flat = Table(vec![10; 8]);
    let take_of = |due| take(plan(&requests(now, &[due; 6]), &limits, &flat, now));
    assert_eq!((take_of(Some(15)), take_of(Some(20)), take_of(None)), (6, 4, 4));
    let steep = Table(vec![10, 20, 30, 40, 50, 60]);
    assert_eq!(take(plan(&requests(now, &[Some(35); 6]), &limits, &steep, now)), 3, "nor is one batch that is late");
    let (limits, steep) = (Limits { budget: Some(50 * MS), ..limits }, Table(vec![10, 15, 30, 40, 50, 60]));
    assert_eq!(take(plan(&requests(now, &[None; 6]), &limits, &steep, now)), 2, "nor the budget");
}

#[test]
fn the_first_in_a_hurry_are_given_up_for_more_of_the_others() {
    let now = Instant::now();
    let table = Table(vec![10, 12, 14, 16, 18, 20]);
    let hurried = requests(now, &[Some(10), Some(11), Some(20), Some(21), Some(22), Some(23)]);
    // The first alone, then nobody, or the two of them late: four of the others are in time without them.
    assert_eq!(shed(&hurried, 8, &table, now), 2);
    assert_eq!(plan(&hurried[2..], &limits(8), &table, now), Plan::Run { take: 4 });
    // With time for two batches all are served.
    let patient = requests(now, &[Some(10), Some(11), Some(40), Some(41), Some(42), Some(43)]);
    assert_eq!(shed(&patient, 8, &table, now), 1, "the second cannot run with the first nor after it");
    assert_eq!(shed(&patient[1..], 8, &table, now), 0);
}

#[test]
fn nobody_is_given_up_without_deadlines_or_knowledge_or_for_as_few() {
    let now = Instant::now();
    let table = Table(vec![10, 20, 30, 40]);
    assert_eq!(shed(&requests(now, &[None; 6]), 4, &table, now), 0);
    assert_eq!(shed(&requests(now, &[Some(1); 6]), 4, &Table(vec![]), now), 0);
    assert_eq!(shed(&requests(now, &[Some(10), Some(19)]), 4, &table, now), 0);
    // Those that wait without a deadline are served, however many others are late for them.
    let hurried = requests(now, &[None, Some(10), Some(11), Some(20), Some(21), Some(22), Some(23)]);
    assert_eq!(shed(&hurried, 8, &Table(vec![10, 12, 14, 16, 18, 20, 22]), now), 0);
    let large = Waiting { rows: 3, arrived: now, due: Some(now + 30 * MS) };
    let small = requests(now, &[Some(39), Some(39)]);
    assert_eq!(shed(&[large, small[0], small[1]], 4, &table, now), 0, "three rows are more than two");
}

fn in_time(request: &Waiting, end: Instant) -> bool {
    request.due.is_none_or(|due| end <= due)
}

/// Rows in time if `take` run now and the longest prefix of the rest that is in time follows, by brute force.
fn kept(waiting: &[Waiting], take: usize, limits: &Limits, table: &Table, now: Instant) -> usize {
    let end = now + table.cautious(rows(&waiting[..take])).expect("the table is long enough");
    let members: usize = waiting[..take].iter().filter(|member| in_time(member, end)).map(|member| member.rows).sum();
    let rest = &waiting[take..];
    let follow = (0..=rest.len()).rev().find(|&count| {
        let batch = &rest[..count];
        count == 0
            || (rows(batch) <= limits.rows_max || count == 1)
                && batch.iter().all(|each| in_time(each, end + table.cautious(rows(batch)).expect("long enough")))
    });
    members + rows(&rest[..follow.unwrap_or(0)])
}

prop_compose! {
    fn situation()(
        steps in prop::collection::vec(0u64..30, 64),
        waiting in prop::collection::vec((1usize..4, prop::option::of(1u64..400)), 1..16),
        rows_max in 1usize..12,
    ) -> (Vec<u64>, Vec<(usize, Option<u64>)>, usize) {
        let mut time = 5;
        let table = steps.into_iter().map(|step| { time += step; time }).collect();
        (table, waiting, rows_max)
    }
}

/// Those of these requests (rows, and milliseconds until they are due) that a queue would plan for: in time if they ran
/// alone now.
fn served(waiting: Vec<(usize, Option<u64>)>, rows_max: usize, table: &Table, now: Instant) -> Vec<Waiting> {
    let due = |ms: Option<u64>| ms.map(|ms| now + Duration::from_millis(ms));
    waiting
        .into_iter()
        .map(|(rows, ms)| Waiting { rows: rows.min(rows_max), arrived: now, due: due(ms) })
        .filter(|each| in_time(each, now + table.cautious(each.rows).expect("long enough")))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_batch_is_late_or_too_large_or_worse_than_a_smaller_one((table, waiting, rows_max) in situation()) {
        let now = Instant::now();
        let table = Table(table);
        let waiting = served(waiting, rows_max, &table, now);
        prop_assume!(!waiting.is_empty());
        let limits = limits(rows_max);
        let take = take(plan(&waiting, &limits, &table, now));
        prop_assert!(take >= 1 && take <= waiting.len());
        prop_assert!(rows(&waiting[..take]) <= rows_max);
        let end = now + table.cautious(rows(&waiting[..take])).expect("long enough");
        prop_assert!(waiting[..take].iter().all(|member| in_time(member, end)));
        for smaller in 1..take {
            prop_assert!(
                kept(&waiting, smaller, &limits, &table, now) <= kept(&waiting, take, &limits, &table, now),
                "{smaller} would keep more in time than {take}"
            );
        }
    }

    #[test]
    fn to_give_some_up_keeps_more_rows_in_time((table, waiting, rows_max) in situation()) {
        let now = Instant::now();
        let table = Table(table);
        let waiting = served(waiting, rows_max, &table, now);
        prop_assume!(!waiting.is_empty());
        let limits = limits(rows_max);
        let all_in_time = |batch: &[Waiting]| {
            batch.iter().all(|each| in_time(each, now + table.cautious(rows(batch)).expect("long enough")))
        };
        let best = |waiting: &[Waiting]| {
            let counts = (1..=fitting(waiting, rows_max)).filter(|&take| all_in_time(&waiting[..take]));
            counts.map(|take| kept(waiting, take, &limits, &table, now)).max().unwrap_or(0)
        };
        let shed = shed(&waiting, rows_max, &table, now);
        prop_assert!(shed < waiting.len());
        prop_assert!(waiting[..shed].iter().all(|each| each.due.is_some()));
        prop_assert!(best(&waiting[shed..]) >= best(&waiting), "{shed}");
        prop_assert!(shed == 0 || best(&waiting[shed..]) > best(&waiting), "{shed}");
    }

    #[test]
    fn the_knee_never_loses_throughput((table, waiting, rows_max) in situation()) {
        let now = Instant::now();
        let table = Table(table);
        let waiting: Vec<Waiting> = waiting
            .into_iter()
            .map(|(rows, _)| Waiting { rows: rows.min(rows_max), arrived: now, due: None })
            .collect();
        let limits = Limits { budget: Some(BUDGET), ..limits(rows_max) };
        let take = take(plan(&waiting, &limits, &table, now));
        let rate = |count: usize| {
            let rows = rows(&waiting[..count]);
            rows as f64 / table.usual(rows).expect("long enough").as_secs_f64()
        };
        for other in 1..=fitting(&waiting, rows_max) {
            prop_assert!(rate(take) >= rate(other) * KNEE_TOLERANCE * 0.999);
        }
    }
}
