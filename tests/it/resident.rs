//! Tensors that stay where TorchScript models compute them: through an engine, from one model to others.

use std::path::Path;

use nereid::backend::libtorch::script::Script;
use nereid::engine::{CacheSettings, Control, Engine, Overrides, Settings};
use nereid::error::Result;
use nereid::infer::{self, CorrelationId, Infer as _, Request, RequestedOutput, Response, Sequence};
use nereid::tensor::{DataType, NamedTensor, Shape, Tensor};

use crate::support::{engine_with, identity, metric, until, within, write_model};

/// A TorchScript model of rows of two numbers, with these inputs and outputs.
fn write_script(root: &Path, name: &str, source: &str, (inputs, outputs): (&[&str], &[&str]), more: &str) {
    let mut config = format!("backend: \"pytorch\" max_batch_size: 4 {more}\n");
    for (field, names) in [("input", inputs), ("output", outputs)] {
        for name in names {
            config += &format!("{field} {{ name: \"{name}\" data_type: TYPE_FP32 dims: [2] }}\n");
        }
    }
    write_model(root, name, &config, &[1]);
    Script::new(source).save(&root.join(name).join("1/model.pt")).expect("the script compiles");
}

/// `x` is doubled to `y` and one more to `z`; `y` is passed on to a TorchScript model, `z` to another kind of model.
const FAN: &str = r#"
platform: "ensemble" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [2] }
output { name: "turned" data_type: TYPE_FP32 dims: [2] }
output { name: "mirrored" data_type: TYPE_FP32 dims: [2] }
ensemble_scheduling {
  step {
    model_name: "split" model_version: -1 input_map { key: "x" value: "x" }
    output_map { key: "y" value: "y" } output_map { key: "z" value: "z" }
  }
  step {
    model_name: "turn" model_version: -1 input_map { key: "y" value: "y" } output_map { key: "t" value: "turned" }
  }
  step {
    model_name: "mirror" model_version: -1
    input_map { key: "INPUT0" value: "z" } output_map { key: "OUTPUT0" value: "mirrored" }
  }
}
"#;

fn write_models(root: &Path) {
    write_script(root, "split", "def forward(self, x):\n    return x * 2, x + 1\n", (&["x"], &["y", "z"]), "");
    write_script(root, "turn", "def forward(self, y):\n    return y.flip(1)\n", (&["y"], &["t"]), "");
    let cached = "response_cache { enable: true }";
    write_script(root, "cached", "def forward(self, y):\n    return y.flip(1)\n", (&["y"], &["t"]), cached);
    let state =
        "sequence_batching { state { input_name: \"total\" output_name: \"next\" data_type: TYPE_FP32 dims: [2] } }";
    let sums = "def forward(self, x, total):\n    sum = x + total\n    return sum * 1, sum\n";
    write_script(root, "sums", sums, (&["x"], &["sum"]), state);
    write_model(root, "mirror", &identity("max_batch_size: 4", &[("FP32", "2")]), &[1]);
    write_model(root, "fan", FAN, &[1]);
}

async fn engine(root: &Path) -> std::sync::Arc<Engine> {
    let cache = |settings: &mut Settings| settings.cache = Some(CacheSettings { bytes_max: 1 << 20, ttl: None });
    let (engine, failed) = engine_with(root, Control::Explicit(None), cache).await;
    assert!(failed.is_empty(), "{failed:?}");
    engine
}

fn floats(numbers: [f32; 2]) -> Tensor {
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Tensor::new(DataType::Fp32, Shape::new(&[1, 2]), data.into())
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    assert!(tensor.is_on_host());
    tensor.data.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn request(model: &str, input: &str, tensor: Tensor) -> Request {
    let inputs = vec![NamedTensor { name: input.to_owned(), tensor }];
    Request { inputs, ..Request::new(model, infer::Instant::now()) }
}

async fn ask(engine: &Engine, request: Request) -> Result<Response> {
    within(infer::only(engine.infer(request))).await
}

async fn outputs(engine: &Engine, request: Request) -> Vec<Vec<f32>> {
    let response = ask(engine, request).await.expect("it is answered");
    response.outputs.iter().map(|output| numbers(&output.tensor)).collect()
}

#[tokio::test]
async fn an_ensemble_gives_the_same_wherever_its_tensors_are() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_models(root.path());
    let engine = engine(root.path()).await;
    let all = (0..20u8).map(|first| {
        let x = f32::from(first);
        let engine = &engine;
        async move { (x, outputs(engine, request("fan", "x", floats([x, 0.5]))).await) }
    });
    for (x, outputs) in futures_util::future::join_all(all).await {
        assert_eq!(outputs, [[1.0, x * 2.0], [x + 1.0, 1.5]]);
    }
}

#[tokio::test]
async fn whoever_takes_a_tensor_that_stayed_elsewhere_can_read_it() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_models(root.path());
    let engine = engine(root.path()).await;
    let wanted = |name: &str, keep| RequestedOutput { name: name.to_owned(), classification: 0, keep };
    let split = request("split", "x", floats([1.0, 2.0]));
    let split = Request { outputs: vec![wanted("z", false), wanted("y", true)], ..split };
    let response = ask(&engine, split).await.expect("it is answered");
    assert_eq!(numbers(&response.outputs[0].tensor), [2.0, 3.0]);
    let kept = &response.outputs[1].tensor;
    assert!(!kept.is_on_host() && kept.bytes() == 8);

    assert_eq!(outputs(&engine, request("turn", "y", kept.clone())).await, [[4.0, 2.0]]);
    assert_eq!(outputs(&engine, request("mirror", "INPUT0", kept.clone())).await, [[2.0, 4.0]]);
    assert_eq!(outputs(&engine, request("fan", "x", kept.clone())).await, [[8.0, 4.0], [3.0, 5.0]]);
    for first in [1.0, 2.0] {
        // Two tensors without bytes on the host are not the same to the response cache.
        let split = Request { outputs: vec![wanted("y", true)], ..request("split", "x", floats([first, 0.0])) };
        let kept = ask(&engine, split).await.expect("it is answered").outputs[0].tensor.clone();
        assert_eq!(outputs(&engine, request("cached", "y", kept)).await, [[0.0, first * 2.0]]);
    }
    let short = Tensor { shape: Shape::new(&[2, 2]), ..kept.clone() };
    let error = ask(&engine, request("turn", "y", short)).await.expect_err("it is too small");
    assert!(error.message().contains("Expected 16, got 8"), "{error}");
}

#[tokio::test]
async fn states_are_counted_and_end_with_the_version_that_has_them() {
    let root = tempfile::tempdir().expect("a temporary directory");
    write_models(root.path());
    let engine = engine(root.path()).await;
    let add = |start| {
        let sequence = Some(Sequence { id: CorrelationId::Number(7), start, end: false });
        Request { sequence, ..request("sums", "x", floats([1.0, 2.0])) }
    };
    let bytes = || metric(&engine, "nereid_sequence_state_bytes{model=\"sums\"");
    assert_eq!(outputs(&engine, add(true)).await, [[1.0, 2.0]]);
    assert_eq!(outputs(&engine, add(false)).await, [[2.0, 4.0]]);
    assert_eq!(bytes(), 8.0);
    let config = std::fs::read_to_string(root.path().join("sums/config.pbtxt")).expect("written above");
    let other = config.replace("max_batch_size: 4", "max_batch_size: 2");
    std::fs::write(root.path().join("sums/config.pbtxt"), other).expect("the file is writable");
    engine.load("sums", Overrides::default()).await.expect("it loads again");
    let error = ask(&engine, add(false)).await.expect_err("the new version has no such sequence");
    assert!(error.message().contains("must specify the START flag"), "{error}");
    until(|| bytes() == 0.0).await;
    assert_eq!(outputs(&engine, add(true)).await, [[1.0, 2.0]]);
}
