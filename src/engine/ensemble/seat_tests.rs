//! Callers that stop polling their runs, with virtual time.

use std::time::Duration;

use futures_util::StreamExt as _;

use super::puppet::{Act, Bench, graph, step};
use crate::error::Kind;
use crate::infer::{Instant, Responses};
use crate::model::Ensemble as Graph;
use crate::scheduler::ResponseLimits;

const SECOND: Duration = Duration::from_secs(1);

fn stall_max() -> Duration {
    ResponseLimits::default().stall_max
}

/// `in -> a -> mid -> b -> out`.
fn chain() -> Graph {
    graph(vec![step("a", &["in"], &["mid"]), step("b", &["mid"], &["out"])])
}

/// A chain whose steps take so long each.
fn bench(graph: Graph, took: Duration) -> Bench {
    let acts = || vec![Act::Wait(took), Act::Give(1.0)];
    Bench::new(&["in"], &["out"], graph, &[("a", acts()), ("b", acts())])
}

/// Starts a request, and polls it for half a second.
async fn begun(bench: &Bench) -> Responses {
    let mut responses = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    tokio::time::timeout(SECOND / 2, responses.next()).await.expect_err("its first step takes a second");
    responses
}

#[tokio::test(start_paused = true)]
async fn an_unload_does_not_wait_for_a_caller_that_has_stopped_reading() {
    let bench = bench(chain(), SECOND);
    let mut unread = begun(&bench).await;
    // It takes half a second until the first step has answered, and nobody starts the next.
    tokio::time::sleep(stall_max()).await;
    assert!(!bench.ensemble.gate.is_idle());
    tokio::time::sleep(SECOND).await;
    assert!(bench.ensemble.gate.is_idle());
    bench.ensemble.gate.drain();
    assert_eq!((bench.asked("b"), bench.under_way("a").0, bench.counted().fail.count), (0, 0, 1));
    let error = unread.next().await.expect("it hears of that").expect_err("it has failed");
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(error.message(), "in ensemble 'e', the caller has taken no response for 60 s");
    assert!(unread.next().await.is_none());
    assert_eq!(bench.counted().fail.count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_takes_one_response_and_no_more_is_given_up() {
    let steps = graph(vec![step("a", &["in"], &["out"])]);
    let acts = vec![Act::Wait(SECOND), Act::Give(1.0), Act::Wait(SECOND), Act::Give(2.0)];
    let bench = Bench::new(&["in"], &["out"], steps, &[("a", acts)]);
    let mut responses = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    responses.next().await.expect("the first").expect("answered");
    tokio::time::sleep(stall_max() - SECOND).await;
    assert!(!bench.ensemble.gate.is_idle());
    tokio::time::sleep(SECOND).await;
    assert!(bench.ensemble.gate.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_steps_take_long_is_not_given_up() {
    let bench = bench(chain(), 3 * stall_max());
    let look = async {
        for _ in 0..4 {
            tokio::time::sleep(stall_max()).await;
            assert!(!bench.ensemble.gate.is_idle());
        }
    };
    let (answered, ()) = tokio::join!(bench.all(Bench::request(&[("in", 1.0)])), look);
    assert_eq!(answered.expect("it is answered"), [3.0]);
}

#[tokio::test(start_paused = true)]
async fn callers_that_have_stopped_reading_do_not_keep_places_in_steps() {
    let bench = bench(Graph { step_requests_max: Some(1), ..chain() }, SECOND);
    let _in_the_step = begun(&bench).await;
    // The place is given to this one next, which does not hear of it.
    let _in_line = begun(&bench).await;
    let began = Instant::now();
    assert_eq!(bench.all(Bench::request(&[("in", 1.0)])).await.expect("it has its turn"), [3.0]);
    assert!(began.elapsed() <= 3 * stall_max(), "{:?}", began.elapsed());
    assert_eq!(bench.asked("a"), 2, "what was in line was never started");
}

#[tokio::test(start_paused = true)]
async fn callers_that_have_stopped_reading_make_room_for_new_requests() {
    let mut graph = chain();
    graph.queue.requests_max = 1;
    let bench = bench(graph, SECOND);
    let _unread = begun(&bench).await;
    let refused = bench.start(Bench::request(&[("in", 1.0)])).err().expect("there is no room");
    assert_eq!(refused.kind(), Kind::QueueFull);
    tokio::time::sleep(stall_max() + 2 * SECOND).await;
    assert_eq!(bench.all(Bench::request(&[("in", 1.0)])).await.expect("there is room"), [3.0]);
}
