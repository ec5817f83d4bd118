//! A served copy of a model: its scheduler, its instances with their faults, and the books of its requests.
//!
//! What must hold, besides what `ledger` and the model's own [`Rules`] check of each request:
//! * the scheduler and the world agree on how many wait, after every step;
//! * what callers heard adds up to what the statistics count, by kind;
//! * at the end nothing waits, nothing runs, and every instance has been told to end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nereid::error::{Error, Kind};
use nereid::scheduler::{Answer, Look, Scheduler, Underway};
use nereid::telemetry::stats::ModelStats;
use nereid::tensor::{Member, Tensor};
use tokio::time::sleep;

use crate::chance::Chance;
use crate::ledger::{Heard, Ledger};
use crate::limits::Post;
use crate::puppet::{End, Puppet};
use crate::world::World;

/// What must hold of the requests of one kind of scheduler, and what its puppets answer.
pub trait Rules: 'static {
    /// An instance has taken a batch; gives the ids of its requests.
    fn begun(&self, served: &Served<Self>, instance: usize, batch: &Underway) -> Vec<u64>
    where
        Self: Sized;

    /// What the puppet of this instance gives the member at this position.
    fn outputs(&self, instance: usize, position: usize, member: &Member) -> Vec<Tensor>;

    /// The batch of an instance is about to end so.
    fn ending(&self, served: &Served<Self>, instance: usize, end: End)
    where
        Self: Sized;

    /// An answer to this request.
    fn answered(&self, id: u64, answer: &Answer);

    /// The caller of this request has heard the last of it, or hears no more; and whether it waited until then.
    fn heard(&self, served: &Served<Self>, id: u64, heard: (Heard, bool), failure: Option<&Error>)
    where
        Self: Sized;

    /// Nobody takes the place of a lost instance.
    fn deserted(&self, _instance: usize) {}

    /// Nothing more is accepted; what waits is refused for this reason if it was told at once.
    fn closed(&self, _at_once: bool) {}

    /// At the end of the world.
    fn settled(&self) {}
}

/// How instances execute.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Milliseconds of an execution, and of each of its rows.
    pub base: u64,
    pub row: u64,
    /// The shares of executions that take much longer, fail, panic, and never end.
    pub slow: f64,
    pub fails: f64,
    pub panics: f64,
    pub hangs: f64,
    /// Whether outputs come for the whole batch at once.
    pub whole: bool,
}

impl Manner {
    pub fn new(chance: &mut Chance) -> Self {
        Self {
            base: chance.between(1, 20),
            row: chance.between(0, 4),
            slow: chance.of(&[0.0, 0.02]),
            fails: chance.of(&[0.0, 0.05]),
            panics: chance.of(&[0.0, 0.02]),
            hangs: chance.of(&[0.0, 0.0, 0.005]),
            whole: chance.one_in(0.3),
        }
    }

    /// How long the next execution takes and how it ends.
    fn next(&self, rows: usize, chance: &mut Chance) -> (Duration, End) {
        let factor = if chance.one_in(self.slow) { 20 } else { 1 };
        let mut share = chance.share();
        let mut end = End::Well;
        for (part, other) in [(self.panics, End::Panic), (self.fails, End::Failure), (self.hangs, End::Never)] {
            if (0.0..part).contains(&share) {
                end = other;
            }
            share -= part;
        }
        (Duration::from_millis((self.base + self.row * rows as u64) * factor), end)
    }
}

/// A served copy of a model.
pub struct Served<R> {
    pub world: Rc<World>,
    pub scheduler: Arc<dyn Scheduler>,
    pub stats: Arc<ModelStats>,
    pub ledger: RefCell<Ledger>,
    pub rules: R,
    manner: Manner,
    /// Makes an instance's place with the rate limiter, if it needs one.
    post: Box<dyn Fn() -> Option<Post>>,
    closed: Cell<bool>,
    aborted: Cell<bool>,
    staff: RefCell<Staff>,
    chance: RefCell<Chance>,
}

/// The served copies of a model, in the order in which they came; the last takes requests.
pub struct Copies<R>(RefCell<Vec<Rc<Served<R>>>>);

impl<R> Default for Copies<R> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<R: Rules> Copies<R> {
    /// A new copy with so many instances takes the requests from now on.
    pub fn add(&self, served: Rc<Served<R>>, instances: usize) {
        (0..instances).for_each(|_| served.join());
        self.0.borrow_mut().push(served);
    }

    pub fn last(&self) -> Rc<Served<R>> {
        self.0.borrow().last().expect("there is always one").clone()
    }

    /// A reload by `start`, or other instances, each as often as is said.
    pub fn disturb(&self, (reloads, resizes): (f64, f64), chance: &mut Chance, start: impl FnOnce(&mut Chance)) {
        let former = self.last();
        if chance.one_in(reloads) {
            start(chance);
            former.close();
        } else if chance.one_in(resizes) {
            former.resize(chance);
        }
    }

    /// The last takes no more, and may drop what waits.
    pub fn end(&self, at_once: bool) {
        if at_once { self.last().abort() } else { self.last().close() }
    }

    pub fn settled(&self) {
        self.0.borrow().iter().for_each(|served| served.settled());
    }
}

/// Instances by number, as a crew keeps them.
#[derive(Default)]
struct Staff {
    serving: BTreeSet<usize>,
    leaving: BTreeSet<usize>,
    /// Numbers that nobody gets any more.
    burnt: BTreeSet<usize>,
}

impl<R: Rules> Served<R> {
    pub fn start(
        world: &Rc<World>,
        (scheduler, stats): (Arc<dyn Scheduler>, Arc<ModelStats>),
        (rules, manner): (R, Manner),
        post: Box<dyn Fn() -> Option<Post>>,
        chance: &mut Chance,
    ) -> Rc<Self> {
        world.knows(&scheduler);
        Rc::new(Self {
            world: world.clone(),
            scheduler,
            stats,
            ledger: RefCell::default(),
            rules,
            manner,
            post,
            closed: Cell::new(false),
            aborted: Cell::new(false),
            staff: RefCell::default(),
            chance: RefCell::new(chance.fork()),
        })
    }

    /// Another instance, under the smallest number that is free.
    pub fn join(self: &Rc<Self>) {
        let mut staff = self.staff.borrow_mut();
        let taken =
            |index: &usize| [&staff.serving, &staff.leaving, &staff.burnt].iter().any(|set| set.contains(index));
        let index = (0..).find(|index| !taken(index)).expect("numbers do not end");
        staff.serving.insert(index);
        drop(staff);
        self.begin(index);
    }

    fn begin(self: &Rc<Self>, index: usize) {
        self.scheduler.joins(index);
        let served = self.clone();
        self.world.begin(async move { served.instance(index).await });
    }

    /// Adds an instance or lets one go.
    pub fn resize(self: &Rc<Self>, chance: &mut Chance) {
        if self.closed.get() {
            return;
        }
        if chance.one_in(0.5) && self.serving() < 4 {
            self.join();
            self.staffed();
        } else {
            self.dismiss(chance);
        }
    }

    /// Lets an instance go, but never the last.
    fn dismiss(&self, chance: &mut Chance) {
        let mut staff = self.staff.borrow_mut();
        if staff.serving.len() < 2 {
            return;
        }
        let index = *staff.serving.iter().nth(chance.below(staff.serving.len() as u64) as usize).expect("below");
        staff.serving.remove(&index);
        staff.leaving.insert(index);
        drop(staff);
        self.scheduler.dismiss(index);
        self.staffed();
    }

    /// Tells the scheduler how many serve.
    fn staffed(&self) {
        self.scheduler.staffed(self.serving());
        self.stepped();
    }

    /// How many instances serve.
    pub fn serving(&self) -> usize {
        self.staff.borrow().serving.len()
    }

    /// Checks what must hold after every step.
    pub fn stepped(&self) {
        let (counted, waiting) = (self.scheduler.waiting(), self.ledger.borrow().waiting());
        // What is refused at a stop has its outcome before its caller hears of it.
        if !self.aborted.get() {
            assert!(counted <= waiting, "the scheduler has {counted} requests, only {waiting} have no outcome");
        }
        self.world.poke();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Accepts nothing more, and serves what waits.
    pub fn close(&self) {
        self.closed.set(true);
        self.scheduler.close();
        self.rules.closed(false);
        self.stepped();
    }

    /// Accepts nothing more, and refuses what waits.
    pub fn abort(&self) {
        self.abort_for(None);
    }

    fn abort_for(&self, why: Option<&Error>) {
        self.closed.set(true);
        self.aborted.set(true);
        match why {
            None => self.scheduler.abort(),
            Some(why) => self.scheduler.abort_for(why.clone()),
        }
        self.rules.closed(true);
        self.stepped();
    }

    /// Works like an instance thread, until it is told to end or is lost.
    async fn instance(self: Rc<Self>, index: usize) {
        let mut post = (self.post)();
        while let Some(batch) = self.next(index, post.as_mut()).await {
            let ids = self.rules.begun(&self, index, &batch);
            let rows: usize = batch.members().map(|member| member.rows).sum();
            assert!(!ids.is_empty(), "an instance runs {rows} rows that nobody waits for");
            let (time, end) = self.manner.next(rows, &mut self.chance.borrow_mut());
            sleep(time).await;
            self.rules.ending(&self, index, end);
            if let Some(post) = &mut post {
                post.ends();
            }
            if end == End::Never {
                let why = Error::new(Kind::Backend, "the instance was given up");
                batch.lose(&*self.scheduler, &why);
                self.stepped();
                return self.lost(index);
            }
            let outputs = |position, member: &Member| self.rules.outputs(index, position, member);
            let mut puppet = Puppet { end, whole: self.manner.whole, outputs };
            let finished = batch.finish(&*self.scheduler, &mut puppet);
            assert_eq!(finished.usable, end != End::Panic);
            if let Some(post) = &mut post {
                post.renewed = finished.renewed;
            }
            self.stepped();
        }
        let mut staff = self.staff.borrow_mut();
        staff.leaving.remove(&index);
        staff.serving.remove(&index);
    }

    /// The next batch; `None` if the instance is to end.
    async fn next(&self, index: usize, mut post: Option<&mut Post>) -> Option<Underway> {
        loop {
            let permit = match &mut post {
                None => None,
                Some(post) => match post.acquire(self, index).await {
                    Ok(permit) => Some(permit),
                    Err(()) => return None,
                },
            };
            match Underway::begin(&*self.scheduler, index, permit) {
                Ok(batch) => {
                    if let Some(post) = &mut post {
                        post.begins();
                    }
                    return Some(batch);
                }
                // Others may want what it held.
                Err(_) if post.is_some() => self.world.poke(),
                Err(look) => {
                    if !self.idle(look).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Does what an instance does that has got no batch; `false` if that is to end.
    pub async fn idle(&self, look: Look) -> bool {
        match look {
            Look::Wait(time) => self.world.idle(time).await,
            Look::Closed => return false,
            Look::Run(_) | Look::Ready | Look::Again => {}
        }
        true
    }

    /// An instance is lost, as a crew gives one up: another takes its place, or nobody does.
    fn lost(self: &Rc<Self>, index: usize) {
        let mut staff = self.staff.borrow_mut();
        if staff.leaving.remove(&index) {
            staff.burnt.insert(index);
            drop(staff);
            self.desert(index);
        } else if self.chance.borrow_mut().one_in(0.5) {
            drop(staff);
            self.begin(index);
        } else {
            staff.serving.remove(&index);
            staff.burnt.insert(index);
            drop(staff);
            self.desert(index);
            match self.serving() {
                0 => self.abort_for(Some(&Error::unavailable("all instances are lost"))),
                _ => self.staffed(),
            }
        }
    }

    fn desert(&self, index: usize) {
        self.rules.deserted(index);
        self.scheduler.deserted(index, &Error::unavailable("an instance is lost"));
        self.stepped();
    }

    /// What a version that nobody uses any more must have left behind.
    pub fn settled(&self) {
        let ledger = self.ledger.borrow();
        ledger.close();
        assert_eq!(self.scheduler.waiting(), 0, "requests wait although nobody serves them");
        let counted = self.stats.snapshot();
        let failures: u64 = counted.failures.values().sum();
        assert_eq!(counted.success.count + failures, ledger.accepted(), "{:?}", counted.failures);
        let nothing = ledger.heard(Heard::Nothing);
        let answers = ledger.heard(Heard::Answer);
        assert!((answers..=answers + nothing).contains(&counted.success.count), "answers are counted wrong");
        for (kind, count) in &counted.failures {
            let heard = ledger.heard(Heard::Failure(*kind));
            let unheard = if *kind == Kind::Cancelled { nothing } else { nothing.min(*count) };
            let range = heard..=heard + unheard;
            assert!(range.contains(count), "{kind:?} is counted {count} times and heard {heard} times");
        }
        self.rules.settled();
    }
}
