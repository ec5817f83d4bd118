//! Right requests and what they get.

use bytes::Bytes;
use nereid::engine::{Control, Overrides};
use nereid::protocol::grpc::Settings;
use nereid::protocol::v2::wire::infer_parameter::ParameterChoice;
use nereid::protocol::v2::wire::{InferTensorContents, ModelInferRequest};
use nereid::tensor::{DataType, strings};
use tonic::codec::CompressionEncoding;

use super::{Served, identity, input, pair, parameter, request, wanted};
use crate::support;

#[tokio::test]
async fn outputs_come_back_in_order_with_id_name_and_version() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let asked = ModelInferRequest { id: "42".to_owned(), ..pair() };
    let answer = client.model_infer(asked).await.expect("answered").into_inner();
    assert_eq!((answer.model_name.as_str(), answer.model_version.as_str(), answer.id.as_str()), ("pair", "1", "42"));
    let outputs: Vec<_> = answer.outputs.iter().map(|out| (out.name.as_str(), out.datatype.as_str())).collect();
    assert_eq!(outputs, [("OUTPUT0", "FP32"), ("OUTPUT1", "INT32")]);
    assert_eq!(answer.outputs[1].shape, [1, 4]);
    assert_eq!(answer.raw_output_contents, [[1; 16].to_vec(), [2; 16].to_vec()]);
    assert!(answer.outputs.iter().all(|output| output.contents.is_none()));
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn inputs_may_come_in_any_order_and_outputs_are_those_asked_for() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut asked = pair();
    asked.inputs.reverse();
    asked.raw_input_contents.reverse();
    asked.outputs = vec![wanted("OUTPUT1")];
    let answer = client.model_infer(asked).await.expect("answered").into_inner();
    assert_eq!(answer.outputs.len(), 1);
    assert_eq!(answer.raw_output_contents, [[2; 16].to_vec()]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn every_type_travels_raw() {
    let served = Served::with(Control::Explicit(None), Settings::default()).await;
    let mut client = served.client().await;
    for dtype in DataType::ALL {
        let spelled = if dtype == DataType::Bytes { "STRING" } else { dtype.name() };
        let model = format!("raw_{dtype}");
        support::write_model(served.root.path(), &model, &identity("max_batch_size: 0", &[(spelled, "2")]), &[1]);
        served.engine.load(&model, Overrides::default()).await.expect("loaded");
        let raw = match dtype.size() {
            Some(size) => Bytes::from(vec![1; 2 * size]),
            None => strings::encode([&b"one"[..], b""]),
        };
        let asked = request(&model, &[("INPUT0", dtype.name(), &[2], &raw)]);
        let answer = client.model_infer(asked).await.expect("answered").into_inner();
        assert_eq!(answer.outputs[0].datatype, dtype.name());
        assert_eq!(answer.raw_output_contents, [raw], "{dtype}");
    }
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn typed_contents_are_the_same_as_raw() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut asked = request("free", &[]);
    asked.inputs = vec![input("INPUT0", "FP32", &[3])];
    let contents = InferTensorContents { fp32_contents: vec![1.0, -2.5, f32::MAX], ..InferTensorContents::default() };
    asked.inputs[0].contents = Some(contents);
    let answer = client.model_infer(asked).await.expect("answered").into_inner();
    let expected: Vec<u8> = [1.0f32, -2.5, f32::MAX].into_iter().flat_map(f32::to_le_bytes).collect();
    assert_eq!(answer.raw_output_contents, [expected]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_tensor_without_elements_has_an_empty_raw_entry() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let answer = client.model_infer(request("free", &[("INPUT0", "FP32", &[0], &[])])).await.expect("answered");
    assert_eq!(answer.into_inner().raw_output_contents, [Bytes::new()]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_large_tensor_comes_back_whole() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let data: Vec<u8> = (0..8u32 << 20).flat_map(u32::to_le_bytes).collect();
    let asked = request("free", &[("INPUT0", "FP32", &[8 << 20], &data)]);
    let answer = client.model_infer(asked).await.expect("answered").into_inner();
    assert!(answer.raw_output_contents == [data]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_compressed_request_is_answered_like_another() {
    let served = Served::start().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        let mut client = served.client().await.send_compressed(encoding);
        let answer = client.model_infer(pair()).await.expect("answered").into_inner();
        assert_eq!(answer.raw_output_contents, [[1; 16].to_vec(), [2; 16].to_vec()], "{encoding:?}");
    }
    served.stop().await;
}

#[tokio::test]
async fn classification_gives_the_best_classes() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let values: Vec<u8> = [0.5f32, 2.0, -1.0, 1.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let mut asked = request("pair", &[("INPUT0", "FP32", &[1, 4], &values), ("INPUT1", "INT32", &[1, 4], &[0; 16])]);
    asked.outputs = vec![wanted("OUTPUT0")];
    asked.outputs[0].parameters.insert("classification".into(), parameter(ParameterChoice::Int64Param(2)));
    let answer = client.model_infer(asked).await.expect("answered").into_inner();
    assert_eq!((answer.outputs[0].datatype.as_str(), &answer.outputs[0].shape[..]), ("BYTES", &[1, 2][..]));
    assert_eq!(answer.raw_output_contents, [strings::encode([&b"2.000000:1"[..], b"1.000000:3"])]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn parameters_that_clients_always_send_are_accepted() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut asked = pair();
    for (key, choice) in [
        ("triton_enable_empty_final_response", ParameterChoice::BoolParam(true)),
        ("priority", ParameterChoice::Uint64Param(9)),
        ("timeout", ParameterChoice::Int64Param(0)),
        ("sequence_id", ParameterChoice::Int64Param(0)),
        ("sequence_start", ParameterChoice::BoolParam(false)),
        ("mine", ParameterChoice::DoubleParam(0.5)),
    ] {
        asked.parameters.insert(key.to_owned(), parameter(choice));
    }
    client.model_infer(asked).await.expect("answered");
    drop(client);
    served.stop().await;
}
