//! The memory that models share: what fits is loaded, what does not says why, and what is unloaded is given back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nereid::backend::libtorch::script::Script;
use nereid::engine::{Control, Device, Engine, MemoryLimit, Overrides, Settings, State};
use nereid::error::Kind;
use nereid::infer::{self, Infer as _, Request};
use nereid::tensor::{DataType, NamedTensor, Shape, Tensor};

use crate::gate::Gate;
use crate::latch::{Latch, write_latched};
use crate::support::{self, beside, engine_with, identity_config, metric, until, within, write_model};

/// The numbers of a model's weights, and their bytes.
const NUMBERS: usize = 100_000;
pub(super) const WEIGHTS: u64 = 4 * NUMBERS as u64;

/// Writes TorchScript models that add to `x` the sum of as many weights, which is zero. No two have the same weights, so
/// that they share none.
pub(super) fn write_heavy(root: &Path, names: &[&str], more: &str) {
    for name in names {
        let number = name.bytes().fold(0_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        write_with_weights(root, name, number.into(), more);
    }
}

/// Writes one of them, with this number among its weights.
fn write_with_weights(root: &Path, name: &str, number: f32, more: &str) {
    let mut weights = vec![0.0_f32; NUMBERS];
    (weights[0], weights[1]) = (number, -number);
    let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let weight = Tensor::new(DataType::Fp32, Shape::new(&[NUMBERS as i64]), bytes.into());
    let script = Script::new("def forward(self, x):\n    return x + self.weight.sum()\n").parameter("weight", weight);
    write_script(root, name, script, more);
}

/// Writes a model of this script, from `x` to `y`, with `more` in its configuration.
fn write_script(root: &Path, name: &str, script: Script, more: &str) {
    let config = format!(
        "backend: \"pytorch\" max_batch_size: 4 {more}\n\
         input {{ name: \"x\" data_type: TYPE_FP32 dims: [1] }}\n\
         output {{ name: \"y\" data_type: TYPE_FP32 dims: [1] }}\n"
    );
    write_model(root, name, &config, &[1]);
    script.save(&root.join(name).join("1/model.pt")).expect("the script compiles");
}

/// The size of a model's file, which is what a load reserves.
pub(super) fn file_bytes(root: &Path, name: &str) -> u64 {
    std::fs::metadata(root.join(name).join("1/model.pt")).expect("it was written").len()
}

pub(super) async fn engine_within(bytes: u64, root: &Path, control: Control) -> Arc<Engine> {
    let limit = |settings: &mut Settings| _ = settings.memory_limits.insert(Device::Cpu, MemoryLimit::Bytes(bytes));
    engine_with(root, control, limit).await.0
}

/// As [`engine_within`], with what keeps models of [`write_latched`] busy; each of them holds [`WEIGHTS`].
pub(super) async fn engine_with_latch(bytes: u64, root: &Path, control: Control) -> (Arc<Engine>, Arc<Latch>) {
    let latch = Latch::of(WEIGHTS);
    let settings = |settings: &mut Settings| {
        latch.join(settings);
        settings.memory_limits.insert(Device::Cpu, MemoryLimit::Bytes(bytes));
    };
    let engine = engine_with(root, control, settings).await.0;
    (engine, latch)
}

pub(super) fn request(model: &str) -> Request {
    request_of(model, 1.5)
}

pub(super) fn request_of(model: &str, number: f32) -> Request {
    let tensor = Tensor::new(DataType::Fp32, Shape::new(&[1, 1]), number.to_le_bytes().to_vec().into());
    let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
    Request { inputs, ..Request::new(model, infer::Instant::now()) }
}

pub(super) async fn answers(engine: &Engine, model: &str) {
    let response = within(infer::only(engine.infer(request(model)))).await.expect("answered");
    assert_eq!(*response.outputs[0].tensor.data, 1.5_f32.to_le_bytes());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_says_who_is_in_the_way() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["first", "second"], "");
    let limit = WEIGHTS + file_bytes(root.path(), "second") - 1;
    let engine = engine_within(limit, root.path(), Control::Explicit(Some(vec!["first".to_owned()]))).await;
    let refused = engine.load("second", Overrides::default()).await.expect_err("it does not fit");
    assert_eq!(refused.kind(), Kind::Unavailable);
    let message = refused.message();
    assert!(message.starts_with("model 'second' needs 0.4 MB on cpu, where 0.4 MB of 0.8 MB are free"), "{message}");
    assert!(message.ends_with(": 'first' version 1 holds 0.4 MB"), "{message}");
    answers(&engine, "first").await;
    engine.stop().await;
}

#[tokio::test]
async fn a_file_that_does_not_fit_is_not_even_read_for_what_its_configuration_leaves_out() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for name in ["resident", "asleep"] {
        let more = if name == "asleep" { ON_DEMAND } else { "" };
        write_model(root.path(), name, &format!("backend: \"pytorch\" {more}"), &[1]);
        // Whoever reads it says that it is no model.
        std::fs::write(root.path().join(name).join("1/model.pt"), [0; 1000]).expect("the file is writable");
    }
    let engine = engine_within(999, root.path(), Control::Explicit(Some(Vec::new()))).await;
    for name in ["resident", "asleep"] {
        let refused = engine.load(name, Overrides::default()).await.expect_err("it does not fit");
        assert_eq!(refused.kind(), Kind::Unavailable);
        let why = format!("model '{name}' needs 1000 bytes on cpu, where 999 bytes of 999 bytes are free");
        assert_eq!(refused.message(), why);
    }
    engine.stop().await;
    let engine = engine_within(1000, root.path(), Control::Explicit(Some(Vec::new()))).await;
    for name in ["resident", "asleep"] {
        let refused = engine.load(name, Overrides::default()).await.expect_err("it is no model");
        assert!(refused.message().starts_with(&format!("failed to load model '{name}'")), "{refused}");
    }
    assert_eq!(metric(&engine, "nereid_memory_reserved_bytes"), 0.0);
    engine.stop().await;
}

#[tokio::test]
async fn a_file_that_is_only_looked_at_sends_nobody_away_and_needs_no_room() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, more: &str| {
        let config = format!(
            "backend: \"pytorch\" max_batch_size: 4 {more}\n\
             input {{ name: \"x\" data_type: TYPE_FP32 dims: [1] }}\n"
        );
        std::fs::write(root.path().join(name).join("config.pbtxt"), config).expect("the directory is writable");
    };
    write_heavy(root.path(), &["used", "asleep"], "");
    write("used", ON_DEMAND);
    write("asleep", ON_DEMAND);
    let limit = file_bytes(root.path(), "used") * 3 / 2;
    let engine = engine_within(limit, root.path(), Control::Explicit(Some(Vec::new()))).await;
    engine.load("used", Overrides::default()).await.expect("it fits");
    write("used", &format!("{ON_DEMAND} version_policy {{ all {{ }} }}"));
    engine.load("used", Overrides::default()).await.expect("its weights stay");
    engine.stop().await;
    write_heavy(root.path(), &["resident"], "");
    let engine = engine_within(limit, root.path(), Control::Explicit(Some(vec!["resident".to_owned()]))).await;
    answers(&engine, "resident").await;
    engine.load("used", Overrides::default()).await.expect_err("it is to be opened, and there is no room");
    engine.stop().await;
    let engine = engine_within(limit, root.path(), Control::None).await;
    assert!(engine.ready(), "those on demand sleep beside the resident one");
    answers(&engine, "resident").await;
    engine.stop().await;
}

#[tokio::test]
async fn each_byte_is_counted_where_it_is_and_given_back_by_an_unload() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["first", "second"], "");
    let limit = WEIGHTS + file_bytes(root.path(), "second") - 1;
    let engine = engine_within(limit, root.path(), Control::Explicit(Some(Vec::new()))).await;
    for _ in 0..3 {
        for model in ["first", "second"] {
            // The memory of the other is given back a moment after its unload was answered; this waits for it.
            engine.load(model, Overrides::default()).await.expect("it fits");
            answers(&engine, model).await;
            assert_eq!(metric(&engine, &format!("nereid_model_memory_bytes{{model=\"{model}\"")), WEIGHTS as f64);
            assert_eq!(engine.find(model, None).expect("ready").footprint().of(Device::Cpu), WEIGHTS);
            engine.unload(model, false).await.expect("unloaded");
        }
    }
    assert_eq!(metric(&engine, "nereid_memory_limit_bytes{device=\"cpu\"}"), limit as f64);
    // The books are written a moment before what stands for a model is gone.
    for name in
        ["nereid_memory_reserved_bytes{device=\"cpu\"}", "nereid_memory_used_bytes", "nereid_model_memory_bytes"]
    {
        until(|| metric(&engine, name) == 0.0).await;
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_does_not_keep_the_model_in_memory() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["first", "second"], ON_DEMAND);
    let engine = engine_within(file_bytes(root.path(), "second"), root.path(), Control::None).await;
    answers(&engine, "first").await;
    let unread = engine.infer(request("first"));
    answers(&engine, "second").await;
    assert!(engine.versions_ready("first").is_empty());
    within(infer::only(unread)).await.expect("it was answered before");
    engine.stop().await;
}

#[tokio::test]
async fn what_equal_models_share_is_counted_once_and_passed_on() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for model in ["first", "second"] {
        write_with_weights(root.path(), model, 1.0, "");
    }
    let limit = WEIGHTS + file_bytes(root.path(), "second");
    let engine = engine_within(limit, root.path(), Control::Explicit(Some(Vec::new()))).await;
    let held = |model: &str| metric(&engine, &format!("nereid_model_memory_bytes{{model=\"{model}\""));
    for model in ["first", "second"] {
        engine.load(model, Overrides::default()).await.expect("it fits");
    }
    assert_eq!((held("first"), held("second")), (WEIGHTS as f64, 0.0));
    assert_eq!(metric(&engine, "nereid_memory_used_bytes"), WEIGHTS as f64);
    engine.unload("first", false).await.expect("unloaded");
    until(|| held("second") == WEIGHTS as f64).await;
    assert_eq!(metric(&engine, "nereid_memory_used_bytes"), WEIGHTS as f64);
    answers(&engine, "second").await;
    engine.stop().await;
}

#[tokio::test]
async fn a_reload_that_has_no_room_beside_the_old_copy_fails_and_the_old_copy_serves() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["only"], "");
    let limit = file_bytes(root.path(), "only");
    let engine = engine_within(limit, root.path(), Control::Explicit(None)).await;
    write_heavy(root.path(), &["only"], "dynamic_batching { }");
    let refused = engine.load("only", Overrides::default()).await.expect_err("there is room for one copy");
    assert_eq!(refused.kind(), Kind::Unavailable);
    assert!(refused.message().contains("'only' version 1 holds 0.4 MB"), "{refused}");
    answers(&engine, "only").await;
    engine.stop().await;
}

/// Each of its instances has a copy of what it writes to, and of all else.
#[tokio::test]
async fn more_instances_of_a_model_that_writes_to_its_state_are_counted_before_they_are_there() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let weight = Tensor::new(DataType::Fp32, Shape::new(&[NUMBERS as i64]), vec![0; WEIGHTS as usize].into());
    let script = Script::new("def forward(self, x):\n    self.weight.add_(0)\n    return x + self.weight.sum()\n");
    let script = script.buffer("weight", weight);
    let write = |instances: usize| {
        let config = format!(
            "backend: \"pytorch\" max_batch_size: 4 instance_group {{ count: {instances} kind: KIND_CPU }}\n\
             input {{ name: \"x\" data_type: TYPE_FP32 dims: [1] }}\n\
             output {{ name: \"y\" data_type: TYPE_FP32 dims: [1] }}\n"
        );
        write_model(root.path(), "m", &config, &[1]);
    };
    write(1);
    script.save(&root.path().join("m/1/model.pt")).expect("the script compiles");
    let engine = engine_within(7 * WEIGHTS, root.path(), Control::Explicit(None)).await;
    // One is what the copies are made from.
    assert_eq!(metric(&engine, "nereid_memory_used_bytes"), 2.0 * WEIGHTS as f64);
    write(3);
    engine.load("m", Overrides::default()).await.expect("both copies have room");
    until(|| metric(&engine, "nereid_memory_used_bytes") == 4.0 * WEIGHTS as f64).await;
    answers(&engine, "m").await;
    write(4);
    let refused = engine.load("m", Overrides::default()).await.expect_err("there is no room for both copies");
    assert!(refused.message().contains("'m' version 1 holds"), "{refused}");
    answers(&engine, "m").await;
    engine.stop().await;
}

/// Models on demand.
pub(super) const ON_DEMAND: &str = "parameters { key: \"memory.residency\" value { string_value: \"on_demand\" } }";
const PINNED: &str = "parameters { key: \"memory.residency\" value { string_value: \"pinned\" } }";

pub(super) async fn state(engine: &Engine, model: &str) -> (Option<State>, String) {
    let index = engine.index(false).await;
    let entry = index.into_iter().find(|entry| &*entry.key.name == model).expect("it is known");
    (entry.state, entry.reason)
}

#[tokio::test]
async fn a_model_on_demand_is_known_and_loaded_by_its_first_requests_together() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["lazy"], ON_DEMAND);
    let (engine, failed) = engine_with(root.path(), Control::None, |_| {}).await;
    assert!(failed.is_empty() && engine.ready(), "it need not be there");
    assert_eq!(state(&engine, "lazy").await, (Some(State::Unavailable), "on demand: not loaded".to_owned()));
    assert_eq!(engine.find("lazy", None).expect("known").config.inputs.len(), 1, "requests can be decoded");
    assert_eq!(engine.find("lazy", Some(2)).err().expect("there is no version 2").kind(), Kind::NotFound);
    let requests = (0..8).map(|_| beside(&engine, |engine| async move { answers(&engine, "lazy").await }));
    for request in requests.collect::<Vec<_>>() {
        request.await.expect("answered");
    }
    assert_eq!(state(&engine, "lazy").await.0, Some(State::Ready));
    assert_eq!(metric(&engine, "nereid_on_demand_loads_total{result=\"success\"}"), 1.0);
    answers(&engine, "lazy").await;
    let asked = |result| metric(&engine, &format!("nereid_on_demand_requests_total{{result=\"{result}\"}}"));
    assert!(asked("hit") >= 1.0 && asked("miss") >= 1.0);
    assert_eq!(asked("hit") + asked("miss"), 9.0);
    engine.stop().await;
}

#[tokio::test]
async fn a_request_waits_no_longer_than_its_deadline_and_the_load_goes_on() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let config = format!("{}{ON_DEMAND}", identity_config("").replace("\"identity\"", "\"gate\""));
    write_model(root.path(), "lazy", &config, &[1]);
    let gate = Arc::new(Gate::default());
    let (engine, failed) = engine_with(root.path(), Control::None, |settings| gate.join(settings)).await;
    assert!(failed.is_empty());
    let hasty = support::request("lazy");
    let hasty = Request { deadline: Some(hasty.arrived + Duration::from_millis(50)), ..hasty };
    let late = within(infer::only(engine.infer(hasty))).await.expect_err("it is not loaded by then");
    assert_eq!(late.kind(), Kind::DeadlineExceeded);
    drop(engine.infer(support::request("lazy")));
    assert_eq!(metric(&engine, "nereid_unrouted_requests_total{reason=\"cancelled\"}"), 1.0);
    until(|| gate.waiting() == ["lazy"]).await;
    let patient = beside(&engine, |engine| async move { infer::only(engine.infer(support::request("lazy"))).await });
    gate.open();
    within(patient).await.expect("it runs").expect("answered");
    assert_eq!(gate.loads(), 1, "they share one load");
    engine.stop().await;
}

#[tokio::test]
async fn a_load_that_fails_fails_those_who_wait_and_is_tried_again_later() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let config = format!("{}{ON_DEMAND}", identity_config("").replace("\"identity\"", "\"gate\""));
    write_model(root.path(), "lazy", &config, &[1]);
    let gate = Arc::new(Gate::default());
    let (engine, _) = engine_with(root.path(), Control::None, |settings| gate.join(settings)).await;
    let ask = || beside(&engine, |engine| async move { infer::only(engine.infer(support::request("lazy"))).await });
    let requests: Vec<_> = (0..3).map(|_| ask()).collect();
    until(|| metric(&engine, "nereid_requests_in_flight") == 3.0 && gate.waiting() == ["lazy"]).await;
    gate.fail(1);
    gate.open();
    for request in requests {
        let failed = within(request).await.expect("it runs").expect_err("broken");
        assert!(failed.message().contains("the gate said no"), "{failed}");
    }
    assert_eq!(gate.loads(), 1, "they share one load");
    assert!(engine.ready(), "what is on demand need not be there");
    within(async { while ask().await.expect("it runs").is_err() {} }).await;
    assert_eq!(gate.loads(), 2);
    engine.stop().await;
}

#[tokio::test]
async fn an_unload_by_name_is_no_eviction() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["lazy"], ON_DEMAND);
    let (engine, _) = engine_with(root.path(), Control::Explicit(None), |_| {}).await;
    engine.load("lazy", Overrides::default()).await.expect("who asks by name gets it at once");
    assert_eq!(state(&engine, "lazy").await.0, Some(State::Ready));
    engine.unload("lazy", false).await.expect("unloaded");
    let refused = within(infer::only(engine.infer(request("lazy")))).await.expect_err("nobody wants it");
    assert_eq!(refused.kind(), Kind::NotFound);
    assert!(engine.find("lazy", None).is_err());
    engine.stop().await;
}

#[tokio::test]
async fn an_idle_model_leaves_for_another_and_comes_back_by_its_next_request() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let names = ["a", "b", "c"];
    write_heavy(root.path(), &names, ON_DEMAND);
    let limit = WEIGHTS + file_bytes(root.path(), "a");
    let engine = engine_within(limit, root.path(), Control::None).await;
    for model in names {
        answers(&engine, model).await;
    }
    assert_eq!(engine.versions_ready("c"), [1]);
    let gone: Vec<&str> = names.into_iter().filter(|name| engine.versions_ready(name).is_empty()).collect();
    assert_eq!((gone.len(), metric(&engine, "nereid_evictions_total")), (1, 1.0));
    assert_eq!(state(&engine, gone[0]).await.1, "evicted: others needed its memory");
    answers(&engine, gone[0]).await;
    assert_eq!(engine.versions_ready(gone[0]), [1]);
    assert!(engine.ready());
    engine.stop().await;
}

#[tokio::test]
async fn what_is_pinned_stays_and_what_is_resident_leaves_for_it_only() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["resident"], "");
    write_heavy(root.path(), &["lazy"], ON_DEMAND);
    write_heavy(root.path(), &["pinned"], PINNED);
    let limit = file_bytes(root.path(), "pinned");
    let control = Control::Explicit(Some(vec!["resident".to_owned(), "lazy".to_owned()]));
    let engine = engine_within(limit, root.path(), control).await;
    let refused = within(infer::only(engine.infer(request("lazy")))).await.expect_err("there is no room");
    assert!(refused.message().contains("'resident' version 1 holds 0.4 MB"), "{refused}");
    engine.load("pinned", Overrides::default()).await.expect("the other one leaves");
    answers(&engine, "pinned").await;
    assert_eq!(state(&engine, "resident").await.1, "evicted: others needed its memory");
    let refused = within(infer::only(engine.infer(request("resident")))).await.expect_err("there is no room");
    assert!(refused.message().contains("'pinned' version 1 holds 0.4 MB"), "{refused}");
    engine.unload("pinned", false).await.expect("unloaded");
    within(async {
        while infer::only(engine.infer(request("resident"))).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    engine.stop().await;
}

/// While one is opened and warmed up, and nobody sees it yet, the other waits for its turn.
#[tokio::test]
async fn models_that_fit_one_at_a_time_are_both_answered_when_asked_at_once() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["a", "b", "c"], ON_DEMAND);
    let engine = engine_within(file_bytes(root.path(), "a"), root.path(), Control::None).await;
    for _ in 0..3 {
        let ask = |model| beside(&engine, move |engine| async move { answers(&engine, model).await });
        for request in [ask("a"), ask("b"), ask("c")] {
            request.await.expect("answered");
        }
    }
    assert_eq!(metric(&engine, "nereid_on_demand_loads_total{result=\"failure\"}"), 0.0);
    engine.stop().await;
}

#[tokio::test]
async fn an_ensemble_on_demand_has_its_member_loaded_and_goes_with_it() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["member", "other"], ON_DEMAND);
    write_ensemble(root.path(), "ensemble", &["member"]);
    let engine = engine_within(file_bytes(root.path(), "member"), root.path(), Control::None).await;
    assert!(engine.ready() && engine.versions_ready("member").is_empty());
    answers(&engine, "ensemble").await;
    assert_eq!(engine.versions_ready("member"), [1]);
    answers(&engine, "other").await;
    assert!(engine.versions_ready("member").is_empty() && engine.versions_ready("ensemble").is_empty());
    assert!(engine.ready(), "both come back");
    // Also while the member finishes its requests.
    answers(&engine, "ensemble").await;
    assert!(engine.versions_ready("other").is_empty());
    engine.stop().await;
}

/// Writes an ensemble on demand of these members, one after the other.
pub(super) fn write_ensemble(root: &Path, name: &str, members: &[&str]) {
    let between = |at: usize| match at {
        0 => "x".to_owned(),
        at if at == members.len() => "y".to_owned(),
        at => format!("t{at}"),
    };
    let step = |(at, member): (usize, &&str)| {
        let (before, after) = (between(at), between(at + 1));
        format!(
            "step {{ model_name: \"{member}\" model_version: -1 \
             input_map {{ key: \"x\" value: \"{before}\" }} output_map {{ key: \"y\" value: \"{after}\" }} }}\n"
        )
    };
    let steps: String = members.iter().enumerate().map(step).collect();
    let config = format!(
        "platform: \"ensemble\" max_batch_size: 4 {ON_DEMAND}\n\
         input {{ name: \"x\" data_type: TYPE_FP32 dims: [1] }}\n\
         output {{ name: \"y\" data_type: TYPE_FP32 dims: [1] }}\n\
         ensemble_scheduling {{ {steps} }}\n"
    );
    write_model(root, name, &config, &[1]);
}

/// Writes the model `hangs`, whose executions are given up soon; those of [`hang`] end when the latch is open.
fn write_hanging(root: &Path) {
    let timeout = "parameters { key: \"execution.timeout_us\" value { string_value: \"50000\" } }";
    write_latched(root, "hangs", &format!("{ON_DEMAND} {timeout}"));
}

/// Has it hang; another instance takes the place of the one that does.
async fn hang(engine: &Engine) {
    let hung = within(infer::only(engine.infer(request_of("hangs", -1.0)))).await.expect_err("it does not end");
    assert!(hung.message().starts_with("the execution did not end within 0.05 s"), "{hung}");
}

/// What an execution that does not end holds stays in the books until it ends; then others have it.
#[tokio::test]
async fn the_memory_of_a_model_that_hangs_is_free_once_its_execution_ends() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["other"], ON_DEMAND);
    write_hanging(root.path());
    let (limit, latch) = (file_bytes(root.path(), "other"), Latch::of(WEIGHTS));
    let settings = |settings: &mut Settings| {
        latch.join(settings);
        settings.memory_limits.insert(Device::Cpu, MemoryLimit::Bytes(limit));
        settings.instances.lost_max = 1;
    };
    let (engine, _) = engine_with(root.path(), Control::None, settings).await;
    answers(&engine, "hangs").await;
    hang(&engine).await;
    let refused = within(infer::only(engine.infer(request("other")))).await.expect_err("nobody knows when it ends");
    assert!(refused.message().ends_with(": 'hangs' version 1 holds 0.4 MB"), "{refused}");
    answers(&engine, "hangs").await;
    assert_eq!(metric(&engine, "nereid_evictions_total"), 0.0, "that would free nothing");
    latch.open();
    within(async { while infer::only(engine.infer(request("other"))).await.is_err() {} }).await;
    assert!(engine.versions_ready("hangs").is_empty(), "it has left");
    assert!(metric(&engine, "nereid_memory_reserved_bytes{device=\"cpu\"}") <= limit as f64);
    answers(&engine, "hangs").await;
    engine.stop().await;
}

#[tokio::test]
async fn a_load_does_not_wait_for_what_a_model_that_is_gone_may_never_give_back() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_heavy(root.path(), &["idle"], ON_DEMAND);
    write_heavy(root.path(), &["other", "another"], "");
    write_hanging(root.path());
    let limit = WEIGHTS + file_bytes(root.path(), "idle");
    let (engine, latch) = engine_with_latch(limit, root.path(), Control::Explicit(Some(Vec::new()))).await;
    let load = |model: &'static str| within(engine.load(model, Overrides::default()));
    for model in ["hangs", "idle"] {
        load(model).await.expect("it fits");
    }
    hang(&engine).await;
    engine.unload("hangs", false).await.expect("unloaded");
    load("other").await.expect("the idle one leaves");
    assert_eq!(metric(&engine, "nereid_evictions_total"), 1.0);
    let refused = load("another").await.expect_err("nobody knows when it ends");
    assert!(refused.message().contains("'hangs' version 1 holds 0.4 MB"), "{refused}");
    latch.open();
    until(|| metric(&engine, "nereid_memory_used_bytes") == WEIGHTS as f64).await;
    load("another").await.expect("it has ended");
    engine.stop().await;
}

/// Many more models than there is room for, asked for by several clients, some models much more often than others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skewed_traffic_to_more_models_than_fit_never_fails_and_never_exceeds_the_limit() {
    const MODELS: u64 = 12;
    const CLIENTS: u64 = 4;
    const REQUESTS: u64 = 20;
    let root = tempfile::tempdir().expect("a temporary directory");
    let names: Vec<String> = (0..MODELS).map(|number| format!("m{number}")).collect();
    write_heavy(root.path(), &names.iter().map(String::as_str).collect::<Vec<_>>(), ON_DEMAND);
    let limit = 5 * WEIGHTS;
    let engine = engine_within(limit, root.path(), Control::None).await;
    let clients = (0..CLIENTS).map(|client| {
        beside(&engine, move |engine| async move {
            let mut chance = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(client + 1);
            for _ in 0..REQUESTS {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                // The product of two numbers is small more often than large.
                let model = (chance % MODELS) * ((chance >> 32) % MODELS) / MODELS;
                answers(&engine, &format!("m{model}")).await;
                let given_out = metric(&engine, "nereid_memory_reserved_bytes");
                assert!(given_out <= limit as f64, "{given_out}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        // Each of its requests is waited for within a time.
        client.await.expect("every request is answered");
    }
    let asked = |result| metric(&engine, &format!("nereid_on_demand_requests_total{{result=\"{result}\"}}"));
    assert!(asked("hit") > 0.0 && asked("miss") > 0.0);
    assert!(asked("hit") + asked("miss") >= (CLIENTS * REQUESTS) as f64);
    assert!(metric(&engine, "nereid_evictions_total") > 0.0);
    assert_eq!(metric(&engine, "nereid_on_demand_loads_total{result=\"failure\"}"), 0.0);
    engine.stop().await;
    assert_eq!(metric(&engine, "nereid_memory_used_bytes"), 0.0);
}
