//! What becomes of models, step by step: which operations run, wait and are answered, in whatever order things happen.
//! Those that are made of others have `members_tests`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::{Effect, Event, Job, Loaded, Models, Origin, Retired};
use crate::engine::Key;
use crate::engine::lifecycle::{ModelView, State};
use crate::engine::order::{Because, Unload, What, outdated_load};
use crate::engine::overrides::Overrides;
use crate::error::Error;
use crate::model::{ModelConfig, Version};
use crate::repository::Stamp;

/// A caller is a number; what serves a version is the number of the load that opened it.
type Caller = u32;
type Serving = u32;

/// A manager without threads: what is to be done is kept until a test says that it is done.
#[derive(Default)]
pub(super) struct Bench {
    pub(super) models: Models<Serving, Caller>,
    pub(super) views: BTreeMap<Key, ModelView<Serving>>,
    pub(super) answers: BTreeMap<Caller, Result<(), String>>,
    pub(super) jobs: Vec<Job<Serving>>,
    pub(super) retiring: Vec<(Vec<Serving>, Retired)>,
    /// Those whose earlier answers are not to be given any more.
    pub(super) outdated: Vec<Serving>,
    /// Those whose memory others are not to count on.
    pub(super) staying: Vec<Serving>,
    callers: Caller,
    loads: Serving,
}

impl Bench {
    pub(super) fn on(&mut self, event: Event<Serving, Caller>) {
        self.models.on(event);
        for effect in self.models.effects() {
            match effect {
                Effect::Publish(key, Some(view)) => _ = self.views.insert(key, view),
                Effect::Publish(key, None) => _ = self.views.remove(&key),
                Effect::Answer(caller, result) => {
                    let again = self.answers.insert(caller, result.map_err(|error| error.to_string()));
                    assert!(again.is_none(), "caller {caller} is answered twice");
                }
                Effect::Outdate(servings) => self.outdated.extend(servings),
                Effect::Load(job) => self.jobs.push(job),
                Effect::Stay(servings) => self.staying.extend(servings),
                Effect::Retire(servings, retired) => {
                    let shown = self.views.values().flat_map(|view| view.versions.values());
                    let shown: Vec<_> = shown.filter_map(|version| version.serving).collect();
                    assert!(servings.iter().all(|serving| !shown.contains(serving)), "readers see what is dropped");
                    self.retiring.push((servings, retired));
                }
            }
        }
    }

    pub(super) fn ask(&mut self, name: &str, what: What) -> Caller {
        self.callers += 1;
        self.on(Event::Ask { key: Key::of(name), what, callers: vec![self.callers] });
        self.callers
    }

    pub(super) fn load(&mut self, name: &str) -> Caller {
        self.ask(name, What::Load(Overrides::default()))
    }

    pub(super) fn unload(&mut self, name: &str) -> Caller {
        self.ask(name, What::Unload(Unload::default()))
    }

    /// Others need its memory.
    pub(super) fn evict(&mut self, name: &str) -> Caller {
        self.ask(name, What::Unload(Unload { dependents: false, because: Some(Because::Evicted) }))
    }

    pub(super) fn unload_with_members(&mut self, name: &str) -> Caller {
        self.ask(name, What::Unload(Unload { dependents: true, because: None }))
    }

    /// The job of that model that goes on.
    pub(super) fn job(&mut self, name: &str) -> Job<Serving> {
        let at = self.jobs.iter().position(|job| &*job.key.name == name).expect("it has a job");
        self.jobs.remove(at)
    }

    /// Ends the load of a model with one version.
    pub(super) fn loaded(&mut self, name: &str, members: &[&str]) {
        self.loads += 1;
        let members = members.iter().map(|member| Key::of(member)).collect();
        let versions = [(1, self.loads)].into();
        self.loaded_as(name, Loaded::New { origin: None, versions, kept: BTreeSet::new(), members });
    }

    /// Ends the load of a model that nobody needs yet.
    fn asleep(&mut self, name: &str) {
        self.loaded_as(name, Loaded::Asleep);
    }

    /// Ends the load of a model without members: these versions are opened by it, those kept.
    pub(super) fn loaded_versions(&mut self, name: &str, opened: &[Version], kept: &[Version]) {
        self.loads += 1;
        let view = &self.views[&Key::of(name)];
        let serving = |version: &Version| view.versions.get(version).and_then(|view| view.serving);
        let stay = kept.iter().map(|version| (*version, serving(version).unwrap_or_default()));
        let number = |version: &Version| self.loads * 10 + *version as Serving;
        let versions = opened.iter().map(|version| (*version, number(version))).chain(stay).collect();
        let kept = kept.iter().copied().collect();
        self.loaded_as(name, Loaded::New { origin: None, versions, kept, members: Vec::new() });
    }

    pub(super) fn loaded_as(&mut self, name: &str, new: Loaded<Serving>) {
        let Job { key, progress, .. } = self.job(name);
        let resolved = || Event::Resolved { key: key.clone(), versions: vec![1, 2], progress: progress.clone() };
        self.on(resolved());
        self.on(Event::Loaded { key: key.clone(), result: Ok(new) });
        // What a thread has told may arrive after its end.
        self.on(resolved());
    }

    pub(super) fn needs(&mut self, name: &str, members: &[&str]) {
        let key = self.job(name).key;
        let members = members.iter().map(|member| Key::of(member)).collect();
        self.on(Event::Loaded { key, result: Ok(Loaded::Needs(members)) });
    }

    pub(super) fn failed(&mut self, name: &str) {
        let key = self.job(name).key;
        self.on(Event::Loaded { key, result: Err(Error::invalid("broken")) });
    }

    /// Everything that is being dropped is gone.
    pub(super) fn retired(&mut self) {
        for (_, retired) in std::mem::take(&mut self.retiring) {
            self.on(Event::Retired(retired));
        }
    }

    pub(super) fn serving(&self, name: &str) -> Option<Serving> {
        let version = self.views.get(&Key::of(name))?.versions.get(&1)?;
        version.serving.filter(|_| version.is_served())
    }

    pub(super) fn state(&self, name: &str) -> Option<(State, &str)> {
        self.state_of(name, 1)
    }

    pub(super) fn state_of(&self, name: &str, version: Version) -> Option<(State, &str)> {
        let version = self.views.get(&Key::of(name))?.versions.get(&version)?;
        Some((version.state, &version.reason))
    }

    /// Loads an ensemble `e` of `a`, both to the end.
    pub(super) fn ensemble(&mut self) {
        self.load("e");
        self.needs("e", &["a"]);
        self.loaded("a", &[]);
        self.loaded("e", &["a"]);
    }

    pub(super) fn answer(&self, caller: Caller) -> Option<Result<(), &str>> {
        match self.answers.get(&caller)? {
            Ok(()) => Some(Ok(())),
            Err(message) => Some(Err(message)),
        }
    }
}

pub(super) fn with_config(config: Option<String>) -> What {
    What::Load(Overrides { config, ..Overrides::default() })
}

const OUTDATED: &str = "Newer operation has been applied to the model lifecycle, current load operation is out-dated.";

#[test]
fn equal_loads_share_one_answer_and_one_job() {
    let mut bench = Bench::default();
    let callers = [(); 3].map(|()| bench.load("m"));
    assert_eq!(bench.jobs.len(), 1);
    bench.loaded("m", &[]);
    assert!(bench.jobs.is_empty());
    assert!(callers.iter().all(|caller| bench.answer(*caller) == Some(Ok(()))));
}

#[test]
fn what_leaves_for_the_memory_of_others_may_come_back_as_it_was_and_what_is_unloaded_may_not() {
    for evicted in [true, false] {
        let mut bench = Bench::default();
        bench.load("m");
        let config = Arc::new(ModelConfig::new("m", "identity"));
        let origin = Origin { stamp: Stamp::default(), config, config_overridden: false, files_overridden: false };
        let (versions, kept, members) = ([(1, 1)].into(), BTreeSet::new(), Vec::new());
        bench.loaded_as("m", Loaded::New { origin: Some(origin), versions, kept, members });
        if evicted {
            bench.evict("m")
        } else {
            bench.unload("m")
        };
        let (servings, retired) = &bench.retiring[0];
        assert_eq!((servings.as_slice(), retired.operation, retired.evicted.is_some()), (&[1][..], true, evicted));
        bench.retired();
        // There is nothing more to be had of it, and whoever unloads it now wants nothing to be kept.
        bench.unload("m");
        assert!(bench.retiring.iter().all(|(servings, retired)| servings.is_empty() && retired.evicted.is_none()));
    }
}

#[test]
fn an_eviction_stops_nothing_that_somebody_has_asked_for_meanwhile() {
    let mut bench = Bench::default();
    bench.load("m");
    bench.loaded("m", &[]);
    let reload = bench.load("m");
    bench.jobs[0].progress.begin();
    let newest = bench.load("m");
    bench.evict("m");
    assert!(!bench.jobs[0].progress.overtaken.is_cancelled());
    assert_eq!(bench.staying, [1], "nobody may count on its memory");
    for caller in [reload, newest] {
        bench.loaded("m", &[]);
        assert_eq!(bench.answer(caller), Some(Ok(())));
    }
    assert_eq!(bench.serving("m"), Some(3));
}

#[test]
fn a_load_that_has_begun_is_followed_by_one_more() {
    let mut bench = Bench::default();
    let first = bench.load("m");
    bench.jobs[0].progress.begin();
    let (second, third) = (bench.load("m"), bench.load("m"));
    bench.loaded("m", &[]);
    assert_eq!((bench.answer(first), bench.answer(second)), (Some(Ok(())), None));
    assert_eq!(bench.serving("m"), Some(1));
    bench.loaded("m", &[]);
    assert_eq!((bench.answer(second), bench.answer(third)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(bench.serving("m"), Some(2));
    assert_eq!(bench.retiring[0].0, [1], "the first copy is dropped");
    assert!(!bench.retiring[0].1.operation);
}

#[test]
fn an_unload_overtakes_a_load_and_a_load_an_unload() {
    let mut bench = Bench::default();
    let load = bench.load("m");
    let unload = bench.unload("m");
    let newest = bench.load("m");
    assert!(bench.jobs[0].progress.overtaken.is_cancelled());
    let unload_outdated = OUTDATED.replace("load operation is", "unload operation is");
    assert_eq!(bench.answer(unload), Some(Err(unload_outdated.as_str())));
    // The job saw that it was cancelled.
    let key = bench.job("m").key;
    bench.on(Event::Loaded { key, result: Err(outdated_load()) });
    assert_eq!(bench.answer(load), Some(Err(OUTDATED)));
    bench.loaded("m", &[]);
    assert_eq!(bench.answer(newest), Some(Ok(())));
    assert_eq!(bench.serving("m"), Some(1));
}

#[test]
fn an_unload_answers_when_no_new_request_is_taken_and_ends_later() {
    let mut bench = Bench::default();
    bench.load("m");
    bench.loaded("m", &[]);
    let unload = bench.unload("m");
    assert_eq!(bench.answer(unload), Some(Ok(())));
    assert_eq!(bench.state("m"), Some((State::Unloading, "unloaded")));
    let load = bench.load("m");
    assert!(bench.jobs.is_empty(), "the next operation waits for the end of this one");
    bench.retired();
    assert_eq!(bench.jobs.len(), 1);
    bench.loaded("m", &[]);
    assert_eq!((bench.answer(load), bench.serving("m")), (Some(Ok(())), Some(2)));
}

#[test]
fn a_reload_that_fails_changes_nothing_and_a_first_load_that_fails_says_why() {
    let mut bench = Bench::default();
    bench.load("m");
    bench.loaded("m", &[]);
    let caller = bench.load("m");
    bench.failed("m");
    assert_eq!(bench.answer(caller), Some(Err("broken")));
    assert_eq!(bench.serving("m"), Some(1));
    assert_eq!(bench.state("m"), Some((State::Ready, "")));
    bench.unload("m");
    bench.retired();
    bench.load("m");
    bench.failed("m");
    assert_eq!(bench.state("m"), Some((State::Unavailable, "broken")));
}

#[test]
fn more_callers_than_may_wait_are_refused() {
    let mut bench = Bench::default();
    let callers: Vec<Caller> = (0..100).map(|_| bench.load("m")).collect();
    let refused = callers.iter().filter(|caller| bench.answer(**caller).is_some()).count();
    assert_eq!(refused, 100 - 64);
    bench.loaded("m", &[]);
    assert_eq!(bench.answers.len(), 100);
}

#[test]
fn a_version_that_the_policy_drops_is_unloading_until_its_requests_are_finished() {
    let mut bench = Bench::default();
    bench.load("m");
    bench.loaded_versions("m", &[1, 2], &[]);
    bench.load("m");
    bench.loaded_versions("m", &[3], &[2]);
    assert_eq!(bench.state_of("m", 1), Some((State::Unloading, "unloaded")));
    assert_eq!(bench.retiring[0].1.unloaded, [1]);
    assert!([2, 3].iter().all(|version| bench.state_of("m", *version) == Some((State::Ready, ""))));
    bench.retired();
    assert_eq!(bench.state_of("m", 1), Some((State::Unavailable, "unloaded")));
}

#[test]
fn a_load_that_keeps_a_version_which_is_lost_meanwhile_begins_once_more() {
    let mut bench = Bench::default();
    bench.load("m");
    bench.loaded_versions("m", &[1, 2], &[]);
    let caller = bench.load("m");
    let lost = bench.serving("m").expect("it is served");
    bench.on(Event::Lost { key: Key::of("m"), version: 1, error: Error::internal("hangs") });
    let kept = [(1, lost), (2, lost + 1), (3, 7)].into();
    bench.loaded_as("m", Loaded::New { origin: None, versions: kept, kept: [1, 2].into(), members: Vec::new() });
    assert_eq!(bench.retiring[1].0, [7], "what was opened for nothing is dropped");
    assert_eq!((bench.answer(caller), bench.serving("m")), (None, None));
    assert!(bench.jobs[0].served.is_none(), "everything is opened anew");
    bench.loaded_versions("m", &[1, 2, 3], &[]);
    assert_eq!((bench.answer(caller), bench.state("m")), (Some(Ok(())), Some((State::Ready, ""))));
}

#[test]
fn a_version_that_is_lost_is_dropped_and_comes_back_with_the_next_load() {
    let mut bench = Bench::default();
    bench.load("m");
    bench.loaded("m", &[]);
    let (key, version, serving) = bench.models.served().next().expect("it is served");
    assert_eq!(*serving, 1);
    let key = key.clone();
    bench.on(Event::Lost { key, version, error: Error::internal("hangs") });
    assert_eq!(bench.state("m"), Some((State::Unavailable, "hangs")));
    assert_eq!(bench.retiring[0].0, [1]);
    bench.retired();
    assert_eq!(bench.state("m"), Some((State::Unavailable, "hangs")), "not because anybody wanted it");
    bench.load("m");
    bench.loaded("m", &[]);
    assert_eq!(bench.serving("m"), Some(2));
}

#[test]
fn a_name_that_is_nowhere_is_forgotten_unless_the_start_asked_for_it() {
    let mut bench = Bench::default();
    bench.on(Event::Start(vec![(Key::of("start"), vec![])]));
    bench.load("later");
    for name in ["start", "later"] {
        let key = bench.job(name).key;
        bench.on(Event::Loaded { key, result: Err(Error::not_found("nowhere")) });
    }
    let known: Vec<_> = bench.views.keys().map(ToString::to_string).collect();
    assert_eq!(known, ["start"]);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Load(usize, Option<u8>),
    Unload(usize, bool),
    Begin(usize),
    Loaded(usize),
    Failed(usize),
    Needs(usize),
    Lost(usize),
    Retired,
}

const NAMES: [&str; 4] = ["a", "b", "e", "f"];

/// What each of the models is made of; `f` is even made of another ensemble.
const MEMBERS: [&[&str]; 4] = [&[], &[], &["a", "b"], &["e", "a"]];

fn step() -> impl Strategy<Value = Step> {
    let model = 0..NAMES.len();
    prop_oneof![
        3 => (model.clone(), proptest::option::of(0u8..2)).prop_map(|(model, config)| Step::Load(model, config)),
        2 => (model.clone(), any::<bool>()).prop_map(|(model, members)| Step::Unload(model, members)),
        2 => model.clone().prop_map(Step::Begin),
        4 => model.clone().prop_map(Step::Loaded),
        1 => model.clone().prop_map(Step::Failed),
        2 => model.clone().prop_map(Step::Needs),
        1 => model.prop_map(Step::Lost),
        3 => Just(Step::Retired),
    ]
}

impl Bench {
    fn step(&mut self, step: &Step) {
        let has_job = |bench: &Self, model: usize| bench.jobs.iter().any(|job| &*job.key.name == NAMES[model]);
        match *step {
            Step::Load(model, config) => {
                self.ask(NAMES[model], with_config(config.map(|config| config.to_string())));
            }
            Step::Unload(model, members) => {
                let what = What::Unload(Unload { dependents: members, because: None });
                self.ask(NAMES[model], what);
            }
            Step::Begin(model) => {
                let jobs = self.jobs.iter().filter(|job| &*job.key.name == NAMES[model]);
                jobs.for_each(|job| job.progress.begin());
            }
            Step::Loaded(model) if has_job(self, model) => self.loaded(NAMES[model], MEMBERS[model]),
            Step::Failed(model) if has_job(self, model) => self.failed(NAMES[model]),
            Step::Needs(model) if has_job(self, model) && !MEMBERS[model].is_empty() => {
                let tried = self.jobs.iter().any(|job| &*job.key.name == NAMES[model] && job.members_tried);
                if !tried {
                    self.needs(NAMES[model], MEMBERS[model]);
                }
            }
            Step::Loaded(_) | Step::Failed(_) | Step::Needs(_) => {}
            Step::Lost(model) => {
                self.on(Event::Lost { key: Key::of(NAMES[model]), version: 1, error: Error::internal("hangs") });
            }
            Step::Retired => self.retired(),
        }
        for name in NAMES {
            let jobs = self.jobs.iter().filter(|job| &*job.key.name == name).count();
            assert!(jobs <= 1, "{name} has {jobs} jobs");
        }
    }

    /// Ends all that goes on, until nothing does.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.retired();
            match self.jobs.first().map(|job| job.key.name.clone()) {
                Some(name) if self.jobs[0].progress.overtaken.is_cancelled() => self.failed(&name),
                Some(name) => {
                    let at = NAMES.iter().position(|each| *each == &*name).expect("it is one of them");
                    self.loaded(&name, MEMBERS[at]);
                }
                None if self.retiring.is_empty() => return,
                None => {}
            }
        }
        panic!("it never ends: {:?}", self.jobs);
    }
}

#[test]
fn a_model_on_demand_is_known_and_opened_by_a_later_load() {
    let mut bench = Bench::default();
    let start = bench.load("m");
    let progress = bench.jobs[0].progress.clone();
    bench.on(Event::Resolved { key: Key::of("m"), versions: vec![1, 2], progress });
    bench.asleep("m");
    assert_eq!(bench.answers[&start], Ok(()));
    let view = &bench.views[&Key::of("m")];
    let states: Vec<_> = view.versions.values().map(|version| (version.state, &*version.reason)).collect();
    assert_eq!(states, [(State::Unavailable, "on demand: not loaded"); 2]);
    assert!(view.wanted && view.progress.is_none());
    bench.load("m");
    bench.loaded("m", &[]);
    assert_eq!(bench.views[&Key::of("m")].versions[&1].state, State::Ready);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens in whatever order: each caller has one answer, what serves is dropped once and never shown after,
    /// and after a stop nothing is left.
    #[test]
    fn every_history_comes_to_a_good_end(steps in proptest::collection::vec(step(), 1..60)) {
        let mut bench = Bench::default();
        for step in &steps {
            bench.step(step);
        }
        bench.settle();
        prop_assert_eq!(bench.answers.len(), bench.callers as usize);
        let states = bench.views.values().flat_map(|view| view.versions.values().map(|version| version.state));
        prop_assert!(states.into_iter().all(|state| matches!(state, State::Ready | State::Unavailable)));
        bench.on(Event::Stop);
        bench.settle();
        prop_assert!(NAMES.iter().all(|name| bench.serving(name).is_none()));
    }
}
