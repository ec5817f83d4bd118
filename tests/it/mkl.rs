//! Libtorch with and without MKL's fast path, each in a process of its own, because a process loads libtorch once.

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

/// What a server with these flags answers, and whether it has the library loaded that asks for the fast path.
async fn product(root: &Path, flags: &[&str]) -> (Vec<f32>, bool) {
    let server = Process::start(root, flags);
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

#[tokio::test(flavor = "multi_thread")]
async fn the_fast_path_is_taken_where_it_is_asked_for_and_gives_equal_numbers() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let model = root.path().join("m");
    std::fs::create_dir_all(model.join("1")).expect("the folder is writable");
    std::fs::write(model.join("config.pbtxt"), CONFIG).expect("the folder is writable");
    let script = Script::new("def forward(self, x):\n    return torch.matmul(x, x.t())\n");
    script.save(&model.join("1/model.pt")).expect("the script compiles");
    let (usual, loaded) = product(root.path(), &[]).await;
    assert!(!loaded);
    let (fast, loaded) = product(root.path(), &["--mkl-fast-path"]).await;
    assert!(loaded);
    let scale = usual.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
    assert!(usual.len() == ROWS * ROWS && scale > 1.0);
    for (usual, fast) in usual.iter().zip(&fast) {
        assert!((usual - fast).abs() <= 1e-6 * scale, "{usual} {fast} of {scale}");
    }
}
