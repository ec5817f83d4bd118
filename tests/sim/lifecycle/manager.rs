//! The manager task of one world: events in, the server's own state machine, effects out, and what must hold of each.

use std::collections::BTreeMap;
use std::rc::Rc;

use nereid::engine::Key;
use nereid::engine::lifecycle::{ModelView, State};
use nereid::engine::models::{self, Effect, Job, Loaded, Models, Retired};
use nereid::engine::order::{Because, Unload, What};
use nereid::error::Result;
use nereid::model::Version;
use tokio::time::sleep;

use super::copy::Serving;
use super::{World, latest_of, loader, newest_of};

/// Who waits for an answer, by number.
pub type Caller = u64;
pub type Event = models::Event<Serving, Caller>;

/// What somebody asked for.
pub struct Asked {
    pub key: Key,
    pub what: What,
    /// Which configuration is to be served after a load, at least: that of the load, or of the repository by then.
    pub generation: u64,
    /// The files of the versions by then.
    pub weights: BTreeMap<Version, u64>,
    pub answer: Option<bool>,
}

/// What goes on with a model, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Load,
    /// A load that waits for members.
    Waits,
    Unload,
}

/// Works until the server has stopped and nothing goes on any more.
pub async fn run(world: Rc<World>) {
    let mut models = Models::default();
    while !world.stopping.get() || world.jobs.get() > 0 || !world.inbox.borrow().is_empty() {
        let woken = world.woken.notified();
        if world.inbox.borrow().is_empty() {
            woken.await;
        }
        if world.one_in(0.3) {
            sleep(world.ms(0, 3)).await;
        }
        let together = world.between(1, 3);
        let mut alone = true;
        for nth in 0..together {
            let Some(event) = world.inbox.borrow_mut().pop_front() else { break };
            alone = nth == 0;
            note(&world, &event);
            models.on(event);
        }
        act(&world, models.effects(), alone);
        check_views(&world);
    }
    assert!(world.permits.available_permits() == world.scene.load_limit, "a load permit was not given back");
    assert!(models.effects().is_empty());
}

/// Takes note of what an event ends.
fn note(world: &World, event: &Event) {
    let mut operations = world.operations.borrow_mut();
    match event {
        models::Event::Loaded { key, result: Ok(Loaded::Needs(_)) } => {
            _ = operations.insert(key.clone(), Operation::Waits)
        }
        models::Event::Loaded { key, result } => {
            let ended = operations.remove(key);
            assert_eq!(ended, Some(Operation::Load), "{key}: a load has ended that did not run");
            let mut brought = world.brought.borrow_mut();
            match result {
                Ok(Loaded::New { versions, .. }) => {
                    let numbers = versions.values().map(|serving| serving.copy.identity.number);
                    _ = brought.insert(key.clone(), numbers.max());
                }
                Ok(_) => {}
                Err(_) => _ = brought.insert(key.clone(), None),
            }
            if result.is_ok() {
                world.going.borrow_mut().remove(key);
            }
        }
        models::Event::Retired(Retired { key, operation: true, .. }) => {
            let ended = operations.remove(key);
            assert_eq!(ended, Some(Operation::Unload), "{key}: an unload has ended that did not run");
            world.going.borrow_mut().remove(key);
        }
        _ => {}
    }
}

fn act(world: &Rc<World>, effects: Vec<Effect<Serving, Caller>>, alone: bool) {
    for effect in effects {
        match effect {
            Effect::Publish(key, view) => publish(world, key, view),
            Effect::Outdate(_) => {}
            Effect::Answer(caller, result) => answer(world, caller, &result, alone),
            Effect::Load(job) => begin_load(world, job),
            // The simulation keeps no books.
            Effect::Stay(_) => {}
            Effect::Retire(servings, retired) => begin_retire(world, servings, retired),
        }
    }
}

fn publish(world: &World, key: Key, view: Option<ModelView<Serving>>) {
    let Some(view) = view else {
        world.views.borrow_mut().remove(&key);
        return;
    };
    if view.versions.values().any(|version| version.is_served()) && world.nothing_goes(&key) {
        world.steady.borrow_mut().insert(key.clone());
    }
    world.views.borrow_mut().insert(key, view);
}

/// Each caller is answered once, and what it is told is true at that moment.
fn answer(world: &World, caller: Caller, result: &Result<()>, alone: bool) {
    let mut callers = world.callers.borrow_mut();
    let asked = callers.get_mut(&caller).expect("it has asked");
    assert!(asked.answer.replace(result.is_ok()).is_none(), "caller {caller} is answered twice");
    let (key, served) = (asked.key.clone(), world.generation_served(&asked.key));
    // Somebody else may already have the last word.
    let alone = alone
        && !world.stopping.get()
        && !callers.range(caller + 1..).any(|(_, newer)| newer.key.namespace == key.namespace);
    let asked = &callers[&caller];
    match (&asked.what, result) {
        (_, Err(_)) => {}
        // What it is made of may have gone before, and it with that.
        (What::Load(_), Ok(())) if served.is_none() && world.lacks_members(&key) => {}
        (What::Load(overrides), Ok(())) if alone => {
            let served = served.unwrap_or_else(|| panic!("{} is loaded and not served", asked.key));
            match overrides.is_empty() {
                true => {
                    assert!(served % 2 == 0, "{} is served as somebody else wanted it", asked.key);
                    assert!(served >= asked.generation, "{}: {served} is too old", asked.key);
                    world.check_weights(&asked.key, &asked.weights);
                }
                false => assert_eq!(served, asked.generation, "{} is not served as asked for", asked.key),
            }
        }
        // It gives way to what is being done with the model already.
        (What::Unload(Unload { because: Some(Because::Evicted), .. }), Ok(())) => {}
        (What::Unload(_), Ok(())) if alone => assert_eq!(served, None, "{} is unloaded and served", asked.key),
        _ => {}
    }
}

/// One operation on a model at a time.
fn begin(world: &World, key: &Key, operation: Operation) {
    let before = world.operations.borrow_mut().insert(key.clone(), operation);
    let follows = before.is_none() || before == Some(Operation::Waits);
    assert!(follows, "{key}: {operation:?} begins during {before:?}");
}

fn begin_load(world: &Rc<World>, job: Job<Serving>) {
    begin(world, &job.key, Operation::Load);
    let leaving = world.views.borrow().get(&job.key).is_some_and(|view| {
        view.versions.values().any(|version| version.state == State::Unloading && version.serving.is_some())
    });
    assert!(!leaving, "{} is loaded while it is unloaded", job.key);
    let own = world.clone();
    world.job(async move {
        let result = loader::attempt(&own, &job).await;
        own.tell(models::Event::Loaded { key: job.key.clone(), result });
    });
}

fn begin_retire(world: &Rc<World>, servings: Vec<Serving>, retired: Retired) {
    if retired.operation {
        begin(world, &retired.key, Operation::Unload);
        // What is made of it has finished before.
        for copy in world.copies.borrow().iter().filter(|copy| copy.in_flight.get() > 0) {
            let needs = copy.identity.members.iter().any(|(member, _)| *member == retired.key);
            assert!(!needs, "{} goes and {} has requests", retired.key, copy.name());
        }
    }
    for Serving { copy, .. } in &servings {
        assert!(!world.shows(copy), "{} is dropped and shown", copy.name());
    }
    let own = world.clone();
    world.job(async move {
        for Serving { copy, .. } in servings {
            copy.retire(own.clone()).await;
        }
        own.tell(models::Event::Retired(retired));
    });
}

/// What readers see is what there is.
fn check_views(world: &World) {
    let operations = world.operations.borrow();
    for (key, view) in world.views.borrow().iter() {
        let operation = operations.get(key);
        if view.progress.is_some() {
            let loads = matches!(operation, Some(Operation::Load | Operation::Waits));
            assert!(loads, "{key} tells of a load and {operation:?} goes on");
        } else {
            assert_ne!(operation, Some(&Operation::Load), "{key} is loaded and tells nothing of it");
        }
        for (version, shown) in &view.versions {
            let serving = shown.serving.as_ref();
            match shown.state {
                State::Ready => {
                    let copy = &serving.unwrap_or_else(|| panic!("nothing serves {key} {version}")).copy;
                    assert!(copy.lost.get() || !copy.closed.get(), "{} is ready and closed", copy.name());
                    assert!(!copy.dropped.get(), "{} is ready and gone", copy.name());
                }
                State::Loading => assert!(view.progress.is_some() && serving.is_none(), "nobody loads {key}"),
                State::Unloading => {}
                State::Unavailable => assert!(serving.is_none(), "{key} {version} is unavailable and served"),
            }
        }
    }
}

/// Nothing goes on, and what is made of others fits them.
pub fn check_rest(world: &World) {
    assert!(world.operations.borrow().is_empty(), "{:?}", world.operations.borrow());
    let views = world.views.borrow();
    let latest = |key: &Key| latest_of(views.get(key)?);
    for (key, view) in views.iter() {
        let rests = |state| matches!(state, State::Ready | State::Unavailable);
        let states: BTreeMap<_, _> = view.versions.iter().map(|(version, view)| (*version, view.state)).collect();
        assert!(
            view.progress.is_none() && states.values().all(|state| rests(*state)),
            "{key} does not rest: {states:?}"
        );
        // What a failed load has left goes on, as does what was to be replaced by something without all of its members.
        let is_brought = world.brought.borrow().get(key).copied().flatten() == newest_of(view);
        let Some(copy) = latest(key).filter(|_| is_brought) else { continue };
        let served = |member: &Key| views.get(member).and_then(newest_of);
        for (member, number) in &copy.identity.members {
            let fits = served(member).is_none_or(|newest| newest <= *number);
            assert!(fits, "{} was not loaded again after {member}", copy.name());
        }
    }
}
