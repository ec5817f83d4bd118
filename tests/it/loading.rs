//! What is seen while models load: states and progress, refusals, limits, retries, and what overtakes what.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nereid::engine::{Control, Engine, IndexEntry, Overrides, Settings, State};
use nereid::error::{Error, Kind, Result};
use nereid::infer::{self, Infer as _};
use nereid::model::schema::model_version_policy::PolicyChoice;
use tokio::task::JoinHandle;

use crate::gate::Gate;
use crate::support::{beside, engine_with, identity_config, metric, new_engine, request, until, within, write_model};

const OUTDATED: &str = "Newer operation has been applied to the model lifecycle, current load operation is out-dated.";

/// The start of an engine, which ends with the models that could not be loaded.
type Starting = JoinHandle<Result<Vec<(String, Error)>>>;

fn gate_config(more: &str) -> String {
    identity_config(more).replace("\"identity\"", "\"gate\"")
}

fn explicit_none() -> Control {
    Control::Explicit(Some(Vec::new()))
}

/// An engine that begins to load everything in `root`; what the gate holds waits for it to be opened.
fn start(root: &Path, control: Control) -> (Arc<Gate>, Arc<Engine>, Starting) {
    let gate = Arc::new(Gate::default());
    let engine = Arc::new(new_engine(root, control, |settings| gate.join(settings)));
    let starting = beside(&engine, |engine| async move { engine.start().await });
    (gate, engine, starting)
}

/// An engine with four models to load, two of which wait at the gate and two for their turn.
async fn two_of_four_load() -> (tempfile::TempDir, Arc<Gate>, Arc<Engine>, Starting) {
    let root = tempfile::tempdir().expect("a temporary directory");
    for name in ["a", "b", "c", "d"] {
        write_model(root.path(), name, &gate_config(""), &[1]);
    }
    let (gate, engine, starting) = start(root.path(), Control::None);
    until(|| gate.waiting().len() == 2).await;
    (root, gate, engine, starting)
}

async fn answers(engine: &Engine, model: &str) -> bool {
    infer::only(engine.infer(request(model))).await.is_ok()
}

async fn until_index(engine: &Engine, reached: impl Fn(&[IndexEntry]) -> bool) {
    within(async {
        while !reached(&engine.index(false).await) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn refusal(engine: &Engine, model: &str, version: Option<u64>) -> (Kind, String) {
    let error = engine.find(model, version).err().expect("it is not served");
    (error.kind(), error.message().to_owned())
}

#[tokio::test]
async fn a_model_that_loads_is_seen_in_the_index_and_refused_as_not_ready() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &gate_config(""), &[1]);
    std::fs::write(root.path().join("m/1/weights"), vec![0; 2_500_000]).expect("the directory is writable");
    let (gate, engine, starting) = start(root.path(), Control::None);
    assert_eq!(refusal(&engine, "m", None), (Kind::Unavailable, "Server not ready".to_owned()));
    until(|| gate.waiting() == ["m"]).await;

    // The manager hears of the loader's progress a moment later.
    until_index(&engine, |index| index.first().is_some_and(|entry| entry.version == Some(1))).await;
    let index = engine.index(false).await;
    assert_eq!(index[0].state, Some(State::Loading));
    let reason = &index[0].reason;
    assert!(reason.starts_with("loading: ") && reason.ends_with(" 3 MB"), "{reason}");
    assert!(engine.index(true).await.is_empty());
    assert!(!engine.ready());
    for version in [None, Some(1)] {
        let (kind, message) = refusal(&engine, "m", version);
        assert_eq!(kind, Kind::Unavailable);
        assert!(message.starts_with("Request for unknown model: 'm'"), "{message}");
        assert!(message.contains(" is not at ready state: loading: "), "{message}");
    }
    assert_eq!(refusal(&engine, "m", Some(2)).0, Kind::NotFound);
    assert_eq!(refusal(&engine, "other", None).0, Kind::NotFound);

    gate.open();
    assert!(within(starting).await.expect("no panic").expect("the repository can be read").is_empty());
    assert!(engine.ready() && answers(&engine, "m").await);
    assert_eq!(engine.index(false).await[0].reason, "");
    engine.stop().await;
}

#[tokio::test]
async fn so_many_load_at_the_same_time_and_the_others_wait() {
    let (_root, gate, engine, starting) = two_of_four_load().await;
    let waits = |reason: &str| reason.starts_with("waiting to load: ");
    let index = engine.index(false).await;
    assert!(index.iter().all(|entry| entry.state == Some(State::Loading)));
    assert_eq!(index.iter().filter(|entry| waits(&entry.reason)).count(), 2, "{index:?}");
    assert_eq!(gate.loads(), 2);
    gate.open();
    within(starting).await.expect("no panic").expect("the repository can be read");
    assert!(engine.ready());
    engine.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_fails_is_tried_again_as_often_as_the_setting_says() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &gate_config(""), &[1]);
    let gate = Arc::new(Gate::default());
    gate.open();
    let change = |settings: &mut Settings| {
        gate.join(settings);
        settings.load_retries = 3;
    };
    let (engine, _) = engine_with(root.path(), explicit_none(), change).await;
    gate.fail(3);
    engine.load("m", Overrides::default()).await.expect("the fourth try is good");
    assert_eq!(gate.loads(), 4);
    engine.unload("m", false).await.expect("it is loaded");
    gate.fail(100);
    let error = engine.load("m", Overrides::default()).await.expect_err("four tries are not enough");
    assert_eq!(error.message(), "load failed for model 'm': version 1 is at UNAVAILABLE state: the gate said no;");
    assert_eq!(gate.loads(), 8);
    engine.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_does_not_end_is_given_up_and_takes_no_other_ones_turn() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &gate_config(""), &[1]);
    let gate = Arc::new(Gate::default());
    let change = |settings: &mut Settings| {
        gate.join(settings);
        settings.load_threads = 1;
        settings.load_time_max = Some(Duration::from_secs(60));
        settings.instances.lost_max = 1;
    };
    let (engine, _) = engine_with(root.path(), explicit_none(), change).await;
    let hangs = "the load of model 'm' has not ended after 60 s and is given up";
    for message in [hangs, hangs, "2 earlier loads of model 'm' have not ended yet"] {
        let error = engine.load("m", Overrides::default()).await.expect_err("the gate is closed");
        assert_eq!((error.kind(), error.message()), (Kind::Unavailable, message));
        assert_eq!(engine.index(false).await[0].reason, message);
    }
    // From now on time passes only as a load takes it.
    tokio::time::resume();
    until(|| gate.loads() == 2).await;
    gate.open();
    within(async {
        while let Err(error) = engine.load("m", Overrides::default()).await {
            assert!(error.message().contains("earlier load"), "{error}");
        }
    })
    .await;
    assert!(answers(&engine, "m").await);
    assert_eq!(gate.loads(), 3);
    engine.stop().await;
}

/// An engine whose only model has one instance, and was to have three: one of the new ones hangs at the gate.
async fn a_reload_is_given_up() -> (tempfile::TempDir, Arc<Gate>, Arc<Engine>) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let group = |count: usize| gate_config(&format!("instance_group {{ count: {count} kind: KIND_CPU }}"));
    write_model(root.path(), "m", &group(1), &[1]);
    let gate = Arc::new(Gate::default());
    gate.open();
    let change = |settings: &mut Settings| {
        gate.join(settings);
        settings.load_threads = 1;
        settings.load_time_max = Some(Duration::from_secs(60));
        settings.instances.lost_max = 0;
    };
    let (engine, failed) = engine_with(root.path(), Control::Explicit(None), change).await;
    assert!(failed.is_empty(), "{failed:?}");
    write_model(root.path(), "m", &group(3), &[]);
    gate.hold_instances(1);
    let load = beside(&engine, |engine| async move { engine.load("m", Overrides::default()).await });
    until(|| gate.held() == 1).await;
    is_given_up(load).await;
    (root, gate, engine)
}

/// Lets the time of a load pass that hangs.
async fn is_given_up(load: JoinHandle<Result<()>>) {
    tokio::time::pause();
    let ended = tokio::time::timeout(Duration::from_secs(100), load).await.expect("it is given up in its time");
    let error = ended.expect("no panic").expect_err("an instance hangs");
    tokio::time::resume();
    let hangs = "the load of model 'm' has not ended after 60 s and is given up";
    assert_eq!((error.kind(), error.message()), (Kind::Unavailable, hangs));
}

#[tokio::test]
async fn a_reload_of_which_an_instance_hangs_is_given_up_and_has_changed_nothing() {
    let (_root, gate, engine) = a_reload_is_given_up().await;
    until(|| metric(&engine, "nereid_instances{model=\"m\"") == 1.0).await;
    assert_eq!(engine.find("m", None).expect("served").config.instances[0].count, 1);
    assert!(answers(&engine, "m").await);
    let refused = engine.load("m", Overrides::default()).await.expect_err("the instance still hangs");
    assert_eq!(refused.message(), "1 earlier loads of model 'm' have not ended yet");
    gate.open();
    within(async {
        while let Err(error) = engine.load("m", Overrides::default()).await {
            assert!(error.message().contains("earlier load"), "{error}");
        }
    })
    .await;
    assert_eq!(engine.find("m", None).expect("served").config.instances[0].count, 3);
    assert_eq!((metric(&engine, "nereid_instances{model=\"m\""), gate.loads()), (3.0, 1));
    engine.stop().await;
}

#[tokio::test]
async fn a_model_is_unloaded_although_an_instance_of_a_reload_hangs() {
    let (_root, gate, engine) = a_reload_is_given_up().await;
    within(engine.unload("m", false)).await.expect("it is served");
    until_index(&engine, |index| index.iter().all(|entry| entry.state != Some(State::Unloading))).await;
    assert_eq!(metric(&engine, "nereid_instances{model=\"m\""), 0.0);
    within(engine.stop()).await;
    gate.open();
}

#[tokio::test]
async fn a_reload_that_was_given_up_starts_no_instances_of_what_is_served_when_it_comes_back() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let config = |count: usize| {
        gate_config(&format!("version_policy {{ all {{}} }} instance_group {{ count: {count} kind: KIND_CPU }}"))
    };
    write_model(root.path(), "m", &config(1), &[1]);
    let gate = Arc::new(Gate::default());
    gate.open();
    let change = |settings: &mut Settings| {
        gate.join(settings);
        settings.load_time_max = Some(Duration::from_secs(60));
        settings.instances.lost_max = 0;
    };
    let (engine, failed) = engine_with(root.path(), Control::Explicit(None), change).await;
    assert!(failed.is_empty(), "{failed:?}");
    write_model(root.path(), "m", &config(2), &[2]);
    gate.hold_instances(0);
    let before = gate.passed();
    let load = beside(&engine, |engine| async move { engine.load("m", Overrides::default()).await });
    until(|| gate.held() == 2).await;
    is_given_up(load).await;
    gate.open();
    within(async {
        while let Err(error) = engine.load("m", Overrides::default()).await {
            assert!(error.message().contains("earlier load"), "{error}");
        }
    })
    .await;
    assert_eq!(metric(&engine, "nereid_instances{model=\"m\""), 4.0);
    // Those of the new version, both times, and one more of the other, once.
    assert_eq!((gate.loads(), gate.passed() - before), (3, 5));
    engine.stop().await;
}

#[tokio::test]
async fn an_unload_overtakes_the_load_that_waits_for_its_turn() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for name in ["a", "b", "c"] {
        write_model(root.path(), name, &gate_config(""), &[1]);
    }
    let gate = Arc::new(Gate::default());
    let (engine, _) = engine_with(root.path(), explicit_none(), |settings| gate.join(settings)).await;
    let load = |name: &'static str| {
        beside(&engine, move |engine| async move { engine.load(name, Overrides::default()).await })
    };
    let (a, b) = (load("a"), load("b"));
    until(|| gate.waiting().len() == 2).await;
    let c = load("c");
    until(|| engine.knows("c")).await;
    engine.unload("c", false).await.expect("it is being loaded");
    let error = within(c).await.expect("no panic").expect_err("the unload is newer");
    assert_eq!((error.kind(), error.message()), (Kind::Unavailable, OUTDATED));
    gate.open();
    for load in [a, b] {
        within(load).await.expect("no panic").expect("nobody has overtaken it");
    }
    assert_eq!(gate.loads(), 2);
    assert!(!engine.knows("c"), "nothing of it was ever known");
    engine.stop().await;
}

#[tokio::test]
async fn an_unload_of_a_model_that_loads_is_the_last_word() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &gate_config("version_policy { all {} }"), &[1, 2, 3]);
    let gate = Arc::new(Gate::default());
    let (engine, _) = engine_with(root.path(), explicit_none(), |settings| gate.join(settings)).await;
    let load = beside(&engine, |engine| async move { engine.load("m", Overrides::default()).await });
    until(|| gate.waiting() == ["m"]).await;
    let unload = beside(&engine, |engine| async move { engine.unload("m", false).await });
    gate.open();
    let loaded = within(load).await.expect("no panic");
    within(unload).await.expect("no panic").expect("it is unloaded");
    if let Err(error) = loaded {
        assert!(error.message().contains(OUTDATED), "{error}");
        assert!(gate.loads() < 3, "the other versions were not even opened");
    }
    assert_eq!(refusal(&engine, "m", None).0, Kind::NotFound);
    engine.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_loads_that_have_not_begun() {
    let (_root, gate, engine, starting) = two_of_four_load().await;
    let stopping = beside(&engine, |engine| async move { engine.stop().await });
    until_index(&engine, |index| index.iter().filter(|entry| entry.state == Some(State::Loading)).count() == 2).await;
    gate.open();
    within(stopping).await.expect("no panic");
    let failed = within(starting).await.expect("no panic").expect("the repository can be read");
    assert!(failed.len() >= 2, "{failed:?}");
    assert_eq!(gate.loads(), 2);
}

#[tokio::test]
async fn a_version_that_stays_is_not_opened_again() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let gate = Arc::new(Gate::default());
    gate.open();
    write_model(root.path(), "m", &gate_config("version_policy { latest { num_versions: 2 } }"), &[1, 2]);
    let (engine, _) = engine_with(root.path(), Control::Explicit(None), |settings| gate.join(settings)).await;
    assert!(answers(&engine, "m").await);
    assert_eq!(gate.loads(), 2);
    write_model(root.path(), "m", &gate_config("version_policy { latest { num_versions: 2 } }"), &[3]);
    engine.load("m", Overrides::default()).await.expect("a version is new");
    assert_eq!((engine.versions_ready("m"), gate.loads()), (vec![2, 3], 3));
    assert_eq!(engine.find("m", Some(2)).expect("it stays").stats.snapshot().success.count, 1);

    write_model(root.path(), "m", &gate_config("version_policy { all {} }"), &[]);
    engine.load("m", Overrides::default()).await.expect("the policy is new");
    assert_eq!((engine.versions_ready("m"), gate.loads()), (vec![1, 2, 3], 4));
    let handle = engine.find("m", Some(2)).expect("it stays");
    assert_eq!(handle.stats.snapshot().success.count, 1);
    let policy = handle.config.schema.version_policy.as_ref().and_then(|policy| policy.policy_choice.clone());
    assert!(matches!(policy, Some(PolicyChoice::All(_))), "clients read the new configuration");
    assert!(answers(&engine, "m").await);

    write_model(root.path(), "m", &gate_config("version_policy { specific { versions: [ 2 ] } }"), &[]);
    engine.load("m", Overrides::default()).await.expect("the policy is new");
    assert_eq!((engine.versions_ready("m"), gate.loads()), (vec![2], 4));
    assert!(engine.find("m", Some(3)).is_err());

    write_model(
        root.path(),
        "m",
        &gate_config("max_batch_size: 2 version_policy { specific { versions: [ 2 ] } }"),
        &[],
    );
    engine.load("m", Overrides::default()).await.expect("everything is new");
    assert_eq!(gate.loads(), 5);
    assert_eq!(engine.find("m", Some(2)).expect("served").stats.snapshot().success.count, 0);
    engine.stop().await;
}

#[tokio::test]
async fn a_file_that_is_not_the_one_of_the_checksum_is_not_loaded() {
    let root = tempfile::tempdir().expect("a temporary directory");
    // The digest of "weights".
    let agent = "model_repository_agents { agents [ { name: \"checksum\" parameters { key: \"MD5:1/file\" \
                 value: \"63f4f1e9b725370f459720575cd5f953\" } } ] }";
    write_model(root.path(), "m", &identity_config(agent), &[1]);
    let put = |text: &str| std::fs::write(root.path().join("m/1/file"), text).expect("the directory is writable");
    put("weights");
    let (engine, failed) = engine_with(root.path(), Control::Explicit(None), |_| {}).await;
    assert!(failed.is_empty(), "{failed:?}");
    put("tampered");
    let refused = engine.load("m", Overrides::default()).await.expect_err("the file is another one");
    assert_eq!(refused.kind(), Kind::InvalidArgument);
    assert!(
        refused
            .message()
            .starts_with("Mismatched MD5 hash for file 1/file, expect: 63f4f1e9b725370f459720575cd5f953, got: "),
        "{refused}"
    );
    assert!(answers(&engine, "m").await, "the old copy goes on");
    engine.stop().await;
}

fn two_roots(namespacing: bool) -> (tempfile::TempDir, impl Fn(&mut Settings)) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let roots = ["one", "two"].map(|name| place.path().join(name));
    for (root, rows) in roots.iter().zip([4, 5]) {
        write_model(root, "both", &identity_config(&format!("max_batch_size: {rows}")), &[1]);
    }
    write_model(&roots[1], "alone", &identity_config(""), &[1]);
    let change = move |settings: &mut Settings| {
        settings.roots = roots.to_vec().into();
        settings.namespacing = namespacing;
    };
    (place, change)
}

#[tokio::test]
async fn with_namespaces_repositories_may_have_models_of_the_same_name() {
    let (place, change) = two_roots(true);
    let (engine, failed) = engine_with(place.path(), Control::Explicit(None), change).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(engine.ready() && answers(&engine, "alone").await);
    let names: Vec<String> = engine.index(false).await.iter().map(|entry| entry.key.name.to_string()).collect();
    assert_eq!(names, ["alone", "both", "both"]);
    let (kind, message) = refusal(&engine, "both", None);
    assert_eq!(kind, Kind::InvalidArgument);
    assert_eq!(
        message,
        "There are 2 identifiers of model 'both' in global map, model namespace must be provided to resolve ambiguity."
    );
    let rows: Vec<usize> = engine.statistics("", None).expect("all").iter().map(|h| h.config.max_batch_rows).collect();
    assert_eq!(rows, [8, 4, 5]);
    let text = engine.metrics().render();
    let namespaces = text.lines().filter(|line| line.contains(",namespace=\"") && line.contains("model=\"both\""));
    assert!(namespaces.count() > 0, "series of models of the same name are apart");

    std::fs::remove_dir_all(place.path().join("one/both")).expect("the directory is writable");
    engine.unload("both", false).await.expect("both are unloaded");
    engine.load("both", Overrides::default()).await.expect("one of them is still there");
    assert_eq!(engine.statistics("both", None).expect("served").len(), 1);
    engine.stop().await;
}

#[tokio::test]
async fn without_namespaces_a_name_in_two_repositories_is_not_served() {
    let (place, change) = two_roots(false);
    let (engine, failed) = engine_with(place.path(), Control::None, change).await;
    assert_eq!(failed.len(), 1);
    assert!(failed[0].1.message().starts_with("model 'both' is in more than one repository: "), "{failed:?}");
    assert!(answers(&engine, "alone").await && !engine.ready());
    engine.stop().await;
}

#[tokio::test]
async fn poll_mode_mends_what_was_broken_and_forgets_what_is_gone() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "broken", "max_batchsize: 4\nbackend: \"identity\"\n", &[1]);
    write_model(root.path(), "slow", &gate_config(""), &[1]);
    let (gate, engine, starting) = start(root.path(), Control::Poll(Duration::from_millis(10)));
    until(|| gate.waiting() == ["slow"]).await;
    // A model that takes long does not keep others from being polled.
    write_model(root.path(), "broken", &identity_config(""), &[]);
    until(|| engine.versions_ready("broken") == [1]).await;
    std::fs::remove_dir_all(root.path().join("slow")).expect("the directory is writable");
    write_model(root.path(), "new", &identity_config(""), &[1]);
    until(|| engine.versions_ready("new") == [1]).await;
    gate.open();
    within(starting).await.expect("no panic").expect("the repository can be read");
    until(|| engine.versions_ready("slow").is_empty() && engine.ready()).await;
    engine.stop().await;
}

#[tokio::test]
async fn a_repository_that_is_away_for_a_while_takes_nothing_out_of_service() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let (root, away) = (place.path().join("models"), place.path().join("away"));
    write_model(&root, "m", &identity_config(""), &[1]);
    let (engine, _) = engine_with(&root, Control::Poll(Duration::from_millis(10)), |_| {}).await;
    std::fs::rename(&root, &away).expect("the directory is writable");
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..10 {
        looks.tick().await;
        assert!(answers(&engine, "m").await);
    }
    write_model(&away, "new", &identity_config(""), &[1]);
    std::fs::rename(&away, &root).expect("the directory is writable");
    until(|| engine.versions_ready("new") == [1]).await;
    assert_eq!(engine.find("m", None).expect("served").stats.snapshot().success.count, 10);
    engine.stop().await;
}

/// Rewrites a model in the way of a careless copy: away, then piece by piece.
fn rewrite(root: &Path, round: usize) {
    let directory = root.join("m");
    let _ = std::fs::remove_dir_all(&directory);
    let config = identity_config(&format!("max_batch_size: {}", round + 1));
    std::fs::create_dir_all(directory.join("1")).expect("the directory is writable");
    for end in (0..=config.len()).step_by(40).chain([config.len()]) {
        std::fs::write(directory.join("config.pbtxt"), &config[..end]).expect("the directory is writable");
    }
}

#[tokio::test]
async fn a_directory_that_is_rewritten_all_the_time_is_served_all_the_time() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config(""), &[1]);
    let interval = Duration::from_millis(50);
    let (engine, _) = engine_with(root.path(), Control::Poll(interval), |_| {}).await;
    for round in 0..40 {
        let place = root.path().to_owned();
        let began = nereid::infer::Instant::now();
        let writing = tokio::task::spawn_blocking(move || rewrite(&place, round));
        let mut served = true;
        while !writing.is_finished() {
            served &= answers(&engine, "m").await;
        }
        writing.await.expect("no panic");
        // What stays away from one look to the next, because the machine is busy, is gone.
        assert!(served || began.elapsed() > interval, "round {round}");
    }
    let rows = || engine.find("m", None).map_or(0, |handle| handle.config.max_batch_rows);
    until(|| rows() == 40).await;
    assert!(answers(&engine, "m").await);
    engine.stop().await;
}

#[tokio::test]
async fn a_configuration_that_a_load_brought_holds_until_the_next_load_without_one() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let gate = Arc::new(Gate::default());
    gate.open();
    write_model(root.path(), "m", &gate_config("max_batch_size: 4"), &[1, 2]);
    let (engine, _) = engine_with(root.path(), Control::Explicit(None), |settings| gate.join(settings)).await;
    let with = |more: &str| {
        let config = format!(
            r#"{{"backend": "gate", "max_batch_size": 4, {more}
            "input": [{{"name": "IN", "data_type": "TYPE_UINT8", "dims": [4]}}],
            "output": [{{"name": "OUT", "data_type": "TYPE_UINT8", "dims": [4]}}]}}"#
        );
        Overrides { config: Some(config), files: BTreeMap::new() }
    };
    assert_eq!(gate.loads(), 1);
    engine.load("m", with(r#""version_policy": {"all": {}},"#)).await.expect("the policy is allowed");
    assert_eq!((engine.versions_ready("m"), gate.loads()), (vec![1, 2], 2), "version 2 stays, 1 is opened");
    engine.load("m", with(r#""dynamic_batching": {},"#)).await.expect("batching is allowed");
    assert_eq!((engine.versions_ready("m"), gate.loads()), (vec![2], 3));
    engine.load("m", Overrides::default()).await.expect("back to the files");
    assert_eq!((engine.versions_ready("m"), gate.loads()), (vec![2], 4));
    engine.load("m", Overrides::default()).await.expect("nothing to do");
    assert_eq!(gate.loads(), 4);
    engine.stop().await;
}
