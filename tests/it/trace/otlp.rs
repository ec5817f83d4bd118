//! Spans at a collector, in the caller's own trace.

use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;

use super::collector::Collector;
use super::{client, infer, repository, request};
use crate::process::Process;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_reaches_a_collector_by_grpc() {
    a_callers_trace_reaches(Collector::grpc().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_reaches_a_collector_by_http() {
    a_callers_trace_reaches(Collector::http().await).await;
}

/// One request of a caller that traces, among others that do not: the same id is in the answer, the log and the span.
async fn a_callers_trace_reaches(mut collector: Collector) {
    let root = repository();
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let url = format!("opentelemetry,url={}", collector.url);
    let trace = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=0", &url, "opentelemetry,resource=host.name=here"];
    let mut flags: Vec<&str> = trace.iter().flat_map(|text| ["--trace-config", text]).collect();
    flags.extend(["--log-verbose", "1", "--log-format", "json", "--log-file", log.path().to_str().expect("a text")]);
    let server = Process::start(root.path(), &flags);
    let mut client = client(&server).await;

    let untraced = infer(&mut client, request("m"), &[]).await.expect("answered");
    assert!(untraced.metadata().get("x-request-id").is_none(), "the caller sent none");
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", traceparent), ("tracestate", "vendor=1"), ("x-request-id", "call-7")];
    let answer = infer(&mut client, request("m"), &headers).await.expect("answered");
    assert_eq!(answer.metadata().get("x-request-id").expect("sent back"), "call-7");
    let refused = infer(&mut client, request("nobody"), &[("x-request-id", "call-8")]).await.expect_err("unknown");
    assert_eq!(refused.metadata().get("x-request-id").expect("sent back"), "call-8");
    drop(client);
    // What has not been sent by now is sent at the stop.
    server.stop();

    let taken = collector.taken();
    let resource = taken[0].resource_spans[0].resource.as_ref().expect("there is one");
    assert_eq!(texts(&resource.attributes)["service.name"], "nereid");
    assert_eq!(texts(&resource.attributes)["host.name"], "here");
    let scopes = taken.into_iter().flat_map(|request| request.resource_spans).flat_map(|spans| spans.scope_spans);
    check_spans(&scopes.flat_map(|scope| scope.spans).collect::<Vec<_>>());
    let log = std::fs::read_to_string(log.path()).expect("it is text");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |id: &str| lines.iter().find(|line| line["request_id"] == id).expect("in the log");
    assert_eq!(
        (of("call-7")["message"].as_str(), of("call-7")["trace_id"].as_str()),
        (Some("request answered"), Some(TRACE))
    );
    assert_eq!(of("call-8")["message"].as_str(), Some("request refused"));
}

fn check_spans(spans: &[Span]) {
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
    assert_eq!(
        events(request),
        "GRPC_WAITREAD_START GRPC_WAITREAD_END INFER_RESPONSE_COMPLETE GRPC_SEND_START GRPC_SEND_END"
    );
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
