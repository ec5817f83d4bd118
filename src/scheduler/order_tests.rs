//! Answers in order, without a queue.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::infer::Times;

fn order() -> Arc<Order> {
    Arc::new(Order::new(Arc::new(ModelStats::default())))
}

fn answer(now: Instant) -> Given {
    let times = Times { queued: now, began: now, inputs_ready: now, outputs_ready: now, ended: now };
    let record = Record {
        batch: BatchTimes { rows: 1, ..BatchTimes::default() },
        times: RequestTimes { rows: 1, ..RequestTimes::default() },
        arrived: now,
        deadline: None,
    };
    Given::Answer(Box::new((Answer { outputs: Vec::new(), times, last: true }, record)))
}

fn failure() -> Given {
    let error = Error::new(Kind::Backend, "broken");
    Given::Failure(Failed { error, arrived: Instant::now(), deadline: None })
}

/// So many requests: the turn of each, and where its answer comes out.
fn requests(order: &Arc<Order>, count: usize) -> (Vec<Turn>, Vec<oneshot::Receiver<Result<Answer>>>) {
    let pairs = (0..count).map(|_| {
        let (reply, receiver) = oneshot::channel();
        (order.enter(reply), receiver)
    });
    pairs.unzip()
}

#[test]
fn answers_and_failures_leave_in_the_order_of_arrival() {
    let (order, now) = (order(), Instant::now());
    let (turns, mut receivers) = requests(&order, 3);
    let mut turns = turns.into_iter();
    let (first, second, third) = (turns.next(), turns.next(), turns.next());
    third.expect("three").give(answer(now));
    second.expect("three").give(failure());
    assert_eq!(order.held(), 2);
    assert!(receivers.iter_mut().all(|receiver| receiver.try_recv().is_err()));
    assert_eq!(order.stats.snapshot().success.count, 0, "counted when it is sent");
    first.expect("three").give(answer(now));
    let got: Vec<bool> =
        receivers.iter_mut().map(|receiver| receiver.try_recv().expect("there by now").is_ok()).collect();
    assert_eq!((got, order.held()), (vec![true, false, true], 0));
    assert_eq!(order.stats.snapshot().success.count, 2);
}

#[test]
fn who_leaves_without_an_answer_holds_nobody_back() {
    let (order, now) = (order(), Instant::now());
    let (turns, mut receivers) = requests(&order, 3);
    let mut turns = turns.into_iter();
    let (first, second, third) = (turns.next(), turns.next(), turns.next());
    third.expect("three").give(answer(now));
    second.expect("three").pass(Err(Error::new(Kind::TimedOut, "late")));
    assert_eq!(receivers[1].try_recv().expect("at once").expect_err("refused").kind(), Kind::TimedOut);
    drop(first);
    assert!(receivers[2].try_recv().expect("nobody is before it").is_ok());
}

#[test]
fn who_has_left_takes_no_room_behind_one_that_stays() {
    let order = order();
    let (mut turns, _receivers) = requests(&order, 1);
    for _ in 0..100 {
        drop(requests(&order, 1));
    }
    assert_eq!(order.state.lock().places.len(), 1);
    turns.clear();
    assert!(order.state.lock().places.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_caller_went_while_it_was_held_counts_as_what_happened() {
    let order = order();
    let now = Instant::now();
    let (turns, mut receivers) = requests(&order, 3);
    let mut turns = turns.into_iter();
    let first = turns.next();
    let mut late = answer(now);
    if let Given::Answer(given) = &mut late {
        given.1.deadline = Some(now + Duration::from_millis(5));
    }
    turns.next().expect("three").give(late);
    turns.next().expect("three").give(answer(now));
    receivers.truncate(1);
    tokio::time::advance(Duration::from_millis(10)).await;
    drop(first);
    let stats = order.stats.snapshot();
    assert_eq!((stats.success.count, stats.fail.count), (0, 2));
    assert_eq!((stats.failures[&Kind::DeadlineExceeded], stats.failures[&Kind::Cancelled]), (1, 1));
}

/// What happens to a request in the end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Answer,
    Failure,
    Refusal,
    Dropped,
}

proptest! {
    #[test]
    fn whatever_happens_in_whatever_order_what_instances_gave_leaves_in_order(
        ends in prop::collection::vec(
            prop_oneof![Just(End::Answer), Just(End::Failure), Just(End::Refusal), Just(End::Dropped)], 1..20),
        seed in any::<u64>(),
    ) {
        let (order, now) = (order(), Instant::now());
        let (turns, mut receivers) = requests(&order, ends.len());
        let mut turns: Vec<Option<Turn>> = turns.into_iter().map(Some).collect();
        let mut open: Vec<usize> = (0..ends.len()).collect();
        let (mut sent, mut seed) = (Vec::new(), seed);
        while !open.is_empty() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let index = open.remove((seed >> 33) as usize % open.len());
            let turn = turns[index].take().expect("each once");
            match ends[index] {
                End::Answer => turn.give(answer(now)),
                End::Failure => turn.give(failure()),
                End::Refusal => turn.pass(Err(Error::new(Kind::TimedOut, "late"))),
                End::Dropped => drop(turn),
            }
            for (index, receiver) in receivers.iter_mut().enumerate() {
                if receiver.try_recv().is_ok() && matches!(ends[index], End::Answer | End::Failure) {
                    let open_before = open.iter().any(|other| *other < index);
                    prop_assert!(!open_before, "{index} left before an earlier one");
                    sent.push(index);
                }
            }
        }
        prop_assert!(sent.is_sorted(), "{sent:?}");
        let given = ends.iter().filter(|end| matches!(end, End::Answer | End::Failure)).count();
        prop_assert_eq!((sent.len(), order.held()), (given, 0));
        let answered = ends.iter().filter(|end| **end == End::Answer).count();
        prop_assert_eq!(order.stats.snapshot().success.count, answered as u64);
        prop_assert!(order.state.lock().places.is_empty());
    }
}
