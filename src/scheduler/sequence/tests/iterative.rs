//! Requests that are executed again and again until the model says that it is done.

use super::*;

fn iterative(rows_max: usize, steps_max: u32, decoupled: bool) -> Stage {
    let iterative = Some(Iterative { done_output: Some("DONE".into()), steps_max });
    let config = ModelConfig { max_batch_rows: rows_max, decoupled, ..ModelConfig::new("m", "b") };
    let batching = SequenceBatching { iterative, ..batching(super::oldest(0)) };
    Stage::with(config, batching, |_| {})
}

#[tokio::test(start_paused = true)]
async fn a_request_runs_until_it_is_done_and_others_join_in_between() {
    let mut stage = iterative(2, 100, false);
    let mut long = stage.ask_as(0, None, |_| {}).expect("ok");
    assert_eq!(stage.run(), 1);
    assert_eq!(answer(&mut long).await, Ok(0));
    let mut never = stage.ask_as(-1, None, |_| {}).expect("ok");
    assert_eq!((stage.run(), stage.run()), (1, 1));
    let mut short = stage.ask_as(4, None, |_| {}).expect("ok");
    assert_eq!(stage.run(), 2);
    assert_eq!(answer(&mut short).await, Ok(4));
    assert_eq!(stage.run(), 1);
    let sums: Vec<i32> = stage.adder.seen.iter().map(|rows| rows[0][5]).collect();
    let starts: Vec<i32> = stage.adder.seen.iter().map(|rows| rows[0][1]).collect();
    assert_eq!((sums, starts), (vec![0, 0, -1, -2, -3], vec![1, 1, 0, 0, 0]));
    assert!(futures_util::poll!(never.next()).is_pending());
    drop(never);
    assert_eq!((stage.run(), stage.scheduler.seated()), (0, 0));
    let stats = stage.scheduler.stats().snapshot();
    assert_eq!((stats.success.count, stats.execution_count), (2, 5));
    assert_eq!(stage.failures(), BTreeMap::from([(Kind::Cancelled, 1)]));
}

#[tokio::test(start_paused = true)]
async fn inputs_that_their_caller_can_still_write_are_so_in_every_execution() {
    let mut stage = iterative(2, 100, false);
    let _asked = stage.ask_as(-1, None, |pushed| pushed.member.shared = true).expect("ok");
    assert_eq!((stage.run(), stage.run(), stage.run()), (1, 1, 1));
    assert_eq!(stage.adder.shared, [true; 3]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_behind_a_request_that_runs_again_is_refused_at_its_time() {
    let mut stage = iterative(2, 100, false);
    let _never = stage.ask(1, -1, "S").expect("ok");
    let sequence = Sequence { id: CorrelationId::Number(1), start: false, end: false };
    let second = stage.ask_as(1, Some(sequence), |pushed| pushed.timeout = Some(50 * MS)).expect("ok");
    assert_eq!(stage.run(), 1);
    let began = Instant::now();
    assert_eq!(refused(second).await.kind(), Kind::TimedOut);
    assert_eq!(began.elapsed(), 50 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_between_two_executions_frees_the_slot_whatever_has_passed() {
    for leaves in [true, false] {
        let stage = iterative(2, 100, false);
        let sequence = Sequence { id: CorrelationId::Number(1), start: true, end: false };
        let asked = stage.ask_as(-1, Some(sequence), |pushed| {
            (pushed.timeout, pushed.deadline) = (Some(50 * MS), Some(pushed.arrived + 100 * MS));
        });
        let mut asked = asked.expect("ok");
        let batch = Underway::begin(&*stage.scheduler, 0, None).expect("there is a batch");
        assert!(tokio::time::timeout(60 * MS, asked.next()).await.is_err(), "it began in time");
        batch.finish(&*stage.scheduler, &mut Adder::default());
        match leaves {
            true => drop(asked),
            false => assert_eq!(refused(asked).await.kind(), Kind::DeadlineExceeded),
        }
        assert_eq!((stage.scheduler.waiting(), stage.scheduler.seated()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn each_execution_of_a_decoupled_model_is_a_response_and_a_slow_caller_holds_back_nobody() {
    let mut stage = iterative(2, 100, true);
    let mut slow = stage.ask_as(-1, None, |_| {}).expect("ok");
    assert_eq!((stage.run(), stage.run()), (1, 1));
    // Two responses wait for it, which is all that may.
    let mut other = stage.ask_as(3, None, |_| {}).expect("ok");
    assert_eq!((stage.run(), stage.run()), (1, 0));
    assert_eq!(answer(&mut other).await, Ok(3));
    assert!(other.next().await.is_none());
    assert_eq!(answer(&mut slow).await, Ok(-1));
    assert_eq!((stage.run(), stage.run()), (1, 0));
    assert_eq!((answer(&mut slow).await, answer(&mut slow).await), (Ok(-2), Ok(-3)));
    assert_eq!(stage.run(), 1);
    drop(slow);
    assert_eq!((stage.run(), stage.scheduler.seated(), stage.scheduler.waiting()), (0, 0, 0));
    let stats = stage.scheduler.stats().snapshot();
    assert_eq!((stats.responses[&0].success.count, stats.responses[&3].success.count), (2, 1));
    assert_eq!((stats.success.count, stats.fail.count), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_takes_nothing_for_too_long_gets_no_more() {
    let mut stage = iterative(2, 100, true);
    let mut slow = stage.ask_as(-1, None, |_| {}).expect("ok");
    assert_eq!((stage.run(), stage.run(), stage.run()), (1, 1, 0));
    tokio::time::advance(10 * IDLE).await;
    assert_eq!((stage.run(), stage.scheduler.seated()), (0, 0));
    answer(&mut slow).await.expect("it was sent before");
    answer(&mut slow).await.expect("it was sent before");
    let error = answer(&mut slow).await.expect_err("it is over");
    assert_eq!((error.kind(), error.message()), (Kind::Cancelled, "the caller has taken no response for 10 s"));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_between_executions_and_a_queue_timeout_does_not() {
    let mut stage = iterative(2, 100, false);
    let late = stage.ask_as(-1, None, |pushed| pushed.deadline = Some(pushed.arrived + 50 * MS)).expect("ok");
    let begun = stage.ask_as(-1, None, |pushed| pushed.timeout = Some(20 * MS)).expect("ok");
    assert_eq!(stage.run(), 2);
    let (mut late, mut begun) = (Box::pin(refused(late)), Box::pin(refused(begun)));
    tokio::time::advance(30 * MS).await;
    assert!(futures_util::poll!(&mut begun).is_pending());
    assert_eq!(stage.run(), 2);
    assert_eq!(late.as_mut().await.kind(), Kind::DeadlineExceeded);
    assert_eq!(stage.run(), 1);
    drop(begun);
    assert_eq!((stage.run(), stage.scheduler.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_never_done_is_stopped() {
    let mut stage = iterative(0, 3, false);
    let asked = stage.ask_as(-1, None, |_| {}).expect("ok");
    assert_eq!((stage.run(), stage.run(), stage.run(), stage.run()), (1, 1, 1, 0));
    let error = refused(asked).await;
    assert_eq!(error.message(), "the model is not done with the request after 3 executions");
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_sequence_with_an_id_are_iterated_one_after_the_other() {
    let mut stage = iterative(2, 100, false);
    let mut first = stage.ask(1, -2, "S").expect("ok");
    let _second = stage.ask(1, 8, "E").expect("ok");
    assert_eq!((stage.run(), stage.run()), (1, 1));
    assert!(futures_util::poll!(first.next()).is_pending());
    assert_eq!(stage.scheduler.waiting(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_done_is_still_answered_after_the_close() {
    let mut stage = iterative(2, 2, false);
    let asked = stage.ask_as(-1, None, |_| {}).expect("ok");
    assert_eq!(stage.run(), 1);
    stage.scheduler.close();
    assert_eq!(stage.run(), 1);
    assert_eq!(refused(asked).await.kind(), Kind::Backend);
    assert!(stage.scheduler.pull(0).is_none());
}
