//! Loads that wait for memory, and are in each other's way. Begin with `memory.rs`, which has what they need.

use std::sync::Arc;

use nereid::engine::{Control, Engine, IndexEntry, Overrides, State};
use nereid::infer::{self, Infer as _};

use super::memory::{
    ON_DEMAND, WEIGHTS, answers, engine_with_latch, engine_within, file_bytes, request, request_of, state,
    write_ensemble, write_heavy,
};
use crate::latch::write_latched;
use crate::support::{beside, identity_config, metric, until, within, write_model};

/// Has it execute until the latch is open.
fn keep_busy(
    engine: &Arc<Engine>,
    name: &'static str,
) -> tokio::task::JoinHandle<nereid::error::Result<infer::Response>> {
    beside(engine, move |engine| async move { infer::only(engine.infer(request_of(name, -1.0))).await })
}

fn ask(engine: &Arc<Engine>, name: &'static str) -> tokio::task::JoinHandle<nereid::error::Result<infer::Response>> {
    beside(engine, move |engine| async move { infer::only(engine.infer(request(name))).await })
}

/// Waits until a load of it stands in line, or is about to.
async fn is_loading(engine: &Engine, name: &str) {
    within(async {
        let is_it = |entry: &IndexEntry| &*entry.key.name == name && entry.state == Some(State::Loading);
        while !engine.index(false).await.iter().any(is_it) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_reload_does_not_wait_behind_a_load_that_waits_for_its_model() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_latched(root.path(), "busy", ON_DEMAND);
    write_heavy(root.path(), &["other"], ON_DEMAND);
    let limit = WEIGHTS * 3 / 2;
    let (engine, latch) = engine_with_latch(limit, root.path(), Control::Explicit(None)).await;
    answers(&engine, "busy").await;
    let busy = keep_busy(&engine, "busy");
    until(|| metric(&engine, "nereid_requests_in_flight") == 1.0).await;
    let other = ask(&engine, "other");
    is_loading(&engine, "other").await;
    write_latched(root.path(), "busy", &format!("{ON_DEMAND} dynamic_batching {{ }}"));
    let refused = within(engine.load("busy", Overrides::default())).await.expect_err("there is room for one copy");
    assert!(refused.message().contains("'busy' version 1 holds 0.4 MB"), "{refused}");
    latch.open();
    within(busy).await.expect("it runs").expect("the old copy serves");
    within(other).await.expect("it runs").expect("the other one leaves for it");
    engine.stop().await;
}

#[tokio::test]
async fn a_reload_that_goes_first_has_idle_models_leave() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_latched(root.path(), "busy", ON_DEMAND);
    write_heavy(root.path(), &["idle"], ON_DEMAND);
    write_heavy(root.path(), &["large"], &format!("{ON_DEMAND} version_policy {{ all {{ }} }}"));
    let [first, second] = ["1", "2"].map(|version| root.path().join("large").join(version));
    std::fs::create_dir(&second).expect("a temporary directory");
    std::fs::copy(first.join("model.pt"), second.join("model.pt")).expect("it was written");
    let limit = WEIGHTS * 5 / 2;
    let (engine, latch) = engine_with_latch(limit, root.path(), Control::Explicit(None)).await;
    for model in ["busy", "idle"] {
        answers(&engine, model).await;
    }
    let busy = keep_busy(&engine, "busy");
    until(|| metric(&engine, "nereid_requests_in_flight") == 1.0).await;
    let large = ask(&engine, "large");
    is_loading(&engine, "large").await;
    write_latched(root.path(), "busy", &format!("{ON_DEMAND} dynamic_batching {{ }}"));
    within(engine.load("busy", Overrides::default())).await.expect("there is room once the idle one has left");
    latch.open();
    within(busy).await.expect("it runs").expect("the old copy serves");
    within(large).await.expect("it runs").expect("both others leave for it");
    engine.stop().await;
}

#[tokio::test]
async fn an_ensemble_whose_members_do_not_fit_together_says_so() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["first", "second"], ON_DEMAND);
    write_ensemble(root.path(), "both", &["first", "second"]);
    let limit = file_bytes(root.path(), "second") * 3 / 2;
    let engine = engine_within(limit, root.path(), Control::None).await;
    let refused = within(infer::only(engine.infer(request("both")))).await.expect_err("they do not fit");
    assert!(refused.message().contains("models that are not available"), "{refused}");
    let reasons = [state(&engine, "first").await.1, state(&engine, "second").await.1];
    assert!(reasons.iter().any(|reason| reason.contains("version 1 holds 0.4 MB")), "{reasons:?}");
    for model in ["first", "second"] {
        answers(&engine, model).await;
    }
    engine.stop().await;
}

#[tokio::test]
async fn of_two_ensembles_that_wait_for_each_other_s_members_one_gives_up() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for busy in ["a", "c"] {
        write_latched(root.path(), busy, ON_DEMAND);
    }
    write_heavy(root.path(), &["b", "d"], ON_DEMAND);
    write_ensemble(root.path(), "early", &["a", "b"]);
    write_ensemble(root.path(), "late", &["c", "d"]);
    let limit = WEIGHTS * 5 / 2;
    let (engine, latch) = engine_with_latch(limit, root.path(), Control::None).await;
    for model in ["a", "c"] {
        answers(&engine, model).await;
    }
    let busy = ["a", "c"].map(|model| keep_busy(&engine, model));
    until(|| metric(&engine, "nereid_requests_in_flight") == 2.0).await;
    let both = ["early", "late"].map(|ensemble| ask(&engine, ensemble));
    until(|| both.iter().any(tokio::task::JoinHandle::is_finished)).await;
    latch.open();
    let mut refused = Vec::new();
    for request in both {
        refused.extend(within(request).await.expect("it runs").err());
    }
    // Which one that is depends on who comes first.
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].message().contains("models that are not available or ambiguous: "), "{refused:?}");
    for request in busy {
        within(request).await.expect("it runs").expect("answered");
    }
    engine.stop().await;
}

#[tokio::test]
async fn loads_that_wait_for_memory_do_not_hold_back_those_that_need_none() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_latched(root.path(), "busy", ON_DEMAND);
    let waiting = ["first", "second", "third"];
    write_heavy(root.path(), &waiting, ON_DEMAND);
    write_model(root.path(), "light", &identity_config(""), &[1]);
    let limit = WEIGHTS * 3 / 2;
    let (engine, latch) = engine_with_latch(limit, root.path(), Control::Explicit(Some(vec!["busy".to_owned()]))).await;
    engine.load("busy", Overrides::default()).await.expect("it fits");
    let busy = keep_busy(&engine, "busy");
    until(|| metric(&engine, "nereid_requests_in_flight") == 1.0).await;
    let loads: Vec<_> = waiting
        .map(|name| beside(&engine, move |engine| async move { engine.load(name, Overrides::default()).await }))
        .into();
    for name in waiting {
        is_loading(&engine, name).await;
    }
    within(engine.load("light", Overrides::default())).await.expect("it needs no memory");
    assert!(!busy.is_finished() && loads.iter().all(|load| !load.is_finished()), "they wait");
    latch.open();
    for load in loads {
        within(load).await.expect("it runs").expect("the busy one leaves");
    }
    within(busy).await.expect("it runs").expect("answered");
    engine.stop().await;
}
