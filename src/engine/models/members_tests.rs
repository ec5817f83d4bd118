//! What becomes of models that are made of others, and of what they are made of, step by step.

use super::tests::{Bench, with_config};
use crate::engine::Key;
use crate::engine::lifecycle::State;
use crate::engine::order::{Unload, What};

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
fn a_member_that_is_leaving_comes_back_for_what_needs_it() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.evict("a");
    // What is made of it goes first.
    bench.retired();
    let caller = bench.load("e");
    bench.needs("e", &["a"]);
    assert!(bench.jobs.is_empty(), "the member finishes its requests");
    bench.retired();
    bench.loaded("a", &[]);
    assert!(bench.jobs[0].members_tried);
    bench.loaded("e", &["a"]);
    assert_eq!((bench.answer(caller), bench.serving("e").is_some()), (Some(Ok(())), true));
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
fn what_a_failed_load_wanted_takes_nothing_with_it() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.load("b");
    bench.loaded("b", &[]);
    bench.load("e");
    bench.needs("e", &["b"]);
    bench.loaded("b", &[]);
    bench.failed("e");
    bench.unload("b");
    bench.retired();
    assert!(bench.serving("e").is_some(), "what is served is made of others");
    assert_eq!(bench.state("b"), Some((State::Unavailable, "unloaded")));
    bench.load("b");
    bench.loaded("b", &[]);
    assert!(bench.job("e").again, "now it may come to be made of that");
}

#[test]
fn a_member_need_not_wait_for_the_next_load_of_what_was_made_of_it() {
    let mut bench = Bench::default();
    bench.ensemble();
    bench.load("f");
    bench.loaded("f", &["a", "e"]);
    bench.unload("e");
    bench.load("a");
    bench.loaded("a", &[]);
    bench.retiring.retain(|(_, retired)| retired.key == Key::of("f"));
    bench.retired();
    assert!(bench.job("f").again, "it is loaded for the new member");
    let dropped: Vec<_> = bench.retiring.iter().map(|(_, retired)| &*retired.key.name).collect();
    assert_eq!(dropped, ["e"]);
}
