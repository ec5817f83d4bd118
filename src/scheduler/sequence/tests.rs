//! Behaviour of the scheduler with waiters, in virtual time; its one instance runs when a test says so.

mod iterative;

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::*;
use crate::backend::{Instance, Replies};
use crate::model::{
    Device, Flag, Instances, Iterative, ModelConfig, QueuePolicy, SequenceBatching, SequenceControl,
    SequenceControlKind, SequenceState, SequenceStrategy, TensorSpec, TimeoutAction,
};
use crate::scheduler::instance::execute;
use crate::scheduler::tests::{Asked, respond};
use crate::scheduler::{ResponseLimits, Underway, Waiter};
use crate::tensor::{Batch, DataType, Elsewhere, Keep, Member, Resident, Shape, Tensor};

const MS: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_secs(1);

/// Adds up what a sequence brings, as its state says, and notes what it was told. It is done when the sum is not negative.
/// What it is asked to keep is elsewhere from then on.
#[derive(Default)]
struct Adder {
    /// For each execution the rows, as input, START, READY, END, CORRID, sum before.
    seen: Vec<Vec<[i32; 6]>>,
    /// Whether the first row's caller could still write the inputs.
    shared: Vec<bool>,
    fail: bool,
}

impl Instance for Adder {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let word = |tensor: &Tensor| i32::from_le_bytes(*tensor.data.first_chunk().expect("a word at least"));
        let rows = batch.members.iter().map(|member| std::array::from_fn(|index| word(&member.inputs[index])));
        let rows: Vec<[i32; 6]> = rows.collect();
        if std::mem::take(&mut self.fail) {
            return Err(Error::new(Kind::Backend, "told to"));
        }
        for (index, row) in rows.iter().enumerate() {
            let sum = row[0] + row[5];
            let Member { inputs, keep, .. } = &batch.members[index];
            let shape = inputs[0].shape.clone();
            let of = |output: usize, value: i32| {
                let data = Bytes::copy_from_slice(&value.to_le_bytes());
                let keeps = keep.keeps(output);
                let resident = keeps.then(|| Arc::new(Elsewhere(data.clone())) as Arc<dyn Resident>);
                let data = if keep.reads(output) { data } else { Bytes::new() };
                Tensor { resident, ..Tensor::new(DataType::Int32, shape.clone(), data) }
            };
            replies.member(index, vec![of(0, sum), of(1, sum), of(2, i32::from(sum >= 0))])?;
        }
        self.seen.push(rows);
        self.shared.push(batch.members[0].shared);
        Ok(())
    }
}

struct Stage {
    scheduler: Arc<Sequences>,
    adder: Adder,
}

pub(in crate::scheduler) fn direct(queue_delay_max: Duration, slot_utilization_min: f32) -> SequenceStrategy {
    SequenceStrategy::Direct { queue_delay_max, slot_utilization_min }
}

fn oldest(candidates_max: usize) -> SequenceStrategy {
    SequenceStrategy::Oldest {
        candidates_max,
        preferred_rows: Vec::new(),
        queue_delay_max: Duration::ZERO,
        preserve_ordering: false,
    }
}

pub(in crate::scheduler) fn batching(strategy: SequenceStrategy) -> SequenceBatching {
    let flag = |yes: i32| Flag {
        dtype: DataType::Int32,
        no: Bytes::copy_from_slice(&0i32.to_le_bytes()),
        yes: Bytes::copy_from_slice(&yes.to_le_bytes()),
    };
    let control = |name: &str, kind| SequenceControl { name: name.into(), kind };
    SequenceBatching {
        strategy,
        idle_max: IDLE,
        controls: vec![
            control("START", SequenceControlKind::Start(flag(1))),
            control("READY", SequenceControlKind::Ready(flag(1))),
            control("END", SequenceControlKind::End(flag(1))),
            control("CORRID", SequenceControlKind::CorrelationId(DataType::Int32)),
        ],
        states: vec![SequenceState {
            input: "SUM_IN".into(),
            output: "SUM".into(),
            dtype: DataType::Int32,
            dims: Shape::new(&[1]),
            initial: None,
            same_buffer: false,
            growable: false,
        }],
        iterative: None,
        queue: QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: None,
            allow_timeout_override: false,
            requests_max: 20,
        },
    }
}

impl Stage {
    fn new(rows_max: usize, batching: SequenceBatching) -> Self {
        Self::with(ModelConfig { max_batch_rows: rows_max, ..ModelConfig::new("m", "b") }, batching, |_| {})
    }

    fn with(config: ModelConfig, batching: SequenceBatching, change: impl FnOnce(&mut SequenceSettings)) -> Self {
        let int = |name: &str| TensorSpec::new(name, Some(DataType::Int32), Some(Shape::new(&[1])));
        // An iterative model says in a second state whether it is done; nobody gets that.
        let mut batching = batching;
        if batching.iterative.is_some() {
            let done = SequenceState { input: "DONE_IN".into(), output: "DONE".into(), ..batching.states[0].clone() };
            batching.states.push(done);
        }
        let config = ModelConfig {
            inputs: vec![int("IN")],
            outputs: vec![int("OUT")],
            instances: vec![Instances::new("g", Device::Cpu, 1)],
            scheduling: crate::model::Scheduling::Sequence(batching.clone()),
            ..config
        };
        let responses = ResponseLimits { waiting_max: 2, stall_max: 10 * IDLE };
        let mut settings = SequenceSettings::new(&config, &batching, responses).expect("it is right");
        change(&mut settings);
        Self { scheduler: Sequences::new(settings, Arc::default()), adder: Adder::default() }
    }

    fn ask(&self, id: u64, value: i32, flags: &str) -> Result<Asked> {
        let id = CorrelationId::Number(id);
        let sequence = Sequence { id, start: flags.contains('S'), end: flags.contains('E') };
        self.ask_as(value, Some(sequence), |_| {})
    }

    fn ask_as(&self, value: i32, sequence: Option<Sequence>, change: impl FnOnce(&mut Pushed)) -> Result<Asked> {
        let now = Instant::now();
        let batches = self.scheduler.settings.rows_max > 1;
        let shape = if batches { Shape::new(&[1, 1]) } else { Shape::new(&[1]) };
        let data = Bytes::copy_from_slice(&value.to_le_bytes());
        let member = Member::new(1, vec![Tensor::new(DataType::Int32, shape, data)]);
        let mut pushed = Pushed { sequence, ..Pushed::new(member, now) };
        change(&mut pushed);
        let times = (pushed.arrived, pushed.deadline);
        let waiting = self.scheduler.clone().push(pushed, now)?;
        Ok(Waiter::new(self.scheduler.clone(), waiting, times, respond()))
    }

    /// Runs what is there; how many rows.
    fn run(&mut self) -> usize {
        let Some(pulled) = self.scheduler.try_pull(0) else { return 0 };
        let rows = pulled.entries.len();
        execute(&*self.scheduler, 0, &mut self.adder, pulled);
        rows
    }

    fn failures(&self) -> BTreeMap<Kind, u64> {
        self.scheduler.stats().snapshot().failures
    }
}

/// The first byte of the only output.
async fn answer(asked: &mut Asked) -> Result<i32> {
    let response = asked.next().await.expect("there is a response")?;
    let bytes: Vec<u8> =
        response.id.trim_matches(['[', ']']).split(", ").filter_map(|byte| byte.parse().ok()).collect();
    Ok(i32::from_le_bytes(bytes.try_into().expect("callers get one output of one word")))
}

async fn refused(mut asked: Asked) -> Error {
    answer(&mut asked).await.expect_err("it fails")
}

#[tokio::test(start_paused = true)]
async fn a_sequence_keeps_its_row_its_state_and_its_order() {
    let mut stage = Stage::new(4, batching(direct(Duration::ZERO, 0.0)));
    let mut asked = vec![stage.ask(7, 10, "S").expect("ok"), stage.ask(8, 20, "S").expect("ok")];
    asked.push(stage.ask(8, 1, "").expect("ok"));
    assert_eq!((stage.run(), stage.run(), stage.run()), (2, 2, 0));
    asked.push(stage.ask(8, 1, "E").expect("ok"));
    assert_eq!(stage.run(), 2);
    asked.push(stage.ask(7, 5, "E").expect("ok"));
    assert_eq!(stage.run(), 1);
    let idle = [0; 6];
    assert_eq!(stage.adder.seen[0], [[10, 1, 1, 0, 7, 0], [20, 1, 1, 0, 8, 0]]);
    assert_eq!(stage.adder.seen[1], [idle, [1, 0, 1, 0, 8, 20]]);
    assert_eq!(stage.adder.seen[2], [idle, [1, 0, 1, 1, 8, 21]]);
    assert_eq!(stage.adder.seen[3], [[5, 0, 1, 1, 7, 10]]);
    let mut sums = Vec::new();
    for asked in &mut asked {
        sums.push(answer(asked).await.expect("answered"));
    }
    assert_eq!(sums, [10, 20, 21, 22, 15]);
    let stats = stage.scheduler.stats().snapshot();
    assert_eq!((stats.success.count, stats.inference_count, stats.execution_count), (5, 5, 4));
    assert_eq!(stage.scheduler.seated(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_waits_for_its_batch_to_grow_is_not_woken_by_the_look_of_another() {
    let config = ModelConfig { max_batch_rows: 2, ..ModelConfig::new("m", "b") };
    let batching = batching(direct(Duration::from_secs(1), 1.0));
    let stage = Stage::with(config, batching, |settings| settings.bounds.instances = 2);
    let _asked = [stage.ask(1, 1, "S").expect("ok"), stage.ask(2, 1, "S").expect("ok")];
    let look = |instance| {
        let mut state = stage.scheduler.state.lock();
        state.bells.resize_with(2, || (Arc::new(Condvar::new()), true));
        let look = stage.scheduler.look_once(&mut state, instance, Instant::now(), Want::Know);
        assert!(matches!(look, Look::Wait(Some(_))), "{look:?}");
        state.bells.iter().map(|(_, asleep)| *asleep).collect::<Vec<_>>()
    };
    look(0);
    look(1);
    stage.scheduler.state.lock().bells.clear();
    assert_eq!((look(0), look(1)), (vec![true; 2], vec![true; 2]), "each has looked, and nothing has come");
    let _third = stage.ask(2, 1, "").expect("ok");
    let _fourth = stage.ask(3, 1, "S").expect("ok");
    assert!(stage.scheduler.state.lock().bells.iter().any(|(_, asleep)| !asleep), "the third sequence is news");
}

#[tokio::test(start_paused = true)]
async fn the_oldest_requests_of_more_sequences_than_rows_make_a_batch() {
    let mut stage = Stage::new(2, batching(oldest(3)));
    let mut asked: Vec<_> = (1..=4).map(|id| stage.ask(id, id as i32, "SE").expect("ok")).collect();
    assert_eq!((stage.run(), stage.run(), stage.run()), (2, 2, 0));
    assert_eq!(stage.adder.seen[1].iter().map(|row| row[4]).collect::<Vec<_>>(), [3, 4]);
    for (index, asked) in asked.iter_mut().enumerate() {
        assert_eq!(answer(asked).await.expect("answered"), index as i32 + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_without_a_batch_dimension_has_one_sequence_at_a_time() {
    let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    let mut first = stage.ask(1, 3, "S").expect("ok");
    let mut second = stage.ask(2, 4, "SE").expect("ok");
    assert_eq!((stage.run(), stage.run()), (1, 0));
    let mut last = stage.ask(1, 2, "E").expect("ok");
    assert_eq!((stage.run(), stage.run()), (1, 1));
    let mut sums = Vec::new();
    for asked in [&mut first, &mut second, &mut last] {
        sums.push(answer(asked).await.expect("answered"));
    }
    assert_eq!(sums, [3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_request_is_said_in_the_words_that_clients_know() {
    let stage = Stage::new(4, batching(direct(Duration::ZERO, 0.0)));
    let message = |asked: Result<Asked>| asked.err().expect("refused").message().to_owned();
    assert_eq!(
        message(stage.ask(5, 1, "")),
        "inference request for sequence 5 to model 'm' must specify the START flag on the first request of the sequence"
    );
    assert_eq!(
        message(stage.ask_as(1, None, |_| {})),
        "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
    );
    let sequence = Sequence { id: CorrelationId::Number(1), start: true, end: false };
    assert_eq!(
        message(stage.ask_as(1, Some(sequence), |pushed| pushed.member.rows = 2)),
        "inference request to model 'm' must specify batch-size 1 due to requirements of sequence batcher"
    );
    let sequence = Sequence { id: CorrelationId::Text("a".into()), start: true, end: false };
    assert_eq!(
        message(stage.ask_as(1, Some(sequence), |_| {})),
        "sequence batching control 'CORRID' data-type is 'BYTES', but model 'm' expects 'INT32'"
    );
    let full: Vec<_> = (1..=20).map(|id| stage.ask(id, 1, "S").expect("there is room")).collect();
    assert_eq!(message(stage.ask(21, 1, "S")), "Exceeds maximum queue size");
    drop(full);
    assert_eq!((stage.scheduler.waiting(), stage.scheduler.seated()), (0, 0));
    assert_eq!(stage.failures(), BTreeMap::from([(Kind::Cancelled, 20)]));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_ends_its_sequence_and_frees_the_slot() {
    let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    let first = stage.ask(1, 1, "S").expect("ok");
    let second = stage.ask(1, 1, "").expect("ok");
    let mut next = stage.ask(2, 9, "SE").expect("ok");
    drop(first);
    let error = refused(second).await;
    assert_eq!(
        (error.kind(), error.message()),
        (Kind::Cancelled, "the sequence is cancelled, as another of its requests is given up")
    );
    assert_eq!(stage.run(), 1);
    assert_eq!(answer(&mut next).await.expect("answered"), 9);
    assert!(stage.ask(1, 1, "").is_err_and(|error| error.message().contains("START")));
    assert_eq!(stage.failures(), BTreeMap::from([(Kind::Cancelled, 2)]));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_while_its_request_runs_ends_the_sequence_at_once() {
    let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    let first = stage.ask(1, 1, "S").expect("ok");
    let second = stage.ask(1, 1, "").expect("ok");
    let mut next = stage.ask(2, 9, "SE").expect("ok");
    let pulled = stage.scheduler.try_pull(0).expect("it waits");
    drop(first);
    assert_eq!(refused(second).await.kind(), Kind::Cancelled);
    execute(&*stage.scheduler, 0, &mut stage.adder, pulled);
    assert_eq!(stage.run(), 1);
    assert_eq!(answer(&mut next).await.expect("answered"), 9);
    assert_eq!(stage.failures(), BTreeMap::from([(Kind::Cancelled, 2)]));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_or_timeout_that_passes_ends_the_sequence_at_its_time() {
    for (change, kind, others) in [
        (
            (|pushed| pushed.deadline = Some(pushed.arrived + 50 * MS)) as fn(&mut Pushed),
            Kind::DeadlineExceeded,
            Kind::Cancelled,
        ),
        (|pushed| pushed.timeout = Some(50 * MS), Kind::TimedOut, Kind::TimedOut),
    ] {
        let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
        let began = Instant::now();
        let busy = stage.ask(1, 1, "S").expect("ok");
        let pulled = stage.scheduler.try_pull(0).expect("it waits");
        let sequence = |start| Some(Sequence { id: CorrelationId::Number(2), start, end: false });
        let late = stage.ask_as(1, sequence(true), change).expect("ok");
        let behind = stage.ask_as(1, sequence(false), |_| {}).expect("ok");
        let (late, behind) = tokio::join!(refused(late), refused(behind));
        assert_eq!((late.kind(), behind.kind()), (kind, others));
        assert!(began.elapsed() <= 60 * MS, "{:?}", began.elapsed());
        if others == Kind::TimedOut {
            assert_eq!(behind.message(), "timeout of the corresponding sequence has been expired");
        }
        execute(&*stage.scheduler, 0, &mut stage.adder, pulled);
        drop(busy);
        assert_eq!((stage.run(), stage.scheduler.waiting(), stage.adder.seen.len()), (0, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_sequence_is_over_at_its_time_and_its_slot_goes_to_the_backlog() {
    let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    let mut first = stage.ask(1, 1, "S").expect("ok");
    let mut next = stage.ask(2, 2, "SE").expect("ok");
    assert_eq!(stage.run(), 1);
    answer(&mut first).await.expect("answered");
    tokio::time::advance(IDLE - MS).await;
    assert_eq!(stage.run(), 0);
    tokio::time::advance(MS).await;
    assert_eq!(stage.run(), 1);
    assert_eq!(answer(&mut next).await.expect("answered"), 2);
    assert!(stage.ask(1, 1, "").is_err_and(|error| error.message().contains("START")));
}

#[tokio::test(start_paused = true)]
async fn a_failed_execution_leaves_the_state_as_it_was() {
    let mut stage = Stage::new(2, batching(direct(Duration::ZERO, 0.0)));
    let mut first = stage.ask(1, 5, "S").expect("ok");
    stage.run();
    let failed = stage.ask(1, 100, "").expect("ok");
    stage.adder.fail = true;
    stage.run();
    assert_eq!(refused(failed).await.kind(), Kind::Backend);
    let mut again = stage.ask(1, 2, "E").expect("the sequence goes on");
    stage.run();
    assert_eq!((answer(&mut first).await, answer(&mut again).await), (Ok(5), Ok(7)));
    assert_eq!(stage.scheduler.seated(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_start_begins_anew_behind_what_waits() {
    let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    let mut asked = vec![stage.ask(1, 5, "S").expect("ok"), stage.ask(1, 6, "").expect("ok")];
    asked.push(stage.ask(1, 1, "S").expect("ok"));
    asked.push(stage.ask(1, 2, "E").expect("ok"));
    while stage.run() > 0 {}
    let mut sums = Vec::new();
    for asked in &mut asked {
        sums.push(answer(asked).await.expect("answered"));
    }
    assert_eq!(sums, [5, 11, 1, 3]);
    assert_eq!(stage.adder.seen.iter().map(|rows| rows[0][1]).collect::<Vec<_>>(), [1, 0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_is_answered_after_the_close_and_an_abort_refuses_it() {
    for abort in [false, true] {
        let mut stage = Stage::new(0, batching(direct(100 * IDLE, 1.0)));
        let mut asked: Vec<_> = (1..=3).map(|id| stage.ask(id, id as i32, "S").expect("ok")).collect();
        if abort {
            stage.scheduler.abort();
        } else {
            stage.scheduler.close();
        }
        assert!(stage.ask(1, 1, "").is_err_and(|error| error.kind() == Kind::Unavailable));
        while stage.run() > 0 {}
        assert!(stage.scheduler.pull(0).is_none(), "it is closed and empty");
        for (index, asked) in asked.iter_mut().enumerate() {
            match abort {
                false => assert_eq!(answer(asked).await, Ok(index as i32 + 1)),
                true => assert_eq!(answer(asked).await.expect_err("refused").kind(), Kind::Unavailable),
            }
        }
        assert_eq!((stage.scheduler.waiting(), stage.scheduler.seated()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_sequences_of_a_deserted_instance_end_and_those_of_others_go_on() {
    let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    stage.scheduler.joins(1);
    let lost = [stage.ask(1, 1, "S").expect("ok"), stage.ask(1, 1, "").expect("ok")];
    let mut kept = stage.ask(2, 2, "S").expect("ok");
    let mut backlog = stage.ask(3, 3, "SE").expect("ok");
    stage.scheduler.deserted(0, &Error::unavailable("it hangs"));
    let [first, second] = lost;
    assert_eq!(refused(first).await.message(), "it hangs");
    assert_eq!(refused(second).await.kind(), Kind::Cancelled);
    assert!(stage.scheduler.pull(0).is_none());
    let pulled = stage.scheduler.try_pull(1).expect("the other instance has a sequence");
    execute(&*stage.scheduler, 1, &mut stage.adder, pulled);
    assert_eq!(answer(&mut kept).await, Ok(2));
    let mut end = stage.ask(2, 2, "E").expect("ok");
    for _ in 0..2 {
        let pulled = stage.scheduler.try_pull(1).expect("the rest, and then the backlog");
        execute(&*stage.scheduler, 1, &mut stage.adder, pulled);
    }
    answer(&mut end).await.expect("answered");
    assert_eq!(answer(&mut backlog).await, Ok(3));
    assert_eq!((stage.scheduler.waiting(), stage.scheduler.seated()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_deserted_instance_runs_nothing_any_more() {
    let stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    let asked = stage.ask(1, 1, "SE").expect("ok");
    drop(stage.scheduler.try_pull(0).expect("it waits"));
    stage.scheduler.deserted(0, &Error::internal("it panicked"));
    assert_eq!(refused(asked).await.kind(), Kind::Internal);
    assert!(stage.scheduler.is_idle());
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_instance_ran_counts_as_its_callers_heard_it_and_free_rows_count_nothing() {
    let stage = Stage::new(3, batching(direct(Duration::ZERO, 0.0)));
    let asked = [1, 2, 3].map(|id| stage.ask(id, 1, "S").expect("ok"));
    let [gone, free, lost] = asked;
    drop(free);
    let batch = Underway::begin(&*stage.scheduler, 0, None).expect("there is a batch");
    assert_eq!(batch.members().count(), 3);
    drop(gone);
    batch.lose(&*stage.scheduler, &Error::new(Kind::Backend, "it hangs"));
    assert_eq!(refused(lost).await.message(), "it hangs");
    assert_eq!(stage.failures(), BTreeMap::from([(Kind::Cancelled, 2), (Kind::Backend, 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_enough_slots_or_for_its_delay() {
    let mut stage = Stage::new(4, batching(direct(100 * MS, 0.5)));
    let _first = stage.ask(1, 1, "S").expect("ok");
    assert_eq!(stage.run(), 0);
    let _second = stage.ask(2, 1, "S").expect("ok");
    assert_eq!(stage.run(), 2);
    let _third = stage.ask(1, 1, "").expect("ok");
    tokio::time::advance(99 * MS).await;
    assert_eq!(stage.run(), 0);
    tokio::time::advance(MS).await;
    assert_eq!(stage.run(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_is_held_runs_nothing_until_enough_waits() {
    let hold = |settings: &mut SequenceSettings| settings.hold = crate::scheduler::Hold { queued: 2, backlog: 1 };
    let config = ModelConfig { max_batch_rows: 2, ..ModelConfig::new("m", "b") };
    let mut stage = Stage::with(config, batching(direct(Duration::ZERO, 0.0)), hold);
    let mut asked: Vec<_> = (1..=2).map(|id| stage.ask(id, 1, "SE").expect("ok")).collect();
    assert_eq!(stage.run(), 0);
    asked.push(stage.ask(3, 1, "SE").expect("ok"));
    assert_eq!((stage.run(), stage.run()), (2, 1));
    asked.push(stage.ask(4, 1, "SE").expect("ok"));
    assert_eq!(stage.run(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_predicted_to_be_late_is_refused_and_the_sequence_goes_on() {
    let mut stage = Stage::new(0, batching(direct(Duration::ZERO, 0.0)));
    let class = SizeClass::of_row(4);
    (0..20).for_each(|_| stage.scheduler.record_run(class, 1, 100 * MS));
    let mut first = stage.ask(1, 1, "S").expect("ok");
    let sequence = Sequence { id: CorrelationId::Number(1), start: false, end: false };
    let late = stage.ask_as(1, Some(sequence), |pushed| pushed.deadline = Some(pushed.arrived + 150 * MS));
    assert_eq!(late.err().map(|error| error.kind()), Some(Kind::DeadlineExceeded));
    stage.run();
    assert_eq!(answer(&mut first).await, Ok(1));
    assert!(stage.ask(1, 1, "").is_ok());
}

#[tokio::test]
async fn an_instance_sleeps_until_there_is_a_batch_and_ends_with_the_scheduler() {
    let stage = Stage::new(2, batching(direct(Duration::ZERO, 0.0)));
    let scheduler = stage.scheduler.clone();
    let clock = tokio::runtime::Handle::current();
    let thread = std::thread::spawn(move || {
        let _clock = clock.enter();
        let mut adder = Adder::default();
        while let Some(pulled) = scheduler.pull(0) {
            execute(&*scheduler, 0, &mut adder, pulled);
        }
        adder.seen.len()
    });
    for value in 1..=3 {
        let mut asked = stage.ask(1, 1, if value == 1 { "S" } else { "" }).expect("ok");
        assert_eq!(answer(&mut asked).await, Ok(value));
    }
    stage.scheduler.close();
    assert_eq!(thread.join().expect("it does not panic"), 3);
}

#[test]
fn what_one_thread_has_put_off_keeps_no_other_from_waking_an_instance() {
    let stage = Stage::new(4, batching(oldest(4)));
    let scheduler = stage.scheduler.clone();
    let instance = std::thread::spawn(move || scheduler.pull(0));
    let sleeps = || stage.scheduler.state.lock().bells.first().is_some_and(|(_, asleep)| *asleep);
    while !sleeps() {
        std::thread::yield_now();
    }
    let ask = |id| {
        round::begin();
        stage.ask(id, 1, "S").expect("ok")
    };
    // Busy with something else from now on.
    let _busy = std::thread::scope(|scope| scope.spawn(|| ask(1)).join()).expect("it does not panic");
    let _own = ask(2);
    assert!(sleeps(), "the round goes on");
    round::end();
    assert!(!sleeps());
    assert_eq!(instance.join().expect("it does not panic").map(|pulled| pulled.entries.len()), Some(2));
}

#[tokio::test(start_paused = true)]
async fn states_stay_where_they_are_computed_but_what_says_that_a_request_is_done_is_read() {
    let keep = |stage: &Stage| {
        let keep = stage.scheduler.settings.kept(Keep::default().passing(0));
        [0, 1, 2].map(|output| (keep.keeps(output), keep.lasts(output), keep.reads(output)))
    };
    let asked = (true, false, false);
    let ordinary = Stage::new(4, batching(direct(Duration::ZERO, 0.0)));
    assert_eq!(keep(&ordinary), [asked, (true, true, false), (false, false, true)]);
    let iterative = Iterative { done_output: Some("DONE".into()), steps_max: 5 };
    let iterative = SequenceBatching { iterative: Some(iterative), ..batching(direct(Duration::ZERO, 0.0)) };
    assert_eq!(keep(&Stage::new(4, iterative)), [asked, (true, true, false), (true, true, true)]);
    let mut of_caller = batching(direct(Duration::ZERO, 0.0));
    of_caller.states[0].output = "OUT".into();
    let of_caller = Stage::new(4, of_caller).scheduler.settings.kept(Keep::default());
    assert!(of_caller.lasts(0) && of_caller.reads(0), "callers get it, too");
}
