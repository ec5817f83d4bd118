//! A model whose requests belong to sequences: how its callers and its puppets are. What must hold stands in `history`.
//!
//! Puppets keep a state, which tells all requests of the sequence that were executed before, and answer with the
//! request's own id. Callers start sequences that they have begun already, go on with some that they have not, and stop
//! talking in the middle.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nereid::error::{Error, Kind};
use nereid::infer::{CorrelationId, Instant, Sequence};
use nereid::model::{
    Device, Flag, InitialState, Instances, Iterative, LatencyBudget, ModelConfig, QueuePolicy, Scheduling,
    SequenceBatching, SequenceControl, SequenceControlKind, SequenceState, SequenceStrategy, TensorSpec, TimeoutAction,
};
use nereid::scheduler::{Answer, Hold, Pushed, ResponseLimits, SequenceSettings, Sequences, Underway};
use nereid::telemetry::stats::ModelStats;
use nereid::tensor::{DataType, Member, Shape, Tensor};

use crate::caller::{Temper, call};
use crate::chance::Chance;
use crate::history::{History, Ran, Terms, Told};
use crate::ledger::{Asked, Heard};
use crate::limits::Posts;
use crate::puppet::{self, End};
use crate::served::{Copies, Manner, Rules, Served};
use crate::world::{self, Model, World};

/// A world of one such model.
pub fn run(chance: Chance) -> u64 {
    world::run(chance, |world, chance| vec![Box::new(Sequenced::new(world, Posts::none(), chance))])
}

/// The most executions of one request of an iterative model.
const STEPS_MAX: u32 = 3;

/// The longest that a caller of a decoupled model takes for a response.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// How this world's model and its callers are.
struct Scene {
    settings: SequenceSettings,
    manner: Manner,
    terms: Terms,
    batching: SequenceBatching,
    instances: usize,
    slots: usize,
    rows_max: usize,
    /// Whether the tensors have a batch dimension.
    batches: bool,
    decoupled: bool,
    /// Whether ids are texts.
    texts: bool,
    /// Whether the state is of different sizes.
    grows: bool,
    budget: bool,
    hold: bool,
    pause_us: u64,
    /// How many ids callers use.
    ids: u64,
    widths: u64,
    /// The usual number of requests of a sequence.
    length: u64,
    mistakes: f64,
    deadlines: f64,
    timeouts: f64,
    cancels: f64,
    reloads: f64,
    resizes: f64,
}

impl Scene {
    fn new(chance: &mut Chance) -> Self {
        let (max_batch_rows, instances) = (chance.of(&[0, 1, 2, 4, 8]), chance.of(&[1, 1, 2, 3]));
        let (rows_max, batches) = (max_batch_rows.max(1), max_batch_rows > 0);
        let (texts, grows, iterative) = (chance.one_in(0.3), chance.one_in(0.3), chance.one_in(0.3));
        let manner = Manner { whole: batches && !grows && chance.one_in(0.3), ..Manner::new(chance) };
        let decoupled = iterative && chance.one_in(0.5);
        let batching = batching(chance, (texts, grows, iterative), rows_max);
        let direct = matches!(batching.strategy, SequenceStrategy::Direct { .. });
        let slots = match &batching.strategy {
            SequenceStrategy::Oldest { candidates_max, .. } if *candidates_max > 0 => *candidates_max,
            _ => rows_max,
        };
        let widths = chance.of(&[1, 1, 3]);
        let budget = chance.some(0.2, |chance| LatencyBudget { total: chance.ms(20, 400) });
        let number = |name: &str, dims: &[i64]| TensorSpec::new(name, Some(DataType::Uint64), Some(Shape::new(dims)));
        let mut outputs = vec![number("OUT", &[1])];
        outputs.extend(iterative.then(|| number("DONE", &[1])));
        let config = ModelConfig {
            max_batch_rows,
            inputs: vec![number("IN", if widths > 1 { &[-1] } else { &[1] })],
            outputs,
            instances: vec![Instances::new("g", Device::Cpu, instances)],
            scheduling: Scheduling::Sequence(batching.clone()),
            budget,
            decoupled,
            ..ModelConfig::new("m", "b")
        };
        let responses = ResponseLimits { waiting_max: chance.between(1, 2) as usize, stall_max: chance.ms(50, 500) };
        let mut settings = SequenceSettings::new(&config, &batching, responses).expect("it is right");
        let hold = chance.one_in(0.1);
        if hold {
            settings.hold = Hold { queued: chance.below(4) as usize, backlog: chance.below(2) as usize };
        }
        let steps = if iterative { 2 } else { 1 };
        let together = (slots.min(rows_max) * instances) as u64;
        let capacity = (manner.base + manner.row * rows_max as u64) * 1000 * steps / together;
        Self {
            settings,
            terms: Terms {
                idle_max: batching.idle_max,
                slots: direct,
                iterative,
                // Before the end it takes the responses that wait.
                pause_max: if decoupled { PAUSE_MAX * 3 } else { Duration::ZERO },
            },
            batching,
            instances,
            slots,
            rows_max,
            batches,
            decoupled,
            texts,
            grows,
            budget: budget.is_some(),
            hold,
            pause_us: (capacity as f64 / chance.of(&[0.3, 0.8, 1.0, 1.5, 3.0])) as u64,
            ids: ((slots * instances) as u64 * chance.between(1, 8)).div_ceil(2),
            widths,
            length: chance.of(&[1, 3, 10]),
            mistakes: chance.of(&[0.0, 0.05]),
            deadlines: chance.of(&[0.0, 0.1, 0.5]),
            timeouts: chance.of(&[0.0, 0.0, 0.2]),
            cancels: chance.of(&[0.0, 0.05]),
            manner,
            reloads: chance.of(&[0.0, 0.002, 0.02]),
            resizes: chance.of(&[0.0, 0.0, 0.01]),
        }
    }

    /// The queue timeout that ends a request: what the configuration and the request say together.
    fn timeout(&self, asked: Option<Duration>) -> Option<Duration> {
        let policy = &self.batching.queue;
        match (policy.timeout, asked) {
            (None, asked) => asked,
            (Some(default), Some(asked)) if policy.allow_timeout_override => Some(default.min(asked)),
            (default, _) => default,
        }
    }

    fn shape(&self, elements: usize) -> Vec<i64> {
        if self.batches { vec![1, elements as i64] } else { vec![elements as i64] }
    }

    fn tensor(&self, values: &[u64]) -> Tensor {
        puppet::numbers(&self.shape(values.len()), values)
    }

    fn correlation_id(&self, id: u64) -> CorrelationId {
        if self.texts { CorrelationId::Text(format!("s{id}").into()) } else { CorrelationId::Number(id) }
    }

    /// The state behind this request.
    fn next_state(&self, state: Option<&[u64]>, request: u64) -> Vec<u64> {
        let before = state.map_or(0, |state| state[0]);
        let sum = before.wrapping_mul(31).wrapping_add(request);
        let elements = if self.grows { 1 + sum as usize % 3 } else { 2 };
        (0..elements as u64).map(|element| sum + element).collect()
    }

    /// What a state is before the first execution.
    fn initial_state(&self) -> Vec<u64> {
        match &self.batching.states[0].initial {
            Some(_) => vec![INITIAL; if self.grows { 1 } else { 2 }],
            None => vec![0; if self.grows { 1 } else { 2 }],
        }
    }

    /// How often an iterative model executes a request; some it is never done with.
    fn steps(&self, request: u64) -> u32 {
        if self.terms.iterative { 1 + (request % (u64::from(STEPS_MAX) + 1)) as u32 } else { 1 }
    }
}

/// Each element of an initial state that is configured.
const INITIAL: u64 = 7 << 40;

fn batching(chance: &mut Chance, (texts, grows, iterative): (bool, bool, bool), rows_max: usize) -> SequenceBatching {
    let flag =
        |dtype, yes: &[u8]| Flag { dtype, no: Bytes::from(vec![0u8; yes.len()]), yes: Bytes::copy_from_slice(yes) };
    let control = |name: &str, kind| SequenceControl { name: name.into(), kind };
    let queue_delay_max = chance.some(0.3, |chance| chance.ms(1, 20)).unwrap_or_default();
    let strategy = match chance.one_in(0.5) {
        true => SequenceStrategy::Direct { queue_delay_max, slot_utilization_min: chance.of(&[0.0, 0.5, 1.0]) },
        false => SequenceStrategy::Oldest {
            candidates_max: chance.of(&[0, 1, 4, 8]),
            preferred_rows: chance
                .some(0.3, |chance| chance.between(1, rows_max as u64) as usize)
                .into_iter()
                .collect(),
            queue_delay_max,
            preserve_ordering: false,
        },
    };
    let dims = Shape::new(if grows { &[-1] } else { &[2] });
    let (count, initial) = (if grows { 1 } else { 2 }, chance.one_in(0.3));
    let data = puppet::numbers(&[count], &vec![INITIAL; count as usize]).data;
    let initial = initial.then(|| InitialState { dims: Shape::new(&[count]), data: Some(data) });
    let id = if texts { DataType::Bytes } else { DataType::Uint64 };
    SequenceBatching {
        strategy,
        idle_max: chance.of(&[50, 300, 1000, 5000].map(Duration::from_millis)),
        controls: vec![
            control("START", SequenceControlKind::Start(flag(DataType::Int32, &[1, 0, 0, 0]))),
            control("READY", SequenceControlKind::Ready(flag(DataType::Bool, &[1]))),
            control("END", SequenceControlKind::End(flag(DataType::Fp32, &[0, 0, 128, 63]))),
            control("CORRID", SequenceControlKind::CorrelationId(id)),
        ],
        states: vec![SequenceState {
            input: "STATE_IN".into(),
            output: "STATE".into(),
            dtype: DataType::Uint64,
            dims,
            initial,
            same_buffer: false,
            growable: grows,
        }],
        iterative: iterative.then(|| Iterative { done_output: Some("DONE".into()), steps_max: STEPS_MAX }),
        queue: QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: chance.some(0.2, |chance| chance.ms(5, 300)),
            allow_timeout_override: chance.one_in(0.7),
            requests_max: chance.of(&[1, 8, 64, 1000]),
        },
    }
}

/// A model of sequences and its served copies; the last takes requests.
pub struct Sequenced {
    world: Rc<World>,
    scene: Rc<Scene>,
    posts: Posts,
    copies: Copies<InSequence>,
}

impl Sequenced {
    pub fn new(world: &Rc<World>, posts: Posts, chance: &mut Chance) -> Self {
        let scene = Rc::new(Scene::new(chance));
        let model = Self { world: world.clone(), scene, posts, copies: Copies::default() };
        model.start(chance);
        model
    }

    fn start(&self, chance: &mut Chance) {
        let scene = &self.scene;
        let stats = Arc::new(ModelStats::default());
        let scheduler = Sequences::new(scene.settings.clone(), stats.clone());
        let rules = InSequence {
            scene: scene.clone(),
            history: RefCell::new(History::new(scene.terms)),
            batches: RefCell::default(),
        };
        let manner = scene.manner.clone();
        let served = Served::start(&self.world, (scheduler, stats), (rules, manner), self.posts.maker(), chance);
        self.copies.add(served, scene.instances);
    }

    /// The id and flags of the next request, mostly as they should be.
    fn next(&self, served: &Served<InSequence>, chance: &mut Chance) -> (u64, bool, bool) {
        let id = chance.between(1, self.scene.ids);
        let started = served.rules.history.borrow().knows(id, Instant::now());
        let wrong = chance.one_in(self.scene.mistakes);
        (id, started == wrong, chance.below(self.scene.length) == 0)
    }
}

impl Model for Sequenced {
    fn pause_us(&self) -> u64 {
        self.scene.pause_us
    }

    fn may_be_held(&self) -> bool {
        self.scene.hold
    }

    fn disturb(&self, chance: &mut Chance) {
        self.copies.disturb((self.scene.reloads, self.scene.resizes), chance, |chance| self.start(chance));
    }

    fn arrive(&self, request: u64, chance: &mut Chance) {
        let (served, scene) = (self.copies.last(), &self.scene);
        let (now, next) = (Instant::now(), self.next(&served, chance));
        let width = chance.between(1, scene.widths) as usize;
        let deadline = chance.some(scene.deadlines, |chance| now + chance.ms(1, 500));
        let timeout = chance.some(scene.timeouts, |chance| chance.ms(1, 200));
        let patience = chance.some(scene.cancels, |chance| chance.ms(0, 300));
        let pause = chance.some(if scene.decoupled { 0.3 } else { 0.0 }, |chance| chance.ms(1, 200));
        // One that belongs to no sequence is one of its own for an iterative model, and a mistake for others.
        let alone = chance.one_in(if scene.terms.iterative { 0.2 } else { scene.mistakes / 10.0 });
        let (id, start, end) = if alone { (0, true, false) } else { next };
        let rows = if chance.one_in(scene.mistakes / 10.0) { 2 } else { 1 };
        let member = Member::new(rows, vec![scene.tensor(&vec![request; width])]);
        let sequence = (!alone).then(|| Sequence { id: scene.correlation_id(id), start, end });
        let pushed = Pushed { deadline, timeout, sequence, ..Pushed::new(member, now) };
        let mut history = served.rules.history.borrow_mut();
        match served.scheduler.clone().push(pushed, now).map_err(Error::from) {
            Ok(pushed) => {
                assert!(rows == 1 && (id != 0 || scene.terms.iterative), "request {request} is accepted as it is");
                history.accepted(request, (id, start, end), now);
                drop(history);
                let (timeout, unhurried) = (scene.timeout(timeout), pause.is_some());
                let asked = Asked { arrived: now, deadline, timeout, level: 1, rows, width, unhurried };
                call(&served, (request, asked), pushed, Temper { patience, pause });
                // Those that run again come back in any case.
                let (waiting, most) = (served.scheduler.waiting(), scene.batching.queue.requests_max);
                assert!(waiting <= most || scene.terms.iterative, "{waiting} requests wait, {most} may");
            }
            Err(error) => {
                let expected = match error.kind() {
                    Kind::QueueFull => served.ledger.borrow().unended() >= scene.batching.queue.requests_max,
                    Kind::BudgetExceeded => scene.budget,
                    Kind::DeadlineExceeded => deadline.is_some(),
                    Kind::Unavailable => served.is_closed(),
                    Kind::InvalidArgument if error.message().contains("must specify the START flag") => {
                        history.refused_as_unknown(request, (id, start), now);
                        true
                    }
                    Kind::InvalidArgument => rows > 1 || id == 0 && !scene.terms.iterative,
                    _ => false,
                };
                assert!(expected, "request {request} is refused: {error}");
            }
        }
    }

    /// All slots are free when all sequences are over: as many as there are find one at once.
    fn quiet(&self, ids: Range<u64>) -> Option<Instant> {
        let (served, scene) = (self.copies.last(), &self.scene);
        let plain = !scene.terms.iterative && self.posts.is_none() && scene.manner.slow == 0.0;
        let room = scene.batching.queue.requests_max >= 1000 && scene.terms.idle_max >= Duration::from_secs(1);
        if served.is_closed() || !plain || !room {
            return None;
        }
        let now = Instant::now();
        for (request, id) in ids.zip(1..=(scene.slots * served.serving()) as u64) {
            let member = Member::new(1, vec![scene.tensor(&[request])]);
            let sequence = Some(Sequence { id: scene.correlation_id(id), start: true, end: false });
            let pushed = served.scheduler.clone().push(Pushed { sequence, ..Pushed::new(member, now) }, now);
            let pushed = pushed.map_err(Error::from);
            let Ok(pushed) = pushed.inspect_err(|error| assert_eq!(error.kind(), Kind::BudgetExceeded)) else {
                return None;
            };
            served.rules.history.borrow_mut().accepted(request, (id, true, false), now);
            let timeout = scene.timeout(None);
            let asked = Asked { arrived: now, deadline: None, timeout, level: 1, rows: 1, width: 1, unhurried: false };
            call(&served, (request, asked), pushed, Temper::default());
        }
        // Later, some would be over, and their slots free.
        Some(now + scene.terms.idle_max)
    }

    fn end(&self, at_once: bool) {
        self.copies.end(at_once);
    }

    fn settled(&self) {
        self.copies.settled();
    }
}

/// The text that is the only element of a tensor.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data.get(4..)?).ok()
}

/// What must hold of sequences.
struct InSequence {
    scene: Rc<Scene>,
    history: RefCell<History>,
    /// What each instance runs.
    batches: RefCell<BTreeMap<usize, Vec<Running>>>,
}

/// A member of a batch: the request and its new state, or a place without one.
type Running = Option<(u64, Vec<u64>)>;

impl InSequence {
    /// What the model file is told about a member, and the member's request; `None` for a place without one.
    fn told(&self, member: &Member) -> Option<(u64, Told)> {
        let [input, start, ready, end, id, state] = &member.inputs[..] else {
            panic!("a member has an input, four controls and a state: {member:?}");
        };
        let flag = |tensor: &Tensor| tensor.data.iter().any(|byte| *byte != 0);
        if !flag(ready) {
            assert!(!flag(start) && !flag(end) && !flag(input) && !flag(state), "a place without a request has one");
            return None;
        }
        let state: Vec<u64> =
            state.data.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default())).collect();
        let state = Some(state).filter(|state| *state != self.scene.initial_state());
        let id = match self.scene.texts {
            true => text(&id.data).and_then(|text| text.strip_prefix('s')?.parse().ok()),
            false => Some(puppet::id(id)),
        };
        let told = Told { start: flag(start), end: flag(end), id: id.unwrap_or(0), state };
        Some((puppet::id(input), told))
    }
}

impl Rules for InSequence {
    fn begun(&self, served: &Served<Self>, instance: usize, batch: &Underway) -> Vec<u64> {
        let (now, mut history) = (Instant::now(), self.history.borrow_mut());
        let members: Vec<&Member> = batch.members().collect();
        let alike = |member: &&Member| member.inputs.iter().zip(&members[0].inputs).all(|(a, b)| a.shape == b.shape);
        assert!(members.iter().all(alike), "a batch has members of different shapes: {members:?}");
        assert!(members.len() <= self.scene.rows_max, "a batch has {} rows", members.len());
        let mut requests = Vec::new();
        let mut running = Vec::new();
        for (slot, member) in members.iter().enumerate() {
            let Some((request, mut told)) = self.told(member) else {
                assert!(self.scene.terms.slots, "only slots are kept free");
                running.push(None);
                continue;
            };
            if history.is_alone(request) {
                told.id = 0;
            }
            let state = self.scene.next_state(told.state.as_deref(), request);
            history.begins(request, (instance, slot), told, now);
            requests.push(request);
            running.push(Some((request, state)));
        }
        assert!(running.last().is_some_and(Option::is_some), "a batch ends with places without requests");
        served.ledger.borrow_mut().begin(&requests, self.scene.rows_max, now);
        self.batches.borrow_mut().insert(instance, running);
        requests
    }

    fn outputs(&self, instance: usize, position: usize, _member: &Member) -> Vec<Tensor> {
        let scene = &self.scene;
        let batches = self.batches.borrow();
        let (request, state) = match &batches[&instance][position] {
            Some((request, state)) => (*request, state.clone()),
            // As large as the others'.
            None => (
                0,
                batches[&instance].iter().flatten().map(|(_, state)| vec![0; state.len()]).next().unwrap_or_default(),
            ),
        };
        let mut outputs = vec![scene.tensor(&[request])];
        if scene.terms.iterative {
            // It has been counted already.
            let steps = if request == 0 { 0 } else { self.history.borrow().steps(request) };
            outputs.push(scene.tensor(&[u64::from(steps >= scene.steps(request))]));
        }
        outputs.push(scene.tensor(&state));
        outputs
    }

    fn ending(&self, served: &Served<Self>, instance: usize, end: End) {
        let (now, mut history) = (Instant::now(), self.history.borrow_mut());
        let mut ledger = served.ledger.borrow_mut();
        for (request, state) in self.batches.borrow()[&instance].iter().flatten() {
            let (abandoned, steps) = (ledger.is_over(*request), history.steps(*request) + 1);
            let again = end == End::Well
                && !abandoned
                && !history.is_ended(*request)
                && steps < self.scene.steps(*request).min(STEPS_MAX);
            if again {
                ledger.again(*request);
            }
            let state = Some(state.clone()).filter(|_| end == End::Well && !abandoned);
            history.ran(*request, Ran { state, abandoned, again }, now);
        }
    }

    fn answered(&self, id: u64, answer: &Answer) {
        assert_eq!(puppet::id(&answer.outputs[0]), id, "request {id} gets another one's answer");
        assert_eq!(answer.outputs[0].shape[..], self.scene.shape(1), "request {id} gets too much");
        let outputs = if self.scene.terms.iterative { 2 } else { 1 };
        assert_eq!(answer.outputs.len(), outputs, "request {id} gets the state");
    }

    fn heard(&self, served: &Served<Self>, id: u64, (heard, waited): (Heard, bool), failure: Option<&Error>) {
        let (now, mut history) = (Instant::now(), self.history.borrow_mut());
        let message = failure.map_or("", Error::message);
        let with_others = message.starts_with("timeout of the corresponding sequence has")
            || message.starts_with("the sequence is cancelled");
        match heard {
            Heard::Answer => {}
            Heard::Nothing => history.given_up(id, waited, now),
            Heard::Failure(_) if waited && with_others => history.failed_with_others(id, now),
            Heard::Failure(kind) if waited => {
                if kind == Kind::TimedOut {
                    served.ledger.borrow().timed_out(id, now);
                }
                history.given_up(id, true, now);
            }
            Heard::Failure(kind) => assert_ne!(kind, Kind::TimedOut, "request {id} timed out while it ran"),
        }
    }

    fn deserted(&self, instance: usize) {
        self.history.borrow_mut().deserted(instance, Instant::now());
    }

    fn closed(&self, at_once: bool) {
        self.history.borrow_mut().closed(at_once, Instant::now());
    }

    fn settled(&self) {
        self.history.borrow().settled();
    }
}
