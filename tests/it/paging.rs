//! Models that leave with their weights in a cheaper place, and come back from there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nereid::backend::libtorch::script::Script;
use nereid::engine::{Control, Device, Engine, MemoryLimit, Overrides, Settings, SpillSettings, State};
use nereid::error::Kind;
use nereid::infer::{self, Infer as _, Request};
use nereid::tensor::{DataType, NamedTensor, Shape, Tensor};

use crate::support::{beside, engine_with, metric, until, within, write_model};

/// The dimensions of a model's two weights, and the bytes of both.
const OUTER: usize = 64;
const INNER: usize = 10_000;
const WEIGHTS: u64 = (2 * OUTER * INNER * 4) as u64;
/// Beside two models there is room for what stays of those that are out, and not for a third.
const LIMIT: u64 = WEIGHTS * 29 / 10;

const PAGED_OUT: &str = "paged out: others needed its memory";
const EVICTED: &str = "evicted: others needed its memory";

/// Writes a model on demand that multiplies with weights of its own.
fn write(root: &Path, name: &str, seed: usize) {
    let weight = |rows: usize, columns: usize| {
        let number = |at: usize| (((at + seed) * 7919 % 1009) as f32 - 504.0) / 100_000.0;
        let bytes: Vec<u8> = (0..rows * columns).flat_map(|at| number(at).to_le_bytes()).collect();
        Tensor::new(DataType::Fp32, Shape::new(&[rows as i64, columns as i64]), bytes.into())
    };
    let source = "def forward(self, x):\n    return torch.tanh(torch.matmul(torch.matmul(x, self.up), self.down))\n";
    let script = Script::new(source).parameter("up", weight(OUTER, INNER)).buffer("down", weight(INNER, OUTER));
    let config = format!(
        "backend: \"pytorch\" max_batch_size: 4\n\
         parameters {{ key: \"memory.residency\" value {{ string_value: \"on_demand\" }} }}\n\
         parameters {{ key: \"torch.optimize\" value {{ string_value: \"off\" }} }}\n\
         input {{ name: \"x\" data_type: TYPE_FP32 dims: [{OUTER}] }}\n\
         output {{ name: \"y\" data_type: TYPE_FP32 dims: [{OUTER}] }}\n"
    );
    write_model(root, name, &config, &[1]);
    script.save(&root.join(name).join("1/model.pt")).expect("the script compiles");
}

fn request(model: &str) -> Request {
    let bytes: Vec<u8> = (0..OUTER).flat_map(|at| (at as f32 / 10.0).to_le_bytes()).collect();
    let tensor = Tensor::new(DataType::Fp32, Shape::new(&[1, OUTER as i64]), bytes.into());
    let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
    Request { inputs, ..Request::new(model, infer::Instant::now()) }
}

async fn answer(engine: &Engine, model: &str) -> Bytes {
    let response = within(infer::only(engine.infer(request(model)))).await.expect("answered");
    response.outputs[0].tensor.data.clone()
}

/// A repository of models, a directory for their weights, and an engine with room for two of them.
struct Bench {
    root: tempfile::TempDir,
    spill: tempfile::TempDir,
    engine: Arc<Engine>,
}

impl Bench {
    async fn new(models: &[&str], control: Control, spill_bytes: u64) -> Self {
        let (root, spill) = (tempfile::tempdir().expect("there is room"), tempfile::tempdir().expect("there is room"));
        for (seed, model) in models.iter().enumerate() {
            write(root.path(), model, seed);
        }
        // What libtorch keeps for itself from the first load on is not to be taken for a part of a model of the test.
        let (first, _) = engine_with(root.path(), Control::None, |_| {}).await;
        answer(&first, models[0]).await;
        first.stop().await;
        let directory = spill.path().to_owned();
        let settings = |settings: &mut Settings| {
            settings.memory_limits.insert(Device::Cpu, MemoryLimit::Bytes(LIMIT));
            settings.spill = Some(SpillSettings { directory, bytes_max: spill_bytes });
        };
        let (engine, failed) = engine_with(root.path(), control, settings).await;
        assert!(failed.is_empty(), "{failed:?}");
        Self { root, spill, engine }
    }

    async fn answer(&self, model: &str) -> Bytes {
        answer(&self.engine, model).await
    }

    fn metric(&self, start: &str) -> f64 {
        metric(&self.engine, start)
    }

    fn paged(&self, direction: &str) -> f64 {
        self.metric(&format!("nereid_page_seconds_count{{direction=\"{direction}\"}}"))
    }

    async fn reason(&self, model: &str) -> (Option<State>, String) {
        let index = self.engine.index(false).await;
        let entry = index.into_iter().find(|entry| &*entry.key.name == model).expect("it is known");
        (entry.state, entry.reason)
    }

    /// Asks for this model and two others, so that it leaves; waits until it is out.
    async fn page_out(&self, model: &str, others: [&str; 2]) -> Bytes {
        let first = self.answer(model).await;
        // Whichever of the others goes first: the longer this one is not used, the less it is worth.
        within(async {
            while self.reason(model).await.1 != PAGED_OUT {
                for other in others {
                    self.answer(other).await;
                }
            }
        })
        .await;
        first
    }

    async fn end(self) {
        self.engine.stop().await;
        assert_eq!(self.metric("nereid_memory_used_bytes"), 0.0);
        assert_eq!((self.metric("nereid_spill_bytes"), self.metric("nereid_paged_models")), (0.0, 0.0));
        assert_eq!(std::fs::read_dir(self.spill.path()).map_or(0, Iterator::count), 0);
    }
}

#[tokio::test]
async fn a_model_comes_back_with_the_same_answers_to_the_bit_and_is_not_loaded_for_that() {
    let models = ["a", "b", "c", "d"];
    let bench = Bench::new(&models, Control::None, 10 * WEIGHTS).await;
    let mut first = Vec::new();
    for model in models {
        first.push(bench.answer(model).await);
    }
    assert!(first.iter().all(|answer| first.iter().filter(|other| *other == answer).count() == 1), "they differ");
    for _ in 0..3 {
        for (model, first) in models.iter().zip(&first) {
            assert_eq!(bench.answer(model).await, first, "{model}");
        }
    }
    assert_eq!(bench.metric("nereid_page_failures_total"), 0.0);
    // After the first four, all that was not there came back from where it was paged out.
    let loads = bench.metric("nereid_on_demand_loads_total{result=\"success\"}");
    assert_eq!(bench.paged("in"), loads - 4.0);
    assert!(bench.paged("in") >= 3.0, "{}", bench.paged("in"));
    assert!(bench.metric("nereid_memory_used_bytes") <= LIMIT as f64);
    bench.end().await;
}

#[tokio::test]
async fn index_and_metrics_say_where_a_model_is() {
    let bench = Bench::new(&["a", "b", "c"], Control::None, 10 * WEIGHTS).await;
    let first = bench.page_out("a", ["b", "c"]).await;
    assert_eq!(bench.reason("a").await, (Some(State::Unavailable), PAGED_OUT.to_owned()));
    assert!(bench.engine.ready(), "it takes requests");
    assert_eq!((bench.metric("nereid_paged_models"), bench.metric("nereid_spill_bytes")), (1.0, WEIGHTS as f64));
    let stays = bench.metric("nereid_model_memory_bytes{model=\"a\"");
    assert!(stays > 0.0 && stays < WEIGHTS as f64 / 4.0, "{stays}");
    assert_eq!(bench.answer("a").await, first);
    assert_eq!(bench.metric("nereid_model_memory_bytes{model=\"a\""), WEIGHTS as f64);
    assert_eq!(bench.reason("a").await.0, Some(State::Ready));
    // The files of those that came back are used again: no model has two.
    for _ in 0..2 {
        bench.page_out("a", ["b", "c"]).await;
        assert!(bench.metric("nereid_spill_bytes") <= 3.0 * WEIGHTS as f64);
        assert_eq!(bench.answer("a").await, first);
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_get_the_right_answers_while_models_come_and_go() {
    const MODELS: [&str; 5] = ["a", "b", "c", "d", "e"];
    let bench = Bench::new(&MODELS, Control::None, 10 * WEIGHTS).await;
    let mut expected = BTreeMap::new();
    for model in MODELS {
        expected.insert(model, bench.answer(model).await);
    }
    let expected = Arc::new(expected);
    let clients = (0..4_usize).map(|client| {
        let expected = expected.clone();
        beside(&bench.engine, move |engine| async move {
            for turn in 0..15 {
                let model = MODELS[(turn * (client + 1) + client) % MODELS.len()];
                if turn % 4 == 3 {
                    // Who goes away while the model comes back disturbs nobody.
                    drop(engine.infer(request(model)));
                }
                assert_eq!(answer(&engine, model).await, expected[model], "{model}");
                let given_out = metric(&engine, "nereid_memory_reserved_bytes");
                assert!(given_out <= LIMIT as f64, "{given_out}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("every request is answered");
    }
    assert!(bench.paged("in") > 0.0);
    assert_eq!(bench.metric("nereid_page_failures_total"), 0.0);
    assert_eq!(bench.metric("nereid_on_demand_loads_total{result=\"failure\"}"), 0.0);
    bench.end().await;
}

#[tokio::test]
async fn whoever_waits_for_a_model_and_gives_up_does_not_stop_it_from_coming_back() {
    let bench = Bench::new(&["a", "b", "c"], Control::None, 10 * WEIGHTS).await;
    let first = bench.page_out("a", ["b", "c"]).await;
    let request = request("a");
    let hasty = Request { deadline: Some(request.arrived), ..request };
    let late = within(infer::only(bench.engine.infer(hasty))).await.expect_err("it is out");
    assert_eq!(late.kind(), Kind::DeadlineExceeded);
    until(|| bench.engine.versions_ready("a") == [1]).await;
    assert_eq!((bench.answer("a").await, bench.paged("in")), (first, 1.0));
    bench.end().await;
}

#[tokio::test]
async fn an_unload_leaves_nothing_of_a_model_that_is_out() {
    let bench = Bench::new(&["a", "b", "c"], Control::Explicit(None), 10 * WEIGHTS).await;
    bench.page_out("a", ["b", "c"]).await;
    bench.engine.unload("a", false).await.expect("unloaded");
    until(|| bench.metric("nereid_spill_bytes") == 0.0 && bench.metric("nereid_paged_models") == 0.0).await;
    until(|| bench.metric("nereid_model_memory_bytes{model=\"a\"") == 0.0).await;
    let refused = within(infer::only(bench.engine.infer(request("a")))).await.expect_err("nobody wants it");
    assert_eq!(refused.kind(), Kind::NotFound);
    bench.end().await;
}

#[tokio::test]
async fn a_reload_brings_back_what_is_out_unless_its_files_have_changed() {
    let bench = Bench::new(&["a", "b", "c"], Control::Explicit(None), 10 * WEIGHTS).await;
    let first = bench.page_out("a", ["b", "c"]).await;
    bench.engine.load("a", Overrides::default()).await.expect("it fits");
    assert_eq!((bench.paged("in"), bench.answer("a").await), (1.0, first.clone()));
    bench.page_out("a", ["b", "c"]).await;
    let paged_in = bench.paged("in");
    write(bench.root.path(), "a", 99);
    let changed = bench.answer("a").await;
    assert_ne!(changed, first);
    assert_eq!(bench.paged("in"), paged_in, "the new file is read");
    bench.page_out("a", ["b", "c"]).await;
    assert_eq!(bench.answer("a").await, changed);
    bench.end().await;
}

#[tokio::test]
async fn where_weights_have_no_place_models_are_evicted_as_ever() {
    for is_gone in [false, true] {
        let bench = Bench::new(&["a", "b", "c"], Control::None, if is_gone { 10 * WEIGHTS } else { WEIGHTS - 1 }).await;
        if is_gone {
            std::fs::remove_dir(bench.spill.path()).expect("it is empty");
        }
        let first = bench.answer("a").await;
        bench.answer("b").await;
        bench.answer("c").await;
        assert_eq!(bench.reason("a").await, (Some(State::Unavailable), EVICTED.to_owned()));
        assert_eq!(bench.answer("a").await, first);
        assert!(bench.metric("nereid_page_failures_total") >= 1.0);
        assert_eq!((bench.paged("in"), bench.paged("out")), (0.0, 0.0));
        bench.end().await;
    }
}

#[tokio::test]
async fn what_was_not_used_for_longest_goes_when_the_place_is_full() {
    let models = ["a", "b", "c", "d"];
    let bench = Bench::new(&models, Control::None, WEIGHTS).await;
    let mut first = Vec::new();
    for model in models {
        first.push(bench.answer(model).await);
    }
    until(|| bench.paged("out") >= 2.0).await;
    assert_eq!((bench.metric("nereid_paged_models"), bench.metric("nereid_spill_bytes")), (1.0, WEIGHTS as f64));
    assert_eq!((bench.reason("a").await.1, bench.reason("b").await.1), (EVICTED.to_owned(), PAGED_OUT.to_owned()));
    for (model, first) in models.iter().zip(&first) {
        assert_eq!(bench.answer(model).await, first, "{model}");
    }
    bench.end().await;
}
