//! The processor's instructions that libtorch uses, each choice in a process of its own, because a process loads libtorch
//! once.

use std::path::Path;

use nereid::backend::libtorch::script::Script;
use nereid::protocol::v2::wire::ModelInferRequest;
use nereid::protocol::v2::wire::grpc_inference_service_client::GrpcInferenceServiceClient;
use nereid::protocol::v2::wire::model_infer_request::InferInputTensor;

use crate::process::Process;

const ROWS: usize = 64;
const COLUMNS: usize = 256;
const CONFIG: &str = "backend: \"pytorch\"\n\
    input { name: \"x\" data_type: TYPE_FP32 dims: [ 64, 256 ] }\n\
    output { name: \"y\" data_type: TYPE_FP32 dims: [ 64, 64 ] }\n";

/// What a server with these flags answers for a model whose `forward` returns `expression` of `x`, and whether the server
/// has the library loaded that asks for MKL's fast path.
async fn product(expression: &str, flags: &[&str]) -> (Vec<f32>, bool) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let model = root.path().join("m");
    save(&model, expression);
    let server = Process::start(root.path(), flags);
    let address = format!("http://{}", server.address("grpc"));
    let mut client = GrpcInferenceServiceClient::connect(address).await.expect("the server listens");
    let number = |index: usize| ((index * 37 % 101) as f32 - 50.0) / 64.0;
    let data: Vec<u8> = (0..ROWS * COLUMNS).flat_map(|index| number(index).to_le_bytes()).collect();
    let input = InferInputTensor {
        name: "x".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![ROWS as i64, COLUMNS as i64],
        ..InferInputTensor::default()
    };
    let request = ModelInferRequest {
        model_name: "m".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![data.into()],
        ..ModelInferRequest::default()
    };
    let response = client.model_infer(request).await.expect("answered").into_inner();
    let numbers = response.raw_output_contents[0].as_chunks::<4>().0.iter().map(|each| f32::from_le_bytes(*each));
    let loaded = server.mapped().contains("nereid-mkl");
    drop(client);
    server.stop();
    (numbers.collect(), loaded)
}

fn save(model: &Path, expression: &str) {
    std::fs::create_dir_all(model.join("1")).expect("the folder is writable");
    std::fs::write(model.join("config.pbtxt"), CONFIG).expect("the folder is writable");
    let script = Script::new(format!("def forward(self, x):\n    return {expression}\n"));
    script.save(&model.join("1/model.pt")).expect("the script compiles");
}

/// Asserts that no number differs by more than `tolerance` of the largest.
fn assert_near(expected: &[f32], numbers: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
    assert!(expected.len() == ROWS * ROWS && numbers.len() == ROWS * ROWS && scale > 1.0);
    for (expected, number) in expected.iter().zip(numbers) {
        assert!((expected - number).abs() <= tolerance * scale, "{expected} {number} of {scale}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mkls_fast_path_is_taken_where_it_is_asked_for_and_gives_equal_numbers() {
    let (usual, loaded) = product("torch.matmul(x, x.t())", &[]).await;
    assert!(!loaded);
    let (fast, loaded) = product("torch.matmul(x, x.t())", &["--mkl-fast-path"]).await;
    assert!(loaded);
    assert_near(&usual, &fast, 1e-6);
}

/// Types by the numbers that TorchScript has for them.
const FP32: u8 = 6;
const BF16: u8 = 15;

/// A virtual machine may have AMX and hide how large its tiles are.
#[tokio::test(flavor = "multi_thread")]
async fn matrices_of_bf16_are_multiplied_whatever_the_processor_says_of_itself() {
    let (exact, _) = product("torch.matmul(x, x.t())", &[]).await;
    let (short, _) = product(&format!("torch.matmul(x.to({BF16}), x.t().to({BF16})).to({FP32})"), &[]).await;
    assert_near(&exact, &short, 1e-2);
}
