//! A world of models that come and go: the server's own state machine, order of operations, version policies, polls and
//! reconciliation over real directories, and puppets that load and serve.
//!
//! What must hold, besides what `ledger` checks of each request:
//! * a request for a model that nobody takes out of service finds a copy that takes it, through all reloads;
//! * an ensemble finds its members until its last request has ended;
//! * one operation on a model at a time, and no more loads at a time than there are permits;
//! * each caller has one answer, and it is true: what is loaded is served as it was asked for, what is unloaded is not;
//! * what readers see is what serves, at every moment; what is dropped is not shown, and dropped once;
//! * what is made of others is loaded again after them;
//! * at the end nothing goes on, and no version, instance, permit or request is left.

mod callers;
mod copy;
mod disk;
mod loader;
mod manager;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nereid::backend::Backend;
use nereid::backend::identity::Identity;
use nereid::engine::lifecycle::{ModelView, State};
use nereid::engine::models::{Event, Job};
use nereid::engine::order::{Because, Unload, What};
use nereid::engine::poll::Watched;
use nereid::engine::repositories::Repositories;
use nereid::engine::{Key, Overrides};
use nereid::error::Error;
use nereid::infer::Instant;
use nereid::model::Version;
use nereid::repository::{CudaDevices, Facts};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::copy::{Copy, Serving};
use self::disk::{Config, Disk};
use self::manager::{Asked, Caller, Operation};
use crate::chance::Chance;

/// Requests of one world, those of ensembles to their members not counted.
const REQUESTS: u64 = 1500;

/// After so many requests a world may come to rest.
const RESTS: u64 = 250;

/// `a`, `b` and `c` stand alone, `e` is made of some of them, and `f` of `e` and some of them.
const NAMES: [&str; 5] = ["a", "b", "c", "e", "f"];

/// The longest that anything may go on in a world where nothing happens any more.
const REST_MAX: Duration = Duration::from_secs(120);

/// How one world is.
struct Scene {
    /// Who decides what is loaded: the repository, looked at in this interval, or callers.
    poll: Option<Duration>,
    load_limit: usize,
    retries: u32,
    /// How often a load or an execution fails.
    fails: f64,
    /// How often something happens that is not a request.
    commands: f64,
    losses: f64,
    cancels: f64,
}

struct World {
    scene: Scene,
    disk: Disk,
    repositories: Repositories,
    facts: Facts,
    chance: RefCell<Chance>,
    /// What readers see.
    views: RefCell<BTreeMap<Key, ModelView<Serving>>>,
    inbox: RefCell<VecDeque<manager::Event>>,
    woken: Notify,
    stopping: Cell<bool>,
    /// What the manager waits for.
    jobs: Cell<usize>,
    permits: Semaphore,
    operations: RefCell<BTreeMap<Key, Operation>>,
    callers: RefCell<BTreeMap<Caller, Asked>>,
    /// The number of the newest copy that the last load of a model has brought, if it was a success.
    brought: RefCell<BTreeMap<Key, Option<u64>>>,
    /// Models that are served, and that nobody has since asked to take away.
    steady: RefCell<BTreeSet<Key>>,
    /// Models that somebody wants unloaded, until that has happened, and what they are made of if it is to go with them.
    going: RefCell<BTreeSet<Key>>,
    /// Models that lost a version.
    losers: RefCell<BTreeSet<Key>>,
    copies: RefCell<Vec<Rc<Copy>>>,
    /// Copies that are not dropped.
    held: Cell<usize>,
    loads: Cell<u64>,
    requests: Cell<u64>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
}

/// Lives through one world; gives the number of its requests.
pub fn run(chance: Chance) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O starts");
    tokio::task::LocalSet::new().block_on(&runtime, live(chance))
}

async fn live(mut chance: Chance) -> u64 {
    let scene = Scene {
        poll: chance.some(0.3, |chance| chance.ms(20, 200)),
        load_limit: chance.between(1, 4) as usize,
        retries: chance.of(&[0, 0, 1, 3]),
        fails: chance.of(&[0.0, 0.0, 0.1]),
        commands: chance.of(&[0.02, 0.1, 0.3]),
        losses: chance.of(&[0.0, 0.1, 0.4]),
        cancels: chance.of(&[0.0, 0.1]),
    };
    let namespacing = chance.one_in(0.2);
    let disk = Disk::new(&NAMES, namespacing, &mut chance);
    let world = Rc::new(World::new(scene, disk, namespacing, chance));
    let manager = tokio::task::spawn_local(manager::run(world.clone()));
    let mut watched = start(&world);
    let keys = world.disk.keys(&NAMES);
    for nth in 1..=REQUESTS {
        if world.one_in(world.scene.commands) {
            command(&world, &keys);
        }
        if world.one_in(0.6) {
            sleep(world.ms(0, 4)).await;
        }
        if let Some(watched) = &mut watched {
            look(&world, watched);
        }
        let (key, patience) = (world.any(&keys), world.some(world.scene.cancels, |world| world.ms(0, 10)));
        world.spawn(callers::request(world.clone(), key, patience));
        if nth % RESTS == 0 && world.one_in(0.7) {
            rest(&world, &manager).await;
        }
    }
    world.stop();
    let ended = tokio::time::timeout(REST_MAX, manager).await.expect("the server stops");
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    end(&world).await;
    REQUESTS
}

/// What the server does at its start; gives what is watched from then on.
fn start(world: &Rc<World>) -> Option<Poll> {
    let look = world.repositories.scan(Duration::ZERO).expect("the repositories are there");
    let keys: Vec<Key> = look.keys().cloned().collect();
    let asked = keys.into_iter().map(|key| (key.clone(), vec![world.caller(&key, What::Load(Overrides::default()))]));
    let asked: Vec<(Key, Vec<Caller>)> = asked.collect();
    let loads = asked.iter().map(|(key, callers)| (key.clone(), callers[0])).collect();
    world.tell(Event::Start(asked));
    let interval = world.scene.poll?;
    Some(Poll { watched: Watched::new(interval, &look), loads, next: Instant::now() + interval, interval })
}

/// The poll task of one world.
struct Poll {
    watched: Watched,
    /// Loads that go on, and their callers.
    loads: Vec<(Key, Caller)>,
    next: Instant,
    interval: Duration,
}

/// Looks at the repositories when it is time, and asks for what the difference asks for.
fn look(world: &Rc<World>, poll: &mut Poll) {
    let now = Instant::now();
    let callers = world.callers.borrow();
    let answer = |caller: &Caller| callers[caller].answer;
    let (ended, going): (Vec<_>, _) =
        std::mem::take(&mut poll.loads).into_iter().partition(|(_, caller)| answer(caller).is_some());
    poll.loads = going;
    for (key, caller) in ended {
        poll.watched.ended(key, answer(&caller) == Some(true), now);
    }
    drop(callers);
    if now < poll.next {
        return;
    }
    poll.next = now + poll.interval;
    let look = world.repositories.scan(Duration::ZERO).expect("the repositories are there");
    for (key, what) in poll.watched.look(&look, now) {
        let is_load = matches!(what, What::Load(_));
        let caller = world.ask(&key, what);
        poll.loads.extend(is_load.then_some((key, caller)));
    }
}

/// Something happens to a model.
fn command(world: &Rc<World>, keys: &[Key]) {
    let key = world.any(keys);
    if world.one_in(world.scene.losses) {
        return world.lose(&key);
    }
    if world.scene.poll.is_some() || world.one_in(0.4) {
        return world.disk.change(&key, &mut world.chance.borrow_mut());
    }
    let what = match world.between(0, 9) {
        0..4 => What::Load(Overrides::default()),
        4..7 => {
            let generation = world.disk.next_generation(true);
            let config = Config::any(&key.name, generation, &mut world.chance.borrow_mut());
            What::Load(Overrides { config: Some(config.text()), ..Overrides::default() })
        }
        7 => What::Unload(Unload { dependents: true, because: None }),
        8 => What::Unload(Unload { dependents: false, because: None }),
        _ => What::Unload(Unload { dependents: false, because: Some(Because::Evicted) }),
    };
    world.ask(&key, what);
}

/// Nothing happens any more, and everything comes to rest.
async fn rest(world: &Rc<World>, manager: &JoinHandle<()>) {
    let until = Instant::now() + REST_MAX;
    let busy = || world.jobs.get() > 0 || !world.inbox.borrow().is_empty();
    // What the manager does not survive, its end tells.
    while busy() && !manager.is_finished() {
        assert!(Instant::now() < until, "it never rests: {:?}", world.operations.borrow());
        sleep(Duration::from_millis(20)).await;
    }
    if !manager.is_finished() {
        manager::check_rest(world);
    }
}

/// The server has stopped: nothing is left.
async fn end(world: &Rc<World>) {
    loop {
        let tasks = std::mem::take(&mut *world.tasks.borrow_mut());
        if tasks.is_empty() {
            break;
        }
        for task in tasks {
            let ended = tokio::time::timeout(REST_MAX, task).await.expect("every task ends");
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
    }
    for (caller, asked) in world.callers.borrow().iter() {
        assert!(asked.answer.is_some(), "caller {caller}, who asked for {:?}, has no answer", asked.what);
    }
    assert!(world.operations.borrow().is_empty());
    world.views.borrow_mut().clear();
    for copy in world.copies.borrow().iter() {
        copy.check_end();
        assert_eq!(Rc::strong_count(copy), 1, "somebody still holds {}", copy.name());
    }
    assert_eq!(world.held.get(), 0, "copies are left");
}

impl World {
    fn new(scene: Scene, disk: Disk, namespacing: bool, chance: Chance) -> Self {
        let backends: [Arc<dyn Backend>; 1] = [Arc::new(Identity)];
        Self {
            repositories: Repositories::new(&disk.roots().into(), namespacing),
            permits: Semaphore::new(scene.load_limit),
            scene,
            disk,
            facts: nereid::engine::facts(&backends, CudaDevices::default(), 1000),
            chance: RefCell::new(chance),
            views: RefCell::default(),
            inbox: RefCell::default(),
            woken: Notify::new(),
            stopping: Cell::new(false),
            jobs: Cell::new(0),
            operations: RefCell::default(),
            callers: RefCell::default(),
            brought: RefCell::default(),
            steady: RefCell::default(),
            going: RefCell::default(),
            losers: RefCell::default(),
            copies: RefCell::default(),
            held: Cell::new(0),
            loads: Cell::new(0),
            requests: Cell::new(0),
            tasks: RefCell::default(),
        }
    }

    fn one_in(&self, share: f64) -> bool {
        self.chance.borrow_mut().one_in(share)
    }

    fn between(&self, low: u64, high: u64) -> u64 {
        self.chance.borrow_mut().between(low, high)
    }

    fn ms(&self, low: u64, high: u64) -> Duration {
        self.chance.borrow_mut().ms(low, high)
    }

    fn some<T>(&self, share: f64, value: impl FnOnce(&Self) -> T) -> Option<T> {
        self.one_in(share).then(|| value(self))
    }

    fn any(&self, keys: &[Key]) -> Key {
        keys[self.between(0, keys.len() as u64 - 1) as usize].clone()
    }

    /// Choices of their own.
    fn fork(&self) -> Chance {
        Chance::new(self.between(0, u64::MAX - 1))
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(tokio::task::spawn_local(task));
    }

    /// Something that the manager waits for.
    fn job(self: &Rc<Self>, job: impl Future<Output = ()> + 'static) {
        self.jobs.set(self.jobs.get() + 1);
        let own = self.clone();
        self.spawn(async move {
            job.await;
            own.jobs.set(own.jobs.get() - 1);
            own.woken.notify_one();
        });
    }

    fn tell(&self, event: manager::Event) {
        self.inbox.borrow_mut().push_back(event);
        self.woken.notify_one();
    }

    fn resolved(self: &Rc<Self>, job: &Job<Serving>, versions: &[Version]) {
        let (key, progress, versions) = (job.key.clone(), job.progress.clone(), versions.to_vec());
        let resolved = Event::Resolved { key, versions, progress };
        // What a thread tells on its way may arrive after its end.
        match self.some(0.2, |world| world.ms(0, 50)) {
            None => self.tell(resolved),
            Some(delay) => {
                let own = self.clone();
                self.spawn(async move {
                    sleep(delay).await;
                    own.tell(resolved);
                });
            }
        }
    }

    fn caller(&self, key: &Key, what: What) -> Caller {
        let mut callers = self.callers.borrow_mut();
        let caller = callers.len() as Caller;
        let own = |overrides: &Overrides| {
            let text = overrides.config.as_deref().and_then(|text| text.strip_prefix("max_batch_size: "));
            text.and_then(|text| text.split(' ').next()).and_then(|number| number.parse().ok())
        };
        let generation = match &what {
            What::Load(overrides) => own(overrides).unwrap_or_else(|| self.disk.generation(key)),
            What::Unload(_) => 0,
        };
        let weights = self.disk.weights(key);
        callers.insert(caller, Asked { key: key.clone(), what, generation, weights, answer: None });
        caller
    }

    fn ask(&self, key: &Key, what: What) -> Caller {
        let caller = self.caller(key, what.clone());
        if let What::Unload(unload) = &what {
            self.shake(key, unload.dependents);
        }
        self.tell(Event::Ask { key: key.clone(), what, callers: vec![caller] });
        caller
    }

    fn stop(&self) {
        self.steady.borrow_mut().clear();
        self.tell(Event::Stop);
        self.stopping.set(true);
    }

    /// A model may go, and what is made of it with it; with `dependents` what it is made of, too.
    fn shake(&self, key: &Key, dependents: bool) {
        let goes = |each: &Key| each.namespace == key.namespace && (dependents || is_made_of(&each.name, &key.name));
        self.steady.borrow_mut().retain(|each| !goes(each));
        let parts = self.disk.keys(&NAMES).into_iter().filter(|each| each == key || dependents && goes(each));
        self.going.borrow_mut().extend(parts);
    }

    /// Whether nothing goes on that may take this model out of service.
    fn nothing_goes(&self, key: &Key) -> bool {
        let own = |asked: &Asked| asked.key.namespace == key.namespace && matches!(asked.what, What::Unload(_));
        let unloads = self.callers.borrow().values().any(|asked| asked.answer.is_none() && own(asked));
        let lost = self.inbox.borrow().iter().any(|event| matches!(event, Event::Lost { .. }));
        let is_part = |other: &Key| other.namespace == key.namespace && is_made_of(&key.name, &other.name);
        // What is made of other models may have to go when an operation on them has ended.
        let part = |other: &Key| is_part(other) && other != key;
        let goes = |view: &ModelView<Serving>| view.versions.values().any(|version| version.state == State::Unloading);
        // What is made of it may take it along when it goes, and an unload of that may wait behind the one under way.
        let takes = |(other, operation): (&Key, &Operation)| {
            *operation == Operation::Unload && other.namespace == key.namespace && is_made_of(&other.name, &key.name)
        };
        let busy = self.going.borrow().iter().any(is_part)
            || self.operations.borrow().keys().any(part)
            || self.operations.borrow().iter().any(takes)
            || self.views.borrow().iter().any(|(other, view)| part(other) && goes(view));
        !unloads && !lost && !busy && !self.stopping.get()
    }

    /// The instances of a version of this model are lost.
    fn lose(&self, key: &Key) {
        let Some(copy) = self.find(key).filter(|copy| copy.identity.members.is_empty()) else { return };
        self.steady.borrow_mut().retain(|each| each.namespace != key.namespace);
        self.losers.borrow_mut().insert(key.clone());
        copy.lose();
        let version = copy.identity.version;
        self.tell(Event::Lost { key: key.clone(), version, error: Error::unavailable("no instance is left") });
    }

    fn was_lost(&self, key: &Key) -> bool {
        let losers = self.losers.borrow();
        losers.iter().any(|loser| loser.namespace == key.namespace && is_made_of(&key.name, &loser.name))
    }

    fn opened(&self, copy: &Rc<Copy>) {
        self.held.set(self.held.get() + 1);
        self.copies.borrow_mut().push(copy.clone());
    }

    fn count_load(&self) -> u64 {
        self.loads.set(self.loads.get() + 1);
        self.loads.get()
    }

    fn count_request(&self) -> u64 {
        self.requests.set(self.requests.get() + 1);
        self.requests.get()
    }

    /// What answers requests for a model, as readers see it.
    fn find(&self, key: &Key) -> Option<Rc<Copy>> {
        latest_of(self.views.borrow().get(key)?)
    }

    /// The same for what is made of it, which also finds what is leaving.
    fn find_member(&self, key: &Key) -> Option<Rc<Copy>> {
        let views = self.views.borrow();
        let view = views.get(key)?;
        let any =
            || view.versions.values().rev().find_map(|version| version.serving.as_ref()).map(|it| it.copy.clone());
        latest_of(view).or_else(any)
    }

    /// The number of the copy that something made of this model would be fitted to.
    fn fitting(&self, key: &Key) -> Option<u64> {
        newest_of(self.views.borrow().get(key)?)
    }

    fn generation_served(&self, key: &Key) -> Option<u64> {
        let views = self.views.borrow();
        let served = views.get(key)?.versions.values().find(|version| version.is_served())?;
        served.serving.as_ref().map(|serving| serving.config.max_batch_rows as u64)
    }

    /// Whether a model is out of service because of another one.
    fn lacks_members(&self, key: &Key) -> bool {
        self.views.borrow().get(key).is_some_and(|view| view.reason.contains("contains models that are not available"))
    }

    /// What is served was read from these files, or later ones.
    fn check_weights(&self, key: &Key, weights: &BTreeMap<Version, u64>) {
        let views = self.views.borrow();
        let served = views.get(key).into_iter().flat_map(|view| view.versions.values());
        for copy in served.filter_map(|version| version.serving.as_ref()).map(|serving| &serving.copy) {
            let older = weights.get(&copy.identity.version).is_some_and(|bytes| copy.identity.bytes < *bytes);
            assert!(!older, "{} was not loaded again", copy.name());
        }
    }

    /// Whether readers see this copy.
    fn shows(&self, copy: &Rc<Copy>) -> bool {
        let views = self.views.borrow();
        let mut shown = views.values().flat_map(|view| view.versions.values()).filter_map(|it| it.serving.as_ref());
        shown.any(|serving| Rc::ptr_eq(&serving.copy, copy))
    }

    /// A request for a model was refused because nothing serves it.
    fn refused(&self, key: &Key) {
        assert!(!self.steady.borrow().contains(key), "a request for {key} is refused, and nobody has taken it away");
    }
}

/// The number of the newest copy of all versions that are served; a version that is lost leaves only older ones.
fn newest_of(view: &ModelView<Serving>) -> Option<u64> {
    let served = view.versions.values().filter(|version| version.is_served());
    served.filter_map(|version| version.serving.as_ref()).map(|serving| serving.copy.identity.number).max()
}

/// The highest version that is served.
fn latest_of(view: &ModelView<Serving>) -> Option<Rc<Copy>> {
    let mut served = view.versions.values().rev().filter(|version| version.is_served());
    served.find_map(|version| version.serving.as_ref()).map(|serving| serving.copy.clone())
}

/// Whether a model may be made of the other one, or is it.
fn is_made_of(name: &str, other: &str) -> bool {
    name == other || name == "f" || name == "e" && other != "f"
}
