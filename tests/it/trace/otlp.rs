//! Spans at a collector, in the caller's own trace.

use std::collections::HashMap;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpStream;

use super::collector::Collector;
use super::{client, infer, repository, request};
use crate::process::Process;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_begun_by_grpc_reaches_a_collector_by_grpc() {
    a_callers_trace_reaches(Collector::grpc().await, Front::Grpc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_begun_by_http_reaches_a_collector_by_http() {
    a_callers_trace_reaches(Collector::http().await, Front::Http).await;
}

/// What carries the requests.
#[derive(Clone, Copy)]
enum Front {
    Grpc,
    Http,
}

impl Front {
    /// Infers with these headers; gives whether that succeeded, and the id that was sent back.
    async fn infer(
        self,
        server: &Process,
        model: &str,
        headers: &[(&'static str, &'static str)],
    ) -> (bool, Option<String>) {
        match self {
            Front::Grpc => match infer(&mut client(server).await, request(model), headers).await {
                Ok(answer) => (true, id(answer.metadata().as_ref())),
                Err(status) => (false, id(status.metadata().as_ref())),
            },
            Front::Http => {
                let answer = post(server, &format!("{model}/infer"), headers).await;
                (answer.status().is_success(), id(answer.headers()))
            }
        }
    }

    /// The names of the times of receiving and sending.
    fn events(self) -> &'static str {
        match self {
            Front::Grpc => {
                "GRPC_WAITREAD_START GRPC_WAITREAD_END INFER_RESPONSE_COMPLETE GRPC_SEND_START GRPC_SEND_END"
            }
            Front::Http => "HTTP_RECV_START HTTP_RECV_END INFER_RESPONSE_COMPLETE HTTP_SEND_START HTTP_SEND_END",
        }
    }
}

fn id(headers: &HeaderMap) -> Option<String> {
    headers.get("x-request-id").map(|id| id.to_str().expect("a text").to_owned())
}

/// The same request by HTTP, answered to its end; `call` is a model and what it is asked for.
async fn post(server: &Process, call: &str, headers: &[(&'static str, &'static str)]) -> http::Response<Bytes> {
    let stream = TcpStream::connect(server.address("http")).await.expect("the server listens");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("it speaks HTTP");
    let connection = tokio::spawn(connection);
    let body = r#"{"id":"mine","inputs":[{"name":"IN","datatype":"UINT8","shape":[1,4],"data":[1,2,3,4]}]}"#;
    let mut asked = http::Request::post(format!("/v2/models/{call}")).header("host", "here");
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    let asked = asked.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("well formed");
    let (head, body) = sender.send_request(asked).await.expect("answered").into_parts();
    let body = body.collect().await.expect("it ends well").to_bytes();
    drop(sender);
    connection.await.expect("it does not panic").expect("it ends well");
    http::Response::from_parts(head, body)
}

/// One request of a caller that traces, among others that do not: the same id is in the answer, the log and the span.
async fn a_callers_trace_reaches(mut collector: Collector, front: Front) {
    let root = repository();
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let url = format!("opentelemetry,url={}", collector.url);
    let trace = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=0", &url, "opentelemetry,resource=host.name=here"];
    let mut flags: Vec<&str> = trace.iter().flat_map(|text| ["--trace-config", text]).collect();
    flags.extend(["--log-verbose", "1", "--log-format", "json", "--log-file", log.path().to_str().expect("a text")]);
    let server = Process::start(root.path(), &flags);

    let (answered, made) = front.infer(&server, "m", &[]).await;
    assert!(answered);
    // HTTP makes an id for a caller that has sent none.
    assert_eq!(made.is_some(), matches!(front, Front::Http));
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", traceparent), ("tracestate", "vendor=1"), ("x-request-id", "call-7")];
    assert_eq!(front.infer(&server, "m", &headers).await, (true, Some("call-7".to_owned())));
    let refused = front.infer(&server, "nobody", &[("x-request-id", "call-8")]).await;
    assert_eq!(refused, (false, Some("call-8".to_owned())));
    post(&server, "nobody/generate", &[("x-request-id", "call-9")]).await;
    // What has not been sent by now is sent at the stop.
    server.stop();

    let taken = collector.taken();
    let resource = taken[0].resource_spans[0].resource.as_ref().expect("there is one");
    assert_eq!(texts(&resource.attributes)["service.name"], "nereid");
    assert_eq!(texts(&resource.attributes)["host.name"], "here");
    let scopes = taken.into_iter().flat_map(|request| request.resource_spans).flat_map(|spans| spans.scope_spans);
    check_spans(&scopes.flat_map(|scope| scope.spans).collect::<Vec<_>>(), front);
    let log = std::fs::read_to_string(log.path()).expect("it is text");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |id: &str| lines.iter().find(|line| line["request_id"] == id).expect("in the log");
    assert_eq!(
        (of("call-7")["message"].as_str(), of("call-7")["trace_id"].as_str()),
        (Some("request answered"), Some(TRACE))
    );
    for refused in ["call-8", "call-9"] {
        assert_eq!(of(refused)["message"].as_str(), Some("request refused"), "{refused}");
    }
}

fn check_spans(spans: &[Span], front: Front) {
    let named: HashMap<&str, &Span> = spans.iter().map(|span| (span.name.as_str(), span)).collect();
    assert_eq!(spans.len(), 4, "only the caller's: {:?}", named.keys());
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE && span.trace_state == "vendor=1"));
    let (request, model) = (named["InferRequest"], named["m"]);
    assert_eq!(hex(&request.parent_span_id), PARENT);
    assert_eq!(model.parent_span_id, request.span_id);
    for part in ["queue", "compute"] {
        assert_eq!(named[part].parent_span_id, model.span_id, "{part}");
        assert!(named[part].start_time_unix_nano >= model.start_time_unix_nano, "{part}");
        assert!(named[part].end_time_unix_nano <= model.end_time_unix_nano, "{part}");
    }
    let attributes = texts(&request.attributes);
    assert_eq!(attributes["triton.model_name"], "m");
    assert_eq!(attributes["triton.model_version"], "1");
    assert_eq!(attributes["triton.request_id"], "mine");
    assert_eq!(attributes["triton.trace_parent_id"], "0");
    assert_eq!(attributes["request_id"], "call-7");
    let events = |span: &Span| span.events.iter().map(|event| event.name.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(events(request), front.events());
    assert_eq!(events(model), "REQUEST_START QUEUE_START REQUEST_END");
    assert_eq!(events(named["compute"]), "COMPUTE_START COMPUTE_INPUT_END COMPUTE_OUTPUT_START COMPUTE_END");
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Attributes as texts.
fn texts(attributes: &[KeyValue]) -> HashMap<&str, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.as_str(), text(attribute))).collect()
}
