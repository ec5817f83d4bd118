//! ModelStreamInfer.

use nereid::protocol::grpc::Settings;
use nereid::protocol::v2::wire::infer_parameter::ParameterChoice;
use nereid::protocol::v2::wire::{ModelInferRequest, ModelStreamInferResponse};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Streaming};

use super::{Served, pair, request, slow, until, within};
use crate::support::metric;

pub(super) fn with_id(request: ModelInferRequest, id: impl ToString) -> ModelInferRequest {
    ModelInferRequest { id: id.to_string(), ..request }
}

/// Opens a stream; what is sent into the channel goes to the server.
pub(super) async fn open(
    served: &Served,
) -> (mpsc::UnboundedSender<ModelInferRequest>, Streaming<ModelStreamInferResponse>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut client = served.client().await;
    let answers = client.model_stream_infer(UnboundedReceiverStream::new(receiver)).await.expect("a stream opens");
    (sender, answers.into_inner())
}

pub(super) fn id(answer: &ModelStreamInferResponse) -> &str {
    answer.infer_response.as_ref().map_or("", |response| &response.id)
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_requests() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    sender.send(with_id(slow(), 0)).expect("open");
    for number in 1..20 {
        sender.send(with_id(pair(), number)).expect("open");
    }
    drop(sender);
    for number in 0..20 {
        let answer = within(answers.next()).await.expect("one for each").expect("no status");
        assert_eq!((id(&answer), answer.error_message.as_str()), (number.to_string().as_str(), ""));
        let response = answer.infer_response.expect("always there");
        let last = &response.parameters["triton_final_response"].parameter_choice;
        assert_eq!(*last, Some(ParameterChoice::BoolParam(true)));
        assert_eq!(response.raw_output_contents.len(), response.outputs.len());
    }
    assert!(within(answers.next()).await.is_none());
    served.stop().await;
}

#[tokio::test]
async fn a_failed_request_is_a_message_with_its_id_and_the_stream_goes_on() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    sender.send(with_id(request("nobody", &[]), "bad")).expect("open");
    sender.send(with_id(pair(), "good")).expect("open");
    let bad = within(answers.next()).await.expect("an answer").expect("no status");
    assert_eq!(id(&bad), "bad");
    assert_eq!(bad.error_message, "Request for unknown model: 'nobody' is not found");
    let good = within(answers.next()).await.expect("an answer").expect("no status");
    assert_eq!((id(&good), good.error_message.as_str()), ("good", ""));
    drop(sender);
    assert!(within(answers.next()).await.is_none());
    served.stop().await;
}

#[tokio::test]
async fn a_caller_may_ask_for_the_true_status() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut asked = Request::new(tokio_stream::iter([request("nobody", &[]), pair()]));
    asked.metadata_mut().insert("triton_grpc_error", "true".parse().expect("ascii"));
    let mut answers = client.model_stream_infer(asked).await.expect("a stream opens").into_inner();
    let status = within(answers.next()).await.expect("an answer").expect_err("the status");
    assert_eq!(status.code(), Code::NotFound);
    assert!(within(answers.next()).await.is_none());
    drop((client, answers));
    served.stop().await;
}

#[tokio::test]
async fn a_stream_holds_no_more_requests_than_it_may() {
    let settings = Settings { stream_requests_max: 2, ..Settings::default() };
    let served = Served::with(nereid::engine::Control::None, settings).await;
    let (sender, mut answers) = open(&served).await;
    for number in 0..5 {
        sender.send(with_id(slow(), number)).expect("open");
    }
    drop(sender);
    let handle = served.engine.find("slow", None).expect("it is ready");
    for number in 0..5 {
        let answer = within(answers.next()).await.expect("one for each").expect("no status");
        assert_eq!((id(&answer), answer.error_message.as_str()), (number.to_string().as_str(), ""));
        assert!(handle.pending() <= 2, "{} wait", handle.pending());
    }
    served.stop().await;
}

#[tokio::test]
async fn a_cancelled_stream_takes_its_waiting_requests_back() {
    let served = Served::start().await;
    let (sender, answers) = open(&served).await;
    for number in 0..10 {
        sender.send(with_id(slow(), number)).expect("open");
    }
    let handle = served.engine.find("slow", None).expect("it is ready");
    until(|| handle.pending() >= 8).await;
    drop((sender, answers));
    until(|| handle.pending() == 0).await;
    assert!(handle.stats.snapshot().execution_count <= 3);
    served.stop().await;
}

#[tokio::test]
async fn a_stop_answers_what_was_read_and_then_ends_the_stream() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    for number in 0..3 {
        sender.send(with_id(slow(), number)).expect("open");
    }
    let handle = served.engine.find("slow", None).expect("it is ready");
    until(|| handle.pending() == 2).await;
    served.gateway.drain();
    for number in 0..3 {
        let answer = within(answers.next()).await.expect("one for each").expect("no status");
        assert_eq!((id(&answer), answer.error_message.as_str()), (number.to_string().as_str(), ""));
    }
    let end = within(answers.next()).await.expect("its client did not finish").expect_err("it might have sent more");
    assert_eq!(end.code(), Code::Unavailable);
    served.stop().await;
}

#[tokio::test]
async fn a_stop_ends_a_stream_well_that_its_client_has_ended() {
    let served = Served::start().await;
    let (sender, mut answers) = open(&served).await;
    sender.send(with_id(slow(), 0)).expect("open");
    until(|| metric(&served.engine, "nereid_requests_received_total") == 1.0).await;
    drop(sender);
    served.gateway.drain();
    assert_eq!(within(answers.next()).await.expect("one").expect("no status").error_message, "");
    assert!(within(answers.next()).await.is_none());
    served.stop().await;
}
