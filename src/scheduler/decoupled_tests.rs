//! Requests with any number of responses: the queue, the waiter and the puppet of `tests` together.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::tests::{Asked, MS, Order, Stage, settings};
use super::{QueueSettings, ResponseLimits, Scheduler as _};
use crate::error::Kind;
use crate::telemetry::stats::Snapshot;

const LIMITS: ResponseLimits = ResponseLimits { waiting_max: 2, stall_max: Duration::from_secs(3600) };

fn stage() -> Stage {
    with(LIMITS)
}

fn with(limits: ResponseLimits) -> Stage {
    Stage::new(QueueSettings { responses: Some(limits), ..settings(1) })
}

fn send(count: usize, then: Order) -> Order {
    Order::Send(count, Box::new(then))
}

/// The responses until the end, each as whether it is the last, and the error if that is the end.
async fn all(mut waiter: Asked) -> (Vec<bool>, Option<Kind>) {
    let mut lasts = Vec::new();
    while let Some(response) = waiter.next().await {
        match response {
            Ok(response) => lasts.push(response.last),
            Err(error) => {
                assert!(waiter.next().await.is_none(), "an error is the end");
                return (lasts, Some(error.kind()));
            }
        }
    }
    (lasts, None)
}

fn snapshot(stage: &mut Stage) -> Snapshot {
    stage.close();
    stage.queue.stats().snapshot()
}

#[tokio::test(start_paused = true)]
async fn a_request_has_as_many_responses_as_the_instance_gives_and_counts_once() {
    let mut stage = stage();
    for (order, expected) in [
        (Order::End, vec![]),
        (Order::Answer, vec![true]),
        (send(1, Order::End), vec![false]),
        (send(9, Order::Answer), [vec![false; 9], vec![true]].concat()),
    ] {
        let waiter = stage.ask(1, 4, None).expect("accepted");
        stage.order(order);
        assert_eq!(all(waiter).await, (expected, None));
    }
    let stats = snapshot(&mut stage);
    assert_eq!((stats.success.count, stats.inference_count, stats.execution_count, stats.fail.count), (4, 4, 4, 0));
    assert_eq!((stats.responses[&0].success.count, stats.responses[&0].empty_response.count), (3, 1));
    assert_eq!((stats.responses[&1].success.count, stats.responses[&1].empty_response.count), (1, 1));
    assert_eq!(stats.responses[&9].success.count, 1);
    assert!(!stats.responses.contains_key(&10));
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_at_most_the_limit_ahead_of_its_caller() {
    let mut stage = stage();
    let mut waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(send(10, Order::End));
    stage.begun();
    for taken in 0..10 {
        let response = waiter.next().await.expect("there are ten").expect("no error");
        assert!(!response.last);
        let ahead = stage.sent.load(Ordering::SeqCst) - taken;
        // What was just taken made room for one more.
        assert!(ahead <= LIMITS.waiting_max + 1, "{ahead} ahead");
    }
    assert!(waiter.next().await.is_none());
    assert_eq!(snapshot(&mut stage).success.count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_stops_an_instance_that_waits_for_it() {
    let mut stage = stage();
    let mut waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(send(1000, Order::Answer));
    waiter.next().await.expect("a response").expect("no error");
    drop(waiter);
    let next = stage.ask(1, 4, None).expect("accepted");
    stage.order(Order::Answer);
    assert_eq!(all(next).await, (vec![true], None), "the instance is free again");
    assert!(stage.sent.load(Ordering::SeqCst) <= 1 + LIMITS.waiting_max + 1);
    let stats = snapshot(&mut stage);
    assert_eq!((stats.success.count, stats.failures[&Kind::Cancelled]), (1, 1));
    assert_eq!(stats.responses.values().map(|at| at.cancel.count).sum::<u64>(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_ends_a_pause() {
    let mut stage = stage();
    let waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(Order::Pause(Duration::from_secs(1_000_000)));
    stage.begun();
    drop(waiter);
    assert_eq!(snapshot(&mut stage).failures[&Kind::Cancelled], 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_the_middle_of_the_responses_is_kept() {
    let mut stage = stage();
    let began = tokio::time::Instant::now();
    let mut waiter = stage.ask(1, 4, Some(200 * MS)).expect("accepted");
    stage.order(send(1, Order::Pause(Duration::from_secs(1_000_000))));
    // As long as this task is not idle, the virtual time stands still.
    while stage.sent.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    waiter.next().await.expect("a response").expect("no error");
    assert_eq!(all(waiter).await, (vec![], Some(Kind::DeadlineExceeded)));
    assert!(began.elapsed() >= 200 * MS && began.elapsed() <= 210 * MS, "{:?}", began.elapsed());
    let stats = snapshot(&mut stage);
    assert_eq!((stats.success.count, stats.failures[&Kind::DeadlineExceeded]), (0, 1));
}

/// In real time, because the instance itself keeps the time while nobody polls the waiter.
#[tokio::test]
async fn a_deadline_stops_an_instance_whose_caller_does_not_even_look() {
    let mut stage = stage();
    let waiter = stage.ask(1, 4, Some(20 * MS)).expect("accepted");
    stage.order(send(1000, Order::Answer));
    assert_eq!(snapshot(&mut stage).failures[&Kind::DeadlineExceeded], 1);
    assert_eq!(all(waiter).await, (vec![false; LIMITS.waiting_max], Some(Kind::DeadlineExceeded)));
}

#[tokio::test]
async fn a_caller_that_takes_nothing_for_too_long_is_given_up() {
    let mut stage = with(ResponseLimits { stall_max: 20 * MS, ..LIMITS });
    let mut waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(send(1000, Order::Answer));
    assert_eq!(snapshot(&mut stage).failures[&Kind::Cancelled], 1);
    for _ in 0..LIMITS.waiting_max {
        waiter.next().await.expect("sent before").expect("no error");
    }
    let error = waiter.next().await.expect("the reason").expect_err("it was given up");
    assert_eq!(error.message(), "the caller has taken no response for 0.02 s");
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_before_a_failure_arrives_and_the_instance_serves_on() {
    let mut stage = stage();
    for (order, kind) in [(Order::Fail("broken"), Kind::Backend), (Order::Panic, Kind::Internal)] {
        let waiter = stage.ask(1, 4, None).expect("accepted");
        stage.order(send(2, order));
        assert_eq!(all(waiter).await, (vec![false; 2], Some(kind)));
    }
    let waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(Order::Answer);
    assert_eq!(all(waiter).await, (vec![true], None));
    let stats = snapshot(&mut stage);
    assert_eq!((stats.success.count, stats.fail.count, stats.responses[&2].fail.count), (1, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_closes_lets_responses_go_on() {
    let mut stage = stage();
    let mut waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(send(5, Order::Answer));
    waiter.next().await.expect("a response").expect("no error");
    stage.queue.abort();
    assert_eq!(all(waiter).await, (vec![false, false, false, false, true], None));
    assert_eq!(snapshot(&mut stage).success.count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_is_refused_as_any_other() {
    let mut stage = stage();
    let busy = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let late = stage.ask(1, 4, Some(50 * MS)).expect("accepted");
    let gone = stage.ask(1, 4, None).expect("accepted");
    assert_eq!(all(late).await, (vec![], Some(Kind::DeadlineExceeded)));
    drop(gone);
    stage.order(Order::End);
    assert_eq!(all(busy).await, (vec![], None));
    let stats = snapshot(&mut stage);
    assert_eq!((stats.execution_count, stats.fail.count), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn run_times_of_a_decoupled_model_teach_nothing() {
    let mut stage = stage();
    let waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(send(3, Order::Answer));
    all(waiter).await;
    stage.close();
    assert!(stage.queue.has_learned_nothing());
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_model_cannot_send_more_than_one_response() {
    let mut stage = Stage::new(settings(1));
    let waiter = stage.ask(1, 4, None).expect("accepted");
    stage.order(send(1, Order::Answer));
    assert_eq!(all(waiter).await, (vec![], Some(Kind::Internal)));
    stage.close();
}
