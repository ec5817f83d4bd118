//! Regions of shared memory over gRPC: the calls about them, and tensors that come and go by them.

use bytes::Bytes;
use nereid::gateway::request_memory::Portion;
use nereid::infer::Instant;
use nereid::protocol::v2::context::Context;
use nereid::protocol::v2::decode::Arrival;
use nereid::protocol::v2::infer;
use nereid::protocol::v2::wire::infer_parameter::ParameterChoice::{Int64Param, StringParam};
use nereid::protocol::v2::wire::{
    CudaSharedMemoryRegisterRequest, CudaSharedMemoryStatusRequest, CudaSharedMemoryUnregisterRequest, InferParameter,
    ModelInferRequest, SystemSharedMemoryRegisterRequest, SystemSharedMemoryStatusRequest,
    SystemSharedMemoryUnregisterRequest,
};
use nereid::tensor::strings;
use tonic::Code;

use super::{Client, Control, Limits, SLOW, Served, Settings, input, parameter, refusal, request, until, wanted};
use crate::support::SharedObject;

async fn register(client: &mut Client, name: &str, object: &SharedObject, bytes: u64) {
    let asked = SystemSharedMemoryRegisterRequest {
        name: name.to_owned(),
        key: object.key.clone(),
        offset: 0,
        byte_size: bytes,
    };
    client.system_shared_memory_register(asked).await.expect("registered");
}

/// Puts a tensor's data into a region.
fn share(parameters: &mut std::collections::HashMap<String, InferParameter>, region: &str, offset: i64, bytes: i64) {
    parameters.insert("shared_memory_region".to_owned(), parameter(StringParam(region.to_owned())));
    parameters.insert("shared_memory_offset".to_owned(), parameter(Int64Param(offset)));
    parameters.insert("shared_memory_byte_size".to_owned(), parameter(Int64Param(bytes)));
}

/// A request for `free`: `floats` elements from the start of region `in`, the output to the start of region `out`.
fn through_regions(floats: i64) -> ModelInferRequest {
    let mut asked = request("free", &[]);
    asked.inputs = vec![input("INPUT0", "FP32", &[floats])];
    share(&mut asked.inputs[0].parameters, "in", 0, 4 * floats);
    asked.outputs = vec![wanted("OUTPUT0")];
    share(&mut asked.outputs[0].parameters, "out", 0, 4 * floats);
    asked
}

/// The value of a counter or gauge.
fn metric(served: &Served, series: &str) -> u64 {
    let text = served.engine.metrics().render();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{series} is not in\n{text}"))
}

fn bytes_by(served: &Served, way: &str) -> u64 {
    metric(served, &format!("nereid_shared_memory_bytes_total{{way=\"{way}\"}}"))
}

#[tokio::test]
async fn a_tensor_comes_and_goes_by_regions_with_one_copy() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let (from, to) = (SharedObject::new(4096), SharedObject::new(8192));
    let sent: Vec<u8> = (0..1024u32).flat_map(|value| (value as f32).to_le_bytes()).collect();
    from.write(0, &sent);
    register(&mut client, "in", &from, 4096).await;
    register(&mut client, "out", &to, 8192).await;
    assert_eq!(metric(&served, "nereid_shared_memory_regions"), 2);
    let mut asked = through_regions(1024);
    share(&mut asked.outputs[0].parameters, "out", 4096, 4096);
    let answer = client.model_infer(asked).await.expect("answered").into_inner();
    assert_eq!(answer.outputs[0].name, "OUTPUT0");
    assert_eq!((answer.outputs[0].datatype.as_str(), &answer.outputs[0].shape[..]), ("FP32", &[1024][..]));
    assert!(answer.outputs[0].parameters.is_empty());
    assert_eq!(answer.raw_output_contents, [Bytes::new()], "one entry for each output, and nothing in it");
    assert_eq!(to.read(4096, 4096), sent);
    assert_eq!(to.read(0, 4096), vec![0; 4096]);
    let counted = ["viewed", "copied", "placed"].map(|way| bytes_by(&served, way));
    assert_eq!(counted, [4096, 0, 4096], "read in place, and written once");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn an_answer_is_a_copy_of_what_was_read_in_place() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let from = SharedObject::new(4096);
    from.write(1024, &[7; 1024]);
    register(&mut client, "in", &from, 4096).await;
    let mut asked = request("free", &[]);
    asked.inputs = vec![input("INPUT0", "FP32", &[256])];
    share(&mut asked.inputs[0].parameters, "in", 1024, 1024);
    let arrival =
        Arrival { at: Instant::now(), deadline: None, context: Context::default(), portion: Portion::default() };
    let response = infer::unary(&served.gateway, asked, arrival).await.expect("answered");
    // The identity backend answers with the tensors that it got, which the client can change until they are sent.
    let got = &response.outputs[0].tensor.data;
    let mapped = served.gateway.regions().list("in").expect("registered")[0].address;
    assert!(!(mapped..mapped + 4096).contains(&(got.as_ptr() as usize)));
    from.write(1024, &[8; 1024]);
    assert_eq!(got[..], [7; 1024]);
    assert_eq!(["viewed", "copied"].map(|way| bytes_by(&served, way)), [1024, 0]);
    drop(response);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn inputs_in_regions_are_left_out_of_the_raw_contents() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let object = SharedObject::new(64);
    object.write(0, &[3; 16]);
    register(&mut client, "in", &object, 64).await;
    let mut asked = request("pair", &[("INPUT1", "INT32", &[1, 4], &[2; 16])]);
    asked.inputs.insert(0, input("INPUT0", "FP32", &[1, 4]));
    share(&mut asked.inputs[0].parameters, "in", 0, 16);
    asked.outputs = vec![wanted("OUTPUT1"), wanted("OUTPUT0")];
    share(&mut asked.outputs[0].parameters, "in", 32, 32);
    let answer = client.model_infer(asked.clone()).await.expect("answered").into_inner();
    assert_eq!(answer.raw_output_contents, [Bytes::new(), Bytes::from_static(&[3; 16])]);
    assert_eq!(object.read(32, 16), [2; 16]);
    asked.raw_input_contents.push(Bytes::from_static(&[2; 16]));
    let expected = "raw_input_contents has 2 entries but the request for model 'pair' has 1 inputs outside of shared \
                    memory";
    assert_eq!(refusal(client.model_infer(asked).await), (Code::InvalidArgument, expected.to_owned()));
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn strings_are_copied_before_they_are_checked() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let (object, sent) = (SharedObject::new(64), strings::encode([&b"one"[..], b"\xff\0"]));
    object.write(0, &sent);
    register(&mut client, "in", &object, 64).await;
    let mut asked = request("text", &[]);
    asked.inputs = vec![input("INPUT0", "BYTES", &[1, 2])];
    share(&mut asked.inputs[0].parameters, "in", 0, sent.len() as i64);
    let answer = client.model_infer(asked).await.expect("answered").into_inner();
    assert_eq!(answer.raw_output_contents, [sent]);
    assert_eq!(["viewed", "copied"].map(|way| bytes_by(&served, way)), [0, 13]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn copies_of_what_is_in_regions_count_before_they_are_made() {
    let served = Served::build(Control::None, Settings::default(), Limits::grpc(), Some(8), Some(1 << 20)).await;
    let mut client = served.client().await;
    let object = SharedObject::new(1 << 16);
    object.write(0, &strings::encode([&vec![b'a'; (1 << 16) - 4][..]]));
    register(&mut client, "in", &object, 1 << 16).await;
    let mut asked = request("text", &[]);
    asked.inputs = vec![input("INPUT0", "BYTES", &[1, 1])];
    share(&mut asked.inputs[0].parameters, "in", 0, 1 << 16);
    client.model_infer(asked.clone()).await.expect("answered");
    until(|| metric(&served, "nereid_request_memory_bytes") == 0).await;
    let copied = bytes_by(&served, "copied");
    asked.inputs = vec![asked.inputs[0].clone(); 1000];
    let (code, message) = refusal(client.model_infer(asked).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.starts_with("the request takes more than 786432 bytes"), "{message}");
    assert_eq!(bytes_by(&served, "copied") - copied, 12 << 16, "as many as there is room for");
    until(|| metric(&served, "nereid_request_memory_bytes") == 0).await;
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_or_is_not_there_is_refused_by_its_name() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let (from, to) = (SharedObject::new(4096), SharedObject::new(4096));
    register(&mut client, "in", &from, 64).await;
    register(&mut client, "out", &to, 64).await;
    let mut small = through_regions(4);
    share(&mut small.outputs[0].parameters, "out", 56, 8);
    let expected = "shared memory size specified with the request for output 'OUTPUT0' (8 bytes) should be at least 16 \
                    bytes to hold the results";
    assert_eq!(refusal(client.model_infer(small).await), (Code::Internal, expected.to_owned()));
    let input_at = |region: &str, offset, bytes| {
        let mut asked = through_regions(4);
        share(&mut asked.inputs[0].parameters, region, offset, bytes);
        asked
    };
    let output_at = |region: &str, offset, bytes| {
        let mut asked = through_regions(4);
        share(&mut asked.outputs[0].parameters, region, offset, bytes);
        asked
    };
    for (asked, code, message) in [
        (input_at("nobody", 0, 16), Code::NotFound, "Unable to find shared memory region: 'nobody'"),
        (output_at("nobody", 0, 16), Code::NotFound, "Unable to find shared memory region: 'nobody'"),
        (input_at("in", 64, 16), Code::InvalidArgument, "Invalid offset for shared memory region: 'in'"),
        (input_at("in", -1, 16), Code::InvalidArgument, "Invalid offset for shared memory region: 'in'"),
        (output_at("out", 56, 16), Code::InvalidArgument, "Invalid offset + byte size for shared memory region: 'out'"),
        (
            input_at("in", 0, 12),
            Code::InvalidArgument,
            "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model 'free'. Expected 16, got \
             12",
        ),
    ] {
        assert_eq!(refusal(client.model_infer(asked).await), (code, message.to_owned()));
    }
    let mut classes = through_regions(4);
    classes.outputs[0].parameters.insert("classification".to_owned(), parameter(Int64Param(1)));
    let (code, message) = refusal(client.model_infer(classes).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("together with the 'classification' parameter"), "{message}");
    assert_eq!(to.read(0, 64), [0; 64], "nothing was written");
    client.model_infer(through_regions(4)).await.expect("a right one is answered");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_region_can_be_unregistered_while_a_request_uses_it() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let (from, to) = (SharedObject::new(4096), SharedObject::new(4096));
    from.write(0, &[9; 4]);
    register(&mut client, "in", &from, 64).await;
    register(&mut client, "out", &to, 64).await;
    let mut asked = through_regions(1);
    asked.model_name = "slow".to_owned();
    asked.inputs[0].shape = vec![1, 1];
    let mut other = client.clone();
    let began = Instant::now();
    let running = tokio::spawn(async move { other.model_infer(asked).await });
    until(|| metric(&served, "nereid_requests_in_flight") == 1).await;
    client.system_shared_memory_unregister(SystemSharedMemoryUnregisterRequest::default()).await.expect("unregistered");
    let left = client.system_shared_memory_status(SystemSharedMemoryStatusRequest::default()).await.expect("answered");
    assert!(left.into_inner().regions.is_empty() && began.elapsed() < SLOW, "while the request was running");
    running.await.expect("it does not panic").expect("answered");
    assert_eq!(to.read(0, 4), [9; 4]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn an_object_truncated_while_a_request_uses_it_fails_that_request_only() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let (from, to) = (SharedObject::new(4096), SharedObject::new(4096));
    register(&mut client, "in", &from, 64).await;
    register(&mut client, "out", &to, 64).await;
    let mut asked = through_regions(1);
    asked.model_name = "slow".to_owned();
    asked.inputs[0].shape = vec![1, 1];
    let mut other = client.clone();
    let running = tokio::spawn(async move { other.model_infer(asked).await });
    until(|| metric(&served, "nereid_requests_in_flight") == 1).await;
    from.truncate(0);
    let (code, message) = refusal(running.await.expect("it does not panic"));
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.starts_with("the memory of shared memory region 'in' is gone"), "{message}");
    client.model_infer(super::pair()).await.expect("the server goes on");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_stream_takes_and_gives_by_regions_too() {
    let served = Served::sharing(8).await;
    let mut client = served.client().await;
    let (from, to) = (SharedObject::new(4096), SharedObject::new(4096));
    from.write(0, &[5; 16]);
    register(&mut client, "in", &from, 64).await;
    register(&mut client, "out", &to, 64).await;
    let requests = tokio_stream::iter([through_regions(4)]);
    let mut answers = client.model_stream_infer(requests).await.expect("accepted").into_inner();
    let answer = answers.message().await.expect("answered").expect("one message");
    assert_eq!(answer.error_message, "");
    assert_eq!(answer.infer_response.expect("with a response").raw_output_contents, [Bytes::new()]);
    assert_eq!(to.read(0, 16), [5; 16]);
    drop((answers, client));
    served.stop().await;
}

#[tokio::test]
async fn regions_are_told_and_refused_as_clients_know_it() {
    let served = Served::sharing(1).await;
    let mut client = served.client().await;
    let object = SharedObject::new(4096);
    register(&mut client, "mine", &object, 64).await;
    let one = SystemSharedMemoryStatusRequest { name: "mine".to_owned() };
    let status = client.system_shared_memory_status(one).await.expect("answered").into_inner();
    let region = &status.regions["mine"];
    assert_eq!((region.name.as_str(), region.key.as_str()), ("mine", object.key.as_str()));
    assert_eq!((region.offset, region.byte_size), (0, 64));
    let of = |name: &str| SystemSharedMemoryRegisterRequest {
        name: name.to_owned(),
        key: object.key.clone(),
        offset: 0,
        byte_size: 64,
    };
    let twice = (Code::AlreadyExists, "shared memory region 'mine' already in manager".to_owned());
    assert_eq!(refusal(client.system_shared_memory_register(of("mine")).await), twice);
    assert_eq!(refusal(client.system_shared_memory_register(of("other")).await).0, Code::Unavailable, "over the limit");
    let unknown = SystemSharedMemoryUnregisterRequest { name: "nobody".to_owned() };
    client.system_shared_memory_unregister(unknown).await.expect("nothing to do");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn memory_of_devices_is_told_and_refused_as_clients_know_it() {
    let served = Served::sharing(2).await;
    let mut client = served.client().await;
    let object = SharedObject::new(4096);
    register(&mut client, "mine", &object, 64).await;
    let of = |name: &str, handle: usize| CudaSharedMemoryRegisterRequest {
        name: name.to_owned(),
        raw_handle: vec![0; handle].into(),
        // No machine has that many.
        device_id: i64::from(i32::MAX),
        byte_size: 64,
    };
    let taken = (Code::AlreadyExists, "shared memory region 'mine' already in manager".to_owned());
    assert_eq!(refusal(client.cuda_shared_memory_register(of("mine", 64)).await), taken);
    let failed = "failed to register CUDA shared memory region 'card': ";
    let short = (Code::InvalidArgument, format!("{failed}its handle has 63 bytes, not 64"));
    assert_eq!(refusal(client.cuda_shared_memory_register(of("card", 63)).await), short);
    let (code, message) = refusal(client.cuda_shared_memory_register(of("card", 64)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.starts_with(&format!("{failed}there is no CUDA device ")), "{message}");
    let all = client.cuda_shared_memory_status(CudaSharedMemoryStatusRequest::default()).await.expect("answered");
    assert!(all.into_inner().regions.is_empty(), "each kind lists its own");
    let one = CudaSharedMemoryStatusRequest { name: "mine".to_owned() };
    let unknown = (Code::NotFound, "Unable to find cuda shared memory region: 'mine'".to_owned());
    assert_eq!(refusal(client.cuda_shared_memory_status(one).await), unknown);
    client.cuda_shared_memory_unregister(CudaSharedMemoryUnregisterRequest::default()).await.expect("nothing to do");
    assert_eq!(served.gateway.regions().list("").expect("listed").len(), 1, "each kind forgets its own");
    drop(client);
    served.stop().await;
}
