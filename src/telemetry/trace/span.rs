//! Makes OpenTelemetry spans out of a record, named and nested as the reference server's.
//!
//! `InferRequest` is the request as a whole, from its headers to the end of its answer; below it one span has the
//! model's name, and below that are `queue` and `compute`. Begin with [`spans`].

use std::borrow::Cow;

use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::record::Record;
use crate::infer::Instant;

/// The name of the span of a request as a whole.
pub const REQUEST: &str = "InferRequest";

/// The most spans of one request.
pub const SPANS_MAX: usize = 4;

/// The spans of one request.
pub fn spans(record: &Record) -> Vec<SpanData> {
    let first = record.stamps.first().map_or(record.ended, |(_, at)| *at);
    let at = |name: &str| record.stamps.iter().find(|(stamp, _)| *stamp == name).map(|(_, at)| *at);
    let (began, ended) = (at("REQUEST_START").unwrap_or(first), at("REQUEST_END").unwrap_or(record.ended));
    let around = match (record.above, record.parent) {
        (Some(_), Some(passed_on_by)) => passed_on_by,
        _ => record.span.span_id(),
    };
    let mut model = child(record, record.model.clone().into(), (began, ended), around);
    model.span_context = context(record, record.model_span);
    model.events = events(record, |name| is_in_model(name) && !name.starts_with("COMPUTE_"));
    model.attributes = attributes(record);
    let mut spans = Vec::with_capacity(SPANS_MAX);
    if let Some(times) = record.executed {
        let parent = model.span_context.span_id();
        spans.push(child(record, "queue".into(), (times.queued, times.began), parent));
        let mut compute = child(record, "compute".into(), (times.began, times.ended), parent);
        compute.events = events(record, |name| name.starts_with("COMPUTE_"));
        spans.push(compute);
    }
    if record.above.is_some() {
        // Nothing carries it; the span around it is another model's.
        model.status = status(record);
        spans.push(model);
    } else {
        spans.extend([model, request(record, first)]);
    }
    spans
}

/// The span of a request as a whole, which began then.
fn request(record: &Record, began: Instant) -> SpanData {
    let mut request = span(record, REQUEST.into(), (began, record.ended));
    request.span_context = record.span.clone();
    request.span_kind = SpanKind::Server;
    if let Some(caller) = record.parent {
        request.parent_span_id = caller;
        request.parent_span_is_remote = true;
    }
    request.attributes = attributes(record);
    request.events = events(record, |name| !is_in_model(name));
    request.status = status(record);
    request
}

fn status(record: &Record) -> Status {
    record.error.as_ref().map_or(Status::Unset, |error| Status::error(error.clone()))
}

/// Whether a time belongs to the model and not to what carries the request.
fn is_in_model(name: &str) -> bool {
    ["REQUEST_", "QUEUE_", "COMPUTE_"].iter().any(|begin| name.starts_with(begin))
}

fn attributes(record: &Record) -> Vec<KeyValue> {
    let version = record.version.map_or(-1, |version| i64::try_from(version).unwrap_or(i64::MAX));
    vec![
        KeyValue::new("triton.model_name", record.model.clone()),
        KeyValue::new("triton.model_version", version),
        KeyValue::new("triton.request_id", record.shown_id().to_owned()),
        KeyValue::new("triton.trace_parent_id", i64::try_from(record.above.unwrap_or(0)).unwrap_or(i64::MAX)),
        KeyValue::new("request_id", record.request_id.to_string()),
    ]
}

fn events(record: &Record, wanted: impl Fn(&str) -> bool) -> SpanEvents {
    let stamps = record.stamps.iter().filter(|(name, _)| wanted(name));
    let mut events = SpanEvents::default();
    events.events = stamps.map(|(name, at)| Event::new(*name, record.clock.system(*at), Vec::new(), 0)).collect();
    events
}

fn child(record: &Record, name: Cow<'static, str>, times: (Instant, Instant), parent: SpanId) -> SpanData {
    SpanData { parent_span_id: parent, ..span(record, name, times) }
}

fn context(record: &Record, own: SpanId) -> SpanContext {
    let state = record.span.trace_state().clone();
    SpanContext::new(record.span.trace_id(), own, TraceFlags::SAMPLED, false, state)
}

/// A span of the record's trace without a parent.
fn span(record: &Record, name: Cow<'static, str>, (began, ended): (Instant, Instant)) -> SpanData {
    SpanData {
        span_context: context(record, RandomIdGenerator::default().new_span_id()),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name,
        start_time: record.clock.system(began),
        end_time: record.clock.system(ended),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("nereid").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}
