//! One world: a model with its requests, reloads and faults, from the first arrival to the last outcome.
//!
//! What must hold, besides what `ledger` checks of each request:
//! * the scheduler and the world agree on how many wait, after every step;
//! * what callers heard adds up to what the statistics count, by kind;
//! * requests of one shape and level run in the order of arrival, higher levels first where the order is strict, and
//!   answers leave in the order of arrival where that is promised;
//! * at the end nothing waits, nothing runs, and every version has given back what it had.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use nereid::error::Kind;
use nereid::infer::{Instant, Parameters, Response};
use nereid::model::{Priorities, QueuePolicy, TimeoutAction};
use nereid::scheduler::{Answer, Levels, Limits, Pushed, Queue, QueueSettings, Scheduler, Underway, Waiter};
use nereid::telemetry::stats::ModelStats;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::chance::Chance;
use crate::ledger::{Asked, Heard, Ledger};
use crate::puppet::{self, End, Puppet};

/// Requests of one world.
const REQUESTS: u64 = 1500;

/// Runs the world of this seed; gives the number of its requests. Panics with what does not hold.
pub fn run(seed: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O starts");
    LocalSet::new().block_on(&runtime, live(seed))
}

/// How this world's model and its callers are.
struct Scene {
    settings: QueueSettings,
    priorities: Priorities,
    /// Of the levels that have none of their own.
    policy: QueuePolicy,
    /// Milliseconds of an execution, and of each of its rows.
    run_base: u64,
    run_row: u64,
    slow: f64,
    fails: f64,
    panics: f64,
    /// Time between arrivals, in microseconds.
    pause_us: u64,
    widths: u64,
    rows: u64,
    deadlines: f64,
    timeouts: f64,
    cancels: f64,
    reloads: f64,
}

impl Scene {
    fn new(chance: &mut Chance) -> Self {
        let rows_max = chance.of(&[1, 1, 2, 4, 8, 32]);
        let instances = chance.of(&[1, 1, 2, 3]);
        let (run_base, run_row) = (chance.between(1, 20), chance.between(0, 4));
        let preferred = chance.some(0.3, |chance| chance.between(1, rows_max as u64) as usize);
        let limits = Limits {
            rows_max,
            preferred_rows: preferred.into_iter().collect(),
            delay_max: chance.some(0.4, |chance| chance.ms(1, 20)).unwrap_or_default(),
            budget: chance.some(0.3, |chance| chance.ms(20, 400)),
        };
        let rows = chance.between(1, rows_max as u64).min(3);
        let capacity = (run_base * 1000 + run_row * 1000 * rows_max as u64) * rows / (rows_max * instances) as u64;
        let load = chance.of(&[0.3, 0.8, 1.0, 1.5, 3.0]);
        let preserve_order = chance.one_in(0.2);
        let policy = policy(chance, preserve_order);
        let priorities = if preserve_order { Priorities::default() } else { priorities(chance) };
        let levels = Levels::new(priorities.clone(), policy.clone());
        Self {
            settings: QueueSettings {
                requests_max: levels.requests_max(chance.of(&[1, 64, 1000])),
                limits,
                levels,
                preserve_order,
                hold: chance.of(&[0, 0, 0, 5]),
                shapes_vary: true,
                forms: None,
                instances,
                responses: None,
            },
            priorities,
            policy,
            run_base,
            run_row,
            slow: chance.of(&[0.0, 0.02]),
            fails: chance.of(&[0.0, 0.05]),
            panics: chance.of(&[0.0, 0.02]),
            pause_us: (capacity as f64 / load) as u64,
            widths: chance.between(1, 3),
            rows,
            deadlines: chance.of(&[0.0, 0.3, 1.0]),
            timeouts: chance.of(&[0.0, 0.3]),
            cancels: chance.of(&[0.0, 0.1]),
            reloads: chance.of(&[0.0, 0.002, 0.02]),
        }
    }

    /// The level of a request that asks for this one.
    fn level(&self, priority: u64) -> u64 {
        let known = (1..=self.priorities.levels).contains(&priority);
        if known { priority } else { self.priorities.default_level }
    }

    fn policy(&self, level: u64) -> &QueuePolicy {
        self.priorities.policies.get(&level).unwrap_or(&self.policy)
    }

    /// The queue timeout that ends a request: what the configuration and the request say together.
    fn timeout(&self, level: u64, asked: Option<Duration>) -> Option<Duration> {
        let policy = self.policy(level);
        let timeout = match (policy.timeout, asked) {
            (None, asked) => asked,
            (Some(default), Some(asked)) if policy.allow_timeout_override => Some(default.min(asked)),
            (default, _) => default,
        };
        timeout.filter(|_| policy.timeout_action == TimeoutAction::Reject)
    }

    /// Whether a higher level always goes first.
    fn is_strict(&self) -> bool {
        let delays = |policy: &QueuePolicy| policy.timeout_action == TimeoutAction::Delay;
        let none_delays = !delays(&self.policy) && !self.priorities.policies.values().any(delays);
        let own_turns = self.priorities.weights.is_empty() && self.priorities.ageing.is_none();
        none_delays && own_turns && self.settings.limits.delay_max.is_zero()
    }

    /// Whether a caller may see that a request of this level is refused because the queue is full.
    fn may_be_full(&self, level: u64, unended: usize) -> bool {
        unended >= self.policy(level).requests_max.min(self.settings.requests_max)
    }
}

fn policy(chance: &mut Chance, ordered: bool) -> QueuePolicy {
    let delays = !ordered && chance.one_in(0.3);
    QueuePolicy {
        timeout_action: if delays { TimeoutAction::Delay } else { TimeoutAction::Reject },
        timeout: chance.some(0.3, |chance| chance.ms(5, 300)),
        allow_timeout_override: chance.one_in(0.7),
        requests_max: chance.of(&[1, 4, 64, 1000]),
    }
}

fn priorities(chance: &mut Chance) -> Priorities {
    let levels = chance.of(&[1, 1, 2, 4]);
    let own = (1..=levels).filter_map(|level| chance.some(0.3, |chance| (level, policy(chance, false)))).collect();
    let mut priorities =
        Priorities { levels, default_level: chance.between(1, levels), policies: own, ..Priorities::default() };
    if levels > 1 && chance.one_in(0.3) {
        priorities.weights = (0..levels).map(|_| chance.between(1, 5) as u32).collect();
    }
    if levels > 1 && chance.one_in(0.3) {
        priorities.ageing = Some(chance.ms(5, 100));
    }
    priorities
}

/// A served copy of the model.
struct Served {
    scheduler: Arc<dyn Scheduler>,
    stats: Arc<ModelStats>,
    ledger: RefCell<Ledger>,
    /// Something has happened that an idle instance may want to look at.
    poke: Notify,
    closed: Cell<bool>,
    aborted: Cell<bool>,
    /// The last request that ran, by width and level.
    last: RefCell<BTreeMap<(usize, u64), u64>>,
    chance: RefCell<Chance>,
}

impl Served {
    fn start(scene: &Rc<Scene>, chance: &mut Chance, tasks: &mut Vec<tokio::task::JoinHandle<()>>) -> Rc<Self> {
        let stats = Arc::new(ModelStats::default());
        let served = Rc::new(Self {
            scheduler: Arc::new(Queue::new(scene.settings.clone(), stats.clone())),
            stats,
            ledger: RefCell::default(),
            poke: Notify::new(),
            closed: Cell::new(false),
            aborted: Cell::new(false),
            last: RefCell::default(),
            chance: RefCell::new(Chance::new(chance.below(u64::MAX))),
        });
        for index in 0..scene.settings.instances {
            tasks.push(tokio::task::spawn_local(instance(served.clone(), scene.clone(), index)));
        }
        served
    }

    /// Checks what must hold after every step.
    fn stepped(&self) {
        let (counted, waiting) = (self.scheduler.waiting(), self.ledger.borrow().waiting());
        // What is refused at a stop has its outcome before its caller hears of it.
        if !self.aborted.get() {
            assert!(counted <= waiting, "the scheduler has {counted} requests, only {waiting} have no outcome");
        }
        self.poke.notify_waiters();
    }

    fn close(&self) {
        self.closed.set(true);
        self.scheduler.close();
        self.stepped();
    }

    fn abort(&self) {
        self.closed.set(true);
        self.aborted.set(true);
        self.scheduler.abort();
        self.stepped();
    }
}

/// Works like an instance thread, until the scheduler is closed and empty.
async fn instance(served: Rc<Served>, scene: Rc<Scene>, index: usize) {
    loop {
        let Some(underway) = Underway::begin(&*served.scheduler, index) else {
            if served.closed.get() && served.scheduler.waiting() == 0 {
                return;
            }
            let poked = served.poke.notified();
            // A batch that waits to grow becomes ready by time alone.
            if served.scheduler.waiting() > 0 {
                let _ = tokio::time::timeout(Duration::from_millis(1), poked).await;
            } else {
                poked.await;
            }
            continue;
        };
        let ids: Vec<u64> = underway.members().map(|member| puppet::id(&member.inputs[0])).collect();
        in_order(&served, &scene, &ids, &underway);
        served.ledger.borrow_mut().begin(&ids, scene.settings.limits.rows_max, Instant::now());
        let (time, end) = {
            let mut chance = served.chance.borrow_mut();
            let rows: usize = underway.members().map(|member| member.rows).sum();
            let factor = if chance.one_in(scene.slow) { 20 } else { 1 };
            let end = match chance.share() {
                share if share < scene.panics => End::Panic,
                share if share < scene.panics + scene.fails => End::Failure,
                _ => End::Well,
            };
            (Duration::from_millis((scene.run_base + scene.run_row * rows as u64) * factor), end)
        };
        sleep(time).await;
        let usable = underway.finish(&*served.scheduler, &mut Puppet(end));
        assert_eq!(usable, end != End::Panic);
        served.stepped();
    }
}

/// Requests of one shape and level are taken in the order of their arrival, unless some are delayed; and no level goes
/// before a higher one where the order is strict.
fn in_order(served: &Served, scene: &Scene, ids: &[u64], underway: &Underway) {
    let (ledger, mut last) = (served.ledger.borrow(), served.last.borrow_mut());
    let first = ids.iter().map(|id| ledger.level(*id)).min();
    // Some may have been refused just now, and their callers have yet to hear of it.
    let all_heard = ledger.waiting() == served.scheduler.waiting() + ids.len();
    let strict = scene.is_strict() && all_heard;
    assert!(!strict || first == ledger.highest(), "level {first:?} runs before {:?}", ledger.highest());
    for (id, member) in ids.iter().zip(underway.members()) {
        let level = ledger.level(*id);
        if scene.policy(level).timeout_action == TimeoutAction::Reject {
            let last = last.entry((member.inputs[0].shape[1] as usize, level)).or_default();
            assert!(*id > *last, "request {id} runs behind request {last}, which came later");
            *last = *id;
        }
    }
}

async fn live(seed: u64) -> u64 {
    let mut chance = Chance::new(seed);
    let scene = Rc::new(Scene::new(&mut chance));
    let (mut instances, mut callers) = (Vec::new(), Vec::new());
    let mut served = vec![Served::start(&scene, &mut chance, &mut instances)];
    for id in 1..=REQUESTS {
        if chance.one_in(scene.reloads) {
            let next = Served::start(&scene, &mut chance, &mut instances);
            served.last().expect("there is always one").close();
            served.push(next);
        }
        if scene.pause_us > 0 && chance.one_in(0.7) {
            sleep(Duration::from_micros(chance.below(2 * scene.pause_us))).await;
        }
        if let Some(caller) = arrive(id, &scene, served.last().expect("there is always one"), &mut chance) {
            callers.push(caller);
        }
    }
    let last = served.last().expect("there is always one");
    if chance.one_in(0.2) {
        last.abort()
    } else {
        last.close()
    }
    for caller in callers {
        caller.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    for instance in instances {
        instance.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    served.iter().for_each(|served| settled(served));
    REQUESTS
}

/// A request arrives; `None` if it is refused at once.
fn arrive(id: u64, scene: &Rc<Scene>, served: &Rc<Served>, chance: &mut Chance) -> Option<tokio::task::JoinHandle<()>> {
    let now = Instant::now();
    let (rows, width) = (chance.between(1, scene.rows) as usize, chance.between(1, scene.widths) as usize);
    let deadline = chance.some(scene.deadlines, |chance| now + chance.ms(1, 500));
    let timeout = chance.some(scene.timeouts, |chance| chance.ms(1, 200));
    let patience = chance.some(scene.cancels, |chance| chance.ms(0, 100));
    let priority = chance.below(scene.priorities.levels + 2);
    let level = scene.level(priority);
    let request = Pushed { deadline, timeout, priority, ..Pushed::new(puppet::member(id, rows, width), now) };
    let pushed = served.scheduler.clone().push(request, now);
    let pushed = match pushed {
        Ok(pushed) => pushed,
        Err(error) => {
            let expected = match error.kind() {
                Kind::QueueFull => scene.may_be_full(level, served.ledger.borrow().unended()),
                Kind::BudgetExceeded => scene.settings.limits.budget.is_some(),
                Kind::DeadlineExceeded => deadline.is_some(),
                Kind::Unavailable => served.closed.get(),
                _ => false,
            };
            assert!(expected, "request {id} is refused: {error}");
            return None;
        }
    };
    let asked = Asked { arrived: now, deadline, timeout: scene.timeout(level, timeout), level, rows, width };
    served.ledger.borrow_mut().accept(id, asked);
    let respond = move |answer: Answer| {
        assert_eq!(puppet::id(&answer.outputs[0]), id, "request {id} gets another one's answer");
        assert_eq!(answer.outputs[0].shape[..], [rows as i64, width as i64]);
        response(answer)
    };
    let waiter = Waiter::new(served.scheduler.clone(), pushed, (now, deadline), respond);
    served.stepped();
    Some(tokio::task::spawn_local(wait(waiter, id, served.clone(), patience, scene.settings.preserve_order)))
}

/// Waits as a caller does, or leaves when its patience is over.
async fn wait<F: FnMut(Answer) -> Response + Unpin>(
    mut waiter: Waiter<F>,
    id: u64,
    served: Rc<Served>,
    patience: Option<Duration>,
    preserves_order: bool,
) {
    let last = async {
        let mut last = None;
        while let Some(response) = waiter.next().await {
            last = Some(response);
        }
        last.unwrap_or_else(|| panic!("request {id} ended without an outcome"))
    };
    let heard = match patience {
        None => Some(last.await),
        Some(patience) => tokio::time::timeout(patience, last).await.ok(),
    };
    drop(waiter);
    let heard = match heard {
        None => Heard::Nothing,
        Some(Ok(_)) => Heard::Answer,
        Some(Err(error)) => Heard::Failure(error.kind()),
    };
    served.ledger.borrow_mut().end(id, heard, Instant::now());
    if preserves_order && heard == Heard::Answer {
        served.ledger.borrow_mut().in_turn(id, Instant::now());
    }
    served.stepped();
}

fn response(answer: Answer) -> Response {
    let (last, times) = (answer.last, Some(answer.times));
    Response {
        model: "m".into(),
        version: 1,
        id: String::new(),
        outputs: Vec::new(),
        parameters: Parameters::new(),
        last,
        times,
    }
}

/// What a version that nobody uses any more must have left behind.
fn settled(served: &Served) {
    let ledger = served.ledger.borrow();
    ledger.close();
    assert_eq!(served.scheduler.waiting(), 0, "requests wait although nobody serves them");
    let counted = served.stats.snapshot();
    let failures: u64 = counted.failures.values().sum();
    assert_eq!(counted.success.count + failures, ledger.accepted(), "{:?}", counted.failures);
    let nothing = ledger.heard(Heard::Nothing);
    let answers = ledger.heard(Heard::Answer);
    assert!((answers..=answers + nothing).contains(&counted.success.count), "answers are counted wrong");
    for (kind, count) in &counted.failures {
        let heard = ledger.heard(Heard::Failure(*kind));
        let unheard = if *kind == Kind::Cancelled { nothing } else { nothing.min(*count) };
        assert!((heard..=heard + unheard).contains(count), "{kind:?} is counted {count} times and heard {heard} times");
    }
}
