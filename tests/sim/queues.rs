//! A model with a queue: its requests, and what must hold of them.
//!
//! Requests of one shape and level run in the order of arrival, higher levels first where the order is strict, and
//! answers leave in the order of arrival where that is promised.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nereid::error::{Error, Kind};
use nereid::infer::Instant;
use nereid::model::{Priorities, QueuePolicy, TimeoutAction};
use nereid::scheduler::{Answer, Levels, Limits, Pushed, Queue, QueueSettings, Underway};
use nereid::telemetry::stats::ModelStats;
use nereid::tensor::{Member, Tensor};

use crate::caller::{Temper, call};
use crate::chance::Chance;
use crate::ledger::{Asked, Heard};
use crate::limits::Posts;
use crate::puppet::{self, End};
use crate::served::{Copies, Manner, Rules, Served};
use crate::world::{self, Model, World};

/// A world of one such model.
pub fn run(chance: Chance) -> u64 {
    world::run(chance, |world, chance| vec![Box::new(Queues::new(world, Posts::none(), chance))])
}

/// A model with a queue and its served copies; the last takes requests.
pub struct Queues {
    world: Rc<World>,
    scene: Rc<Scene>,
    posts: Posts,
    copies: Copies<InOrder>,
}

impl Queues {
    pub fn new(world: &Rc<World>, posts: Posts, chance: &mut Chance) -> Self {
        let scene = Rc::new(Scene::new(chance));
        let model = Self { world: world.clone(), scene, posts, copies: Copies::default() };
        model.start(chance);
        model
    }

    fn start(&self, chance: &mut Chance) {
        let scene = &self.scene;
        let stats = Arc::new(ModelStats::default());
        let scheduler = Arc::new(Queue::new(scene.settings.clone(), stats.clone()));
        let rules = InOrder { scene: scene.clone(), runs: RefCell::default(), answered: RefCell::default() };
        let served =
            Served::start(&self.world, (scheduler, stats), (rules, scene.manner.clone()), self.posts.maker(), chance);
        self.copies.add(served, scene.settings.instances);
    }
}

impl Model for Queues {
    fn pause_us(&self) -> u64 {
        self.scene.pause_us
    }

    fn may_be_held(&self) -> bool {
        self.scene.settings.hold > 0
    }

    fn disturb(&self, chance: &mut Chance) {
        self.copies.disturb((self.scene.reloads, self.scene.resizes), chance, |chance| self.start(chance));
    }

    fn arrive(&self, id: u64, chance: &mut Chance) {
        let (served, scene) = (self.copies.last(), &self.scene);
        let now = Instant::now();
        let (rows, width) = (chance.between(1, scene.rows) as usize, chance.between(1, scene.widths) as usize);
        let deadline = chance.some(scene.deadlines, |chance| now + chance.ms(1, 500));
        let timeout = chance.some(scene.timeouts, |chance| chance.ms(1, 200));
        let patience = chance.some(scene.cancels, |chance| chance.ms(0, 100));
        let priority = chance.below(scene.priorities.levels + 2);
        let level = scene.level(priority);
        let request = Pushed { deadline, timeout, priority, ..Pushed::new(puppet::member(id, rows, width), now) };
        match served.scheduler.clone().push(request, now).map_err(Error::from) {
            Ok(pushed) => {
                let timeout = scene.timeout(level, timeout);
                let asked = Asked { arrived: now, deadline, timeout, level, rows, width, unhurried: false };
                call(&served, (id, asked), pushed, Temper { patience, pause: None });
                let (waiting, most) = (served.scheduler.waiting(), scene.settings.requests_max);
                assert!(waiting <= most, "{waiting} requests wait, {most} may");
            }
            Err(error) => {
                let expected = match error.kind() {
                    Kind::QueueFull => scene.may_be_full(level, served.ledger.borrow().unended()),
                    Kind::BudgetExceeded => scene.settings.limits.budget.is_some(),
                    Kind::DeadlineExceeded => deadline.is_some(),
                    Kind::Unavailable => served.is_closed(),
                    _ => false,
                };
                assert!(expected, "request {id} is refused: {error}");
            }
        }
    }

    fn end(&self, at_once: bool) {
        self.copies.end(at_once);
    }

    fn settled(&self) {
        self.copies.settled();
    }
}

/// What must hold of the order.
struct InOrder {
    scene: Rc<Scene>,
    /// The last request that ran, by width and level.
    runs: RefCell<BTreeMap<(usize, u64), u64>>,
    /// The last that was answered, and when.
    answered: RefCell<Option<(u64, Instant)>>,
}

impl Rules for InOrder {
    /// Requests of one shape and level are taken in the order of their arrival, unless some are delayed; and no level
    /// goes before a higher one where the order is strict.
    fn begun(&self, served: &Served<Self>, _instance: usize, batch: &Underway) -> Vec<u64> {
        let ids: Vec<u64> = batch.members().map(|member| puppet::id(&member.inputs[0])).collect();
        let (mut ledger, mut runs) = (served.ledger.borrow_mut(), self.runs.borrow_mut());
        let first = ids.iter().map(|id| ledger.level(*id)).min();
        // Some may have been refused just now, and their callers have yet to hear of it.
        let all_heard = ledger.waiting() == served.scheduler.waiting() + ids.len();
        let strict = self.scene.is_strict() && all_heard;
        assert!(!strict || first == ledger.highest(), "level {first:?} runs before {:?}", ledger.highest());
        for (id, member) in ids.iter().zip(batch.members()) {
            let level = ledger.level(*id);
            if self.scene.policy(level).timeout_action == TimeoutAction::Reject {
                let last = runs.entry((member.inputs[0].shape[1] as usize, level)).or_default();
                assert!(*id > *last, "request {id} runs behind request {last}, which came later");
                *last = *id;
            }
        }
        ledger.begin(&ids, self.scene.settings.limits.rows_max, Instant::now());
        ids
    }

    fn outputs(&self, _instance: usize, _position: usize, member: &Member) -> Vec<Tensor> {
        member.inputs.clone()
    }

    fn ending(&self, _served: &Served<Self>, _instance: usize, _end: End) {}

    fn answered(&self, id: u64, answer: &Answer) {
        let output = &answer.outputs[0];
        let right = output.data.chunks(8).all(|element| element == id.to_le_bytes());
        assert!(right && !output.data.is_empty(), "request {id} gets another one's answer");
        let elements = output.shape.elements().expect("it is known");
        assert_eq!(output.data.len(), 8 * elements, "request {id} gets {elements} elements in other bytes");
    }

    fn heard(&self, served: &Served<Self>, id: u64, (heard, waited): (Heard, bool), _failure: Option<&Error>) {
        let now = Instant::now();
        if heard == Heard::Failure(Kind::TimedOut) {
            assert!(waited, "request {id} timed out while it ran");
            served.ledger.borrow().timed_out(id, now);
        }
        if self.scene.settings.preserve_order && heard == Heard::Answer {
            // What happens at one moment, tasks hear of in any order.
            let mut last = self.answered.borrow_mut();
            let behind = last.filter(|(last, _)| *last > id);
            assert!(behind.is_none_or(|(_, at)| at == now), "request {id} is answered behind {behind:?}");
            *last = behind.or(Some((id, now)));
        }
    }
}

/// How this world's model and its callers are.
struct Scene {
    settings: QueueSettings,
    priorities: Priorities,
    /// Of the levels that have none of their own.
    policy: QueuePolicy,
    manner: Manner,
    /// Time between arrivals, in microseconds.
    pause_us: u64,
    widths: u64,
    rows: u64,
    deadlines: f64,
    timeouts: f64,
    cancels: f64,
    /// The shares of arrivals before which the model is reloaded, or the number of its instances changes.
    reloads: f64,
    resizes: f64,
}

impl Scene {
    fn new(chance: &mut Chance) -> Self {
        let rows_max = chance.of(&[1, 1, 2, 4, 8, 32]);
        let instances = chance.of(&[1, 1, 2, 3]);
        let manner = Manner::new(chance);
        let preferred = chance.some(0.3, |chance| chance.between(1, rows_max as u64) as usize);
        let limits = Limits {
            rows_max,
            preferred_rows: preferred.into_iter().collect(),
            delay_max: chance.some(0.4, |chance| chance.ms(1, 20)).unwrap_or_default(),
            budget: chance.some(0.3, |chance| chance.ms(20, 400)),
        };
        let rows = chance.between(1, rows_max as u64).min(3);
        let capacity = (manner.base + manner.row * rows_max as u64) * 1000 * rows / (rows_max * instances) as u64;
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
            manner,
            pause_us: (capacity as f64 / load) as u64,
            widths: chance.between(1, 3),
            rows,
            deadlines: chance.of(&[0.0, 0.3, 1.0]),
            timeouts: chance.of(&[0.0, 0.3]),
            cancels: chance.of(&[0.0, 0.1]),
            reloads: chance.of(&[0.0, 0.002, 0.02]),
            resizes: chance.of(&[0.0, 0.0, 0.01]),
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
        // An answer that waits for its turn takes room even if its caller is gone.
        let unseen = self.settings.preserve_order && self.cancels + self.deadlines > 0.0;
        unseen || unended >= self.policy(level).requests_max.min(self.settings.requests_max)
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
