//! The queue without threads: levels, policies, delay, order and holds, at moments that the tests choose.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use proptest::prelude::*;

use super::look::Look;
use super::tests::{Asked, MS, policy, respond, settings};
use super::*;
use crate::backend::{Instance, Replies};
use crate::error::{Error, Kind, Result};
use crate::infer::round;
use crate::model::{Priorities, QueuePolicy, TimeoutAction};
use crate::tensor::{Batch, DataType, Shape};

/// Answers or fails at once, as told.
pub(super) struct Doer {
    pub(super) fails: bool,
}

impl Instance for Doer {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        if self.fails {
            return Err(Error::new(Kind::Backend, "broken"));
        }
        for (index, member) in batch.members.iter().enumerate() {
            replies.member(index, member.inputs.clone())?;
        }
        Ok(())
    }
}

/// Bytes that cannot be freed.
pub(super) struct Stuck;

impl AsRef<[u8]> for Stuck {
    fn as_ref(&self) -> &[u8] {
        &[7; 4]
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        panic!("cannot be freed");
    }
}

/// A queue, and a clock that begins at zero.
struct Bench {
    queue: Arc<Queue>,
    began: Instant,
}

/// What a test asks; the rest is usual.
#[derive(Clone, Copy, Debug, Default)]
struct Ask {
    rows: usize,
    width: i64,
    priority: u64,
    timeout: Option<Duration>,
    deadline: Option<Duration>,
}

/// One row of this level.
fn level(priority: u64) -> Ask {
    Ask { rows: 1, width: 4, priority, ..Ask::default() }
}

impl Bench {
    fn new(settings: QueueSettings) -> Self {
        Self { queue: Arc::new(Queue::new(settings, Arc::new(ModelStats::default()))), began: Instant::now() }
    }

    fn push(&self, ask: Ask, at: Duration) -> Result<(Ticket, Receiver)> {
        let now = self.began + at;
        let shape = Shape::new(&[ask.rows as i64, ask.width]);
        let data = vec![7; ask.rows * ask.width as usize].into();
        let member = Member::new(ask.rows, vec![Tensor::new(DataType::Uint8, shape, data)]);
        let deadline = ask.deadline.map(|deadline| now + deadline);
        let pushed = Pushed { deadline, timeout: ask.timeout, priority: ask.priority, ..Pushed::new(member, now) };
        self.queue.clone().push(pushed, now).map_err(Error::from)
    }

    /// Pushes now, with a waiter.
    fn ask(&self, ask: Ask) -> Result<Asked> {
        let now = Instant::now();
        let waiting = self.push(ask, now - self.began)?;
        let deadline = ask.deadline.map(|deadline| now + deadline);
        Ok(Waiter::new(self.queue.clone(), waiting, (now, deadline), respond()))
    }

    /// The batch that this instance gets, if there is one.
    fn pull(&self, instance: usize, at: Duration) -> Option<Pulled> {
        loop {
            match self.queue.look_at(instance, self.began + at) {
                Look::Run(pulled) => return Some(pulled),
                Look::Again | Look::Ready => {}
                Look::Wait(_) | Look::Closed => return None,
            }
        }
    }

    /// The numbers of the requests of the next batch.
    fn next(&self, at: Duration) -> Vec<u64> {
        self.pull(0, at).map(|pulled| seqs(&pulled)).unwrap_or_default()
    }

    fn finish(&self, instance: usize, pulled: Pulled, fails: bool) {
        super::instance::execute(&*self.queue, instance, &mut Doer { fails }, pulled);
    }
}

pub(super) fn seqs(pulled: &Pulled) -> Vec<u64> {
    pulled.entries.iter().map(|entry| entry.seq).collect()
}

/// Levels with the same policy for each.
fn levels(count: u64, default_level: u64, policy: QueuePolicy) -> Levels {
    Levels::new(Priorities { levels: count, default_level, ..Priorities::default() }, policy)
}

fn with(rows_max: usize, levels: Levels) -> QueueSettings {
    QueueSettings { levels, ..settings(rows_max) }
}

/// A policy whose requests are delayed after `timeout`.
fn delayed(timeout: Option<Duration>) -> QueuePolicy {
    QueuePolicy { timeout_action: TimeoutAction::Delay, timeout, ..policy(1000) }
}

fn ordered(rows_max: usize) -> QueueSettings {
    QueueSettings { preserve_order: true, instances: 3, ..settings(rows_max) }
}

/// What the caller has got by now.
fn got(waiter: &mut Asked) -> Option<Result<()>> {
    waiter.next().now_or_never().flatten().map(|response| response.map(|_| ()))
}

#[test]
fn higher_levels_come_first_and_fill_the_batch_with_lower_ones() {
    let bench = Bench::new(with(3, levels(3, 2, policy(1000))));
    let _waiting: Vec<_> = [3, 0, 1, 99, 1].map(|priority| bench.push(level(priority), Duration::ZERO)).into();
    assert_eq!(bench.next(MS), [2, 4, 1]);
    assert_eq!(bench.next(MS), [3, 0]);
}

#[test]
fn each_level_has_a_size_of_its_own_and_all_have_one_together() {
    let policies = BTreeMap::from([(1, policy(1)), (2, policy(2))]);
    let priorities = Priorities { levels: 3, default_level: 3, policies, ..Priorities::default() };
    let bench = Bench::new(QueueSettings { requests_max: 4, ..with(1, Levels::new(priorities, policy(1000))) });
    let full = |priority| match bench.push(level(priority), Duration::ZERO) {
        Ok(waiting) => {
            std::mem::forget(waiting);
            false
        }
        Err(error) => {
            assert_eq!((error.kind(), error.message()), (Kind::QueueFull, "Exceeds maximum queue size"));
            true
        }
    };
    assert!(!full(1) && full(1));
    assert!(!full(2) && !full(2) && full(2));
    assert!(!full(3) && full(3), "four wait in all");
    assert_eq!(bench.next(MS), [0]);
    assert!(!full(1), "there is room again");
}

#[test]
fn a_delayed_request_goes_behind_all_of_its_level_that_are_in_time_and_before_lower_levels() {
    let bench = Bench::new(with(1, levels(2, 1, delayed(Some(10 * MS)))));
    let _waiting: Vec<_> = [(2, 0), (1, 0), (1, 15), (2, 15)].map(|(l, at)| bench.push(level(l), at * MS)).into();
    let order: Vec<_> = (0..4).map(|_| bench.next(20 * MS)).collect();
    assert_eq!(order, [[2], [1], [3], [0]], "the first level's first is delayed, the second level's first too");
}

#[test]
fn delayed_requests_keep_the_order_in_which_their_time_was_up_whenever_somebody_looks() {
    let asks = [(0, 30), (1, 10), (2, 20)];
    let ask = |timeout| Ask { timeout: Some(timeout * MS), ..level(0) };
    for looks in [vec![], vec![12], vec![12, 22, 25]] {
        let bench = Bench::new(with(1, levels(1, 1, delayed(None))));
        let _waiting: Vec<_> = asks.map(|(at, timeout)| bench.push(ask(timeout), at * MS)).into();
        let _hold = bench.push(level(0), 3 * MS);
        for look in looks {
            bench.queue.delay_until(bench.began + look * MS);
        }
        let order: Vec<_> = (0..4).map(|_| bench.next(40 * MS)).collect();
        assert_eq!(order, [[3], [1], [2], [0]]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_request_is_still_answered_refused_at_its_deadline_and_cancelled() {
    let bench = Bench::new(with(1, levels(1, 1, delayed(Some(10 * MS)))));
    let mut answered = bench.ask(level(0)).expect("accepted");
    let mut late = bench.ask(Ask { deadline: Some(50 * MS), ..level(0) }).expect("accepted");
    let gone = bench.ask(level(0)).expect("accepted");
    let began = Instant::now();
    let error = late.next().await.expect("an outcome").expect_err("nobody serves");
    assert_eq!((error.kind(), began.elapsed()), (Kind::DeadlineExceeded, 50 * MS));
    drop(gone);
    let pulled = bench.pull(0, 60 * MS).expect("one is left");
    bench.finish(0, pulled, false);
    got(&mut answered).expect("there by now").expect("answered");
    let stats = bench.queue.stats().snapshot();
    assert_eq!((stats.success.count, stats.fail.count, bench.queue.waiting()), (1, 2, 0));
    assert_eq!((stats.failures[&Kind::DeadlineExceeded], stats.failures[&Kind::Cancelled]), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn each_level_refuses_at_its_own_timeout() {
    let timeout = |millis: u32| QueuePolicy { timeout: Some(millis * MS), ..policy(1000) };
    let policies = BTreeMap::from([(1, timeout(10)), (2, timeout(30))]);
    let priorities = Priorities { levels: 2, default_level: 2, policies, ..Priorities::default() };
    let bench = Bench::new(with(1, Levels::new(priorities, policy(1000))));
    let began = Instant::now();
    let mut waiters = [2, 1].map(|priority| bench.ask(level(priority)).expect("accepted"));
    for (waiter, after) in waiters.iter_mut().rev().zip([10, 30]) {
        let error = waiter.next().await.expect("an outcome").expect_err("nobody serves");
        assert_eq!((error.kind(), error.message()), (Kind::TimedOut, "Request timeout expired"));
        assert_eq!(began.elapsed(), after * MS);
    }
    assert_eq!(bench.queue.stats().snapshot().failures[&Kind::TimedOut], 2);
}

#[test]
fn shares_are_kept_over_batches_and_shapes() {
    let priorities = Priorities { levels: 2, default_level: 2, weights: vec![3, 1], ..Priorities::default() };
    let bench = Bench::new(with(4, Levels::new(priorities, policy(1000))));
    let mut waiting = Vec::new();
    for number in 0..400 {
        for priority in [1, 2] {
            waiting
                .push(bench.push(Ask { width: 4 + number % 2, ..level(priority) }, Duration::ZERO).expect("accepted"));
        }
    }
    let served: Vec<u64> = (0..100).flat_map(|_| bench.next(MS)).collect();
    let firsts = served.iter().filter(|seq| **seq % 2 == 0).count();
    assert!((served.len(), firsts.abs_diff(300)) == (400, 0) || firsts.abs_diff(300) <= 4, "{firsts} of 400");
}

#[test]
fn ageing_lets_a_low_level_through() {
    let priorities = Priorities { levels: 2, default_level: 2, ageing: Some(10 * MS), ..Priorities::default() };
    let bench = Bench::new(with(1, Levels::new(priorities, policy(1000))));
    let _low = bench.push(level(2), Duration::ZERO);
    let _high: Vec<_> = (0..20).map(|at| bench.push(level(1), at * MS)).collect();
    let position = (0..20).position(|at| bench.next(at * MS) == [0]);
    assert_eq!(position, Some(10), "the requests of the first level that arrived before are 10");
}

#[test]
fn what_is_ahead_of_a_request_is_what_stands_in_its_level_and_above() {
    let limits = Limits { budget: Some(100 * MS), ..Limits::single() };
    let bench = Bench::new(QueueSettings { limits, ..with(1, levels(2, 2, policy(1000))) });
    (0..64).for_each(|_| bench.queue.record_run(SizeClass::of_row(4), 1, 20 * MS));
    let mut waiting: Vec<_> = Vec::new();
    while let Ok(accepted) = bench.push(level(2), Duration::ZERO) {
        waiting.push(accepted);
    }
    assert!((2..10).contains(&waiting.len()), "{} fit into the budget", waiting.len());
    bench.push(level(1), Duration::ZERO).map(|accepted| waiting.push(accepted)).expect("nothing is ahead of it");
}

#[test]
fn a_queue_is_idle_once_its_requests_have_run_whoever_reads_the_answers() {
    let bench = Bench::new(settings(1));
    let unread = bench.push(level(0), Duration::ZERO).expect("accepted");
    assert!(!bench.queue.is_idle(), "it waits");
    let pulled = bench.pull(0, MS).expect("it is alone");
    assert!(!bench.queue.is_idle(), "it runs");
    bench.finish(0, pulled, false);
    assert!(bench.pull(0, 2 * MS).is_none() && bench.queue.is_idle());
    drop(unread);
}

#[test]
fn an_instance_that_is_gone_is_not_busy_for_ever() {
    let bench = Bench::new(settings(1));
    let _asked = bench.push(level(0), Duration::ZERO);
    assert!(bench.pull(0, MS).is_some() && !bench.queue.is_idle());
    bench.queue.deserted(0, &Error::internal("it hangs"));
    assert!(bench.queue.is_idle());
}

#[test]
fn a_request_that_is_late_behind_many_others_waits_for_its_waiter_and_not_for_each_batch() {
    let bench = Bench::new(settings(1));
    let late = |behind| Ask { timeout: Some(behind * MS), ..level(0) };
    let waiting: Vec<_> = [late(50), late(50), late(50), late(50), late(1)].map(|ask| bench.push(ask, MS)).into();
    assert_eq!((bench.next(10 * MS), bench.queue.waiting()), (vec![0], 4));
    assert_eq!((bench.next(10 * MS), bench.queue.waiting()), (vec![1], 3));
    assert_eq!((bench.next(10 * MS), bench.queue.waiting()), (vec![2], 1), "it has come within sight");
    let (ticket, _) = waiting[3].as_ref().expect("accepted");
    assert!(bench.queue.take_back(ticket, Kind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_given_up_by_the_run_times_that_are_known_then() {
    let bench = Bench::new(settings(1));
    let learn = |time| bench.queue.record_run(SizeClass::of_row(4), 1, time);
    learn(2500 * MS);
    let mut waits = bench.ask(Ask { deadline: Some(4000 * MS), ..level(0) }).expect("3 s are cautious");
    (0..64).for_each(|_| learn(20 * MS));
    let error = waits.next().await.expect("one outcome").expect_err("nobody runs it");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let waited = bench.began.elapsed();
    assert!(waited > 3950 * MS && waited < 4000 * MS, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_outside_of_the_instance_fails_its_batch_only() {
    let bench = Bench::new(settings(1));
    let inputs = vec![Tensor::new(DataType::Uint8, Shape::new(&[1, 4]), Bytes::from_owner(Stuck))];
    let pushed = Pushed::new(Member::new(1, inputs), bench.began);
    let waiting = bench.queue.clone().push(pushed, bench.began).expect("accepted");
    let mut asked = Waiter::new(bench.queue.clone(), waiting, (bench.began, None), respond());
    let pulled = bench.pull(0, Duration::ZERO).expect("it waits");
    bench.finish(0, pulled, true);
    let error = asked.next().await.expect("one outcome").expect_err("it panicked");
    assert_eq!((error.kind(), error.message()), (Kind::Internal, "the instance panicked: cannot be freed"));
    assert_eq!(bench.queue.stats().snapshot().failures[&Kind::Internal], 1);
}

#[test]
fn what_one_thread_has_put_off_keeps_no_other_from_waking_an_instance() {
    let bench = Bench::new(settings(4));
    let queue = bench.queue.clone();
    let instance = std::thread::spawn(move || queue.pull(0));
    while !bench.queue.has_sleepers() {
        std::thread::yield_now();
    }
    let push = || {
        round::begin();
        bench.push(level(0), Duration::ZERO)
    };
    // Busy with something else from now on.
    let busy = std::thread::scope(|scope| scope.spawn(push).join()).expect("it does not panic");
    let own = push();
    assert!(bench.queue.has_sleepers(), "the round goes on");
    round::end();
    let sleeps = bench.queue.has_sleepers();
    bench.queue.close();
    let pulled = instance.join().expect("it does not panic").expect("both wait");
    assert_eq!((seqs(&pulled), sleeps), (vec![0, 1], false));
    assert!(busy.is_ok() && own.is_ok());
}

#[test]
fn a_held_queue_begins_when_it_is_let_go() {
    let bench = Bench::new(QueueSettings { hold: 3, ..settings(8) });
    let _waiting = bench.push(level(0), Duration::ZERO);
    assert!(bench.next(MS).is_empty());
    bench.queue.release();
    assert_eq!(bench.next(MS), [0]);
}

#[test]
fn a_held_queue_begins_when_enough_wait_and_then_runs_freely() {
    let bench = Bench::new(QueueSettings { hold: 3, ..settings(8) });
    let _waiting: Vec<_> = (0..2).map(|_| bench.push(level(0), Duration::ZERO)).collect();
    assert!(bench.next(1000 * MS).is_empty());
    let _third = bench.push(level(0), Duration::ZERO);
    assert_eq!(bench.next(MS), [0, 1, 2]);
    let _fourth = bench.push(level(0), Duration::ZERO);
    assert_eq!(bench.next(MS), [3]);
}

#[test]
fn a_held_queue_begins_when_it_is_full_and_when_it_closes() {
    let bench = Bench::new(QueueSettings { hold: 3, requests_max: 1, ..settings(8) });
    let _waiting = bench.push(level(0), Duration::ZERO);
    assert_eq!(bench.next(MS), [0]);
    let policies = BTreeMap::from([(1, policy(1))]);
    let priorities = Priorities { levels: 2, default_level: 2, policies, ..Priorities::default() };
    let bench = Bench::new(QueueSettings { hold: 3, ..with(8, Levels::new(priorities, policy(1000))) });
    let _waiting = bench.push(level(1), Duration::ZERO);
    assert!(bench.next(MS).is_empty());
    assert!(bench.push(level(1), Duration::ZERO).is_err());
    assert_eq!(bench.next(MS), [0]);
    let bench = Bench::new(QueueSettings { hold: 3, ..settings(8) });
    let _waiting = bench.push(level(0), Duration::ZERO);
    bench.queue.close();
    assert_eq!(bench.next(MS), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_held_queue_refuses_in_time() {
    let bench = Bench::new(QueueSettings { hold: 3, ..settings(8) });
    let mut late = bench.ask(Ask { deadline: Some(50 * MS), ..level(0) }).expect("accepted");
    let error = late.next().await.expect("an outcome").expect_err("it is held");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(bench.queue.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_of_several_instances_leave_in_the_order_of_arrival() {
    let bench = Bench::new(ordered(1));
    let mut waiters: Vec<_> = (0..4).map(|_| bench.ask(level(0)).expect("accepted")).collect();
    let mut pulled: Vec<_> = (0..3).map(|instance| bench.pull(instance, MS)).collect();
    bench.finish(2, pulled[2].take().expect("each got one"), false);
    bench.finish(1, pulled[1].take().expect("each got one"), true);
    assert!(waiters.iter_mut().all(|waiter| got(waiter).is_none()), "the first still runs");
    let fourth = bench.pull(2, MS).expect("a held answer does not hold its instance");
    bench.finish(0, pulled[0].take().expect("each got one"), false);
    let outcomes: Vec<_> = waiters.iter_mut().map(|waiter| got(waiter).map(|outcome| outcome.is_ok())).collect();
    assert_eq!(outcomes, [Some(true), Some(false), Some(true), None]);
    bench.finish(2, fourth, false);
    assert_eq!(got(&mut waiters[3]).map(|outcome| outcome.is_ok()), Some(true));
    let stats = bench.queue.stats().snapshot();
    assert_eq!((stats.success.count, stats.fail.count, stats.execution_count), (3, 1, 3));
    assert_eq!((stats.inference_count, stats.compute_infer.count), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn cancelled_and_late_requests_hold_no_answer_back() {
    let bench = Bench::new(QueueSettings {
        levels: levels(1, 1, QueuePolicy { timeout: Some(20 * MS), ..policy(1000) }),
        ..ordered(1)
    });
    let cancelled = bench.ask(Ask { width: 9, ..level(0) }).expect("accepted");
    let mut late = bench.ask(Ask { width: 9, timeout: Some(5 * MS), ..level(0) }).expect("accepted");
    let mut third = bench.ask(level(0)).expect("accepted");
    let began = Instant::now();
    assert_eq!(late.next().await.expect("an outcome").expect_err("late").kind(), Kind::TimedOut);
    assert_eq!(began.elapsed(), 5 * MS, "a refusal waits for nobody");
    let first = bench.pull(0, 6 * MS).expect("the cancelled one runs already");
    let last = bench.pull(1, 6 * MS).expect("the third");
    bench.finish(1, last, false);
    assert!(got(&mut third).is_none());
    drop(cancelled);
    bench.finish(0, first, false);
    got(&mut third).expect("nobody is before it").expect("answered");
    let stats = bench.queue.stats().snapshot();
    assert_eq!((stats.success.count, stats.fail.count), (1, 2));
    assert_eq!((stats.failures[&Kind::TimedOut], stats.failures[&Kind::Cancelled]), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_kept_while_the_answer_is_held() {
    let bench = Bench::new(ordered(1));
    let mut first = bench.ask(level(0)).expect("accepted");
    let mut second = bench.ask(Ask { deadline: Some(50 * MS), ..level(0) }).expect("accepted");
    let slow = bench.pull(0, MS).expect("the first");
    let quick = bench.pull(1, MS).expect("the second");
    bench.finish(1, quick, false);
    let began = Instant::now();
    assert_eq!(second.next().await.expect("an outcome").expect_err("held").kind(), Kind::DeadlineExceeded);
    assert_eq!(began.elapsed(), 50 * MS);
    bench.finish(0, slow, false);
    got(&mut first).expect("there").expect("answered");
    let stats = bench.queue.stats().snapshot();
    assert_eq!((stats.success.count, stats.failures[&Kind::DeadlineExceeded]), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn held_answers_take_room_and_an_abort_lets_everything_go() {
    let bench = Bench::new(QueueSettings { requests_max: 3, ..ordered(1) });
    let mut waiters: Vec<_> = (0..3).map(|_| bench.ask(level(0)).expect("accepted")).collect();
    let first = bench.pull(0, MS).expect("the first");
    for _ in 0..2 {
        let pulled = bench.pull(1, MS).expect("the others");
        bench.finish(1, pulled, false);
    }
    waiters.push(bench.ask(level(0)).expect("two are held"));
    assert_eq!(bench.ask(level(0)).err().expect("full").kind(), Kind::QueueFull);
    bench.queue.abort();
    let refused = got(&mut waiters[3]).expect("at once").expect_err("aborted");
    assert_eq!(refused.kind(), Kind::Unavailable);
    bench.finish(0, first, false);
    assert!(waiters[..3].iter_mut().all(|waiter| got(waiter).is_some_and(|outcome| outcome.is_ok())));
}

/// A step of a random run.
#[derive(Clone, Debug)]
enum Step {
    Push(Ask),
    Wait(u64),
    TakeBack(usize),
    Look,
}

/// What the queue should hold.
#[derive(Clone, Copy, Debug)]
struct Expected {
    ask: Ask,
    delay_at: Option<u64>,
    start_by: Option<u64>,
}

fn step() -> impl Strategy<Value = Step> {
    let ask = (1usize..4, 4i64..6, 0u64..4, prop::option::of(1u64..30));
    prop_oneof![
        4 => ask.prop_map(|(rows, width, priority, timeout)| {
            let timeout = timeout.map(Duration::from_millis);
            Step::Push(Ask { rows, width, priority, timeout, ..Ask::default() })
        }),
        1 => (1u64..10).prop_map(Step::Wait),
        1 => any::<usize>().prop_map(Step::TakeBack),
        2 => Just(Step::Look),
    ]
}

/// The batch that strict priority asks for at `now`: of the shape of the first in order, as many as fit.
fn due(waiting: &BTreeMap<u64, Expected>, rows_max: usize, now: u64) -> Vec<u64> {
    let mut order: Vec<_> = waiting.iter().collect();
    order.sort_by_key(|(seq, expected)| {
        let delayed = expected.delay_at.filter(|at| *at < now);
        (expected.ask.priority, delayed.is_some(), delayed, **seq)
    });
    let Some(width) = order.first().map(|(_, expected)| expected.ask.width) else { return Vec::new() };
    let mut rows = 0;
    let same = order.into_iter().filter(|(_, expected)| expected.ask.width == width);
    let fitting = same.take_while(|(_, expected)| {
        rows += expected.ask.rows;
        rows <= rows_max
    });
    fitting.map(|(seq, _)| *seq).collect()
}

proptest! {
    /// Level 1 is delayed, levels 2 and 3 are refused when their time is up.
    #[test]
    fn strict_priority_serves_what_a_sorted_list_would(steps in prop::collection::vec(step(), 1..150)) {
        const ROWS_MAX: usize = 4;
        let policies = BTreeMap::from([(1, delayed(Some(12 * MS)))]);
        let priorities = Priorities { levels: 3, default_level: 2, policies, ..Priorities::default() };
        let bench = Bench::new(with(ROWS_MAX, Levels::new(priorities, policy(1000))));
        let (mut waiting, mut tickets) = (BTreeMap::<u64, Expected>::new(), BTreeMap::new());
        let (mut now, mut seq) = (0u64, 0u64);
        for step in steps {
            match step {
                Step::Push(mut ask) => {
                    let kept = bench.push(ask, Duration::from_millis(now)).expect("there is room");
                    ask.priority = if ask.priority == 0 { 2 } else { ask.priority };
                    let up = ask.timeout.map(|timeout| now + timeout.as_millis() as u64);
                    let expected = match ask.priority {
                        1 => Expected { ask, delay_at: Some(up.unwrap_or(u64::MAX).min(now + 12)), start_by: None },
                        _ => Expected { ask, delay_at: None, start_by: up },
                    };
                    waiting.insert(seq, expected);
                    tickets.insert(seq, kept);
                    seq += 1;
                }
                Step::Wait(millis) => now += millis,
                Step::TakeBack(index) if !tickets.is_empty() => {
                    let seq = *tickets.keys().nth(index % tickets.len()).expect("within");
                    let (ticket, _) = tickets.remove(&seq).expect("known");
                    let taken = bench.queue.take_back(&ticket, Kind::Cancelled);
                    prop_assert_eq!(taken, waiting.remove(&seq).is_some());
                }
                Step::TakeBack(_) => {}
                Step::Look => {
                    // What the waiters do at this moment or did before.
                    waiting.retain(|seq, expected| {
                        let up = expected.start_by.is_some_and(|at| at <= now);
                        let ticket = &tickets[seq].0;
                        assert!(!up || bench.queue.take_back(ticket, Kind::TimedOut), "it is given up in time");
                        !up
                    });
                    let batch = bench.next(Duration::from_millis(now));
                    prop_assert_eq!(&batch, &due(&waiting, ROWS_MAX, now));
                    waiting.retain(|seq, _| !batch.contains(seq));
                }
            }
            prop_assert_eq!(bench.queue.waiting(), waiting.len());
        }
    }

    /// However many instances end in whatever order, and whatever they give, callers hear in the order of arrival.
    #[test]
    fn order_holds_over_instances_shapes_and_failures(
        shapes in prop::collection::vec((4i64..6, any::<bool>(), any::<bool>()), 1..30),
        picks in prop::collection::vec(any::<usize>(), 100),
    ) {
        let bench = Bench::new(ordered(2));
        let mut waiters: Vec<Option<Asked>> = Vec::new();
        for (width, _, _) in &shapes {
            waiters.push(Some(bench.ask(Ask { width: *width, ..level(0) }).expect("there is room")));
        }
        let mut running: BTreeMap<usize, Pulled> = BTreeMap::new();
        let mut heard = Vec::new();
        for pick in picks.iter().cycle() {
            let instance = pick % 3;
            match running.remove(&instance) {
                Some(pulled) => {
                    let seqs = seqs(&pulled);
                    let fails = shapes[seqs[0] as usize].1;
                    for seq in seqs.iter().map(|seq| *seq as usize).filter(|seq| shapes[*seq].2) {
                        waiters[seq] = None;
                    }
                    bench.finish(instance, pulled, fails);
                }
                None => running.extend(bench.pull(instance, Duration::ZERO).map(|pulled| (instance, pulled))),
            }
            for (index, waiter) in waiters.iter_mut().enumerate() {
                if waiter.as_mut().and_then(got).is_some() {
                    *waiter = None;
                    heard.push(index);
                }
            }
            if running.is_empty() && bench.queue.waiting() == 0 {
                break;
            }
        }
        prop_assert!(heard.is_sorted(), "{heard:?}");
        let stats = bench.queue.stats().snapshot();
        prop_assert_eq!(stats.success.count + stats.fail.count, shapes.len() as u64);
        let gone = shapes.iter().filter(|(_, _, gone)| *gone).count();
        prop_assert_eq!(heard.len(), shapes.len() - gone);
    }
}
