//! What accompanies a request beside its message: its id in logs and answers, and its trace.
//!
//! Made from a call's headers by whatever carries it ([`Context::of`]), and kept until the answer was sent.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use super::outcome::Observer;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::gateway::request_memory::Portion;
use crate::infer::{Follow, Instant};
use crate::telemetry::trace::{Caller, Protocol, Trace, random_id};

/// The header that carries a request's id, in both directions.
pub const REQUEST_ID: &str = "x-request-id";

/// The longest id that is taken from a caller, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The id and the trace of one request. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Context {
    request_id: Option<Arc<str>>,
    /// Whether the id is the caller's.
    given: bool,
    trace: Option<Arc<Trace>>,
}

impl Context {
    /// The context of a call whose headers have just come.
    ///
    /// An id that the caller has not sent is made if somebody will see it: over HTTP it always is.
    pub fn of(gateway: &Gateway, protocol: Protocol, headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(valid).map(Arc::from);
        let traced = gateway.tracer().is_on();
        let seen = traced || protocol == Protocol::Http || tracing::enabled!(tracing::Level::DEBUG);
        let request_id = given.clone().or_else(|| seen.then(random_id));
        let trace = traced.then(|| {
            let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
            let parent = text("traceparent").and_then(|parent| gateway.tracer().parent(parent, text("tracestate")));
            let request_id = request_id.clone().unwrap_or_default();
            let caller = Caller { protocol, request_id, parent, since: Instant::now() };
            Arc::new(Trace::new(gateway.tracer().clone(), caller))
        });
        Self { given: given.is_some(), request_id, trace }
    }

    /// The context of another request on the same stream.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { trace: self.trace.as_ref().map(|trace| Arc::new(trace.another())), ..self.clone() }
    }

    /// The request's id: the caller's, or one that was made.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// The request's id as a header of the answer.
    pub fn header(&self) -> Option<HeaderValue> {
        self.request_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok())
    }

    /// The same, if the caller has sent it.
    pub fn header_given(&self) -> Option<HeaderValue> {
        self.header().filter(|_| self.given)
    }

    /// Notes that the answer begins to be sent; it has been once the context is dropped everywhere.
    pub fn sending(&self) {
        if let Some(trace) = &self.trace {
            trace.sending();
        }
    }

    /// Notes that the request is refused before it was decoded.
    pub fn refused(&self, error: &Error) {
        Observer { context: self.clone(), handle: None, arrived: Instant::now(), _portion: Portion::default() }
            .failed(error);
    }

    /// The trace, for requests that this one is passed on as; `None` if it is not traced.
    pub(super) fn follow(&self) -> Option<Arc<dyn Follow>> {
        let traced = self.trace.as_ref().filter(|trace| trace.id().is_some());
        traced.map(|trace| trace.clone() as Arc<dyn Follow>)
    }

    /// The trace, if the request may be traced.
    pub(super) fn trace(&self) -> Option<&Trace> {
        self.trace.as_deref()
    }
}

/// The id that a caller has sent, to be sent back; `None` if there is none that may be.
pub fn given(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(REQUEST_ID).filter(|value| valid(value).is_some()).cloned()
}

/// An id as it may stand in a header and in a line of the log; `None` if it may not.
fn valid(value: &HeaderValue) -> Option<&str> {
    let id = value.to_str().ok()?;
    let fits = (1..=REQUEST_ID_BYTES_MAX).contains(&id.len());
    (fits && id.bytes().all(|byte| byte.is_ascii_graphic())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_printable() {
        let read = |id: &str| HeaderValue::from_str(id).ok().as_ref().and_then(valid).map(str::to_owned);
        assert_eq!(read("7f-3.a_b"), Some("7f-3.a_b".to_owned()));
        assert_eq!(read(&"x".repeat(128)).map(|id| id.len()), Some(128));
        for wrong in ["", "two words", "\t", &"x".repeat(129)] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_id_that_is_made_is_128_bits_and_never_the_same() {
        let (one, other) = (random_id(), random_id());
        assert_ne!(one, other);
        assert!(one.len() == 32 && one.bytes().all(|digit| digit.is_ascii_hexdigit()), "{one}");
    }
}
