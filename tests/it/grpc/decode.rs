//! Bad requests: the status and the exact message of each, and a server that goes on.

use bytes::Bytes;
use nereid::protocol::v2::wire::infer_parameter::ParameterChoice::{BoolParam, Int64Param, StringParam, Uint64Param};
use nereid::protocol::v2::wire::{InferTensorContents, ModelInferRequest};
use tonic::Code;

use super::{Served, input, pair, parameter, refusal, request, wanted};

/// What is wrong, the request, the code, and the message; the request's id prefix is left out of the message.
type Case = (&'static str, ModelInferRequest, Code, &'static str);

/// `pair()` changed.
fn pair_but(change: impl FnOnce(&mut ModelInferRequest)) -> ModelInferRequest {
    let mut request = pair();
    change(&mut request);
    request
}

fn text(raw: &[u8], shape: &[i64]) -> ModelInferRequest {
    request("text", &[("INPUT0", "BYTES", shape, raw)])
}

/// A request for `free` with typed contents.
fn typed(datatype: &str, shape: &[i64], contents: InferTensorContents) -> ModelInferRequest {
    let mut built = request("free", &[]);
    built.inputs = vec![input("INPUT0", datatype, shape)];
    built.inputs[0].contents = Some(contents);
    built
}

fn lookup_cases() -> Vec<Case> {
    let versioned = |version: &str| pair_but(|request| request.model_version = version.to_owned());
    vec![
        ("unknown model", request("nobody", &[]), Code::NotFound, "Request for unknown model: 'nobody' is not found"),
        ("unknown version", versioned("7"), Code::NotFound, "Request for unknown model: 'pair' version 7 is not found"),
        (
            "version zero",
            versioned("0"),
            Code::InvalidArgument,
            "invalid model version specified '0' , version should be an integral value > 0",
        ),
        (
            "version in words",
            versioned("one"),
            Code::InvalidArgument,
            "failed to get model version from specified version string 'one' (details: invalid digit found in \
             string), version should be an integral value > 0",
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn input_cases() -> Vec<Case> {
    let invalid = Code::InvalidArgument;
    vec![
        (
            "too few inputs",
            pair_but(|request| {
                request.inputs.pop();
                request.raw_input_contents.pop();
            }),
            invalid,
            "expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) ['INPUT0'], but missing required \
             input(s) ['INPUT1']. Please provide all required input(s).",
        ),
        (
            "unknown input",
            pair_but(|request| request.inputs[1].name = "INPUT9".to_owned()),
            invalid,
            "unexpected inference input 'INPUT9' for model 'pair'",
        ),
        (
            "input twice",
            pair_but(|request| request.inputs[1] = request.inputs[0].clone()),
            invalid,
            "input 'INPUT0' already exists in request",
        ),
        (
            "wrong type",
            pair_but(|request| request.inputs[0].datatype = "FP16".to_owned()),
            invalid,
            "inference input 'INPUT0' data-type is 'FP16', but model 'pair' expects 'FP32'",
        ),
        (
            "wrong shape",
            pair_but(|request| request.inputs[0].shape = vec![1, 8]),
            invalid,
            "unexpected shape for input 'INPUT0' for model 'pair'. Expected [-1,4], got [1,8]. NOTE: Setting a \
             non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input \
             shape.",
        ),
        (
            "negative dimension",
            request("free", &[("INPUT0", "FP32", &[-1], &[])]),
            invalid,
            "All input dimensions should be specified for input 'INPUT0' for model 'free', got [-1]",
        ),
        (
            "batch sizes differ",
            pair_but(|request| request.inputs[1].shape[0] = 2),
            invalid,
            "input 'INPUT1' batch size does not match other inputs for 'pair'",
        ),
        (
            "batch too large",
            pair_but(|request| request.inputs[0].shape[0] = 9),
            invalid,
            "inference request batch-size must be <= 8 for 'pair'",
        ),
        (
            "too few bytes",
            pair_but(|request| request.raw_input_contents[0] = Bytes::from_static(&[0; 15])),
            invalid,
            "input byte size mismatch for input 'INPUT0' for model 'pair'. Expected 16, got 15",
        ),
        (
            "absurd dimension",
            request("free", &[("INPUT0", "FP32", &[i64::MAX], &[0; 4])]),
            invalid,
            "input byte size mismatch for input 'INPUT0' for model 'free'. Expected more than fits in memory, got 4",
        ),
        (
            "string without a whole length",
            text(&[1, 0], &[1, 1]),
            invalid,
            "incomplete string length indicator for inference input 'INPUT0' for model 'text', expecting 1 string \
             elements",
        ),
        (
            "too few strings",
            text(&[0; 4], &[1, 2]),
            invalid,
            "expected 2 string elements for inference input 'INPUT0' for model 'text', got 1",
        ),
        (
            "unknown output",
            pair_but(|request| request.outputs = vec![wanted("OUTPUT9")]),
            invalid,
            "unexpected inference output 'OUTPUT9' for model 'pair'",
        ),
        (
            "output twice",
            pair_but(|request| request.outputs = vec![wanted("OUTPUT0"), wanted("OUTPUT0")]),
            invalid,
            "output 'OUTPUT0' already exists in request",
        ),
    ]
}

fn message_cases() -> Vec<Case> {
    let invalid = Code::InvalidArgument;
    let floats = || InferTensorContents { fp32_contents: vec![1.0], ..InferTensorContents::default() };
    vec![
        (
            "unknown type",
            pair_but(|request| request.inputs[0].datatype = "FLOAT".to_owned()),
            invalid,
            "inference input 'INPUT0' data-type is 'FLOAT', but model 'pair' expects 'FP32'",
        ),
        (
            "too many dimensions",
            pair_but(|request| request.inputs[0].shape = vec![1; 65]),
            invalid,
            "input 'INPUT0' has 65 dimensions, at most 64 are supported",
        ),
        (
            "raw and typed contents",
            pair_but(|request| request.inputs[1].contents = Some(floats())),
            invalid,
            "contents field must not be specified when using raw_input_contents for 'INPUT1' for model 'pair'",
        ),
        (
            "no contents",
            pair_but(|request| request.raw_input_contents.clear()),
            invalid,
            "unable to find data for input tensor 'INPUT0' for model 'pair' in request.",
        ),
        (
            "raw contents for one input only",
            pair_but(|request| request.raw_input_contents.truncate(1)),
            invalid,
            "unable to find data for input tensor 'INPUT1' for model 'pair' in request.",
        ),
        (
            "more raw contents than inputs",
            pair_but(|request| request.raw_input_contents.push(Bytes::new())),
            invalid,
            "raw_input_contents has 3 entries but the request for model 'pair' has 2 inputs",
        ),
        (
            "typed contents of another type",
            typed("INT32", &[1], floats()),
            invalid,
            "unexpected explicit tensor data for input tensor 'INPUT0' for model 'free' of type 'FP32', expected \
             datatype 'INT32'",
        ),
        (
            "half floats as typed contents",
            typed("FP16", &[1], floats()),
            invalid,
            "unexpected explicit tensor data for input tensor 'INPUT0' for model 'free' of type 'FP32', expected \
             datatype 'FP16'",
        ),
        (
            "two kinds of typed contents",
            typed("FP32", &[1], InferTensorContents { int_contents: vec![1], ..floats() }),
            invalid,
            "unexpected explicit tensor data for input tensor 'INPUT0' for model 'free' of type 'FP32', binary data \
             was already supplied.",
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn parameter_cases() -> Vec<Case> {
    let invalid = Code::InvalidArgument;
    let with = |key: &str, choice| pair_but(|request| drop(request.parameters.insert(key.into(), parameter(choice))));
    let of_input = |key: &str, choice| {
        pair_but(|request| drop(request.inputs[0].parameters.insert(key.into(), parameter(choice))))
    };
    let of_output = |key: &str, choice| {
        pair_but(|request| {
            request.outputs = vec![wanted("OUTPUT0")];
            request.outputs[0].parameters.insert(key.into(), parameter(choice));
        })
    };
    let shared = pair_but(|request| {
        let parameters = &mut request.inputs[0].parameters;
        parameters.insert("shared_memory_region".into(), parameter(StringParam("region".into())));
        parameters.insert("shared_memory_byte_size".into(), parameter(Int64Param(16)));
        request.raw_input_contents.remove(0);
    });
    vec![
        (
            "timeout of a wrong type",
            with("timeout", Uint64Param(1)),
            invalid,
            "invalid value type for 'timeout' parameter, expected int64_param.",
        ),
        (
            "negative priority",
            with("priority", Int64Param(-1)),
            invalid,
            "invalid value for 'priority' parameter, expected value >= 0, got -1",
        ),
        (
            "reserved key",
            with("triton_speed", BoolParam(true)),
            invalid,
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified, got \
             'triton_speed'",
        ),
        (
            "custom parameter of a wrong type",
            with("mine", Uint64Param(1)),
            invalid,
            "invalid value type for 'mine' parameter, expected bool_param, int64_param, string_param or double_param.",
        ),
        (
            "region without a size",
            of_input("shared_memory_region", StringParam("region".into())),
            invalid,
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor \
             'INPUT0'",
        ),
        (
            "size without a region",
            of_input("shared_memory_byte_size", Int64Param(16)),
            invalid,
            "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor \
             'INPUT0'",
        ),
        (
            "data in shared memory",
            shared,
            Code::Unimplemented,
            "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
        ),
        (
            "classification of a wrong type",
            of_output("classification", StringParam("3".into())),
            invalid,
            "invalid value type for 'classification' parameter, expected int64_param.",
        ),
        (
            "negative classification",
            of_output("classification", Int64Param(-1)),
            invalid,
            "invalid value for 'classification' parameter of output 'OUTPUT0', expected >= 0",
        ),
    ]
}

/// The message without the prefix that names the request.
fn without_id(message: &str) -> &str {
    message.strip_prefix("[request id: <id_unknown>] ").unwrap_or(message)
}

#[tokio::test]
async fn every_bad_request_is_refused_with_its_own_words() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let cases = [lookup_cases(), input_cases(), message_cases(), parameter_cases()];
    for (wrong, bad, code, message) in cases.into_iter().flatten() {
        let (got_code, got_message) = refusal(client.model_infer(bad).await);
        assert_eq!((got_code, without_id(&got_message)), (code, message), "{wrong}");
        client.model_infer(pair()).await.unwrap_or_else(|status| panic!("after {wrong}: {status}"));
    }
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn the_models_checks_name_the_request() {
    let served = Served::start().await;
    let mut client = served.client().await;
    for (id, shown) in [("mine", "[request id: mine] "), ("", "[request id: <id_unknown>] ")] {
        let shape = pair_but(|request| request.inputs[0].shape = vec![4]);
        let datatype = pair_but(|request| request.inputs[0].datatype = "FLOAT".to_owned());
        for mut bad in [shape, datatype] {
            bad.id = id.to_owned();
            let (_, message) = refusal(client.model_infer(bad).await);
            assert!(message.starts_with(shown), "{message}");
        }
    }
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_refusal_longer_than_a_header_is_cut() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let (code, message) = refusal(client.model_infer(request(&"x".repeat(1 << 20), &[])).await);
    assert_eq!(code, Code::NotFound);
    assert!(message.len() < 3000, "{} bytes", message.len());
    drop(client);
    served.stop().await;
}
