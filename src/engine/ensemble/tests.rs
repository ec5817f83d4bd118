//! Ensembles over puppets, with virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use proptest::prelude::*;

use super::puppet::{Act, Bench, graph, number, step};
use crate::error::{Error, Kind};
use crate::infer::{
    CorrelationId, Follow, Instant, ParameterValue, Request, RequestedOutput, Response, Sequence, only,
};
use crate::model::Ensemble as Graph;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Takes so many milliseconds and gives one response.
fn takes(millis: u64) -> Vec<Act> {
    vec![Act::Wait(ms(millis)), Act::Give(1.0)]
}

/// `in -> a -> mid -> b -> out`.
fn chain() -> Graph {
    graph(vec![step("b", &["mid"], &["out"]), step("a", &["in"], &["mid"])])
}

#[tokio::test(start_paused = true)]
async fn a_step_starts_as_soon_as_its_inputs_are_there() {
    let steps = vec![
        step("join", &["x", "y"], &["out"]),
        step("fast", &["in"], &["x"]),
        step("slow", &["in"], &["y"]),
        step("after", &["x"], &["late"]),
    ];
    let acts = [("join", takes(5)), ("fast", takes(10)), ("slow", takes(40)), ("after", takes(7))];
    let bench = Bench::new(&["in"], &["out", "late"], graph(steps), &acts);
    let began = Instant::now();
    assert_eq!(bench.all(Bench::request(&[("in", 3.0)])).await.expect("it is answered"), [9.0]);
    assert_eq!(began.elapsed(), ms(45));
    let seen = bench.puppet.seen.lock();
    let at: BTreeMap<&str, Duration> =
        seen.requests.iter().map(|(at, request)| (request.model.as_str(), *at - began)).collect();
    assert_eq!(at, BTreeMap::from([("fast", ms(0)), ("slow", ms(0)), ("after", ms(10)), ("join", ms(40))]));
}

#[tokio::test(start_paused = true)]
async fn tensors_are_passed_as_views() {
    let bench = Bench::new(&["in"], &["out"], chain(), &[("a", takes(1)), ("b", takes(1))]);
    let request = Bench::request(&[("in", 1.0)]);
    let given = request.inputs[0].tensor.data.as_ptr();
    bench.all(request).await.expect("it is answered");
    let seen = bench.puppet.seen.lock();
    assert_eq!(seen.requests[0].1.inputs[0].tensor.data.as_ptr(), given);
    assert_eq!(number(&seen.requests[1].1.inputs[0].tensor), 2.0);
}

#[tokio::test(start_paused = true)]
async fn what_a_request_says_is_said_to_each_step() {
    let bench = Bench::new(&["in"], &["out"], chain(), &[("a", takes(20)), ("b", takes(1))]);
    let deadline = Some(Instant::now() + ms(500));
    let sequence = Some(Sequence { id: CorrelationId::Number(7), start: true, end: false });
    let request = Request {
        id: "r1".to_owned(),
        priority: 2,
        deadline,
        timeout: Some(ms(100)),
        sequence: sequence.clone(),
        parameters: [("k".to_owned(), ParameterValue::Int(1))].into(),
        ..Bench::request(&[("in", 1.0)])
    };
    bench.all(request).await.expect("it is answered");
    let seen = bench.puppet.seen.lock();
    for (_, request) in &seen.requests {
        assert_eq!((request.id.as_str(), request.priority, request.deadline), ("r1", 2, deadline));
        assert_eq!((&request.sequence, request.parameters.len()), (&sequence, 1));
    }
    // The first step has waited for 10 ms of its 20; only waiting uses the timeout up.
    let timeouts: Vec<_> = seen.requests.iter().map(|(_, request)| request.timeout).collect();
    assert_eq!(timeouts, [Some(ms(100)), Some(ms(90))]);
}

/// Follows a request and does nothing with it.
#[derive(Debug)]
struct Follower;

impl Follow for Follower {
    fn passed_on(&self, _request: &Request) -> Arc<dyn Follow> {
        Arc::new(Follower)
    }

    fn responded(&self, _response: &Response) {}

    fn failed(&self, _error: &Error) {}
}

#[tokio::test(start_paused = true)]
async fn tensors_stay_where_they_are_computed_unless_somebody_follows_the_request() {
    for (follow, kept) in [(None, [true, false]), (Some(Arc::new(Follower) as Arc<dyn Follow>), [false, false])] {
        let bench = Bench::new(&["in"], &["out"], chain(), &[("a", takes(1)), ("b", takes(1))]);
        bench.all(Request { follow, ..Bench::request(&[("in", 1.0)]) }).await.expect("it is answered");
        let seen = bench.puppet.seen.lock();
        let asked = seen.requests.iter().map(|(_, request)| request.outputs.iter().any(|output| output.keep));
        assert_eq!(asked.collect::<Vec<_>>(), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn an_input_that_is_left_out_is_left_out_for_the_step() {
    let steps = vec![step("a", &["in", "more"], &["out"])];
    let bench = Bench::new(&["in", "more"], &["out"], graph(steps), &[("a", takes(1))]).with_optional("more");
    assert_eq!(bench.all(Bench::request(&[("in", 1.0)])).await.expect("it is answered"), [2.0]);
    assert_eq!(bench.all(Bench::request(&[("in", 1.0), ("more", 5.0)])).await.expect("it is answered"), [7.0]);
    let seen = bench.puppet.seen.lock();
    assert_eq!(seen.requests.iter().map(|(_, request)| request.inputs.len()).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_ensemble_counts_the_whole_and_the_sum_of_its_steps() {
    let bench = Bench::new(&["in"], &["out"], chain(), &[("a", takes(20)), ("b", takes(40))]);
    let response = only(bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in")).await.expect("answered");
    assert!(response.last);
    let counted = bench.counted();
    assert_eq!((counted.success.count, counted.success.ns), (1, 60_000_000));
    assert_eq!((counted.queue.count, counted.queue.ns), (1, 0));
    assert_eq!(counted.compute_infer.ns, 30_000_000);
    assert_eq!((counted.execution_count, counted.inference_count, counted.fail.count), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_keeps_its_reason_and_ends_the_other_steps() {
    let steps = vec![step("bad", &["in"], &["x"]), step("good", &["in"], &["y"])];
    let acts = [("bad", vec![Act::Wait(ms(5)), Act::Fail(Kind::QueueFull)]), ("good", takes(50))];
    let bench = Bench::new(&["in"], &["x", "y"], graph(steps), &acts);
    let began = Instant::now();
    let mut responses = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    let error = responses.next().await.expect("one element").expect_err("a step fails");
    assert_eq!((error.kind(), error.message()), (Kind::QueueFull, "in ensemble 'e', no luck"));
    assert_eq!(began.elapsed(), ms(5));
    assert_eq!(bench.under_way("good"), (0, 1));
    assert!(responses.next().await.is_none());
    drop(responses);
    let counted = bench.counted();
    assert_eq!((counted.fail.count, counted.success.count), (1, 0));
    assert_eq!(counted.failures, BTreeMap::from([(Kind::QueueFull, 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_cancels_all_running_steps() {
    let steps = vec![step("one", &["in"], &["x"]), step("two", &["in"], &["y"])];
    let bench = Bench::new(&["in"], &["x", "y"], graph(steps), &[("one", takes(50)), ("two", takes(50))]);
    let responses = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    assert_eq!((bench.under_way("one").0, bench.under_way("two").0), (1, 1));
    drop(responses);
    assert_eq!((bench.under_way("one").0, bench.under_way("two").0), (0, 0));
    assert_eq!(bench.counted().failures, BTreeMap::from([(Kind::Cancelled, 1)]));
}

#[tokio::test(start_paused = true)]
async fn steps_that_no_wanted_output_needs_are_not_run() {
    let steps = vec![step("a", &["in"], &["mid"]), step("b", &["mid"], &["x"]), step("c", &["mid"], &["y"])];
    let acts = [("a", takes(1)), ("b", takes(1)), ("c", takes(1))];
    let bench = Bench::new(&["in"], &["x", "y"], graph(steps), &acts);
    let outputs = vec![RequestedOutput { name: "y".to_owned(), classification: 0, keep: false }];
    let request = Request { outputs, ..Bench::request(&[("in", 1.0)]) };
    let response = only(bench.start(request).expect("it is let in")).await.expect("it is answered");
    assert_eq!(response.outputs.iter().map(|output| &*output.name).collect::<Vec<_>>(), ["y"]);
    assert_eq!((bench.asked("a"), bench.asked("b"), bench.asked("c")), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn more_requests_than_may_be_are_refused_at_once() {
    let mut limited = chain();
    limited.queue.requests_max = 2;
    let bench = Bench::new(&["in"], &["out"], limited, &[("a", takes(10)), ("b", takes(10))]);
    let start = || bench.start(Bench::request(&[("in", 1.0)]));
    let (first, _second) = (start().expect("room"), start().expect("room"));
    assert_eq!(start().err().expect("no room").kind(), Kind::QueueFull);
    drop(first);
    assert!(start().is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_ensemble_that_is_closed_finishes_what_it_has() {
    let bench = Bench::new(&["in"], &["out"], chain(), &[("a", takes(10)), ("b", takes(10))]);
    let responses = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    bench.ensemble.gate.close();
    assert_eq!(bench.start(Bench::request(&[("in", 1.0)])).err().expect("closed").kind(), Kind::Unavailable);
    assert!(only(responses).await.is_ok());
    // Does not block: nothing is left.
    bench.ensemble.gate.drain();
}

fn three_times(pause: u64) -> Vec<Act> {
    (0..3u8).flat_map(|index| [Act::Wait(ms(pause)), Act::Give(f32::from(index) * 100.0)]).collect()
}

#[tokio::test(start_paused = true)]
async fn each_response_of_a_decoupled_step_flows_on() {
    let bench = Bench::new(&["in"], &["out"], chain(), &[("a", three_times(10)), ("b", takes(25))]);
    assert!(bench.ensemble.plan.decoupled);
    let began = Instant::now();
    assert_eq!(bench.all(Bench::request(&[("in", 1.0)])).await.expect("it is answered"), [2.0, 102.0, 202.0]);
    assert_eq!(began.elapsed(), ms(55));
    assert_eq!(bench.under_way("b"), (0, 3));
    let counted = bench.counted();
    assert_eq!((counted.success.count, counted.responses.len()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn the_last_response_says_so_and_a_decoupled_member_may_give_none() {
    let bench = Bench::new(&["in"], &["out"], chain(), &[("a", three_times(10)), ("b", takes(25))]);
    let responses = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    let last: Vec<bool> = responses.map(|response| response.expect("it is answered").last).collect().await;
    assert_eq!(last, [false, false, true]);

    let nothing = vec![Act::Give(0.0), Act::Give(0.0)];
    let bench = Bench::new(&["in"], &["out"], chain(), &[("a", nothing), ("b", takes(1))]);
    assert_eq!(bench.all(Bench::request(&[("in", 1.0)])).await.expect("it is answered").len(), 2);
    assert_eq!(bench.counted().success.count, 1);
}

#[tokio::test(start_paused = true)]
async fn responses_leave_in_the_order_of_what_they_come_of() {
    let steps = vec![step("a", &["in"], &["mid"]), step("b", &["mid"], &["x"]), step("c", &["mid"], &["y"])];
    let acts = [("a", three_times(1)), ("b", takes(30)), ("c", takes(1))];
    let bench = Bench::new(&["in"], &["x", "y"], graph(steps), &acts);
    let responses = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    let pairs: Vec<(f32, f32)> = responses
        .map(|response| response.expect("it is answered"))
        .map(|response| (number(&response.outputs[0].tensor), number(&response.outputs[1].tensor)))
        .collect()
        .await;
    assert_eq!(pairs, [(2.0, 2.0), (102.0, 102.0), (202.0, 202.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_bounded_step_holds_the_step_before_back() {
    let many: Vec<Act> = (0..10u8).map(|index| Act::Give(f32::from(index))).collect();
    let bounded = Graph { step_requests_max: Some(2), ..chain() };
    let bench = Bench::new(&["in"], &["out"], bounded, &[("a", many), ("b", takes(10))]);
    let mut responses = bench.start(Bench::request(&[("in", 0.0)])).expect("it is let in");
    assert!(responses.next().await.is_some());
    // Two were in the step and one waited for it; of the others none was asked for.
    assert!(bench.puppet.seen.lock().taken["a"] <= 4);
    let rest: Vec<f32> =
        responses.map(|response| number(&response.expect("it is answered").outputs[0].tensor)).collect().await;
    assert_eq!(rest, (2..=10u8).map(f32::from).collect::<Vec<_>>());
    assert_eq!(bench.under_way("b"), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn the_bound_of_a_step_is_for_all_requests_of_the_ensemble() {
    let bounded = Graph { step_requests_max: Some(1), ..chain() };
    let bench = Bench::new(&["in"], &["out"], bounded, &[("a", takes(10)), ("b", takes(10))]);
    let began = Instant::now();
    let all = futures_util::future::join_all((0..4).map(|_| bench.all(Bench::request(&[("in", 1.0)])))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(began.elapsed(), ms(50));
    assert_eq!((bench.under_way("a").1, bench.under_way("b").1), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_bounded_step_keeps_its_deadline() {
    let bounded = Graph { step_requests_max: Some(1), ..chain() };
    let bench = Bench::new(&["in"], &["out"], bounded, &[("a", takes(100)), ("b", takes(1))]);
    let first = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    let began = Instant::now();
    let late = Request { deadline: Some(began + ms(30)), ..Bench::request(&[("in", 1.0)]) };
    let error = bench.all(late).await.expect_err("it waits for too long");
    assert_eq!((error.kind(), began.elapsed()), (Kind::DeadlineExceeded, ms(30)));
    assert!(only(first).await.is_ok());
    assert_eq!(bench.counted().failures, BTreeMap::from([(Kind::DeadlineExceeded, 1)]));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_bounded_step_is_refused_when_all_is_given_up() {
    let bounded = Graph { step_requests_max: Some(1), ..chain() };
    let bench = Bench::new(&["in"], &["out"], bounded, &[("a", takes(100)), ("b", takes(1))]);
    let _first = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    let second = bench.start(Bench::request(&[("in", 1.0)])).expect("it is let in");
    bench.ensemble.gate.abort();
    assert_eq!(only(second).await.expect_err("given up").kind(), Kind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_slow_end_holds_a_decoupled_step_back_even_without_a_bound_of_its_own() {
    let many: Vec<Act> = (0..50u8).map(|index| Act::Give(f32::from(index))).collect();
    let bench = Bench::within(4, &["in"], &["out"], chain(), &[("a", many), ("b", takes(10))]);
    assert_eq!(bench.all(Bench::request(&[("in", 0.0)])).await.expect("it is answered").len(), 50);
    assert_eq!(bench.under_way("b"), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn decoupled_steps_may_follow_each_other_within_bounds() {
    let steps = vec![step("a", &["in"], &["p"]), step("b", &["p"], &["q"]), step("c", &["q"], &["out"])];
    let acts = [("a", three_times(1)), ("b", three_times(7)), ("c", takes(20))];
    let bench = Bench::within(2, &["in"], &["out"], Graph { step_requests_max: Some(1), ..graph(steps) }, &acts);
    let mut values = bench.all(Bench::request(&[("in", 0.0)])).await.expect("it is answered");
    values.sort_by(f32::total_cmp);
    assert_eq!(values, [1.0, 101.0, 101.0, 201.0, 201.0, 201.0, 301.0, 301.0, 401.0]);
    assert_eq!(bench.under_way("c"), (0, 1));
}

/// A graph without cycles: for each step, which tensors before it takes; tensor 0 is the request's.
fn graphs() -> impl Strategy<Value = Vec<(Vec<usize>, u64)>> {
    proptest::collection::vec((proptest::collection::vec(any::<prop::sample::Index>(), 1..4), 0..50u64), 1..12)
        .prop_map(|steps| {
            let number = |(index, (takes, millis)): (usize, (Vec<prop::sample::Index>, u64))| {
                let mut takes: Vec<usize> = takes.iter().map(|each| each.index(index + 1)).collect();
                takes.sort_unstable();
                takes.dedup();
                (takes, millis)
            };
            steps.into_iter().enumerate().map(number).collect()
        })
}

proptest! {
    /// Whatever the graph, each step runs once, when its last input is there, and gives what its inputs make.
    #[test]
    fn any_graph_computes_what_it_says(steps in graphs()) {
        let names: Vec<String> = (0..=steps.len()).map(|index| format!("t{index}")).collect();
        let used: Vec<bool> =
            (0..=steps.len()).map(|tensor| steps.iter().any(|(takes, _)| takes.contains(&tensor))).collect();
        let outputs: Vec<&str> = (1..=steps.len()).filter(|&tensor| !used[tensor]).map(|at| names[at].as_str()).collect();
        let graph = graph(steps.iter().enumerate().map(|(index, (inputs, _))| {
            let inputs: Vec<&str> = inputs.iter().map(|&tensor| names[tensor].as_str()).collect();
            step(&format!("m{index}"), &inputs, &[&names[index + 1]])
        }).collect());
        let members: Vec<String> = (0..steps.len()).map(|index| format!("m{index}")).collect();
        let acts: Vec<(&str, Vec<Act>)> =
            members.iter().zip(&steps).map(|(name, (_, millis))| (name.as_str(), takes(*millis))).collect();
        let (mut values, mut ends) = (vec![2.0f32], vec![0u64]);
        for (inputs, millis) in &steps {
            values.push(inputs.iter().map(|&tensor| values[tensor]).sum::<f32>() + 1.0);
            ends.push(inputs.iter().map(|&tensor| ends[tensor]).max().unwrap_or(0) + millis);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let bench = Bench::new(&["t0"], &outputs, graph, &acts);
            let began = Instant::now();
            let responses = bench.start(Bench::request(&[("t0", 2.0)])).expect("it is let in");
            let response = only(responses).await.expect("it is answered");
            assert_eq!(began.elapsed(), ms(ends.iter().copied().max().unwrap_or(0)));
            for output in &response.outputs {
                let at = names.iter().position(|name| **name == *output.name).expect("one of them");
                assert_eq!(number(&output.tensor), values[at]);
            }
            for (index, member) in members.iter().enumerate() {
                assert_eq!(bench.asked(member), 1, "{member}");
                let seen = bench.puppet.seen.lock();
                let (at, _) = seen.requests.iter().find(|(_, request)| request.model == *member).expect("asked");
                let inputs = &steps[index].0;
                assert_eq!(*at - began, ms(inputs.iter().map(|&tensor| ends[tensor]).max().unwrap_or(0)));
            }
        });
    }
}
