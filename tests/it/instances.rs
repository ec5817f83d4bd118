//! Instances that hang, that are limited, and that stay on their processors, in an engine with the identity backend.

use std::collections::BTreeMap;
use std::time::Duration;

use nereid::engine::{Amount, Control, Engine, HostPolicy, InstanceSettings, Overrides, Settings, State};
use nereid::error::Kind;
use nereid::infer::{self, Infer as _, Response};

use crate::support::{engine_with, identity_config, metric, request, until, within, write_model};

/// Nothing of these tests lasts so long.
const FOR_EVER: &str = "3600000000";

async fn ask(engine: &Engine, model: &str) -> nereid::error::Result<Response> {
    within(infer::only(engine.infer(request(model)))).await
}

fn parameters(pairs: &[(&str, &str)]) -> String {
    let one = |(key, value): &(&str, &str)| {
        format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n")
    };
    pairs.iter().map(one).collect()
}

fn hanging(more: &str) -> String {
    let parameters = parameters(&[("identity.delay_us", FOR_EVER), ("execution.timeout_us", "50000")]);
    identity_config(&format!("{parameters}{more}"))
}

async fn reason(engine: &Engine, model: &str) -> (State, String) {
    let index = engine.index(false).await;
    let entry = index.into_iter().find(|entry| &*entry.key.name == model).expect("it is listed");
    (entry.state.expect("it was loaded"), entry.reason)
}

#[tokio::test]
async fn a_model_that_never_returns_loses_its_instances_and_then_its_readiness() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "hangs", &hanging(""), &[1]);
    write_model(root.path(), "good", &identity_config(""), &[1]);
    let lost_max = |settings: &mut Settings| settings.instances.lost_max = 2;
    let (engine, failed) = engine_with(root.path(), Control::Explicit(None), lost_max).await;
    assert!(failed.is_empty(), "{failed:?}");
    for lost in 1..=3 {
        let error = ask(&engine, "hangs").await.expect_err("it never returns");
        assert_eq!(error.kind(), Kind::Backend);
        assert!(error.message().starts_with("the execution did not end within 0.05 s"), "{error}");
        assert_eq!(metric(&engine, "nereid_instances_lost_total{model=\"hangs\""), f64::from(lost));
        ask(&engine, "good").await.expect("the others serve on");
    }
    until(|| engine.find("hangs", Some(1)).is_err()).await;
    let (state, reason) = reason(&engine, "hangs").await;
    assert_eq!(state, State::Unavailable);
    assert!(reason.starts_with("3 instances were given up because the execution did not end"), "{reason}");
    assert_eq!(ask(&engine, "hangs").await.expect_err("nobody serves").kind(), Kind::NotFound);
    assert!(!engine.ready());
    assert_eq!(metric(&engine, "nereid_instances{model=\"hangs\""), 0.0);
    assert_eq!(metric(&engine, "nereid_request_failures_total{model=\"hangs\""), 3.0, "each counts once");

    write_model(root.path(), "hangs", &identity_config(""), &[1]);
    engine.load("hangs", Overrides::default()).await.expect("it loads again");
    ask(&engine, "hangs").await.expect("and serves");
    within(engine.stop()).await;
}

#[tokio::test]
async fn unloading_does_not_wait_for_a_lost_instance() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &hanging("instance_group { count: 2 kind: KIND_CPU }"), &[1]);
    let (engine, _) =
        engine_with(root.path(), Control::Explicit(None), |settings| settings.instances.lost_max = 1).await;
    ask(&engine, "m").await.expect_err("it never returns");
    let waits = infer::only(engine.infer(request("m")));
    engine.unload("m", false).await.expect("unloads");
    assert_eq!(within(waits).await.expect_err("it hangs, too").kind(), Kind::Backend);
    within(async {
        while reason(&engine, "m").await.1 != "unloaded" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(engine.stop()).await;
}

#[tokio::test]
async fn an_execution_within_its_time_is_left_alone() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let config = parameters(&[("identity.delay_us", "20000"), ("execution.timeout_us", "0")]);
    write_model(root.path(), "any", &identity_config(&config), &[1]);
    write_model(root.path(), "most", &identity_config(&parameters(&[("identity.delay_us", "20000")])), &[1]);
    let bounded = |settings: &mut Settings| settings.instances.execution_time_max = Some(Duration::from_millis(1));
    let (engine, _) = engine_with(root.path(), Control::None, bounded).await;
    ask(&engine, "any").await.expect("the model says that it may take any time");
    let error = ask(&engine, "most").await.expect_err("the server's setting holds");
    assert_eq!(error.kind(), Kind::Backend);
    within(engine.stop()).await;
}

fn limited(resources: &str, more: &str) -> String {
    identity_config(&format!("instance_group {{ count: 2 kind: KIND_CPU rate_limiter {{ {resources} }} }}\n{more}"))
}

#[tokio::test]
async fn models_that_share_a_resource_take_turns() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let slow = parameters(&[("identity.delay_us", "30000")]);
    for name in ["a", "b"] {
        let config = limited("resources [ { name: \"R\" count: 1 } ]", &format!("max_batch_size: 1\n{slow}"));
        write_model(root.path(), name, &config, &[1]);
    }
    let on = |settings: &mut Settings| settings.instances.rate_limits = Some(Vec::new());
    let (engine, failed) = engine_with(root.path(), Control::None, on).await;
    assert!(failed.is_empty(), "{failed:?}");
    let began = infer::Instant::now();
    let asked = ["a", "b", "a", "b"].map(|model| infer::only(engine.infer(request(model))));
    let answers = within(futures_util::future::join_all(asked)).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(began.elapsed() >= 4 * Duration::from_millis(30), "one after the other: {:?}", began.elapsed());
    assert_eq!(metric(&engine, "nereid_rate_limiter_resources{"), 1.0);
    until(|| metric(&engine, "nereid_rate_limiter_resources_used{") == 0.0).await;
    assert!(metric(&engine, "nereid_instance_busy_us_total{") >= 4.0 * 30_000.0);
    within(engine.stop()).await;
}

#[tokio::test]
async fn who_waits_for_a_resource_is_answered_in_time_all_the_same() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let resource = "resources [ { name: \"R\" global: true count: 1 } ]";
    let holds = limited(resource, &parameters(&[("identity.delay_us", "400000")]));
    write_model(root.path(), "holds", &holds, &[1]);
    write_model(root.path(), "waits", &limited(resource, ""), &[1]);
    let on = |settings: &mut Settings| settings.instances.rate_limits = Some(Vec::new());
    let (engine, _) = engine_with(root.path(), Control::None, on).await;
    let running = tokio::spawn(infer::only(engine.infer(request("holds"))));
    until(|| metric(&engine, "nereid_rate_limiter_resources_used{") == 1.0).await;
    let began = infer::Instant::now();
    let mut late = request("waits");
    late.deadline = Some(infer::Instant::now() + Duration::from_millis(50));
    let error = within(infer::only(engine.infer(late))).await.expect_err("the resource is held");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_millis(350), "{:?}", began.elapsed());
    assert_eq!(metric(&engine, "nv_inference_exec_count{model=\"waits\""), 0.0);
    running.await.expect("no panic").expect("answered");
    ask(&engine, "waits").await.expect("it is free now");
    within(engine.stop()).await;
}

#[tokio::test]
async fn a_model_that_asks_for_more_than_there_is_does_not_load() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_model(root.path(), "m", &limited("resources [ { name: \"R\" count: 5 } ]", ""), &[1]);
    write_model(root.path(), "g", &limited("resources [ { name: \"S\" global: true count: 1 } ]", ""), &[1]);
    write_model(root.path(), "h", &limited("resources [ { name: \"S\" count: 1 } ]", ""), &[1]);
    let amounts = vec![Amount { name: "r".to_owned(), count: 4, device: None }];
    let on = |settings: &mut Settings| {
        settings.facts.rate_limits = Some(amounts.clone());
        settings.instances.rate_limits = Some(amounts);
        settings.load_threads = 1;
    };
    let (engine, failed) = engine_with(root.path(), Control::None, on).await;
    let failed: BTreeMap<String, String> = failed.into_iter().map(|(name, error)| (name, error.to_string())).collect();
    let place = "config.pbtxt:3:81: instance_group[0].rate_limiter.resources[0].count: Resource count for \"R\" is \
                 limited to 4 (cpu) which will prevent scheduling";
    assert!(failed["m"].contains(place), "{failed:?}");
    let both = ["g", "h"].iter().filter_map(|name| failed.get(*name)).collect::<Vec<_>>();
    assert!(both.len() == 1 && both[0].contains("both global and device-specific"), "{failed:?}");
    within(engine.stop()).await;
}

/// The processors that threads with this name may use, as the kernel lists them.
fn allowed(thread: &str) -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux has it").flatten();
    let own = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        (name.trim() == thread).then_some(())?;
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:").map(|list| list.trim().to_owned()))
    });
    own.collect()
}

#[tokio::test]
async fn instances_stay_on_the_processors_of_their_host_policy() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let groups = "instance_group [ { name: \"own\" kind: KIND_CPU host_policy: \"one\" }, { kind: KIND_CPU } ]";
    write_model(root.path(), "pinned-it", &identity_config(groups), &[1]);
    let last = nereid::engine::parse_cores(&allowed_here()).expect("the kernel's form").pop().expect("there is one");
    let policy = HostPolicy { numa_node: None, cpu_cores: vec![last] };
    let policies = |settings: &mut Settings| {
        settings.instances =
            InstanceSettings { host_policies: BTreeMap::from([("one".to_owned(), policy)]), ..Default::default() };
    };
    let (engine, failed) = engine_with(root.path(), Control::None, policies).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(allowed("pinned-it/1/0"), [last.to_string()]);
    assert_eq!(allowed("pinned-it/1/1"), [allowed_here()], "without a policy anywhere");
    ask(&engine, "pinned-it").await.expect("answered");
    within(engine.stop()).await;
}

fn allowed_here() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("Linux has it");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("it is there");
    list.trim().to_owned()
}

#[tokio::test]
async fn a_passive_group_never_runs() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let groups =
        "instance_group [ { name: \"p\" count: 3 kind: KIND_CPU passive: true }, { count: 2 kind: KIND_CPU } ]";
    write_model(root.path(), "m", &identity_config(groups), &[1]);
    let (engine, _) = engine_with(root.path(), Control::None, |_| {}).await;
    assert_eq!(metric(&engine, "nereid_instances{model=\"m\""), 2.0);
    ask(&engine, "m").await.expect("answered");
    within(engine.stop()).await;
}

#[tokio::test]
async fn other_instance_counts_are_taken_in_place() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let group = |count: usize| identity_config(&format!("instance_group {{ count: {count} kind: KIND_CPU }}"));
    write_model(root.path(), "m", &group(1), &[1]);
    let (engine, _) = engine_with(root.path(), Control::Explicit(None), |_| {}).await;
    ask(&engine, "m").await.expect("answered");
    for (count, answered) in [(3, 1), (1, 2)] {
        write_model(root.path(), "m", &group(count), &[1]);
        engine.load("m", Overrides::default()).await.expect("loads");
        let handle = engine.find("m", None).expect("served");
        assert_eq!(handle.config.instances[0].count, count);
        assert_eq!(handle.stats.snapshot().success.count, answered, "the version is the same, its statistics go on");
        assert_eq!(metric(&engine, "nereid_instances{model=\"m\""), count as f64);
        ask(&engine, "m").await.expect("answered");
    }
    assert_eq!(metric(&engine, "nereid_model_loads_total{result=\"success\"}"), 1.0, "opened once");
    within(engine.stop()).await;
}
