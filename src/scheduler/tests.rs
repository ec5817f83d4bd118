//! Behaviour of queue, waiter and instance together, in virtual time, with a puppet that runs when it is told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;

use super::*;
use crate::backend::{Instance, Model, Replies};
use crate::error::{Error, Kind, Result};
use crate::infer::{Instant, Parameters, Response, round};
use crate::model::{Device, Footprint, QueuePolicy, TimeoutAction};
use crate::telemetry::stats::ModelStats;
use crate::tensor::{Batch, DataType, Member, Shape, Tensor};

pub(super) const MS: Duration = Duration::from_millis(1);

/// What the puppet does with one batch.
pub(super) enum Order {
    Answer,
    /// Of a decoupled model: sends so many responses, then does the last order.
    Send(usize, Box<Order>),
    /// Of a decoupled model: ends without a further response.
    End,
    /// Of a decoupled model: does nothing for so long.
    Pause(Duration),
    Fail(&'static str),
    /// Fails for lack of memory.
    RunOut,
    Panic,
}

/// A model whose instances wait for an order before each batch, and tell the row counts they were given.
struct Puppet {
    orders: Mutex<mpsc::Receiver<Order>>,
    seen: mpsc::Sender<Vec<usize>>,
    sent: Arc<AtomicUsize>,
}

struct PuppetInstance(Arc<Puppet>);

impl Model for Arc<Puppet> {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        Ok(Box::new(PuppetInstance(self.clone())))
    }
}

impl Instance for PuppetInstance {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let _ = self.0.seen.send(batch.members.iter().map(|member| member.rows).collect());
        let order = self.0.orders.lock().recv();
        self.0.obey(order.unwrap_or(Order::Answer), batch, replies)
    }
}

impl Puppet {
    fn obey(&self, order: Order, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        match order {
            Order::Answer => {
                for (index, member) in batch.members.iter().enumerate() {
                    replies.member(index, member.inputs.clone())?;
                }
                Ok(())
            }
            Order::Send(count, then) => {
                for _ in 0..count {
                    replies.send(0, batch.members[0].inputs.clone())?;
                    self.sent.fetch_add(1, Ordering::SeqCst);
                }
                self.obey(*then, batch, replies)
            }
            Order::End => Ok(()),
            Order::Pause(time) => replies.pause(0, time),
            Order::Fail(text) => Err(Error::new(Kind::Backend, text)),
            Order::RunOut => Err(Error::new(Kind::OutOfMemory, "no memory")),
            Order::Panic => panic!("told to"),
        }
    }
}

/// A queue with one puppet instance.
pub(super) struct Stage {
    pub(super) queue: Arc<Queue>,
    orders: mpsc::Sender<Order>,
    seen: mpsc::Receiver<Vec<usize>>,
    /// Responses that the instance could send before the last one.
    pub(super) sent: Arc<AtomicUsize>,
    instance: Option<Started>,
}

/// A level whose requests may bring their own timeouts.
pub(super) fn policy(requests_max: usize) -> QueuePolicy {
    QueuePolicy { timeout_action: TimeoutAction::Reject, timeout: None, allow_timeout_override: true, requests_max }
}

pub(super) fn settings(rows_max: usize) -> QueueSettings {
    QueueSettings {
        requests_max: 1000,
        limits: Limits { rows_max, ..Limits::single() },
        levels: Levels::one(policy(1000)),
        preserve_order: false,
        hold: 0,
        shapes_vary: true,
        forms: None,
        instances: 1,
        responses: None,
    }
}

fn budgeted(budget: Duration) -> QueueSettings {
    QueueSettings { limits: Limits { budget: Some(budget), ..Limits::single() }, ..settings(1) }
}

impl Stage {
    pub(super) fn new(settings: QueueSettings) -> Self {
        let (orders, received) = mpsc::channel();
        let (tell, seen) = mpsc::channel();
        let sent = Arc::new(AtomicUsize::new(0));
        let model = Arc::new(Arc::new(Puppet { orders: Mutex::new(received), seen: tell, sent: sent.clone() }));
        Self { orders, seen, sent, ..Self::of(settings, model) }
    }

    /// With an instance of this model, which takes no orders.
    fn of(settings: QueueSettings, model: Arc<dyn Model>) -> Self {
        let queue = Arc::new(Queue::new(settings, Arc::new(ModelStats::default())));
        let starting = Starting {
            scheduler: queue.clone(),
            model,
            device: Device::Cpu,
            index: 0,
            thread_name: "puppet".to_owned(),
            warmup: Arc::new([]),
        };
        let instance = start(starting).expect("a thread starts");
        let ((orders, _), (_, seen)) = (mpsc::channel(), mpsc::channel());
        Self { queue, orders, seen, sent: Arc::default(), instance: Some(instance) }
    }

    pub(super) fn ask(&self, rows: usize, width: i64, deadline: Option<Duration>) -> Result<Asked> {
        self.ask_with(rows, width, deadline, None)
    }

    fn ask_with(
        &self,
        rows: usize,
        width: i64,
        deadline: Option<Duration>,
        timeout: Option<Duration>,
    ) -> Result<Asked> {
        let now = Instant::now();
        let shape = Shape::new(&[rows as i64, width]);
        let data = Bytes::from(vec![7; rows * width as usize]);
        let member = Member::new(rows, vec![Tensor::new(DataType::Uint8, shape, data)]);
        let deadline = deadline.map(|deadline| now + deadline);
        let waiting = self.queue.clone().push(Pushed { deadline, timeout, ..Pushed::new(member, now) }, now)?;
        Ok(Waiter::new(self.queue.clone(), waiting, (now, deadline), respond()))
    }

    /// The row counts of the next batch that the instance begins.
    pub(super) fn begun(&self) -> Vec<usize> {
        self.seen.recv().expect("the instance lives")
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.send(order).expect("the instance lives");
    }

    /// Closes the queue and waits for the instance to end.
    pub(super) fn close(&mut self) {
        self.queue.close();
        if let Some(instance) = self.instance.take() {
            instance.thread.join().expect("the instance thread does not panic");
        }
    }
}

/// Makes a response of an answer.
pub(super) type Respond = Box<dyn FnMut(Answer) -> Response + Send>;
/// The waiting end of a request.
pub(super) type Asked = Waiter<Respond>;

/// Responses that have the bytes of each output in their id, for who wants to see them.
pub(super) fn respond() -> Respond {
    Box::new(|answer| Response {
        model: "m".into(),
        version: 1,
        id: answer.outputs.iter().map(|output| format!("{:?}", &output.data[..])).collect(),
        outputs: Vec::new(),
        parameters: Parameters::new(),
        last: answer.last,
        times: Some(answer.times),
    })
}

async fn answer(mut waiter: Asked) -> Result<()> {
    waiter.next().await.expect("there is one response").map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn while_a_model_is_busy_every_deadline_is_kept_and_nothing_late_is_executed() {
    let mut stage = Stage::new(settings(1));
    let busy = stage.ask(1, 4, None).expect("accepted");
    assert_eq!(stage.begun(), [1]);
    let began = Instant::now();
    let waiters: Vec<_> = (0..100).map(|_| stage.ask(1, 4, Some(200 * MS)).expect("accepted")).collect();
    for waiter in waiters {
        let error = answer(waiter).await.expect_err("the model is busy for longer");
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert!(began.elapsed() <= 210 * MS, "{:?}", began.elapsed());
    }
    tokio::time::advance(4800 * MS).await;
    stage.order(Order::Answer);
    answer(busy).await.expect("answered");
    stage.close();
    let stats = stage.queue.stats().snapshot();
    assert_eq!((stats.execution_count, stats.success.count), (1, 1));
    assert_eq!(stats.failures[&Kind::DeadlineExceeded], 100);
}

#[tokio::test(start_paused = true)]
async fn what_one_round_of_the_network_brings_is_one_batch() {
    let stage = Stage::new(settings(4));
    while !stage.queue.has_sleepers() {
        std::thread::yield_now();
    }
    round::begin();
    let waiters: Vec<_> = (0..3).map(|_| stage.ask(1, 4, None).expect("accepted")).collect();
    assert!(stage.queue.has_sleepers());
    round::end();
    assert_eq!(stage.begun(), [1, 1, 1]);
    stage.order(Order::Answer);
    for waiter in waiters {
        answer(waiter).await.expect("answered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_timeout_acts_at_its_time_while_all_instances_are_busy() {
    let stage = Stage::new(QueueSettings {
        levels: Levels::one(QueuePolicy { timeout: Some(50 * MS), ..policy(1000) }),
        ..settings(1)
    });
    let _busy = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let began = Instant::now();
    let default = stage.ask(1, 4, None).expect("accepted");
    let shorter = stage.ask_with(1, 4, None, Some(20 * MS)).expect("accepted");
    let longer = stage.ask_with(1, 4, None, Some(90 * MS)).expect("accepted");
    assert_eq!(answer(shorter).await.expect_err("times out").message(), "Request timeout expired");
    assert!(began.elapsed() < 25 * MS);
    assert_eq!(answer(default).await.expect_err("times out").kind(), Kind::TimedOut);
    assert_eq!(answer(longer).await.expect_err("times out").kind(), Kind::TimedOut);
    assert!(began.elapsed() < 55 * MS);
    stage.order(Order::Answer);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_request_leaves_the_queue_at_once() {
    let mut stage = Stage::new(settings(1));
    let busy = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let dropped = stage.ask(1, 4, None).expect("accepted");
    assert_eq!(stage.queue.waiting(), 1);
    drop(dropped);
    assert_eq!(stage.queue.waiting(), 0);
    stage.order(Order::Answer);
    answer(busy).await.expect("answered");
    stage.close();
    let stats = stage.queue.stats().snapshot();
    assert_eq!((stats.execution_count, stats.failures[&Kind::Cancelled]), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_while_it_runs_counts_as_cancelled() {
    let mut stage = Stage::new(settings(1));
    let running = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    drop(running);
    stage.order(Order::Answer);
    stage.close();
    let stats = stage.queue.stats().snapshot();
    assert_eq!((stats.success.count, stats.failures[&Kind::Cancelled]), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let stage = Stage::new(QueueSettings { requests_max: 2, ..settings(1) });
    let _busy = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let _waiting = [stage.ask(1, 4, None).expect("accepted"), stage.ask(1, 4, None).expect("accepted")];
    let error = stage.ask(1, 4, None).err().expect("the queue is full");
    assert_eq!((error.kind(), error.message()), (Kind::QueueFull, "Exceeds maximum queue size"));
    (0..3).for_each(|_| stage.order(Order::Answer));
}

#[tokio::test(start_paused = true)]
async fn requests_of_different_shapes_never_share_a_batch() {
    let mut stage = Stage::new(settings(8));
    let first = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let waiters = [(1, 4), (2, 5), (3, 4), (1, 5)].map(|(rows, width)| stage.ask(rows, width, None).expect("accepted"));
    (0..3).for_each(|_| stage.order(Order::Answer));
    answer(first).await.expect("answered");
    assert_eq!(stage.begun(), [1, 3]);
    assert_eq!(stage.begun(), [2, 1]);
    for waiter in waiters {
        answer(waiter).await.expect("answered");
    }
    stage.close();
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_tells_each_of_its_requests() {
    let mut stage = Stage::new(settings(8));
    let first = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let waiters = [stage.ask(1, 4, None).expect("accepted"), stage.ask(1, 4, None).expect("accepted")];
    stage.order(Order::Answer);
    stage.order(Order::Fail("broken"));
    answer(first).await.expect("answered");
    for waiter in waiters {
        let error = answer(waiter).await.expect_err("the batch failed");
        assert_eq!((error.kind(), error.message()), (Kind::Backend, "broken"));
    }
    stage.close();
    assert_eq!(stage.queue.stats().snapshot().failures[&Kind::Backend], 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_panics_fails_its_batch_and_serves_on() {
    let mut stage = Stage::new(settings(1));
    stage.order(Order::Panic);
    let error = answer(stage.ask(1, 4, None).expect("accepted")).await.expect_err("it panicked");
    assert_eq!(error.kind(), Kind::Internal);
    stage.order(Order::Answer);
    answer(stage.ask(1, 4, None).expect("accepted")).await.expect("answered");
    stage.close();
}

#[tokio::test(start_paused = true)]
async fn what_waits_at_close_is_still_answered_and_nothing_new_is_taken() {
    let mut stage = Stage::new(settings(1));
    let waiters: Vec<_> = (0..5).map(|_| stage.ask(1, 4, None).expect("accepted")).collect();
    stage.begun();
    stage.queue.close();
    assert_eq!(stage.ask(1, 4, None).err().expect("closed").kind(), Kind::Unavailable);
    (0..5).for_each(|_| stage.order(Order::Answer));
    for waiter in waiters {
        answer(waiter).await.expect("answered");
    }
    stage.close();
    assert_eq!(stage.queue.stats().snapshot().success.count, 5);
}

#[tokio::test(start_paused = true)]
async fn an_abort_refuses_what_waits() {
    let mut stage = Stage::new(settings(1));
    let busy = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let waiting = stage.ask(1, 4, None).expect("accepted");
    stage.queue.abort();
    assert_eq!(answer(waiting).await.expect_err("aborted").kind(), Kind::Unavailable);
    stage.order(Order::Answer);
    answer(busy).await.expect("answered");
    stage.close();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_predicted_to_break_the_budget_is_refused_at_once() {
    let stage = Stage::new(budgeted(100 * MS));
    let class = SizeClass::of_row(4);
    (0..64).for_each(|_| stage.queue.record_run(class, 1, 40 * MS));
    let _running = stage.ask(1, 4, None).expect("an idle model takes it");
    stage.begun();
    let _second = stage.ask(1, 4, None).expect("40 ms of waiting and 40 ms of its own are within 100 ms");
    let third = stage.ask(1, 4, None).err().expect("80 ms of waiting and 40 ms of its own are not");
    assert_eq!(third.kind(), Kind::BudgetExceeded);
    (0..2).for_each(|_| stage.order(Order::Answer));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_is_given_up_when_the_budget_cannot_be_met_any_more() {
    let stage = Stage::new(budgeted(100 * MS));
    let class = SizeClass::of_row(4);
    (0..64).for_each(|_| stage.queue.record_run(class, 1, 40 * MS));
    let _running = stage.ask(1, 4, None).expect("accepted");
    stage.begun();
    let began = Instant::now();
    let waiting = stage.ask(1, 4, None).expect("accepted");
    assert_eq!(answer(waiting).await.expect_err("the instance hangs").kind(), Kind::BudgetExceeded);
    assert!(began.elapsed() >= 54 * MS && began.elapsed() <= 57 * MS, "{:?}", began.elapsed());
    stage.order(Order::Answer);
}

#[tokio::test(start_paused = true)]
async fn an_idle_model_tries_a_request_again_although_it_is_predicted_to_be_late() {
    let mut stage = Stage::new(budgeted(100 * MS));
    (0..64).for_each(|_| stage.queue.record_run(SizeClass::of_row(4), 1, 1000 * MS));
    let probe = stage.ask(1, 4, None).expect("an idle model tries");
    stage.order(Order::Answer);
    stage.begun();
    answer(probe).await.expect("the prediction was wrong");
    while !stage.queue.is_idle() {
        tokio::task::yield_now().await;
    }
    let mut probes = 1;
    let corrected = loop {
        match stage.ask(1, 4, None) {
            Ok(taken) => break taken,
            Err(error) => assert_eq!((error.kind(), probes < 20), (Kind::BudgetExceeded, true), "one a second"),
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        let probe = stage.ask(1, 4, None).expect("an idle model tries");
        stage.order(Order::Answer);
        stage.begun();
        answer(probe).await.expect("answered");
        while !stage.queue.is_idle() {
            tokio::task::yield_now().await;
        }
        probes += 1;
    };
    assert!(probes > 1, "one run corrects only half of the prediction");
    stage.order(Order::Answer);
    stage.begun();
    answer(corrected).await.expect("answered");
    stage.close();
}

#[tokio::test(start_paused = true)]
async fn an_idle_model_takes_what_is_usually_in_time_however_its_run_times_vary() {
    let mut stage = Stage::new(budgeted(100 * MS));
    let class = SizeClass::of_row(4);
    (0..64).for_each(|index| stage.queue.record_run(class, 1, (40 + index % 2 * 40) * MS));
    for _ in 0..3 {
        let taken = stage.ask(1, 4, None).expect("60 ms are usual");
        stage.begun();
        assert_eq!(stage.ask(1, 4, None).err().expect("behind another it waits").kind(), Kind::BudgetExceeded);
        stage.order(Order::Answer);
        answer(taken).await.expect("answered");
        while !stage.queue.is_idle() {
            tokio::task::yield_now().await;
        }
        (0..8).for_each(|index| stage.queue.record_run(class, 1, (40 + index % 2 * 40) * MS));
    }
    stage.close();
}

#[tokio::test]
async fn a_lone_request_with_a_deadline_survives_a_longer_queue_delay() {
    let limits = Limits { rows_max: 8, delay_max: 500 * MS, ..Limits::single() };
    let mut stage = Stage::new(QueueSettings { limits, ..settings(8) });
    (0..64).for_each(|_| stage.queue.record_run(SizeClass::of_row(4), 1, 200 * MS));
    stage.order(Order::Answer);
    answer(stage.ask(1, 4, Some(400 * MS)).expect("accepted")).await.expect("runs in time");
    stage.close();
}

#[tokio::test(start_paused = true)]
async fn a_failed_execution_teaches_nothing() {
    let mut stage = Stage::new(budgeted(100 * MS));
    stage.order(Order::Fail("broken"));
    answer(stage.ask(1, 4, None).expect("accepted")).await.expect_err("it failed");
    stage.close();
    assert!(stage.queue.has_learned_nothing());
}

/// Answers at once, and tells on which thread; panics at its second batch.
struct Roamer(Arc<Mutex<Vec<std::thread::ThreadId>>>);

impl Model for Roamer {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn lent(&self) -> Option<Box<dyn Instance + Send>> {
        Some(Box::new(Self(self.0.clone())))
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl Instance for Roamer {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        self.0.lock().push(std::thread::current().id());
        assert_ne!(self.0.lock().len(), 2, "the second batch");
        replies.member(0, batch.members[0].inputs.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_thread_runs_what_is_lent_until_it_breaks() {
    let ran_on = Arc::new(Mutex::new(Vec::new()));
    let mut stage = Stage::of(settings(1), Arc::new(Roamer(ran_on.clone())));
    let sleep = || {
        while !stage.queue.has_sleepers() {
            std::thread::yield_now();
        }
    };
    sleep();
    round::begin();
    let (first, second, third) = (stage.ask(1, 4, None), stage.ask(1, 4, None), stage.ask(1, 4, None));
    round::end();
    answer(first.expect("accepted")).await.expect("answered");
    let error = answer(second.expect("accepted")).await.expect_err("it panicked");
    assert!(error.message().contains("the second batch"), "{error}");
    answer(third.expect("accepted")).await.expect("answered by a new one");
    sleep();
    let fourth = stage.ask(1, 4, None).expect("accepted");
    round::end();
    answer(fourth).await.expect("answered");
    let own = std::thread::current().id();
    let here: Vec<bool> = ran_on.lock().iter().map(|id| *id == own).collect();
    assert_eq!(here, [true, true, false, true], "its own thread renews it");
    stage.close();
}
