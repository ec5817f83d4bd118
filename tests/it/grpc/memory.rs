//! The bound on the memory that requests hold together, and compressed requests, whose size only shows when they are read.

use nereid::protocol::v2::wire::{InferTensorContents, ModelInferRequest};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use super::stream::{id, open, with_id};
use super::transport::{connected, inference};
use super::{Client, Served, framed, pair, refusal, request, slow, until, within};
use crate::support::metric;

const HELD: &str = "nereid_request_memory_bytes";

/// A request for the model `free` with so many bytes of zeros.
fn zeros(bytes: usize) -> ModelInferRequest {
    request("free", &[("INPUT0", "FP32", &[bytes as i64 / 4], &vec![0; bytes])])
}

async fn compressing(served: &Served, encoding: CompressionEncoding) -> Client {
    served.client().await.send_compressed(encoding)
}

#[tokio::test]
async fn what_was_compressed_is_answered_as_what_it_was() {
    let served = Served::bounded(1 << 20).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        let mut client = compressing(&served, encoding).await;
        for bytes in [0, 4, 40_000, 500_000] {
            let response = client.model_infer(zeros(bytes)).await.expect("answered").into_inner();
            assert_eq!(response.raw_output_contents[0], vec![0; bytes], "{encoding:?}");
        }
        let mut different = zeros(20_000);
        different.raw_input_contents[0] = (0..20_000).map(|index| (index % 251) as u8).collect();
        let response = client.model_infer(different.clone()).await.expect("answered").into_inner();
        assert_eq!(response.raw_output_contents, different.raw_input_contents);
        assert!(client.server_live(nereid::protocol::v2::wire::ServerLiveRequest {}).await.is_ok());
    }
    until(|| metric(&served.engine, HELD) == 0.0).await;
    served.stop().await;
}

#[tokio::test]
async fn what_was_compressed_counts_as_what_it_becomes() {
    let served = Served::bounded(1 << 20).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        let mut client = compressing(&served, encoding).await;
        let (code, message) = refusal(client.model_infer(zeros(8 << 20)).await);
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.starts_with("the request takes more than 786432 bytes"), "{message}");
        let stream = tokio_stream::iter([zeros(400), zeros(8 << 20)]);
        let mut answers = client.model_stream_infer(stream).await.expect("a stream opens").into_inner();
        let first = within(answers.next()).await.expect("an answer").expect("no status");
        assert_eq!(first.error_message, "");
        let last = within(answers.next()).await.expect("it does not end well");
        assert_eq!(refusal(last).0, Code::InvalidArgument);
    }
    until(|| metric(&served.engine, HELD) == 0.0).await;
    assert_eq!(metric(&served.engine, "nereid_request_memory_refusals_total"), 4.0);
    assert_eq!(metric(&served.engine, "nereid_unrouted_requests_total{reason=\"invalid\"}"), 4.0);
    served.stop().await;
}

#[tokio::test]
async fn numbers_count_as_the_tensors_that_they_become() {
    let served = Served::bounded(1 << 20).await;
    let mut client = served.client().await;
    let numbers = |count: usize| {
        let mut asked = request("free", &[("INPUT0", "FP32", &[count as i64], &[])]);
        asked.raw_input_contents.clear();
        let contents = InferTensorContents { fp32_contents: vec![1.0; count], ..Default::default() };
        asked.inputs[0].contents = Some(contents);
        asked
    };
    client.model_infer(numbers(60_000)).await.expect("720 000 bytes with the message");
    let (code, message) = refusal(client.model_infer(numbers(80_000)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.starts_with("the request takes more than 786432 bytes"), "{message}");
    until(|| metric(&served.engine, HELD) == 0.0).await;
    served.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_ends_a_stream_once_those_before_it_are_answered() {
    let served = Served::bounded(1 << 20).await;
    let (sender, mut answers) = open(&served).await;
    for number in 0..3 {
        sender.send(with_id(slow(), number)).expect("open");
    }
    sender.send(zeros(1 << 20)).expect("open");
    for number in 0..3 {
        let answer =
            within(answers.next()).await.expect("an answer").unwrap_or_else(|status| panic!("{number}: {status}"));
        assert_eq!((id(&answer), answer.error_message.as_str()), (number.to_string().as_str(), ""));
    }
    let (code, _) = refusal(within(answers.next()).await.expect("it does not end well"));
    assert_eq!(code, Code::InvalidArgument);
    let outcomes = served.engine.metrics().outcomes().expect("metrics are on");
    assert_eq!((outcomes.received, outcomes.answered, outcomes.refused), (4, 3, 1));
    served.stop().await;
}

#[tokio::test]
async fn a_request_holds_its_memory_until_it_is_answered() {
    let served = Served::bounded(1 << 20).await;
    for compressed in [false, true] {
        let mut client = served.client().await;
        if compressed {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let held = until(|| metric(&served.engine, HELD) == slow().encoded_len() as f64);
        let (answer, ()) = tokio::join!(client.model_infer(slow()), held);
        answer.expect("answered");
        until(|| metric(&served.engine, HELD) == 0.0).await;
    }
    served.stop().await;
}

#[tokio::test]
async fn each_request_of_a_stream_holds_its_own() {
    let served = Served::bounded(1 << 20).await;
    for compressed in [false, true] {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut client = served.client().await;
        if compressed {
            client = client.send_compressed(CompressionEncoding::Deflate);
        }
        let stream = UnboundedReceiverStream::new(receiver);
        let mut answers = client.model_stream_infer(stream).await.expect("a stream opens").into_inner();
        sender.send(with_id(zeros(300_000), "large")).expect("open");
        assert_eq!(id(&within(answers.next()).await.expect("an answer").expect("no status")), "large");
        until(|| metric(&served.engine, HELD) == 0.0).await;
        sender.send(with_id(slow(), "slow")).expect("open");
        until(|| metric(&served.engine, HELD) > 0.0).await;
        assert!(metric(&served.engine, HELD) < 100.0);
        sender.send(with_id(pair(), "pair")).expect("open");
        for expected in ["slow", "pair"] {
            assert_eq!(id(&within(answers.next()).await.expect("an answer").expect("no status")), expected);
        }
        until(|| metric(&served.engine, HELD) == 0.0).await;
        drop(sender);
        assert!(within(answers.next()).await.is_none());
    }
    served.stop().await;
}

#[tokio::test]
async fn large_requests_wait_until_others_are_answered() {
    let served = Served::bounded(1 << 20).await;
    let slow = |bytes: usize| request("slow", &[("INPUT0", "FP32", &[1, bytes as i64 / 4], &vec![0; bytes])]);
    let mut client = served.client().await;
    let first = tokio::spawn(async move { client.model_infer(slow(600_000)).await });
    until(|| metric(&served.engine, HELD) > 600_000.0).await;
    let mut client = served.client().await;
    let (code, message) = refusal(client.model_infer(zeros(300_000)).await);
    assert_eq!(code, Code::Unavailable);
    assert!(message.ends_with("and may hold 1048576 (--request-memory-limit), try again later"), "{message}");
    client.model_infer(zeros(30_000)).await.expect("it is small");
    within(first).await.expect("no panic").expect("answered");
    client.model_infer(zeros(300_000)).await.expect("there is room again");
    assert_eq!(metric(&served.engine, "nereid_unrouted_requests_total{reason=\"unavailable\"}"), 1.0);
    served.stop().await;
}

#[tokio::test]
async fn an_answer_for_which_its_client_gives_no_room_counts_until_that_goes_away() {
    let served = Served::bounded(64 << 20).await;
    let (mut sender, connection) = connected(served.address, 0).await;
    let connection = tokio::spawn(connection);
    let message = zeros(16 << 20).encode_to_vec();
    let answer =
        within(sender.send_request(inference(served.address, framed(&message, message.len() as u32, 0)))).await;
    let answered = 16 << 20..(16 << 20) + 4096;
    until(|| answered.contains(&(metric(&served.engine, HELD) as usize))).await;
    drop((sender, answer));
    connection.abort();
    until(|| metric(&served.engine, HELD) == 0.0).await;
    served.stop().await;
}
