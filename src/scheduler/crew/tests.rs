//! Crews of puppets that hang, panic and fail when they are told to; the time of a look is an argument.

mod changes;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::*;
use crate::backend::{Instance, Replies};
use crate::infer::{CorrelationId, Sequence};
use crate::model::{Footprint, ModelConfig, Resource, Scheduling, SequenceBatching};
use crate::scheduler::queue_tests::Stuck;
use crate::scheduler::tests::{Asked, MS, respond, settings};
use crate::scheduler::{Pushed, Queue, ResponseLimits, SequenceSettings, Sequences, Waiter, sequence};
use crate::telemetry::metrics::Metrics;
use crate::tensor::{Batch, DataType, Member, Shape, Tensor};

/// What an execution may last in these tests.
const LIMIT: Duration = Duration::from_secs(5);

enum Order {
    Answer,
    Panic,
    /// Fails because of a device that fails from now on.
    Break,
    /// Tells that it has begun to hang, and does not end before the other end is dropped.
    Hang(mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// A model whose instances tell their number and the rows that they were given, and do what they are told.
struct Puppet {
    orders: Mutex<mpsc::Receiver<Order>>,
    seen: mpsc::Sender<(usize, usize)>,
    made: AtomicUsize,
    broken: AtomicBool,
}

struct PuppetInstance(usize, Arc<Puppet>);

impl Model for Arc<Puppet> {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::internal("broken on purpose"));
        }
        Ok(Box::new(PuppetInstance(self.made.fetch_add(1, Ordering::SeqCst), self.clone())))
    }
}

impl Instance for PuppetInstance {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let _ = self.1.seen.send((self.0, batch.rows()));
        let order = self.1.orders.lock().recv();
        match order.unwrap_or(Order::Answer) {
            Order::Answer => {}
            Order::Panic => panic!("told to"),
            Order::Break => return Err(Error::new(Kind::DeviceLost, "the device is gone")),
            Order::Hang(begun, until) => {
                let _ = begun.send(());
                let _ = until.recv();
            }
        }
        for (index, member) in batch.members.iter().enumerate() {
            replies.member(index, member.inputs.clone())?;
        }
        Ok(())
    }
}

/// A crew of puppets and all its ends.
struct Stage {
    scheduler: Arc<dyn Scheduler>,
    crew: Arc<Crew>,
    puppet: Arc<Puppet>,
    orders: mpsc::Sender<Order>,
    seen: mpsc::Receiver<(usize, usize)>,
    failed: mpsc::Receiver<Error>,
}

struct Scene {
    scheduler: Arc<dyn Scheduler>,
    groups: Vec<Instances>,
    warmup: Vec<Warmup>,
    /// What the first executions do, those of the warm-up included.
    orders: Vec<Order>,
    limiter: Option<Arc<Limiter>>,
    lost_max: usize,
    metrics: Metrics,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            scheduler: queue(4),
            groups: vec![Instances::new("g", Device::Cpu, 1)],
            warmup: Vec::new(),
            orders: Vec::new(),
            limiter: None,
            lost_max: 1,
            metrics: Metrics::new(),
        }
    }
}

fn queue(rows_max: usize) -> Arc<dyn Scheduler> {
    Arc::new(Queue::new(settings(rows_max), Arc::default()))
}

/// For sequences, of which each instance takes one at a time.
fn sequences() -> Arc<dyn Scheduler> {
    let plain = sequence::tests::batching(sequence::tests::direct(Duration::ZERO, 0.0));
    let batching = SequenceBatching { controls: Vec::new(), states: Vec::new(), ..plain };
    let instances = vec![Instances::new("g", Device::Cpu, 1)];
    let scheduling = Scheduling::Sequence(batching.clone());
    let config = ModelConfig { instances, scheduling, ..ModelConfig::new("m", "b") };
    let settings = SequenceSettings::new(&config, &batching, ResponseLimits::default()).expect("it is right");
    Sequences::new(settings, Arc::default())
}

/// One execution.
fn warmup() -> Vec<Warmup> {
    let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1, 4]), Bytes::from_static(b"abcd"));
    let batch = Batch::new(vec![Member::new(1, vec![tensor])]);
    vec![Warmup { batch, sample: Some("s".into()), measured: false }]
}

impl Crew {
    /// Changes the instances to these; nothing if that fails.
    fn resize(self: &Arc<Self>, groups: &[Instances]) -> Result<()> {
        let mut change = self.change(groups);
        change.wait()?;
        change.make();
        Ok(())
    }
}

impl Stage {
    fn new(scene: Scene) -> Self {
        Self::try_new(scene).expect("the instances start")
    }

    fn try_new(scene: Scene) -> Result<Self> {
        let (orders, received) = mpsc::channel();
        let (tell, seen) = mpsc::channel();
        let (fail, failed) = mpsc::channel();
        let puppet = Arc::new(Puppet {
            orders: Mutex::new(received),
            seen: tell,
            made: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        });
        let scheduler = scene.scheduler;
        scene.orders.into_iter().for_each(|order| orders.send(order).expect("it is there"));
        let settings = CrewSettings {
            name: "m/1".to_owned(),
            scheduler: scheduler.clone(),
            model: Arc::new(puppet.clone()),
            warmup: scene.warmup.into(),
            limiter: scene.limiter,
            host_policies: Arc::default(),
            execution_time_max: Some(LIMIT),
            lost_max: scene.lost_max,
            in_background: false,
            metrics: scene.metrics.instances("m", 1, &Default::default()),
            failed: Box::new(move |error| drop(fail.send(error))),
        };
        let crew = Crew::start(settings, &scene.groups)?;
        Ok(Self { scheduler, crew, puppet, orders, seen, failed })
    }

    fn ask(&self, deadline: Option<Duration>) -> Result<Asked> {
        self.ask_as(deadline, None)
    }

    /// A request of a sequence.
    fn go_on(&self, id: u64, start: bool) -> Asked {
        let sequence = Sequence { id: CorrelationId::Number(id), start, end: false };
        self.ask_as(None, Some(sequence)).expect("accepted")
    }

    fn ask_as(&self, deadline: Option<Duration>, sequence: Option<Sequence>) -> Result<Asked> {
        self.ask_with(Bytes::from_static(b"abcd"), deadline, sequence)
    }

    fn ask_with(&self, data: Bytes, deadline: Option<Duration>, sequence: Option<Sequence>) -> Result<Asked> {
        let now = Instant::now();
        let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1, 4]), data);
        let member = Member::new(1, vec![tensor]);
        let deadline = deadline.map(|deadline| now + deadline);
        let waiting = self.scheduler.clone().push(Pushed { deadline, sequence, ..Pushed::new(member, now) }, now)?;
        Ok(Waiter::new(self.scheduler.clone(), waiting, (now, deadline), respond()))
    }

    /// The instance that begins the next batch, and its rows.
    fn begun(&self) -> (usize, usize) {
        self.seen.recv().expect("the instances live")
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the instances live");
    }

    /// Lets the next execution hang until the result is dropped.
    fn hang(&self) -> mpsc::Sender<()> {
        let (end, until) = mpsc::channel();
        let (tell, begun) = mpsc::channel();
        self.order(Order::Hang(tell, until));
        // The next order must not reach the wrong instance.
        begun.recv().expect("an instance waits for an order");
        end
    }

    /// What the supervisor does when the limit has passed.
    fn time_passes(&self) {
        self.crew.look(Instant::now() + LIMIT, LIMIT);
    }

    /// Retires the crew, of which an instance is lost then; its requests are settled only after whoever waits for its end
    /// could have gone on.
    fn lose_while_retiring(&self) {
        let crew = &self.crew;
        let watch = crew.state.lock().members[0].watch.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| crew.retire());
            until(|| crew.state.lock().retiring);
            let now = Instant::now() + LIMIT;
            let Sight::Overdue(charge) = watch.look(now, LIMIT) else { panic!("it hangs") };
            (0..1000).for_each(|_| std::thread::yield_now());
            crew.write_off((0, &watch), charge, now);
        });
    }

    fn failures(&self, kind: Kind) -> u64 {
        self.scheduler.stats().snapshot().failures.get(&kind).copied().unwrap_or_default()
    }
}

/// Waits outside of a runtime, so that nobody looks after the crew but the test.
fn outcome(mut asked: Asked) -> Result<()> {
    runtime().block_on(async { asked.next().await.expect("there is one response").map(|_| ()) })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn until(reached: impl Fn() -> bool) {
    while !reached() {
        std::thread::yield_now();
    }
}

#[test]
fn a_hung_execution_is_given_up_and_its_instance_replaced() {
    let stage = Stage::new(Scene { scheduler: queue(1), ..Scene::default() });
    let (hung, waits) = (stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted"));
    let (first, _) = stage.begun();
    let end = stage.hang();
    stage.time_passes();
    let error = outcome(hung).expect_err("it hangs");
    assert_eq!(error.kind(), Kind::Backend);
    assert_eq!(error.message(), "the execution did not end within 5 s, its instance m/1/0 was given up");
    assert_ne!(stage.begun().0, first, "another instance");
    stage.order(Order::Answer);
    outcome(waits).expect("answered");
    assert_eq!(stage.failures(Kind::Backend), 1);
    drop(end);
    stage.crew.retire();
    let stats = stage.scheduler.stats().snapshot();
    assert_eq!((stats.fail.count, stats.success.count), (1, 1), "what comes back late counts nothing");
    assert!(stage.failed.try_recv().is_err());
}

#[test]
fn an_execution_that_ends_in_time_is_left_alone() {
    let stage = Stage::new(Scene::default());
    let asked = stage.ask(None).expect("accepted");
    stage.begun();
    let next = stage.crew.look(Instant::now(), LIMIT);
    assert!(next <= Instant::now() + LIMIT);
    stage.order(Order::Answer);
    outcome(asked).expect("answered");
    stage.time_passes();
    assert_eq!((stage.crew.len(), stage.puppet.made.load(Ordering::SeqCst)), (1, 1));
    stage.crew.retire();
}

#[test]
fn beyond_the_limit_of_lost_instances_everything_is_refused_with_the_reason() {
    let stage = Stage::new(Scene { scheduler: queue(1), ..Scene::default() });
    let asked: Vec<Asked> = (0..3).map(|_| stage.ask(None).expect("accepted")).collect();
    let mut ends = Vec::new();
    for _ in 0..2 {
        stage.begun();
        ends.push(stage.hang());
        stage.time_passes();
    }
    let kinds: Vec<Kind> = asked.into_iter().map(|asked| outcome(asked).expect_err("nobody serves").kind()).collect();
    assert_eq!(kinds, [Kind::Backend, Kind::Backend, Kind::Unavailable]);
    let reason = stage.failed.recv().expect("it is told");
    assert!(reason.message().starts_with("2 instances were given up because the execution did not end"), "{reason}");
    assert_eq!(stage.ask(None).err().expect("refused"), reason);
    assert!(stage.crew.is_empty() && stage.failed.try_recv().is_err(), "told once");
    stage.crew.retire();
    drop(ends);
}

#[test]
fn an_instance_whose_device_fails_is_replaced() {
    let metrics = Metrics::new();
    let stage = Stage::new(Scene { scheduler: queue(1), metrics: metrics.clone(), ..Scene::default() });
    let (fails, waits) = (stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted"));
    let (first, _) = stage.begun();
    stage.order(Order::Break);
    assert_eq!(outcome(fails).expect_err("told to").kind(), Kind::DeviceLost);
    assert_ne!(stage.begun().0, first, "another instance");
    stage.order(Order::Answer);
    outcome(waits).expect("answered");
    assert_eq!(stage.crew.len(), 1);
    let text = metrics.render();
    assert!(text.contains("nereid_instances_lost_total{model=\"m\",version=\"1\"} 1\n"), "{text}");
    stage.crew.retire();
    assert!(stage.failed.try_recv().is_err());
}

#[test]
fn a_version_whose_device_goes_on_failing_is_given_up() {
    let stage = Stage::new(Scene { scheduler: queue(1), ..Scene::default() });
    let asked: Vec<Asked> = (0..3).map(|_| stage.ask(None).expect("accepted")).collect();
    for _ in 0..2 {
        stage.begun();
        stage.order(Order::Break);
    }
    let kinds: Vec<Kind> = asked.into_iter().map(|asked| outcome(asked).expect_err("nobody serves").kind()).collect();
    assert_eq!(kinds, [Kind::DeviceLost, Kind::DeviceLost, Kind::Unavailable]);
    let reason = stage.failed.recv().expect("it is told");
    assert_eq!(reason.message(), "2 instances were given up because the device is gone");
    assert_eq!((stage.crew.lost(), stage.crew.is_empty()), (Some(reason), true));
    stage.crew.retire();
}

#[test]
fn a_version_is_given_up_if_nothing_can_take_the_place_of_its_instance() {
    let stage = Stage::new(Scene { scheduler: queue(1), ..Scene::default() });
    let (fails, waits) = (stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted"));
    stage.begun();
    stage.puppet.broken.store(true, Ordering::SeqCst);
    stage.order(Order::Break);
    assert_eq!(outcome(fails).expect_err("told to").kind(), Kind::DeviceLost);
    assert_eq!(outcome(waits).expect_err("nobody serves").kind(), Kind::Unavailable);
    let reason = stage.failed.recv().expect("it is told");
    assert_eq!(reason.message(), "the last instance has ended: broken on purpose");
    stage.crew.retire();
}

#[test]
fn the_others_serve_on_while_one_hangs() {
    let scene = Scene { scheduler: queue(1), groups: vec![Instances::new("g", Device::Cpu, 2)], ..Scene::default() };
    let stage = Stage::new(Scene { lost_max: 0, ..scene });
    let hung = stage.ask(None).expect("accepted");
    let (first, _) = stage.begun();
    let _end = stage.hang();
    for _ in 0..3 {
        let asked = stage.ask(None).expect("accepted");
        assert_ne!(stage.begun().0, first);
        stage.order(Order::Answer);
        outcome(asked).expect("answered");
    }
    stage.time_passes();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    assert_eq!(stage.crew.len(), 1, "it is not replaced, but the other is there");
    stage.crew.resize(&[Instances::new("g", Device::Cpu, 2)]).expect("it can be told to have two again");
    let both = [stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted")];
    assert_ne!(stage.begun().0, stage.begun().0);
    (0..2).for_each(|_| stage.order(Order::Answer));
    both.into_iter().for_each(|asked| outcome(asked).expect("answered"));
    stage.crew.retire();
}

#[test]
fn an_instance_that_panics_is_replaced_and_is_not_lost() {
    let stage = Stage::new(Scene { lost_max: 0, ..Scene::default() });
    stage.order(Order::Panic);
    assert_eq!(outcome(stage.ask(None).expect("accepted")).expect_err("it panicked").kind(), Kind::Internal);
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.time_passes();
    assert_eq!((stage.crew.len(), stage.puppet.made.load(Ordering::SeqCst)), (1, 2));
    stage.crew.retire();
}

#[test]
fn an_instance_whose_thread_panics_is_replaced() {
    let stage = Stage::new(Scene::default());
    let watch = stage.crew.state.lock().members[0].watch.clone();
    let gone = stage.ask_with(Bytes::from_owner(Stuck), None, None).expect("accepted");
    stage.begun();
    drop(gone);
    // Nobody takes the output, which is the input, so it is freed after the execution.
    stage.order(Order::Answer);
    assert!(watch.wait_until_over());
    assert_eq!((stage.crew.len(), stage.crew.state.lock().lost), (1, 1));
    stage.order(Order::Answer);
    outcome(stage.ask(None).expect("accepted")).expect("answered");
    stage.crew.retire();
}

#[test]
fn a_replacement_that_cannot_be_made_leaves_nobody() {
    let stage = Stage::new(Scene::default());
    let hung = stage.ask(None).expect("accepted");
    stage.begun();
    let _end = stage.hang();
    let waits = stage.ask(None).expect("accepted");
    stage.puppet.broken.store(true, Ordering::SeqCst);
    stage.time_passes();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    let reason = loop {
        stage.time_passes();
        match stage.failed.try_recv() {
            Ok(reason) => break reason,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(reason.message(), "the last instance has ended: broken on purpose");
    assert_eq!(outcome(waits).expect_err("nobody serves"), reason);
    stage.crew.retire();
}

#[test]
fn what_waits_while_a_crew_retires_is_served_although_an_instance_is_lost() {
    let stage = Stage::new(Scene { scheduler: queue(1), ..Scene::default() });
    let (hung, waits) = (stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted"));
    stage.begun();
    let _end = stage.hang();
    stage.order(Order::Answer);
    stage.lose_while_retiring();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    outcome(waits).expect("answered by another instance");
    assert!(stage.failed.try_recv().is_err());
}

#[test]
fn what_waits_while_a_crew_retires_is_refused_if_a_lost_instance_cannot_be_replaced() {
    let stage = Stage::new(Scene { scheduler: queue(1), ..Scene::default() });
    let (hung, waits) = (stage.ask(None).expect("accepted"), stage.ask(None).expect("accepted"));
    stage.begun();
    let _end = stage.hang();
    stage.puppet.broken.store(true, Ordering::SeqCst);
    stage.lose_while_retiring();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    let reason = stage.failed.recv().expect("it is told");
    assert_eq!(reason.message(), "the last instance has ended: broken on purpose");
    assert_eq!(outcome(waits).expect_err("nobody serves"), reason);
}

#[test]
fn an_instance_that_is_lost_while_nothing_waits_for_a_crew_that_retires_is_not_replaced() {
    let stage = Stage::new(Scene::default());
    let hung = stage.ask(None).expect("accepted");
    stage.begun();
    let _end = stage.hang();
    stage.lose_while_retiring();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    assert_eq!(stage.puppet.made.load(Ordering::SeqCst), 1);
    assert!(stage.failed.try_recv().is_err() && stage.scheduler.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_hung_execution_is_given_up_exactly_at_its_time() {
    let runtime = tokio::runtime::Handle::current();
    let started = std::thread::spawn(move || {
        let _clock = runtime.enter();
        Stage::new(Scene { lost_max: 0, ..Scene::default() })
    });
    let stage = started.join().expect("it starts");
    let began = Instant::now();
    let mut asked = stage.ask(None).expect("accepted");
    stage.begun();
    let _end = stage.hang();
    let mut waits = stage.ask(None).expect("accepted");
    let error = asked.next().await.expect("one outcome").expect_err("it hangs");
    assert_eq!((error.kind(), began.elapsed().as_secs()), (Kind::Backend, LIMIT.as_secs()));
    let error = waits.next().await.expect("one outcome").expect_err("nobody serves");
    assert_eq!((error.kind(), began.elapsed().as_secs()), (Kind::Unavailable, LIMIT.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_that_hangs_fails_the_start() {
    let (_never, until) = mpsc::channel();
    let scene = || Scene { warmup: warmup(), orders: vec![Order::Hang(mpsc::channel().0, until)], ..Scene::default() };
    let runtime = tokio::runtime::Handle::current();
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _clock = runtime.enter();
        let _ = tell.send(Stage::try_new(scene()).err());
    });
    let error = told.await.expect("it ends").expect("it hangs");
    assert!(error.message().starts_with("the execution did not end within 5 s"), "{error}");
}

/// A crew whose executions need one of this limiter's single resource.
fn limited(limiter: &Arc<Limiter>) -> Stage {
    let resource = Resource { name: "R".to_owned(), global: false, count: 1 };
    let rate_limit = RateLimit { resources: vec![resource], priority: 1 };
    let groups = vec![Instances { rate_limit, ..Instances::new("g", Device::Cpu, 2) }];
    Stage::new(Scene { groups, limiter: Some(limiter.clone()), ..Scene::default() })
}

#[test]
fn what_waits_for_resources_keeps_its_deadlines_and_its_batch_grows() {
    let limiter = Arc::new(Limiter::new(Vec::new(), &Metrics::new()));
    let (one, other) = (limited(&limiter), limited(&limiter));
    let running = one.ask(None).expect("accepted");
    one.begun();
    let runtime = runtime();
    let mut late = runtime.block_on(async { other.ask(Some(20 * MS)) }).expect("accepted");
    let stay = [other.ask(None).expect("accepted"), other.ask(None).expect("accepted")];
    drop(other.ask(None).expect("accepted"));
    let error = runtime.block_on(late.next()).expect("one outcome").expect_err("the resource is held");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(other.seen.try_recv().is_err(), "nothing executes without its resources");
    one.order(Order::Answer);
    outcome(running).expect("answered");
    assert_eq!(other.begun().1, 2, "what waited meanwhile is one batch");
    other.order(Order::Answer);
    stay.into_iter().for_each(|asked| outcome(asked).expect("answered"));
    assert_eq!((other.failures(Kind::Cancelled), other.failures(Kind::DeadlineExceeded)), (1, 1));
    one.crew.retire();
    other.crew.retire();
}

#[test]
fn the_resources_of_a_lost_instance_are_free() {
    let limiter = Arc::new(Limiter::new(Vec::new(), &Metrics::new()));
    let (one, other) = (limited(&limiter), limited(&limiter));
    let hung = one.ask(None).expect("accepted");
    one.begun();
    let end = one.hang();
    let waits = other.ask(None).expect("accepted");
    one.time_passes();
    assert_eq!(outcome(hung).expect_err("given up").kind(), Kind::Backend);
    other.order(Order::Answer);
    outcome(waits).expect("answered");
    one.crew.retire();
    other.crew.retire();
    drop(end);
}

#[test]
fn two_crews_that_share_a_resource_never_execute_at_the_same_time() {
    let limiter = Arc::new(Limiter::new(Vec::new(), &Metrics::new()));
    let stages = [limited(&limiter), limited(&limiter)];
    let asked: Vec<Vec<Asked>> =
        stages.iter().map(|stage| (0..20).map(|_| stage.ask(None).expect("accepted")).collect()).collect();
    let mut begun = 0;
    while stages.iter().any(|stage| stage.scheduler.waiting() > 0) || begun == 0 {
        for stage in &stages {
            if stage.seen.try_recv().is_ok() {
                begun += 1;
                let busy = stages.iter().filter(|other| other.seen.try_recv().is_ok()).count();
                assert_eq!(busy, 0, "one executes");
                stage.order(Order::Answer);
            }
        }
    }
    for stage in &stages {
        (0..20).for_each(|_| stage.order(Order::Answer));
    }
    asked.into_iter().flatten().for_each(|asked| outcome(asked).expect("answered"));
    stages.iter().for_each(|stage| stage.crew.retire());
}
