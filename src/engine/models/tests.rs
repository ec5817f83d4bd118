//! What becomes of models, step by step: which operations run, wait and are answered, in whatever order things happen.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Effect, Event, Job, Loaded, Models, Retired};
use crate::engine::Key;
use crate::engine::lifecycle::{ModelView, State};
use crate::engine::order::{Unload, What, outdated_load};
use crate::engine::overrides::Overrides;
use crate::error::Error;
use crate::model::Version;

/// A caller is a number; what serves a version is the number of the load that opened it.
type Caller = u32;
type Serving = u32;

/// A manager without threads: what is to be done is kept until a test says that it is done.
#[derive(Default)]
struct Bench {
    models: Models<Serving, Caller>,
    views: BTreeMap<Key, ModelView<Serving>>,
    answers: BTreeMap<Caller, Result<(), String>>,
    jobs: Vec<Job<Serving>>,
    retiring: Vec<(Vec<Serving>, Retired)>,
    /// Those whose earlier answers are not to be given any more.
    outdated: Vec<Serving>,
    callers: Caller,
    loads: Serving,
}

impl Bench {
    fn on(&mut self, event: Event<Serving, Caller>) {
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
                Effect::Retire(servings, retired) => {
                    let shown = self.views.values().flat_map(|view| view.versions.values());
                    let shown: Vec<_> = shown.filter_map(|version| version.serving).collect();
                    assert!(servings.iter().all(|serving| !shown.contains(serving)), "readers see what is dropped");
                    self.retiring.push((servings, retired));
                }
            }
        }
    }

    fn ask(&mut self, name: &str, what: What) -> Caller {
        self.callers += 1;
        self.on(Event::Ask { key: Key::of(name), what, callers: vec![self.callers] });
        self.callers
    }

    fn load(&mut self, name: &str) -> Caller {
        self.ask(name, What::Load(Overrides::default()))
    }

    fn unload(&mut self, name: &str) -> Caller {
        self.ask(name, What::Unload(Unload::default()))
    }

    fn unload_with_members(&mut self, name: &str) -> Caller {
        self.ask(name, What::Unload(Unload { dependents: true, because: None }))
    }

    /// The job of that model that goes on.
    fn job(&mut self, name: &str) -> Job<Serving> {
        let at = self.jobs.iter().position(|job| &*job.key.name == name).expect("it has a job");
        self.jobs.remove(at)
    }

    /// Ends the load of a model with one version.
    fn loaded(&mut self, name: &str, members: &[&str]) {
        self.loads += 1;
        let members = members.iter().map(|member| Key::of(member)).collect();
        let versions = [(1, self.loads)].into();
        self.loaded_as(name, Loaded::New { origin: None, versions, kept: BTreeSet::new(), members });
    }

    /// Ends the load of a model without members: these versions are opened by it, those kept.
    fn loaded_versions(&mut self, name: &str, opened: &[Version], kept: &[Version]) {
        self.loads += 1;
        let view = &self.views[&Key::of(name)];
        let serving = |version: &Version| view.versions.get(version).and_then(|view| view.serving);
        let stay = kept.iter().map(|version| (*version, serving(version).unwrap_or_default()));
        let number = |version: &Version| self.loads * 10 + *version as Serving;
        let versions = opened.iter().map(|version| (*version, number(version))).chain(stay).collect();
        let kept = kept.iter().copied().collect();
        self.loaded_as(name, Loaded::New { origin: None, versions, kept, members: Vec::new() });
    }

    fn loaded_as(&mut self, name: &str, new: Loaded<Serving>) {
        let Job { key, progress, .. } = self.job(name);
        let resolved = || Event::Resolved { key: key.clone(), versions: vec![1, 2], progress: progress.clone() };
        self.on(resolved());
        self.on(Event::Loaded { key: key.clone(), result: Ok(new) });
        // What a thread has told may arrive after its end.
        self.on(resolved());
    }

    fn needs(&mut self, name: &str, members: &[&str]) {
        let key = self.job(name).key;
        let members = members.iter().map(|member| Key::of(member)).collect();
        self.on(Event::Loaded { key, result: Ok(Loaded::Needs(members)) });
    }

    fn failed(&mut self, name: &str) {
        let key = self.job(name).key;
        self.on(Event::Loaded { key, result: Err(Error::invalid("broken")) });
    }

    /// Everything that is being dropped is gone.
    fn retired(&mut self) {
        for (_, retired) in std::mem::take(&mut self.retiring) {
            self.on(Event::Retired(retired));
        }
    }

    fn serving(&self, name: &str) -> Option<Serving> {
        let version = self.views.get(&Key::of(name))?.versions.get(&1)?;
        version.serving.filter(|_| version.is_served())
    }

    fn state(&self, name: &str) -> Option<(State, &str)> {
        self.state_of(name, 1)
    }

    fn state_of(&self, name: &str, version: Version) -> Option<(State, &str)> {
        let version = self.views.get(&Key::of(name))?.versions.get(&version)?;
        Some((version.state, &version.reason))
    }

    /// Loads an ensemble `e` of `a`, both to the end.
    fn ensemble(&mut self) {
        self.load("e");
        self.needs("e", &["a"]);
        self.loaded("a", &[]);
        self.loaded("e", &["a"]);
    }

    fn answer(&self, caller: Caller) -> Option<Result<(), &str>> {
        match self.answers.get(&caller)? {
            Ok(()) => Some(Ok(())),
            Err(message) => Some(Err(message)),
        }
    }
}

fn with_config(config: Option<String>) -> What {
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
fn a_model_made_of_others_waits_until_they_were_loaded() {
    let mut bench = Bench::default();
    let caller = bench.load("e");
    bench.needs("e", &["a", "b"]);
    assert_eq!(bench.jobs.len(), 2, "both members are loaded at the same time");
    bench.loaded("a", &[]);
    assert_eq!(bench.jobs.len(), 1);
    bench.failed("b");
    assert!(bench.jobs[0].members_tried, "what is missing now is missing");
    bench.failed("e");
    assert_eq!(bench.answer(caller), Some(Err("broken")));
    // It is tried again when it can be, and when a new copy of a member may have another signature.
    for _ in 0..2 {
        bench.load("b");
        bench.loaded("b", &[]);
        assert!(bench.jobs[0].again);
        bench.loaded("e", &["a", "b"]);
        assert!(bench.serving("e").is_some());
    }
}

#[test]
fn a_reload_that_nobody_asked_for_overtakes_nothing_that_somebody_did() {
    for asked in [with_config(Some("{}".to_owned())), What::Unload(Unload::default())] {
        let mut bench = Bench::default();
        bench.ensemble();
        let (running, member) = (bench.load("e"), bench.load("a"));
        bench.jobs[0].progress.begin();
        let waiting = bench.ask("e", asked);
        bench.loaded("a", &[]);
        assert_eq!((bench.answer(member), bench.answer(waiting)), (Some(Ok(())), None));
        if bench.jobs[0].progress.overtaken.is_cancelled() {
            bench.failed("e");
        } else {
            bench.loaded("e", &["a"]);
            assert_eq!(bench.answer(running), Some(Ok(())));
            assert_eq!(bench.jobs[0].overrides.config.as_deref(), Some("{}"));
            assert!(bench.jobs[0].again, "it is for the new member, too");
            bench.loaded("e", &["a"]);
        }
        bench.retired();
        assert_eq!(bench.answer(waiting), Some(Ok(())));
        assert!(bench.jobs.is_empty(), "{:?}", bench.jobs);
    }
}

#[test]
fn a_member_that_is_replaced_during_a_load_makes_one_more() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.load("a");
    bench.ask("e", with_config(Some("{}".to_owned())));
    bench.loaded("a", &[]);
    assert!(!bench.jobs[0].progress.overtaken.is_cancelled());
    bench.loaded("e", &["a"]);
    assert!(bench.jobs[0].again);
    assert_eq!(bench.jobs[0].overrides.config.as_deref(), Some("{}"));
    bench.loaded("e", &["a"]);
    assert!(bench.jobs.is_empty());
}

#[test]
fn the_answers_of_what_is_made_of_a_new_copy_are_outdated() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.load("f");
    bench.loaded("f", &["e"]);
    let (e, f) = (bench.serving("e"), bench.serving("f"));
    bench.outdated.clear();
    bench.load("a");
    bench.loaded("a", &[]);
    assert_eq!(bench.outdated.iter().copied().map(Some).collect::<Vec<_>>(), [e, f]);
}

#[test]
fn a_member_that_is_unloaded_while_something_is_fitted_to_it_takes_that_with_it() {
    for retired_first in [true, false] {
        let mut bench = Bench::default();
        bench.load("a");
        bench.loaded("a", &[]);
        bench.load("e");
        bench.unload("a");
        if retired_first {
            bench.retired();
        }
        bench.loaded("e", &["a"]);
        assert_eq!(bench.serving("e"), None);
        bench.retired();
        let reason = "ensemble 'e' contains models that are not available or ambiguous: a";
        assert_eq!(bench.state("e"), Some((State::Unavailable, reason)));
    }
}

#[test]
fn a_member_goes_after_what_is_made_of_it_even_if_that_is_loaded_meanwhile() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.load("e");
    bench.jobs[0].progress.begin();
    bench.unload("a");
    let newest = bench.load("e");
    bench.failed("e");
    bench.failed("e");
    assert_eq!(bench.answer(newest), Some(Err("broken")));
    let dropped: Vec<_> = bench.retiring.iter().map(|(_, it)| it.key.to_string()).collect();
    assert_eq!((dropped, bench.serving("e")), (vec!["e".to_owned()], None));
}

#[test]
fn a_member_stays_until_the_last_copy_that_is_made_of_it_has_finished() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.load("e");
    bench.needs("e", &["b"]);
    bench.loaded("b", &[]);
    bench.loaded("e", &["b"]);
    let unload = bench.unload("a");
    assert_eq!(bench.answer(unload), Some(Ok(())));
    let dropped = |bench: &Bench| bench.retiring.iter().map(|(_, it)| it.key.to_string()).collect::<Vec<_>>();
    assert_eq!(dropped(&bench), ["e"], "the copy that was made of it has requests");
    bench.retired();
    assert_eq!(dropped(&bench), ["a"]);
    bench.retired();
    assert!(bench.serving("e").is_some() && bench.serving("a").is_none());
}

#[test]
fn a_member_that_is_replaced_during_the_first_load_makes_one_more() {
    let mut bench = Bench::default();
    bench.load("a");
    bench.loaded("a", &[]);
    bench.load("e");
    bench.load("a");
    bench.loaded("a", &[]);
    bench.loaded("e", &["a"]);
    assert!(bench.job("e").again, "it was fitted to the first copy");
}

#[test]
fn a_load_that_fails_does_not_forget_what_is_served_is_made_of() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.ask("e", with_config(Some("{}".to_owned())));
    bench.needs("e", &["b"]);
    bench.failed("b");
    bench.failed("e");
    bench.unload("a");
    assert_eq!(bench.serving("e"), None, "it is made of what is unloaded");
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
fn models_that_are_made_of_each_other_do_not_wait_for_ever() {
    let mut bench = Bench::default();
    let (one, other) = (bench.load("one"), bench.load("other"));
    bench.needs("one", &["other"]);
    bench.needs("other", &["one"]);
    assert!(bench.jobs[0].members_tried && &*bench.jobs[0].key.name == "other");
    bench.failed("other");
    bench.failed("one");
    assert_eq!((bench.answer(one), bench.answer(other)), (Some(Err("broken")), Some(Err("broken"))));
}

#[test]
fn a_member_that_is_unloaded_takes_what_is_made_of_it_out_of_service_first() {
    let mut bench = Bench::default();
    bench.ensemble();
    let unload = bench.unload("a");
    assert_eq!(bench.answer(unload), Some(Ok(())));
    let dropped: Vec<_> = bench.retiring.iter().map(|(_, retired)| &*retired.key.name).collect();
    assert_eq!(dropped, ["e"], "requests in flight still need the member");
    assert_eq!((bench.serving("a"), bench.serving("e")), (None, None));
    let view = &bench.views[&Key::of("a")].versions[&1];
    assert!(view.serving.is_some(), "what is made of it still finds it");
    bench.retired();
    bench.retired();
    assert_eq!(bench.state("a"), Some((State::Unavailable, "unloaded")));
    let reason = "ensemble 'e' contains models that are not available or ambiguous: a";
    assert_eq!(bench.state("e"), Some((State::Unavailable, reason)));
    bench.load("a");
    bench.loaded("a", &[]);
    bench.loaded("e", &["a"]);
    assert!(bench.serving("e").is_some(), "it is back with its member");
}

#[test]
fn members_that_nobody_else_needs_go_with_what_is_made_of_them() {
    let mut bench = Bench::default();
    bench.load("e");
    bench.needs("e", &["own", "shared", "asked"]);
    for member in ["own", "shared", "asked"] {
        bench.loaded(member, &[]);
    }
    bench.loaded("e", &["own", "shared", "asked"]);
    bench.load("f");
    bench.loaded("f", &["shared"]);
    bench.load("asked");
    bench.loaded("asked", &[]);
    bench.loaded("e", &["own", "shared", "asked"]);
    bench.unload_with_members("e");
    for _ in 0..3 {
        bench.retired();
    }
    assert_eq!(bench.state("own"), Some((State::Unavailable, "unloaded")));
    assert!(bench.serving("shared").is_some() && bench.serving("asked").is_some() && bench.serving("f").is_some());
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
