//! The memory that models share: what fits is loaded, what does not says why, and what is unloaded is given back.

use std::path::Path;
use std::sync::Arc;

use nereid::backend::libtorch::script::Script;
use nereid::engine::{Control, Device, Engine, MemoryLimit, Overrides, Settings};
use nereid::error::Kind;
use nereid::infer::{self, Infer as _, Request};
use nereid::tensor::{DataType, NamedTensor, Shape, Tensor};

use crate::support::{engine_with, metric, until, within, write_model};

/// The numbers of a model's weights, and their bytes.
const NUMBERS: usize = 100_000;
const WEIGHTS: u64 = 4 * NUMBERS as u64;

/// Writes TorchScript models that add to `x` the sum of as many weights, all of which are zero.
fn write_heavy(root: &Path, names: &[&str], more: &str) {
    let shape = Shape::new(&[NUMBERS as i64]);
    let weight = Tensor::new(DataType::Fp32, shape, vec![0; WEIGHTS as usize].into());
    let script = Script::new("def forward(self, x):\n    return x + self.weight.sum()\n").parameter("weight", weight);
    for name in names {
        let config = format!(
            "backend: \"pytorch\" max_batch_size: 4 {more}\n\
             input {{ name: \"x\" data_type: TYPE_FP32 dims: [1] }}\n\
             output {{ name: \"y\" data_type: TYPE_FP32 dims: [1] }}\n"
        );
        write_model(root, name, &config, &[1]);
        script.save(&root.join(name).join("1/model.pt")).expect("the script compiles");
    }
}

/// The size of a model's file, which is what a load reserves.
fn file_bytes(root: &Path, name: &str) -> u64 {
    std::fs::metadata(root.join(name).join("1/model.pt")).expect("it was written").len()
}

async fn engine_within(bytes: u64, root: &Path, control: Control) -> Arc<Engine> {
    let limit = |settings: &mut Settings| _ = settings.memory_limits.insert(Device::Cpu, MemoryLimit::Bytes(bytes));
    engine_with(root, control, limit).await.0
}

fn request(model: &str) -> Request {
    let tensor = Tensor::new(DataType::Fp32, Shape::new(&[1, 1]), 1.5_f32.to_le_bytes().to_vec().into());
    let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
    Request { inputs, ..Request::new(model, infer::Instant::now()) }
}

async fn answers(engine: &Engine, model: &str) {
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
    until(|| metric(&engine, "nereid_memory_used_bytes{device=\"cpu\"}") == 0.0).await;
    assert_eq!(metric(&engine, "nereid_memory_reserved_bytes"), 0.0);
    assert_eq!(metric(&engine, "nereid_model_memory_bytes"), 0.0);
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
