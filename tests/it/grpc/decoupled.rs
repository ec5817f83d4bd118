//! ModelStreamInfer of a model that gives any number of responses: the example `repeat_int32`.

use std::time::Duration;

use bytes::Bytes;
use nereid::backend::libtorch::script::Script;
use nereid::engine::{Control, Handle, Overrides};
use nereid::error::Kind;
use nereid::gateway::request_memory::Portion;
use nereid::infer::Instant;
use nereid::protocol::grpc::Settings;
use nereid::protocol::v2::context::Context;
use nereid::protocol::v2::decode::Arrival;
use nereid::protocol::v2::infer;
use nereid::protocol::v2::wire::infer_parameter::ParameterChoice;
use nereid::protocol::v2::wire::{ModelInferRequest, ModelStatisticsRequest, ModelStreamInferResponse};
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Streaming};

use super::stream::{id, open, with_id};
use super::{Served, call, framed, pair, parameter, refusal, request, until, wanted, within};
use crate::support;

/// A delay that no test lives to see the end of.
const FOR_EVER: u32 = u32::MAX;

/// A request for a response of each delay's position, after that many milliseconds.
fn repeat(delays: &[u32]) -> ModelInferRequest {
    let count = delays.len() as i64;
    let values: Vec<u8> = (0..delays.len() as i32).flat_map(i32::to_le_bytes).collect();
    let delays: Vec<u8> = delays.iter().flat_map(|delay| delay.to_le_bytes()).collect();
    let inputs: [(&str, &str, &[i64], &[u8]); 3] =
        [("IN", "INT32", &[count], &values), ("DELAY", "UINT32", &[count], &delays), ("WAIT", "UINT32", &[1], &[0; 4])];
    request("repeat_int32", &inputs)
}

fn with_empty_final(mut request: ModelInferRequest) -> ModelInferRequest {
    let asked = parameter(ParameterChoice::BoolParam(true));
    request.parameters.insert("triton_enable_empty_final_response".to_owned(), asked);
    request
}

/// The id, the element if there is one, and whether no other follows.
fn parts(answer: &ModelStreamInferResponse) -> (String, Option<i32>, bool) {
    assert_eq!(answer.error_message, "");
    let response = answer.infer_response.as_ref().expect("always there");
    assert_eq!((response.model_name.as_str(), response.model_version.as_str()), ("repeat_int32", "1"));
    assert_eq!(response.raw_output_contents.len(), response.outputs.len());
    let out = response.outputs.iter().position(|output| output.name == "OUT");
    let value = out.map(|at| i32::from_le_bytes(response.raw_output_contents[at][..].try_into().expect("one INT32")));
    (response.id.clone(), value, is_last(answer))
}

fn is_last(answer: &ModelStreamInferResponse) -> bool {
    let response = answer.infer_response.as_ref().expect("always there");
    let last = &response.parameters["triton_final_response"].parameter_choice;
    *last == Some(ParameterChoice::BoolParam(true))
}

async fn next(answers: &mut Streaming<ModelStreamInferResponse>) -> ModelStreamInferResponse {
    within(answers.next()).await.expect("an answer").expect("no status")
}

fn handle(served: &Served) -> std::sync::Arc<Handle> {
    served.engine.find("repeat_int32", None).expect("it is ready")
}

#[tokio::test]
async fn a_request_has_a_response_for_each_element_and_an_empty_last_one_if_it_asked() {
    let served = Served::start().await;
    for count in [0, 1, 300] {
        for empty_final in [false, true] {
            let (sender, mut answers) = open(&served).await;
            let asked = with_id(repeat(&vec![0; count]), "r");
            sender.send(if empty_final { with_empty_final(asked) } else { asked }).expect("open");
            drop(sender);
            for number in 0..count {
                assert_eq!(parts(&next(&mut answers).await), ("r".to_owned(), Some(number as i32), false));
            }
            if empty_final {
                assert_eq!(parts(&next(&mut answers).await), ("r".to_owned(), None, true));
            }
            assert!(within(answers.next()).await.is_none());
        }
    }
    let mut client = served.client().await;
    let asked = ModelStatisticsRequest { name: "repeat_int32".to_owned(), ..ModelStatisticsRequest::default() };
    let stats = client.model_statistics(asked).await.expect("answered").into_inner().model_stats.remove(0);
    let count = |index: &str| stats.response_stats[index].success.map(|total| total.count);
    assert_eq!((stats.inference_count, stats.response_stats.len()), (6, 301));
    assert_eq!((count("0"), count("1"), count("299"), count("300")), (Some(4), Some(2), Some(2), Some(0)));
    assert_eq!(stats.response_stats["300"].empty_response.map(|total| total.count), Some(2));
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn only_the_wanted_output_is_sent() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    sender.send(ModelInferRequest { outputs: vec![wanted("IDX")], ..repeat(&[0]) }).expect("open");
    let response = next(&mut answers).await.infer_response.expect("always there");
    assert_eq!((response.outputs.len(), response.outputs[0].name.as_str()), (1, "IDX"));
    assert_eq!(response.raw_output_contents, [Bytes::from_static(&[0; 4])]);
    drop((sender, answers));
    served.stop().await;
}

#[tokio::test]
async fn responses_of_several_requests_interleave_and_ordinary_answers_come_between() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    sender.send(with_id(repeat(&[0, FOR_EVER]), "first")).expect("open");
    assert_eq!(parts(&next(&mut answers).await), ("first".to_owned(), Some(0), false));
    sender.send(with_id(repeat(&[0, FOR_EVER]), "second")).expect("open");
    assert_eq!(parts(&next(&mut answers).await), ("second".to_owned(), Some(0), false));
    sender.send(with_id(pair(), "ordinary")).expect("open");
    let ordinary = next(&mut answers).await;
    assert_eq!((id(&ordinary), is_last(&ordinary)), ("ordinary", true));
    drop((sender, answers));
    until(|| handle(&served).stats.snapshot().failures.get(&Kind::Cancelled) == Some(&2)).await;
    served.stop().await;
}

#[tokio::test]
async fn a_slow_reader_gets_everything_in_order() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    sender.send(with_empty_final(repeat(&vec![0; 20_000]))).expect("open");
    drop(sender);
    // Nobody reads until the instance is as far ahead as it may be, or further if it may.
    until(|| served.engine.metrics().render().contains("nereid_requests_received_total 1")).await;
    for number in 0..20_000 {
        assert_eq!(parts(&next(&mut answers).await).1, Some(number));
    }
    assert_eq!(parts(&next(&mut answers).await), (String::new(), None, true));
    assert!(within(answers.next()).await.is_none());
    served.stop().await;
}

#[tokio::test]
async fn a_deadline_ends_the_responses() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut asked = Request::new(tokio_stream::iter([repeat(&[0, FOR_EVER])]));
    asked.metadata_mut().insert("grpc-timeout", "300m".parse().expect("ascii"));
    let began = Instant::now();
    let mut answers = client.model_stream_infer(asked).await.expect("a stream opens").into_inner();
    assert_eq!(parts(&next(&mut answers).await).1, Some(0));
    let late = next(&mut answers).await;
    assert_eq!(late.error_message, "the deadline passed while the request was executed");
    assert!(is_last(&late) && began.elapsed() >= Duration::from_millis(300));
    until(|| handle(&served).stats.snapshot().failures.get(&Kind::DeadlineExceeded) == Some(&1)).await;
    drop((client, answers));
    served.stop().await;
}

#[tokio::test]
async fn a_failure_is_a_message_or_the_true_status() {
    let served = Served::start().await;
    let mut wrong = repeat(&[0, 0]);
    wrong.inputs[1].shape = vec![1];
    wrong.raw_input_contents[1] = Bytes::from_static(&[0; 4]);
    let expected = "expected as many elements of DELAY as of IN, got 1 and 2";
    let (sender, mut answers) = open(&served).await;
    sender.send(with_id(wrong.clone(), "w")).expect("open");
    let failed = next(&mut answers).await;
    assert_eq!((id(&failed), failed.error_message.as_str(), is_last(&failed)), ("w", expected, true));
    sender.send(repeat(&[0])).expect("the stream goes on");
    assert_eq!(parts(&next(&mut answers).await).1, Some(0));
    drop(sender);
    assert!(within(answers.next()).await.is_none());

    let mut client = served.client().await;
    let mut asked = Request::new(tokio_stream::iter([repeat(&[0, FOR_EVER]), wrong]));
    asked.metadata_mut().insert("triton_grpc_error", "true".parse().expect("ascii"));
    let mut answers = client.model_stream_infer(asked).await.expect("a stream opens").into_inner();
    let status = loop {
        match within(answers.next()).await.expect("a status") {
            Ok(answer) => assert_eq!(parts(&answer).1, Some(0)),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, expected));
    until(|| handle(&served).stats.snapshot().failures.get(&Kind::Cancelled) == Some(&1)).await;
    drop((client, answers));
    served.stop().await;
}

#[tokio::test]
async fn a_response_over_the_limit_is_a_message_and_the_others_follow() {
    let settings = Settings { response_bytes_max: 100, ..Settings::default() };
    let served = Served::with(Control::None, settings).await;
    let (sender, mut answers) = open(&served).await;
    sender.send(with_id(repeat(&[0, 0]), "a".repeat(80))).expect("open");
    drop(sender);
    for _ in 0..2 {
        let answer = next(&mut answers).await;
        assert!(answer.error_message.contains("exceeds"), "{}", answer.error_message);
        assert!(!is_last(&answer), "another response follows");
    }
    assert!(within(answers.next()).await.is_none());
    served.stop().await;
}

#[tokio::test]
async fn one_call_for_one_response_is_refused() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let expected = "ModelInfer RPC doesn't support models with decoupled transaction policy";
    assert_eq!(refusal(client.model_infer(repeat(&[0])).await), (Code::Unimplemented, expected.to_owned()));
    let arrival =
        Arrival { at: Instant::now(), deadline: None, context: Context::default(), portion: Portion::default() };
    let error = infer::over_http(&served.gateway, repeat(&[0]), arrival).await.expect_err("one response only");
    let expected = "HTTP end point doesn't support models with decoupled transaction policy";
    assert_eq!((error.kind(), error.message()), (Kind::Unimplemented, expected));
    drop(client);
    served.stop().await;
}

/// Counts down from its input, one response for each number and the list of those before it.
const COUNTDOWN: &str = "def forward(self, n) -> List[Tuple[Tensor, List[str]]]:
    out: List[Tuple[Tensor, List[str]]] = []
    for i in range(int(n[0])):
        out.append((n - i, [str(j) for j in range(i)]))
    return out
";

#[tokio::test]
async fn a_torchscript_model_gives_its_responses_as_a_list() {
    let served = Served::with(Control::Explicit(None), Settings::default()).await;
    let config = "backend: \"pytorch\" max_batch_size: 0 model_transaction_policy { decoupled: true }
        input [ { name: \"n\" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output [ { name: \"left\" data_type: TYPE_FP32 dims: [ 1 ] }, { name: \"seen\" data_type: TYPE_STRING dims: [ -1 ] } ]";
    support::write_model(served.root.path(), "countdown", config, &[1]);
    let file = served.root.path().join("countdown/1/model.pt");
    Script::new(COUNTDOWN).save(&file).expect("the script compiles");
    served.engine.load("countdown", Overrides::default()).await.expect("it loads");
    let (sender, mut answers) = open(&served).await;
    for (count, responses) in [(0.0_f32, 0), (3.0, 3)] {
        let asked = request("countdown", &[("n", "FP32", &[1], &count.to_le_bytes())]);
        sender.send(with_empty_final(asked)).expect("open");
        for number in 0..responses {
            let answer = next(&mut answers).await;
            assert_eq!(is_last(&answer), number + 1 == responses, "the last one says so itself");
            let response = answer.infer_response.expect("always there");
            assert_eq!(response.raw_output_contents[0], (count - number as f32).to_le_bytes()[..]);
            assert_eq!(response.outputs[1].shape, [i64::from(number)]);
        }
        if responses == 0 {
            let answer = next(&mut answers).await;
            assert!(is_last(&answer) && answer.infer_response.is_some_and(|response| response.outputs.is_empty()));
        }
    }
    drop(sender);
    assert!(within(answers.next()).await.is_none());
    served.stop().await;
}

#[tokio::test]
async fn a_stop_lets_responses_go_on_and_takes_no_new_stream() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    sender.send(with_empty_final(repeat(&[0, 100, 100]))).expect("open");
    assert_eq!(parts(&next(&mut answers).await).1, Some(0));
    served.gateway.drain();
    let mut client = served.client().await;
    let late = client.model_stream_infer(tokio_stream::iter([pair()])).await;
    let expected = "GRPC server is shutting down and has stopped accepting new requests.";
    assert_eq!(refusal(late), (Code::Unavailable, expected.to_owned()));
    for expected in [(Some(1), false), (Some(2), false), (None, true)] {
        let (_, value, last) = parts(&next(&mut answers).await);
        assert_eq!((value, last), expected);
    }
    let end = within(answers.next()).await.expect("its client did not finish").expect_err("there is no answer");
    assert_eq!((end.code(), end.message()), (Code::Unavailable, expected));
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_refused_as_a_whole_is_counted() {
    let served = Served::start().await;
    let message = pair().encode_to_vec();
    let message = framed(&message, message.len() as u32, 0);
    let soon = [("grpc-timeout", "soon")];
    assert_eq!(call(&served, "ModelStreamInfer", &soon, message.clone()).await.code(), Code::InvalidArgument);
    let unknown = [("grpc-encoding", "brotli")];
    assert_eq!(call(&served, "ModelStreamInfer", &unknown, message.clone()).await.code(), Code::Unimplemented);
    served.gateway.drain();
    assert_eq!(call(&served, "ModelStreamInfer", &[], message).await.code(), Code::Unavailable);
    let metrics = served.engine.metrics().render();
    assert!(metrics.contains("nereid_requests_received_total 3"), "{metrics}");
    for reason in ["invalid", "unimplemented", "unavailable"] {
        assert!(metrics.contains(&format!("nereid_unrouted_requests_total{{reason=\"{reason}\"}} 1")), "{metrics}");
    }
    served.stop().await;
}
