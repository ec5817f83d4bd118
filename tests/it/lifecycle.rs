//! Loading, unloading, finding, polling and stopping, with a real repository on disk and the identity backend.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use nereid::engine::{Control, Engine, IndexEntry, Overrides, Settings, State};
use nereid::error::Kind;
use nereid::infer::{self, Infer as _};

use crate::support::{engine, engine_with, identity_config, metric, request, until, write_model};

async fn version_that_answers(engine: &Engine, model: &str) -> u64 {
    infer::only(engine.infer(request(model))).await.expect("answered").version
}

async fn index(engine: &Engine) -> BTreeMap<(String, u64), (State, String)> {
    let entry = |entry: IndexEntry| {
        let state = entry.state.expect("it was loaded");
        ((entry.key.name.to_string(), entry.version.unwrap_or(0)), (state, entry.reason))
    };
    engine.index(false).await.into_iter().map(entry).collect()
}

fn add_version(root: &Path, model: &str, version: u64) {
    std::fs::create_dir_all(root.join(model).join(version.to_string())).expect("the directory is writable");
}

#[tokio::test]
async fn the_highest_version_answers_unless_another_is_named() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config("version_policy { all {} }"), &[1, 2, 10]);
    let (engine, failed) = engine(root.path(), Control::None).await;
    assert!(failed.is_empty());
    assert_eq!(version_that_answers(&engine, "m").await, 10);
    let mut second = request("m");
    second.version = Some(2);
    assert_eq!(infer::only(engine.infer(second)).await.expect("answered").version, 2);
    assert_eq!(engine.versions_ready("m"), [1, 2, 10]);
    engine.stop().await;
}

#[tokio::test]
async fn only_the_latest_version_is_served_by_default() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config(""), &[1, 3]);
    let (engine, _) = engine(root.path(), Control::None).await;
    assert_eq!(engine.versions_ready("m"), [3]);
    let error = engine.find("m", Some(1)).err().expect("version 1 is not served");
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(error.message(), "Request for unknown model: 'm' version 1 is not found");
    engine.stop().await;
}

#[tokio::test]
async fn one_broken_model_never_stops_another_and_says_why() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "good", &identity_config(""), &[1]);
    write_model(root.path(), "broken", "max_batchsize: 4\nbackend: \"identity\"\n", &[1]);
    write_model(root.path(), "empty", &identity_config(""), &[]);
    let (engine, failed) = engine(root.path(), Control::None).await;
    let failed: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(failed, ["broken", "empty"]);
    assert_eq!(version_that_answers(&engine, "good").await, 1);
    assert!(!engine.ready(), "strict readiness wants every model");
    let index = index(&engine).await;
    assert_eq!(index[&("good".to_owned(), 1)].0, State::Ready);
    let (state, reason) = &index[&("broken".to_owned(), 0)];
    assert_eq!(*state, State::Unavailable);
    assert!(reason.contains("config.pbtxt:1:1") && reason.contains("max_batch_size"), "{reason}");
    engine.stop().await;
}

#[tokio::test]
async fn explicit_mode_loads_and_unloads_by_command() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "a", &identity_config(""), &[1]);
    write_model(root.path(), "b", &identity_config(""), &[1]);
    let (engine, _) = engine(root.path(), Control::Explicit(Some(vec!["a".to_owned()]))).await;
    assert!(engine.ready());
    assert_eq!(engine.find("b", None).err().expect("not loaded").kind(), Kind::NotFound);
    let names: Vec<String> = engine.index(false).await.into_iter().map(|entry| entry.key.name.to_string()).collect();
    assert_eq!(names, ["a", "b"], "a model that was never loaded is listed by name");

    engine.load("b", Overrides::default()).await.expect("b loads");
    assert_eq!(version_that_answers(&engine, "b").await, 1);
    engine.unload("a", false).await.expect("a unloads");
    let error = engine.find("a", None).err().expect("unloaded");
    assert_eq!(error.message(), "Request for unknown model: 'a' has no available versions");
    engine.unload("a", false).await.expect("the second time is no error");
    engine.unload("never heard of", false).await.expect("an unknown name is no error");
    assert!(engine.ready(), "what was unloaded on purpose does not count");
    assert_eq!(index(&engine).await[&("a".to_owned(), 1)].1, "unloaded");
    engine.load("a", Overrides::default()).await.expect("a loads again");
    assert_eq!(version_that_answers(&engine, "a").await, 1);
    engine.stop().await;
}

#[tokio::test]
async fn what_cannot_be_loaded_says_so() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config(""), &[1]);
    let (engine, _) = engine(root.path(), Control::Explicit(Some(Vec::new()))).await;
    let unknown = engine.load("nowhere", Overrides::default()).await.expect_err("there is no such model");
    assert_eq!(unknown.kind(), Kind::Internal);
    assert_eq!(unknown.message(), "failed to load 'nowhere', failed to poll from model repository");
    assert!(engine.ready() && engine.index(false).await.iter().all(|entry| &*entry.key.name != "nowhere"));
    let outside = engine.load("../m", Overrides::default()).await.expect_err("a path is no name");
    assert_eq!(outside.kind(), Kind::InvalidArgument);
    engine.stop().await;

    let (engine, _) = engine_with(root.path(), Control::None, |_| {}).await;
    let refused = engine.load("m", Overrides::default()).await.expect_err("the mode is not explicit");
    assert_eq!(refused.kind(), Kind::Unavailable);
    engine.stop().await;
}

#[tokio::test]
async fn a_reload_that_fails_keeps_the_old_copy_serving() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config(""), &[1]);
    let (engine, _) = engine(root.path(), Control::Explicit(None)).await;
    write_model(root.path(), "m", "backend: \"identity\"\ninput { name: \"IN\" }\n", &[1]);
    engine.load("m", Overrides::default()).await.expect_err("the configuration is broken now");
    assert_eq!(version_that_answers(&engine, "m").await, 1);
    assert!(engine.ready());
    engine.stop().await;
}

#[tokio::test]
async fn a_load_of_unchanged_files_keeps_the_statistics_and_a_changed_one_starts_anew() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config(""), &[1]);
    let (engine, _) = engine(root.path(), Control::Explicit(None)).await;
    version_that_answers(&engine, "m").await;
    let answered = |engine: &Engine| engine.find("m", None).expect("served").stats.snapshot().success.count;
    engine.load("m", Overrides::default()).await.expect("nothing to do");
    assert_eq!(answered(&engine), 1);
    write_model(root.path(), "m", &identity_config("max_batch_size: 16"), &[1]);
    engine.load("m", Overrides::default()).await.expect("loads");
    assert_eq!(answered(&engine), 0);
    engine.stop().await;
}

#[tokio::test]
async fn overrides_replace_the_configuration_and_the_files() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config("max_batch_size: 4"), &[1]);
    let (engine, _) = engine(root.path(), Control::Explicit(None)).await;
    let config = r#"{"backend": "identity", "max_batch_size": 9,
        "input": [{"name": "IN", "data_type": "TYPE_UINT8", "dims": [4]}],
        "output": [{"name": "OUT", "data_type": "TYPE_UINT8", "dims": [4]}]}"#;
    let files = BTreeMap::from([("7/anything".to_owned(), Bytes::from_static(b"x"))]);
    let overrides = Overrides { config: Some(config.to_owned()), files };
    engine.load("m", overrides).await.expect("loads");
    let handle = engine.find("m", None).expect("served");
    assert_eq!((handle.version, handle.config.max_batch_rows), (7, 9));
    engine.load("m", Overrides::default()).await.expect("back to the repository's files");
    assert_eq!(engine.find("m", None).expect("served").version, 1);
    let large = BTreeMap::from([("7/a".to_owned(), vec![0; 600].into()), ("7/b".to_owned(), vec![0; 401].into())]);
    let refused = engine.load("m", Overrides { config: Some(config.to_owned()), files: large }).await;
    assert_eq!(
        refused.expect_err("larger than the setting").message(),
        "the files of the load request have 1001 bytes, at most 1000 are allowed"
    );
    let outside = BTreeMap::from([("../1/x".to_owned(), Bytes::new())]);
    let refused = engine.load("m", Overrides { config: Some(config.to_owned()), files: outside }).await;
    assert_eq!(refused.expect_err("the path leads out").kind(), Kind::InvalidArgument);
    engine.stop().await;
}

#[tokio::test]
async fn override_files_that_a_killed_server_left_are_removed_at_the_start() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let left = tempfile::Builder::new().prefix("nereid-override-").tempdir().expect("a temporary directory");
    for file in ["weights", "lock"] {
        std::fs::write(left.path().join(file), "").expect("the directory is writable");
    }
    let (engine, _) = engine(root.path(), Control::Explicit(None)).await;
    // Engines of other tests may be removing it.
    until(|| !left.path().exists()).await;
    engine.stop().await;
}

#[tokio::test]
async fn a_named_configuration_is_preferred_where_a_model_has_it() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "a", &identity_config("max_batch_size: 4"), &[1]);
    write_model(root.path(), "b", &identity_config("max_batch_size: 5"), &[1]);
    let configs = root.path().join("a/configs");
    std::fs::create_dir(&configs).expect("the directory is writable");
    std::fs::write(configs.join("large.pbtxt"), identity_config("max_batch_size: 64")).expect("the file is writable");
    let named = |settings: &mut Settings| settings.config_name = Some("large".to_owned());
    let (engine, failed) = engine_with(root.path(), Control::None, named).await;
    assert!(failed.is_empty());
    let rows_max = |name| engine.find(name, None).expect("served").config.max_batch_rows;
    assert_eq!((rows_max("a"), rows_max("b")), (64, 5));
    engine.stop().await;
}

#[tokio::test]
async fn poll_mode_follows_the_directory() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config(""), &[1]);
    let (engine, _) = engine(root.path(), Control::Poll(Duration::from_millis(20))).await;
    add_version(root.path(), "m", 2);
    write_model(root.path(), "new", &identity_config(""), &[1]);
    until(|| engine.versions_ready("m") == [2] && engine.versions_ready("new") == [1]).await;
    std::fs::remove_dir_all(root.path().join("new")).expect("the directory is writable");
    until(|| engine.versions_ready("new").is_empty()).await;
    engine.stop().await;
}

#[tokio::test]
async fn a_stop_finishes_what_was_accepted() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let slow = identity_config("parameters { key: \"identity.delay_us\" value { string_value: \"20000\" } }");
    write_model(root.path(), "m", &slow, &[1]);
    let (engine, _) = engine(root.path(), Control::None).await;
    let accepted: Vec<_> = (0..10).map(|_| tokio::spawn(infer::only(engine.infer(request("m"))))).collect();
    engine.stop().await;
    for answer in accepted {
        answer.await.expect("no panic").expect("accepted requests are answered");
    }
    let late = infer::only(engine.infer(request("m"))).await;
    assert!(late.is_err(), "a stopped engine takes nothing");
}

#[tokio::test]
async fn every_request_is_counted_exactly_once() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &identity_config(""), &[1]);
    let (engine, _) = engine(root.path(), Control::None).await;
    for _ in 0..3 {
        version_that_answers(&engine, "m").await;
    }
    let mut wrong = request("m");
    wrong.inputs.clear();
    infer::only(engine.infer(wrong)).await.expect_err("an input is missing");
    infer::only(engine.infer(request("unknown"))).await.expect_err("there is no such model");
    let value = |start: &str| metric(&engine, start);
    assert_eq!(value("nereid_requests_received_total"), 5.0);
    assert_eq!(value("nv_inference_request_success"), 3.0);
    assert_eq!(value("nereid_request_failures_total"), 1.0);
    assert_eq!(value("nereid_unrouted_requests_total"), 1.0);
    assert_eq!(value("nereid_requests_in_flight"), 0.0);
    engine.stop().await;
}

#[tokio::test]
async fn a_model_file_outside_or_of_another_kind_is_not_even_looked_at() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", "backend: \"pytorch\"", &[1]);
    std::fs::create_dir(root.path().join("m/1/model.pt")).expect("the directory is writable");
    let (engine, failed) = engine(root.path(), Control::Explicit(None)).await;
    assert!(failed[0].1.message().contains("is not a regular file"), "{}", failed[0].1);
    for name in ["../../../secret.pt", "/etc/passwd"] {
        let config = format!(r#"{{"backend": "pytorch", "default_model_filename": "{name}"}}"#);
        let refused = engine.load("m", Overrides { config: Some(config), files: BTreeMap::new() }).await;
        let refused = refused.expect_err("the name leads out").to_string();
        assert!(refused.contains("must stay inside the version directory"), "{refused}");
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_held_member_of_an_ensemble_lets_go_when_it_is_unloaded() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "member", &identity_config("dynamic_batching {}"), &[1]);
    let step = r#"ensemble_scheduling { step { model_name: "member" model_version: -1
        input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "OUT" } } }"#;
    let ensemble = identity_config(step).replace("backend: \"identity\"", "platform: \"ensemble\"");
    write_model(root.path(), "whole", &ensemble, &[1]);
    let (engine, failed) = engine_with(root.path(), Control::Explicit(None), |settings| settings.hold.queued = 3).await;
    assert!(failed.is_empty(), "{failed:?}");
    let waits = tokio::spawn(infer::only(engine.infer(request("whole"))));
    until(|| engine.find("member", None).is_ok_and(|member| member.pending() == 1)).await;
    engine.unload("member", false).await.expect("it may be unloaded");
    waits.await.expect("no panic").expect("what was accepted is answered");
    engine.stop().await;
}
