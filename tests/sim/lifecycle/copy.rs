//! What serves a version in these worlds: the server's own queue with puppets for instances, or an ensemble's count of
//! its requests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use nereid::engine::Key;
use nereid::error::{Error, Result};
use nereid::infer::{Instant, Response};
use nereid::model::{ModelConfig, QueuePolicy, TimeoutAction, Version};
use nereid::scheduler::{Answer, Levels, Limits, Pushed, Queue, QueueSettings, Scheduler, Underway, Waiter};
use nereid::telemetry::stats::ModelStats;
use nereid::tensor::Member;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::World;
use crate::caller::response;
use crate::chance::Chance;
use crate::ledger::{Asked, Heard, Ledger};
use crate::puppet::{self, End, Puppet};

/// A served version, as the state machine holds it; clones share the copy.
#[derive(Clone)]
pub struct Serving {
    pub copy: Rc<Copy>,
    pub config: Arc<ModelConfig>,
}

/// Which version of which model is opened, and by which load.
pub struct Identity {
    pub key: Key,
    pub version: Version,
    pub number: u64,
    /// The size of its files.
    pub bytes: u64,
    /// The members, each with the number of the copy that it was fitted to.
    pub members: Vec<(Key, u64)>,
}

pub struct Copy {
    pub identity: Identity,
    scheduler: Arc<dyn Scheduler>,
    stats: Arc<ModelStats>,
    pub ledger: RefCell<Ledger>,
    /// Something has happened that an instance, or who waits for the end, may want to look at.
    poke: Notify,
    /// How many instances there should be, and how many there are.
    wanted: Cell<usize>,
    instances: Cell<usize>,
    /// Requests of an ensemble that are under way.
    pub in_flight: Cell<usize>,
    pub closed: Cell<bool>,
    pub lost: Cell<bool>,
    pub dropped: Cell<bool>,
    chance: RefCell<Chance>,
}

impl Copy {
    pub fn start(world: &Rc<World>, identity: Identity, instances: usize) -> Rc<Self> {
        let policy = QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: None,
            allow_timeout_override: false,
            requests_max: 100_000,
        };
        let levels = Levels::one(policy);
        let settings = QueueSettings {
            requests_max: 100_000,
            limits: Limits { rows_max: 4, preferred_rows: Vec::new(), delay_max: Duration::ZERO, budget: None },
            levels,
            preserve_order: false,
            hold: 0,
            shapes_vary: false,
            forms: None,
            instances: instances.max(1),
            responses: None,
        };
        let stats = Arc::new(ModelStats::default());
        let copy = Rc::new(Self {
            identity,
            scheduler: Arc::new(Queue::new(settings, stats.clone())),
            stats,
            ledger: RefCell::default(),
            poke: Notify::new(),
            wanted: Cell::new(0),
            instances: Cell::new(0),
            in_flight: Cell::new(0),
            closed: Cell::new(false),
            lost: Cell::new(false),
            dropped: Cell::new(false),
            chance: RefCell::new(world.fork()),
        });
        copy.resize(world, instances);
        world.opened(&copy);
        copy
    }

    /// Adds or dismisses instances.
    pub fn resize(self: &Rc<Self>, world: &Rc<World>, instances: usize) {
        if !self.identity.members.is_empty() {
            return;
        }
        for index in self.wanted.replace(instances)..instances {
            self.instances.set(self.instances.get() + 1);
            world.spawn(instance(self.clone(), world.clone(), index));
        }
        self.scheduler.staffed(instances);
        self.stepped();
    }

    /// Whether an instance of this number has nothing more to do.
    fn is_over(&self, index: usize) -> bool {
        self.lost.get() || index >= self.wanted.get() || self.closed.get() && self.scheduler.waiting() == 0
    }

    pub fn stepped(&self) {
        self.poke.notify_waiters();
    }

    /// No instance can serve any more.
    pub fn lose(&self) {
        self.lost.set(true);
        self.closed.set(true);
        self.scheduler.abort();
        self.stepped();
    }

    /// Takes no more requests, finishes those that it has, and is gone.
    pub async fn retire(self: Rc<Self>, world: Rc<World>) {
        self.closed.set(true);
        self.scheduler.close();
        self.stepped();
        while self.instances.get() + self.in_flight.get() > 0 {
            self.poke.notified().await;
        }
        assert!(!self.dropped.replace(true), "{} is dropped twice", self.name());
        world.held.set(world.held.get() - 1);
    }

    pub fn name(&self) -> String {
        format!("{} version {} of load {}", self.identity.key, self.identity.version, self.identity.number)
    }

    /// Sends a request to it.
    ///
    /// # Errors
    /// If it is closed.
    pub async fn ask(self: &Rc<Self>, id: u64, patience: Option<Duration>) -> Result<Heard> {
        let now = Instant::now();
        let pushed = self.scheduler.clone().push(Pushed::new(puppet::member(id, 1, 1), now), now);
        let pushed = pushed.map_err(Error::from).inspect_err(|error| {
            assert!(self.closed.get(), "{} refuses request {id}: {error}", self.name());
        })?;
        let asked =
            Asked { arrived: now, deadline: None, timeout: None, level: 0, rows: 1, width: 1, unhurried: false };
        self.ledger.borrow_mut().accept(id, asked);
        let respond = move |answer: Answer| {
            assert_eq!(puppet::id(&answer.outputs[0]), id, "request {id} gets another one's answer");
            response(&answer)
        };
        let waiter = Waiter::new(self.scheduler.clone(), pushed, (now, None), respond);
        self.stepped();
        let heard = hear(waiter, id, patience).await;
        self.ledger.borrow_mut().end(id, heard, Instant::now());
        self.stepped();
        Ok(heard)
    }

    /// What it must have left behind.
    pub fn check_end(&self) {
        let name = self.name();
        assert!(self.dropped.get(), "{name} is still there");
        assert_eq!((self.instances.get(), self.in_flight.get()), (0, 0), "{name} has instances or requests");
        assert_eq!(self.scheduler.waiting(), 0, "{name} has requests that nobody serves");
        let ledger = self.ledger.borrow();
        ledger.close();
        let counted = self.stats.snapshot();
        let failures: u64 = counted.failures.values().sum();
        assert_eq!(counted.success.count + failures, ledger.accepted(), "{name}: {:?}", counted.failures);
    }
}

/// The last that the caller of a request hears, if it has the patience.
async fn hear<F: FnMut(Answer) -> Response + Unpin>(
    mut waiter: Waiter<F>,
    id: u64,
    patience: Option<Duration>,
) -> Heard {
    let first = async { waiter.next().await.unwrap_or_else(|| panic!("request {id} ended without an outcome")) };
    let heard = match patience {
        None => Some(first.await),
        Some(patience) => tokio::time::timeout(patience, first).await.ok(),
    };
    match heard {
        None => Heard::Nothing,
        Some(Ok(_)) => Heard::Answer,
        Some(Err(error)) => Heard::Failure(error.kind()),
    }
}

/// Works like an instance thread, until it is dismissed or the scheduler is closed and empty.
async fn instance(copy: Rc<Copy>, world: Rc<World>, index: usize) {
    while !copy.is_over(index) {
        let Ok(underway) = Underway::begin(&*copy.scheduler, index, None) else {
            let poked = copy.poke.notified();
            match copy.scheduler.waiting() {
                0 => poked.await,
                // A batch that waits to grow becomes ready by time alone.
                _ => _ = tokio::time::timeout(Duration::from_millis(1), poked).await,
            }
            continue;
        };
        let ids: Vec<u64> = underway.members().map(|member| puppet::id(&member.inputs[0])).collect();
        copy.ledger.borrow_mut().begin(&ids, 4, Instant::now());
        let (time, fails) = {
            let mut chance = copy.chance.borrow_mut();
            (chance.ms(1, 8), chance.one_in(world.scene.fails))
        };
        sleep(time).await;
        let end = if fails || copy.lost.get() { End::Failure } else { End::Well };
        let outputs = |_, member: &Member| member.inputs.clone();
        underway.finish(&*copy.scheduler, &mut Puppet { end, whole: false, outputs });
        copy.stepped();
    }
    copy.instances.set(copy.instances.get() - 1);
    copy.stepped();
}
