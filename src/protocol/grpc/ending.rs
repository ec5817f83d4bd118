//! Counts each call once, by its method and by the status that it ends with.
//!
//! A call whose client is gone before its end ends as cancelled, which is what dropping an [`Ending`] means.

use http::HeaderMap;
use tonic::Code;

use super::methods::METHODS;
use crate::telemetry::metrics::{Answers, Metrics};

/// The header, or trailer, with a call's status.
const GRPC_STATUS: &str = "grpc-status";

/// The names of the codes, by their numbers.
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The counters of all methods, and one more for those that are none.
pub fn answers(metrics: &Metrics) -> Answers {
    let name = |path: &'static str| path.rsplit('/').next().unwrap_or(path);
    metrics.grpc_answers(METHODS.iter().map(|(path, _)| name(path)).chain(["other"]))
}

/// The end of one call, which is still to come.
#[derive(Debug)]
pub struct Ending<'a> {
    answers: &'a Answers,
    method: usize,
    ended: bool,
}

impl<'a> Ending<'a> {
    /// That of a call of this path.
    pub fn of(answers: &'a Answers, path: &str) -> Self {
        let method = METHODS.iter().position(|(each, _)| *each == path).unwrap_or(METHODS.len());
        Self { answers, method, ended: false }
    }

    /// The call has ended so.
    pub fn with(mut self, code: Code) {
        self.ended = true;
        count(self.answers, self.method, code);
    }

    /// The end is that of the answer's body, if the answer's headers do not have it.
    pub fn with_body(mut self, headers: &HeaderMap) -> Option<BodyEnding> {
        if let Some(code) = code(headers) {
            self.with(code);
            return None;
        }
        self.ended = true;
        Some(BodyEnding { answers: self.answers.clone(), method: self.method, ended: false })
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.ended {
            count(self.answers, self.method, Code::Cancelled);
        }
    }
}

/// The end of a call whose answer is being sent.
#[derive(Debug)]
pub struct BodyEnding {
    answers: Answers,
    method: usize,
    ended: bool,
}

impl BodyEnding {
    /// The trailers are these.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if !std::mem::replace(&mut self.ended, true) {
            count(&self.answers, self.method, code(trailers).unwrap_or(Code::Unknown));
        }
    }
}

impl Drop for BodyEnding {
    fn drop(&mut self) {
        if !self.ended {
            count(&self.answers, self.method, Code::Cancelled);
        }
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(GRPC_STATUS).map(|status| Code::from_bytes(status.as_bytes()))
}

fn count(answers: &Answers, method: usize, code: Code) {
    let name = || NAMES.get(code as usize).copied().unwrap_or("UNKNOWN").to_owned();
    match code {
        Code::Ok => answers.good(method, name),
        _ => answers.other(method, code as u16, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_ends_once() {
        let metrics = Metrics::new();
        let answers = answers(&metrics);
        Ending::of(&answers, "/inference.GRPCInferenceService/ModelInfer").with(Code::Ok);
        drop(Ending::of(&answers, "/inference.GRPCInferenceService/ModelInfer"));
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static(GRPC_STATUS), "5".parse().expect("valid"))]);
        assert!(Ending::of(&answers, "/inference.GRPCInferenceService/ModelConfig").with_body(&headers).is_none());
        let ending = Ending::of(&answers, "/nowhere").with_body(&HeaderMap::new());
        ending.expect("the end is still to come").trailers(&headers);
        drop(Ending::of(&answers, "/grpc.health.v1.Health/Watch").with_body(&HeaderMap::new()));
        let text = metrics.render();
        let mut lines: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("nereid_grpc_responses_total")).collect();
        lines.sort_unstable();
        let expected = [
            "{method=\"ModelConfig\",code=\"NOT_FOUND\"} 1",
            "{method=\"ModelInfer\",code=\"CANCELLED\"} 1",
            "{method=\"ModelInfer\",code=\"OK\"} 1",
            "{method=\"Watch\",code=\"CANCELLED\"} 1",
            "{method=\"other\",code=\"NOT_FOUND\"} 1",
        ];
        assert_eq!(lines, expected);
    }
}
