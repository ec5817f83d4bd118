//! What is below messages: limits, framing, unknown calls.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nereid::engine::Control;
use nereid::infer::Instant;
use nereid::protocol::grpc::Settings;
use nereid::protocol::transport::Settings as Limits;
use nereid::protocol::v2::wire::ServerLiveRequest;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};

use super::{PATIENCE, SLOW, Served, call, framed, pair, refusal, request, slow, until, within};
use crate::support::metric;

#[tokio::test]
async fn broken_bodies_are_refused() {
    let served = Served::start().await;
    let message = pair().encode_to_vec();
    let length = message.len() as u32;
    let twice: Bytes = [framed(&message, length, 0), framed(&message, length, 0)].concat().into();
    for (what, body, code) in [
        ("whole", framed(&message, length, 0), Code::Ok),
        ("empty", Bytes::new(), Code::Internal),
        ("half a header", Bytes::from_static(&[0, 0]), Code::Internal),
        ("too short", framed(&message, length + 1, 0), Code::Internal),
        ("too long", framed(&message, length - 1, 0), Code::Internal),
        ("two messages", twice, Code::Internal),
        ("not a message", framed(&[0xff; 20], 20, 0), Code::Internal),
        ("compressed without saying how", framed(&message, length, 1), Code::Internal),
    ] {
        let status = call(&served, "ModelInfer", &[], body).await;
        assert_eq!(status.code(), code, "{what}: {status}");
    }
    for method in ["ModelInfer", "ModelStreamInfer", "ServerLive"] {
        let status = call(&served, method, &[("grpc-encoding", "br")], framed(&message, length, 1)).await;
        assert_eq!(status.code(), Code::Unimplemented, "{method}: {status}");
        assert_eq!(status.metadata().get("grpc-accept-encoding").expect("it says"), "gzip,deflate,identity");
    }
    assert_eq!(metric(&served.engine, "nereid_unrouted_requests_total{reason=\"unimplemented\"}"), 2.0);
    served.stop().await;
}

#[tokio::test]
async fn what_is_refused_before_it_was_read_is_counted() {
    let served = Served::start().await;
    let nonsense = framed(&[0xff; 20], 20, 0);
    let gzip = [("grpc-encoding", "gzip")];
    call(&served, "ModelInfer", &[], nonsense.clone()).await;
    call(&served, "ModelInfer", &[], Bytes::new()).await;
    call(&served, "ModelInfer", &[("grpc-timeout", "soon")], nonsense.clone()).await;
    call(&served, "ModelInfer", &gzip, framed(b"not gzip", 8, 1)).await;
    call(&served, "ModelStreamInfer", &[], nonsense).await;
    let metrics = served.engine.metrics().render();
    assert!(metrics.contains("nereid_requests_received_total 5"), "{metrics}");
    served.stop().await;
}

#[tokio::test]
async fn a_request_of_too_many_parts_is_refused_by_every_way() {
    let served = Served::start().await;
    let mut many = pair();
    many.inputs = vec![Default::default(); 5000];
    for encoding in [None, Some(CompressionEncoding::Gzip)] {
        let mut client = served.client().await;
        if let Some(encoding) = encoding {
            client = client.send_compressed(encoding);
        }
        let expected = (Code::InvalidArgument, "the request has more than 4096 inputs".to_owned());
        assert_eq!(refusal(client.model_infer(many.clone()).await), expected, "{encoding:?}");
        let mut stream = client.model_stream_infer(tokio_stream::once(many.clone())).await.expect("open").into_inner();
        assert_eq!(refusal(within(stream.message()).await), expected, "{encoding:?}, on a stream");
    }
    served.stop().await;
}

#[tokio::test]
async fn an_unknown_call_is_unimplemented() {
    let served = Served::start().await;
    assert_eq!(call(&served, "ModelTrain", &[], framed(&[], 0, 0)).await.code(), Code::Unimplemented);
    served.stop().await;
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_and_a_response_too() {
    let settings = Settings { request_bytes_max: 4000, response_bytes_max: 1000, ..Settings::default() };
    let served = Served::with(Control::None, settings).await;
    let mut client = served.client().await;
    let floats = |count: i64| request("free", &[("INPUT0", "FP32", &[count], &vec![0; 4 * count as usize])]);
    client.model_infer(floats(200)).await.expect("within both limits");
    let (code, message) = refusal(client.model_infer(floats(500)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.starts_with("Response has byte size 20"), "{message}");
    assert!(message.ends_with(" which exceeds gRPC's byte size limit 1000."), "{message}");
    let (code, message) = refusal(client.model_infer(floats(2000)).await);
    assert_eq!(code, Code::ResourceExhausted);
    assert!(message.starts_with("Received message larger than max (80"), "{message}");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn more_connections_than_allowed_wait() {
    let limits = Limits { connections_max: 1, ..Limits::grpc() };
    let served = Served::limited(Control::None, Settings::default(), limits).await;
    let mut first = served.client().await;
    first.server_live(ServerLiveRequest {}).await.expect("answered");
    let address = served.address;
    let second = tokio::spawn(async move {
        let mut second = super::Client::connect(format!("http://{address}")).await.expect("the port is open");
        second.server_live(ServerLiveRequest {}).await
    });
    first.server_live(ServerLiveRequest {}).await.expect("answered");
    assert!(!second.is_finished());
    drop(first);
    super::within(second).await.expect("no panic").expect("answered after the first has gone");
    served.stop().await;
}

#[tokio::test]
async fn a_stop_ends_idle_connections() {
    let served = Served::start().await;
    let mut client = served.client().await;
    client.server_live(ServerLiveRequest {}).await.expect("answered");
    served.stop().await;
    assert!(client.server_live(ServerLiveRequest {}).await.is_err());
}

/// The preface of HTTP/2 with a frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A peer that says this much and nothing more.
async fn silent_after(address: SocketAddr, beginning: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.write_all(beginning).await.expect("the server reads");
    stream
}

/// A connection whose client lets as many bytes of an answer come ahead; it is read while it is polled.
pub(super) async fn connected(
    address: SocketAddr,
    window: u32,
) -> (http2::SendRequest<Full<Bytes>>, impl Future<Output = hyper::Result<()>> + Send + 'static) {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window).initial_connection_window_size(window.max(1 << 16));
    builder.handshake(TokioIo::new(stream)).await.expect("it speaks HTTP/2")
}

/// The call of ModelInfer with this body.
pub(super) fn inference(address: SocketAddr, body: Bytes) -> Request<Full<Bytes>> {
    let asked = Request::post(format!("http://{address}/inference.GRPCInferenceService/ModelInfer"));
    asked
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body))
        .expect("well formed")
}

/// Begins a call with `start` of a body that never ends; gives the status, if one comes.
async fn unfinished(address: SocketAddr, path: &str, timeout: Option<&str>, start: &'static [u8]) -> Option<Status> {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    let builder = http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("it speaks HTTP/2");
    let connection = tokio::spawn(connection);
    let frames = futures_util::stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(start)))]);
    let body = StreamBody::new(frames.chain(futures_util::stream::pending()));
    let mut asked = Request::post(format!("http://{address}{path}")).header("content-type", "application/grpc");
    if let Some(timeout) = timeout {
        asked = asked.header("grpc-timeout", timeout);
    }
    let answer = sender.send_request(asked.body(body).expect("well formed")).await.ok()?;
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return Some(status);
    }
    // The headers of a stream, which may go on until the connection ends.
    let body = answer.into_body().collect().await;
    connection.abort();
    Status::from_header_map(body.ok()?.trailers()?)
}

#[tokio::test]
async fn peers_that_do_nothing_do_not_hold_up_a_stop() {
    let served = Served::start().await;
    let address = served.address;
    let _nothing = silent_after(address, b"").await;
    let _half = silent_after(address, &PREFACE[..5]).await;
    let _no_answer_to_pings = silent_after(address, PREFACE).await;
    let infer = "/inference.GRPCInferenceService/ModelInfer";
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let request = tokio::spawn(unfinished(address, infer, None, &[0, 0, 0, 1, 0, 9]));
    let stream = tokio::spawn(unfinished(address, reflection, None, &[]));
    served.client().await.server_live(ServerLiveRequest {}).await.expect("answered");
    let start = Instant::now();
    served.stop().await;
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    assert!(within(request).await.expect("no panic").is_none_or(|status| status.code() != Code::Ok));
    within(stream).await.expect("no panic");
}

#[tokio::test]
async fn a_stop_waits_for_requests_in_flight_longer_than_for_connections() {
    let served = Served::start().await;
    let client = served.client().await;
    let handle = served.engine.find("slow", None).expect("it is ready");
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.model_infer(slow()).await })
        })
        .collect();
    until(|| served.engine.metrics().render().contains("nereid_requests_received_total 6")).await;
    let _silent = silent_after(served.address, PREFACE).await;
    let start = Instant::now();
    drop(client);
    served.stop().await;
    assert!(start.elapsed() > 4 * SLOW, "{:?}", start.elapsed());
    for call in calls {
        within(call).await.expect("no panic").expect("answered");
    }
    assert_eq!(handle.stats.snapshot().execution_count, 6);
}

#[tokio::test]
async fn a_connection_that_does_not_begin_to_speak_is_closed() {
    let handshake_timeout = Duration::from_millis(50);
    let limits = Limits { handshake_timeout, ..Limits::grpc() };
    let served = Served::limited(Control::None, Settings::default(), limits).await;
    let mut half = silent_after(served.address, &PREFACE[..5]).await;
    let _ = within(half.read_to_end(&mut Vec::new())).await;
    let mut client = served.client().await;
    within(client.server_live(ServerLiveRequest {})).await.expect("answered");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_deadline_counts_from_the_headers_on() {
    let served = Served::start().await;
    let infer = "/inference.GRPCInferenceService/ModelInfer";
    let status = within(unfinished(served.address, infer, Some("50m"), &[0, 0, 0, 1, 0, 9])).await;
    assert_eq!(status.expect("an answer before the body ends").code(), Code::DeadlineExceeded);
    served.stop().await;
}

#[tokio::test]
async fn peers_that_say_nothing_make_room_at_once() {
    let limits = Limits { connections_max: 2, ..Limits::grpc() };
    let served = Served::limited(Control::None, Settings::default(), limits).await;
    let mut silent = Vec::new();
    for beginning in [&b""[..], &PREFACE[..5], PREFACE, b"", PREFACE, b""] {
        silent.push(silent_after(served.address, beginning).await);
    }
    let start = Instant::now();
    let mut client = served.client().await;
    within(client.server_live(ServerLiveRequest {})).await.expect("answered");
    assert!(start.elapsed() < Limits::grpc().handshake_timeout / 2, "{:?}", start.elapsed());
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_request_that_stops_arriving_is_given_up() {
    let limits = Limits { body_timeout: Some(Duration::from_millis(50)), ..Limits::grpc() };
    let served = Served::limited(Control::None, Settings::default(), limits).await;
    for method in ["ModelInfer", "ModelReady", "ModelStreamInfer"] {
        let path = format!("/inference.GRPCInferenceService/{method}");
        let status = within(unfinished(served.address, &path, None, &[0, 0, 0, 1, 0, 9])).await;
        let status = status.expect("an answer before the body ends");
        assert_eq!(
            (status.code(), status.message()),
            (Code::DeadlineExceeded, "nothing more of the request came for 0.05 s")
        );
    }
    // A stream may be silent between its requests.
    let mut client = served.client().await;
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.model_stream_infer(receiver).await.expect("open").into_inner();
    tokio::time::timeout(Duration::from_millis(200), answers.message()).await.expect_err("nothing was asked");
    requests.send(pair()).await.expect("the stream is open");
    let answer = within(answers.message()).await.expect("still open").expect("answered");
    assert_eq!(answer.error_message, "");
    drop((requests, answers, client));
    served.stop().await;
}

/// An answer that the system's buffers do not hold.
const LARGE_FLOATS: usize = 16 << 20;

#[tokio::test]
async fn a_stop_waits_for_who_pauses_within_a_large_answer() {
    let served = Served::start().await;
    let (mut sender, connection) = connected(served.address, 1 << 20).await;
    let mut connection = Box::pin(connection);
    let message =
        request("free", &[("INPUT0", "FP32", &[LARGE_FLOATS as i64], &vec![7; 4 * LARGE_FLOATS])]).encode_to_vec();
    let asked = inference(served.address, framed(&message, message.len() as u32, 0));
    let answer = tokio::select! {
        answer = within(sender.send_request(asked)) => answer.expect("it begins"),
        ended = &mut connection => panic!("it ended: {ended:?}"),
    };
    drop(sender);
    // Nobody reads while nobody polls the connection.
    let mut stop = std::pin::pin!(served.stop());
    tokio::time::timeout(Duration::from_secs(2), &mut stop).await.expect_err("the answer is not sent");
    let connection = tokio::spawn(connection);
    let (body, ()) = tokio::join!(within(answer.into_body().collect()), stop);
    let body = body.expect("all of it comes");
    let status = Status::from_header_map(body.trailers().expect("it ends well"));
    assert_eq!(status.expect("it has one").code(), Code::Ok);
    assert!(body.to_bytes().len() > 4 * LARGE_FLOATS);
    let _ = within(connection).await;
}

#[tokio::test]
async fn who_takes_nothing_of_its_answers_is_cut_off_and_who_waits_for_them_is_not() {
    let limits = Limits { send_timeout: Some(SLOW / 4), ..Limits::grpc() };
    let served = Served::limited(Control::None, Settings::default(), limits).await;
    let (mut sender, connection) = connected(served.address, 0).await;
    let connection = tokio::spawn(connection);
    let mut patient = served.client().await;
    patient.server_live(ServerLiveRequest {}).await.expect("answered");
    let message = pair().encode_to_vec();
    let asked = inference(served.address, framed(&message, message.len() as u32, 0));
    let answer = within(sender.send_request(asked)).await.expect("it begins");
    let _ = within(connection).await.expect("no panic");
    within(answer.into_body().collect()).await.expect_err("it does not come");
    patient.model_infer(slow()).await.expect("answered on the connection that was idle");
    drop((sender, patient));
    served.stop().await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn calls_that_are_given_up_at_once_do_not_end_those_of_others_on_the_connection() {
    let (headers, data, reset) = (1, 0, 3);
    let served = Served::start().await;
    let path = b"/inference.GRPCInferenceService/ServerLive";
    let kind = b"application/grpc";
    // POST, http, the path and the type of content, as HPACK has them without Huffman's code.
    let head = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x0f, 0x10, kind.len() as u8], kind].concat();
    let mut sent = PREFACE.to_vec();
    for stream in (1..200).step_by(2) {
        sent.extend(frame(headers, 4, stream, &head));
        sent.extend(frame(reset, 0, stream, &8_u32.to_be_bytes()));
    }
    sent.extend(frame(headers, 4, 201, &head));
    sent.extend(frame(data, 1, 201, &[0; 5]));
    let mut stream = silent_after(served.address, &sent).await;
    let answered = async {
        loop {
            let mut begin = [0; 9];
            stream.read_exact(&mut begin).await.expect("the connection goes on");
            let length = u32::from_be_bytes([0, begin[0], begin[1], begin[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.expect("the connection goes on");
            assert_ne!(begin[3], 7, "GOAWAY: {payload:?}");
            if (begin[3], begin[8]) == (data, 201) {
                return payload;
            }
        }
    };
    assert_eq!(within(answered).await, [0, 0, 0, 0, 2, 8, 1]);
    drop(stream);
    served.stop().await;
}
