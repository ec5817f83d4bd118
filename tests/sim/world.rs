//! What all kinds of worlds have in common: virtual time, and the tasks that live in it.

use std::cell::RefCell;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nereid::infer::Instant;
use nereid::scheduler::Scheduler;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle, LocalSet};
use tokio::time::{sleep, timeout};

use crate::chance::Chance;

/// Requests of one world.
const REQUESTS: u64 = 1500;

/// After this time without requests nothing is left to do.
const QUIET: Duration = Duration::from_secs(20);

/// No world has anything to wait for that takes so long.
const STUCK: Duration = Duration::from_secs(3600);

/// Lives in virtual time, which passes when nothing else is left to do.
pub fn virtually<T>(life: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O starts");
    LocalSet::new().block_on(&runtime, life)
}

/// A model of a world. Nothing comes of what it does not do.
pub trait Model {
    /// Whether it takes requests.
    fn serves(&self) -> bool {
        true
    }

    /// The usual time between its requests, in microseconds.
    fn pause_us(&self) -> u64 {
        0
    }

    /// What may happen before a request arrives: a reload, other instances.
    fn disturb(&self, _chance: &mut Chance) {}

    /// A request arrives.
    fn arrive(&self, _id: u64, _chance: &mut Chance) {}

    /// Whether it may run nothing until it takes no more.
    fn may_be_held(&self) -> bool {
        false
    }

    /// Nobody asks for anything any more, and everything is as it was at the beginning. Requests of these ids may show it;
    /// when their callers must have heard of them.
    fn quiet(&self, _ids: Range<u64>) -> Option<Instant> {
        None
    }

    /// It takes nothing more, and refuses what waits or serves it.
    fn end(&self, _at_once: bool) {}

    /// Nothing is left of it.
    fn settled(&self) {}
}

/// Lives through one world of such models.
pub fn run(mut chance: Chance, models: impl FnOnce(&Rc<World>, &mut Chance) -> Vec<Box<dyn Model>>) -> u64 {
    virtually(async move {
        let world = World::new();
        let models = models(&world, &mut chance);
        let serving: Vec<&dyn Model> = models.iter().map(AsRef::as_ref).filter(|model| model.serves()).collect();
        // All of them together are asked as often as each would be alone.
        let pause_us = serving.iter().map(|model| model.pause_us()).sum::<u64>() / (serving.len() as u64).pow(2);
        for id in 1..=REQUESTS {
            let model = serving[chance.below(serving.len() as u64) as usize];
            model.disturb(&mut chance);
            if pause_us > 0 && chance.one_in(0.7) {
                sleep(Duration::from_micros(chance.below(2 * pause_us))).await;
            }
            model.arrive(id, &mut chance);
        }
        if chance.one_in(0.5) && !models.iter().any(|model| model.may_be_held()) {
            world.gather().await;
            sleep(QUIET).await;
            let shown = models.iter().zip((REQUESTS + 1..).step_by(1000));
            let due: Vec<Instant> = shown.filter_map(|(model, id)| model.quiet(id..id + 1000)).collect();
            world.gather().await;
            assert!(due.iter().all(|due| Instant::now() <= *due), "not all slots are free when nobody has one");
        }
        models.iter().for_each(|model| model.end(chance.one_in(0.2)));
        world.gather().await;
        world.ended().await;
        models.iter().for_each(|model| model.settled());
        REQUESTS
    })
}

/// What lives in a world.
#[derive(Default)]
pub struct World {
    callers: RefCell<Vec<JoinHandle<()>>>,
    instances: RefCell<Vec<JoinHandle<()>>>,
    schedulers: RefCell<Vec<Weak<dyn Scheduler>>>,
    /// Something has happened that an idle instance may want to look at.
    poke: Notify,
}

impl World {
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Where requests may wait.
    pub fn knows(&self, scheduler: &Arc<dyn Scheduler>) {
        self.schedulers.borrow_mut().push(Arc::downgrade(scheduler));
    }

    /// What waits, for who finds that it waits for ever.
    fn waiting(&self) -> String {
        let schedulers = self.schedulers.borrow();
        let waiting = schedulers.iter().filter_map(Weak::upgrade).filter(|scheduler| scheduler.waiting() > 0);
        waiting.map(|scheduler| format!("{scheduler:?}\n")).collect()
    }

    /// A caller that waits for its request.
    pub fn call(&self, caller: impl Future<Output = ()> + 'static) {
        self.callers.borrow_mut().push(tokio::task::spawn_local(caller));
    }

    /// An instance that ends when it is told to.
    pub fn begin(&self, instance: impl Future<Output = ()> + 'static) {
        self.instances.borrow_mut().push(tokio::task::spawn_local(instance));
    }

    /// Tells all who idle that something has happened.
    pub fn poke(&self) {
        self.poke.notify_waiters();
    }

    /// Idles until something happens, or for this time.
    pub async fn idle(&self, time: Option<Duration>) {
        match time {
            None => self.poke.notified().await,
            Some(time) => drop(timeout(time, self.poke.notified()).await),
        }
    }

    /// Waits until all callers have heard the last of their requests.
    pub async fn gather(&self) {
        for caller in self.callers.take() {
            let ended = timeout(STUCK, caller).await;
            if ended.is_err() {
                self.tell_what_failed().await;
            }
            passed_on(ended.unwrap_or_else(|_| panic!("a caller waits for ever: {}", self.waiting())));
        }
    }

    /// Waits until all instances have ended, those that come meanwhile, too.
    pub async fn ended(&self) {
        loop {
            let instances = self.instances.take();
            if instances.is_empty() {
                return;
            }
            for instance in instances {
                passed_on(timeout(STUCK, instance).await.expect("no instance lives longer than its model"));
            }
        }
    }

    /// An instance that has failed may be why a caller waits for ever.
    async fn tell_what_failed(&self) {
        for instance in self.instances.take().into_iter().filter(JoinHandle::is_finished) {
            passed_on(instance.await);
        }
    }
}

/// Passes on the panic of a task.
fn passed_on(ended: Result<(), JoinError>) {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
}
