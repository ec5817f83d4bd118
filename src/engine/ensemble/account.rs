//! What a request to an ensemble has taken, and its one outcome in the ensemble's statistics.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Kind;
use crate::infer::{Instant, Times};
use crate::telemetry::metrics::InFlight;
use crate::telemetry::stats::{BatchTimes, ModelStats, RESPONSES_KEPT, RequestTimes, Responses, ResponsesEnd};

/// The account of one request; counts when it is settled.
#[derive(Debug)]
pub(super) struct Account {
    stats: Arc<ModelStats>,
    arrived: Instant,
    began: Instant,
    /// The sums of all steps.
    times: BatchTimes,
    /// Of a decoupled ensemble.
    responses: Option<Responses>,
    /// When the response before was given.
    before: Instant,
    _in_flight: InFlight,
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With its last response.
    Answered,
    /// Behind its last response, if there was any.
    Ended,
    /// With an error.
    Failed(Kind),
}

impl Account {
    /// The account of a request of so many rows that `arrived` then and begins now.
    pub(super) fn new(stats: Arc<ModelStats>, arrived: Instant, rows: usize, in_flight: InFlight) -> Self {
        let began = Instant::now();
        let times = BatchTimes { rows, ..BatchTimes::default() };
        Self { stats, arrived, began, times, responses: None, before: began, _in_flight: in_flight }
    }

    /// The same for an ensemble that gives any number of responses.
    pub(super) fn of_many(self) -> Self {
        Self { responses: Some(Responses::default()), ..self }
    }

    /// When the request's first steps began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Adds what a step has taken.
    pub(super) fn step_ended(&mut self, times: Option<Times>) {
        let Some(times) = times else { return };
        self.times.compute_input += times.inputs_ready.saturating_duration_since(times.began);
        self.times.compute_infer += times.outputs_ready.saturating_duration_since(times.inputs_ready);
        self.times.compute_output += times.ended.saturating_duration_since(times.outputs_ready);
    }

    /// Notes that a response is given.
    pub(super) fn responded(&mut self) {
        let Some(responses) = &mut self.responses else { return };
        let now = Instant::now();
        responses.first.get_or_insert(now.saturating_duration_since(self.arrived));
        if responses.times.len() < RESPONSES_KEPT {
            responses.times.push((now.saturating_duration_since(self.before), Duration::ZERO));
        }
        responses.count += 1;
        self.before = now;
    }

    /// Counts the request.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        let now = Instant::now();
        let total = now.saturating_duration_since(self.arrived);
        if let Some(mut responses) = self.responses.take() {
            let took = now.saturating_duration_since(self.before);
            responses.end = match outcome {
                Outcome::Answered => ResponsesEnd::Data,
                Outcome::Ended => ResponsesEnd::Empty(took),
                Outcome::Failed(Kind::Cancelled | Kind::DeadlineExceeded) => ResponsesEnd::Cancelled(took),
                Outcome::Failed(_) => ResponsesEnd::Failed(took),
            };
            self.stats.request_responded(&responses);
        }
        match outcome {
            Outcome::Answered | Outcome::Ended => {
                let queue = self.began.saturating_duration_since(self.arrived);
                self.stats.batch_finished(&self.times, [RequestTimes { rows: self.times.rows, queue, total }]);
            }
            Outcome::Failed(kind) => self.stats.request_failed(kind, total),
        }
    }
}
