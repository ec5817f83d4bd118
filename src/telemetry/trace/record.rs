//! What is known of one traced request, from its first byte to its last.
//!
//! A [`Trace`] is filled in by whoever carries and executes the request; when it is dropped, with the last of those who
//! hold it, it becomes a [`Record`], which `file` or `span` writes. Knows neither wire formats nor where records go.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use parking_lot::Mutex;

use super::Tracer;
use super::settings::Values;
use crate::error::Error;
use crate::infer::{Follow, Instant, Request, Response, Times};
use crate::model::Version;
use crate::tensor::{DataType, Shape, Tensor};

/// The most bytes that are kept of a name, an id or a message.
const TEXT_BYTES_MAX: usize = 1024;

/// What a recorded tensor takes of the bound on all of them, beside its name and its data.
const TENSOR_BYTES: usize = 64;

/// What carries a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP.
    Http,
}

/// What is known of a request before it was read.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What carries it.
    pub protocol: Protocol,
    /// The id in logs and answers.
    pub request_id: Arc<str>,
    /// The caller's span, if the caller traces the request and this server's mode honours it.
    pub parent: Option<SpanContext>,
    /// When its headers had come.
    pub since: Instant,
}

/// A request that is traced, or may be once its model is known.
#[derive(Debug)]
pub struct Trace {
    tracer: Arc<Tracer>,
    caller: Caller,
    /// Written by one after the other, by the call's own task; the lock only proves that.
    draft: Mutex<Option<Draft>>,
}

/// What is known of a traced request so far.
#[derive(Debug)]
struct Draft {
    id: u64,
    values: Values,
    span: SpanContext,
    /// The span of the model's part in it.
    model_span: SpanId,
    /// The trace of the request that passed this one on.
    above: Option<Above>,
    model: String,
    version: Option<Version>,
    message_id: String,
    arrived: Instant,
    executed: Option<Times>,
    responded: Option<Instant>,
    sending: Option<Instant>,
    error: Option<String>,
    tensors: Vec<RecordedTensor>,
    /// What is left of the bound of `tensors`.
    tensor_bytes: usize,
}

/// The trace of a request that was passed on.
#[derive(Clone, Copy, Debug)]
struct Above {
    id: u64,
    model_span: SpanId,
}

/// The part of a request that decides whether it is traced.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The model that it names.
    pub model: &'a str,
    /// The id in its message.
    pub id: &'a str,
    /// When it had been read.
    pub arrived: Instant,
}

impl Trace {
    /// A request that may be traced.
    pub fn new(tracer: Arc<Tracer>, caller: Caller) -> Self {
        Self { tracer, caller, draft: Mutex::new(None) }
    }

    /// Another request by the same caller, on the same stream.
    pub fn another(&self) -> Self {
        Self::new(self.tracer.clone(), Caller { since: Instant::now(), ..self.caller.clone() })
    }

    /// Decides, once the request was read, whether it is traced.
    pub fn start(&self, start: Start<'_>) {
        let Some((id, values)) = self.tracer.sample(start.model, self.caller.parent.is_some()) else { return };
        let ids = RandomIdGenerator::default();
        let parent = self.caller.parent.as_ref();
        let span = SpanContext::new(
            parent.map_or_else(|| ids.new_trace_id(), SpanContext::trace_id),
            ids.new_span_id(),
            TraceFlags::SAMPLED,
            false,
            parent.map(|parent| parent.trace_state().clone()).unwrap_or_default(),
        );
        *self.draft.lock() = Some(Draft {
            id,
            values,
            span,
            model_span: ids.new_span_id(),
            above: None,
            model: bounded(start.model),
            version: None,
            message_id: bounded(start.id),
            arrived: start.arrived,
            executed: None,
            responded: None,
            sending: None,
            error: None,
            tensors: Vec::new(),
            tensor_bytes: self.tracer.tensor_bytes_max(),
        });
    }

    /// The trace's id in logs and at the collector; `None` if the request is not traced.
    pub fn id(&self) -> Option<TraceId> {
        self.draft.lock().as_ref().map(|draft| draft.span.trace_id())
    }

    /// Notes the version that executes the request, and its inputs by name.
    pub fn executing<'a>(&self, version: Version, inputs: impl Iterator<Item = (&'a str, &'a Tensor)>) {
        if let Some(draft) = &mut *self.draft.lock() {
            draft.version = Some(version);
            draft.record(Side::Input, inputs);
        }
    }

    /// Notes a response; of several the last one ends the execution.
    pub fn responded(&self, response: &Response) {
        if let Some(draft) = &mut *self.draft.lock() {
            draft.version = Some(response.version);
            draft.responded = Some(Instant::now());
            if let Some(times) = response.times {
                let first = draft.executed.unwrap_or(times);
                draft.executed = Some(Times { outputs_ready: times.outputs_ready, ended: times.ended, ..first });
            }
            draft.record(Side::Output, response.outputs.iter().map(|output| (&*output.name, &output.tensor)));
        }
    }

    /// Notes why the request has no response.
    pub fn failed(&self, error: &Error) {
        if let Some(draft) = &mut *self.draft.lock() {
            draft.responded = Some(Instant::now());
            draft.error = Some(bounded(error.message()));
        }
    }

    /// Notes that the answer begins to be sent; it has been when this is dropped.
    pub fn sending(&self) {
        if let Some(draft) = &mut *self.draft.lock() {
            draft.sending.get_or_insert_with(Instant::now);
        }
    }
}

impl Follow for Trace {
    fn passed_on(&self, request: &Request) -> Arc<dyn Follow> {
        let draft = self.draft.lock().as_ref().map(|draft| draft.below(&self.tracer, request));
        let trace = Self::new(self.tracer.clone(), self.caller.clone());
        *trace.draft.lock() = draft;
        Arc::new(trace)
    }

    fn responded(&self, response: &Response) {
        Trace::responded(self, response);
    }

    fn failed(&self, error: &Error) {
        Trace::failed(self, error);
    }
}

impl Draft {
    /// The trace of a request that this one's is passed on as.
    fn below(&self, tracer: &Tracer, request: &Request) -> Self {
        let mut below = Self {
            id: tracer.next_id(),
            values: self.values,
            span: self.span.clone(),
            model_span: RandomIdGenerator::default().new_span_id(),
            above: Some(Above { id: self.id, model_span: self.model_span }),
            model: bounded(&request.model),
            version: None,
            message_id: bounded(&request.id),
            arrived: request.arrived,
            executed: None,
            responded: None,
            sending: None,
            error: None,
            tensors: Vec::new(),
            tensor_bytes: tracer.tensor_bytes_max(),
        };
        below.record(Side::Input, request.inputs.iter().map(|input| (input.name.as_str(), &input.tensor)));
        below
    }

    fn record<'a>(&mut self, side: Side, tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) {
        if !self.values.level.tensors {
            return;
        }
        for (name, tensor) in tensors {
            // Names and shapes take memory as well.
            let Some(left) = self.tensor_bytes.checked_sub(name.len() + TENSOR_BYTES) else { return };
            let kept = tensor.data.len().min(left);
            self.tensor_bytes = left - kept;
            self.tensors.push(RecordedTensor {
                side,
                name: name.to_owned(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                // A copy: a view would keep the whole buffer of the network until it is written.
                data: Bytes::copy_from_slice(&tensor.data[..kept]),
                whole: kept == tensor.data.len(),
            });
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let Some(draft) = self.draft.get_mut().take() else { return };
        let sent = Instant::now();
        let [receiving, received, sending_began, sending_ended] = self.caller.protocol.names();
        let mut stamps = match draft.above {
            None => vec![(receiving, self.caller.since), (received, draft.arrived)],
            // Nothing carries it.
            Some(_) => Vec::new(),
        };
        stamps.push(("REQUEST_START", draft.arrived));
        if let Some(times) = draft.executed {
            stamps.push(("QUEUE_START", times.queued));
            stamps.push(("COMPUTE_START", times.began));
            stamps.push(("COMPUTE_INPUT_END", times.inputs_ready));
            stamps.push(("COMPUTE_OUTPUT_START", times.outputs_ready));
            stamps.push(("COMPUTE_END", times.ended));
        }
        stamps.extend(draft.responded.map(|responded| ("INFER_RESPONSE_COMPLETE", responded)));
        stamps.push(("REQUEST_END", draft.responded.unwrap_or(sent)));
        if let Some(sending) = draft.sending {
            stamps.push((sending_began, sending));
            stamps.push((sending_ended, sent));
        }
        self.tracer.record(Record {
            id: draft.id,
            values: draft.values,
            model: draft.model,
            version: draft.version,
            message_id: draft.message_id,
            request_id: self.caller.request_id.clone(),
            span: draft.span,
            model_span: draft.model_span,
            above: draft.above.map(|above| above.id),
            parent: match draft.above {
                None => self.caller.parent.as_ref().map(SpanContext::span_id),
                Some(above) => Some(above.model_span),
            },
            error: draft.error.or_else(|| draft.responded.is_none().then(|| "cancelled by the caller".to_owned())),
            executed: draft.executed,
            stamps,
            ended: sent,
            clock: Clock { instant: sent, system: SystemTime::now() },
            tensors: draft.tensors,
        });
    }
}

impl Protocol {
    /// The names of the times of receiving and sending: begin and end of each.
    fn names(self) -> [&'static str; 4] {
        match self {
            Protocol::Grpc => ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"],
            Protocol::Http => ["HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"],
        }
    }
}

/// A text of the caller's, as much of it as is kept.
fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// A traced request that has ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number among this server's traces, from 1.
    pub id: u64,
    /// The settings that it was chosen by.
    pub values: Values,
    /// The model that it named.
    pub model: String,
    /// The version that executed it; `None` if it came to none.
    pub version: Option<Version>,
    /// The id in its message; empty if none.
    pub message_id: String,
    /// The id in logs and answers.
    pub request_id: Arc<str>,
    /// The span of the request as a whole.
    pub span: SpanContext,
    /// The span of the model's part in it.
    pub model_span: SpanId,
    /// The number of the trace of the request that passed this one on.
    pub above: Option<u64>,
    /// The caller's span, or that of the model that passed it on.
    pub parent: Option<SpanId>,
    /// Why it has no response.
    pub error: Option<String>,
    /// The stages of its execution, if it was executed.
    pub executed: Option<Times>,
    /// The names and times of what happened to it, in order.
    pub stamps: Vec<(&'static str, Instant)>,
    /// When it was over.
    pub ended: Instant,
    /// What makes the times of the clock on the wall.
    pub clock: Clock,
    /// Its inputs and outputs, if they are recorded.
    pub tensors: Vec<RecordedTensor>,
}

impl Record {
    /// The id that the reference server calls the request's: the message's own, or else the one in logs.
    pub fn shown_id(&self) -> &str {
        if self.message_id.is_empty() { &self.request_id } else { &self.message_id }
    }
}

/// Whether a tensor came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It was in the request.
    Input,
    /// It is in a response.
    Output,
}

/// A tensor of a traced request.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedTensor {
    /// Whether it came or went.
    pub side: Side,
    /// Its name.
    pub name: String,
    /// Its elements' type.
    pub dtype: DataType,
    /// Its shape, of all of it.
    pub shape: Shape,
    /// Its bytes, as far as the bound allows.
    pub data: Bytes,
    /// Whether `data` is all of it.
    pub whole: bool,
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// By the clock that requests are timed with.
    pub instant: Instant,
    /// By the clock on the wall.
    pub system: SystemTime,
}

impl Clock {
    /// The time on the wall of a moment that has passed.
    pub fn system(&self, at: Instant) -> SystemTime {
        self.system.checked_sub(self.instant.saturating_duration_since(at)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The same, in nanoseconds since 1970.
    pub fn nanoseconds(&self, at: Instant) -> u128 {
        self.system(at).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
    }
}
