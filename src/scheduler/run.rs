//! One execution: takes what the instance produces, keeps or sends it, and notes when.
//!
//! What an ordinary model gives is kept until the execution has ended. What a decoupled one gives before its last
//! response goes to the caller at once. Does not count; `instance` does, at the end.

use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::caller::{Caller, Callers};
use super::entry::Entry;
use super::reply::{Answer, Reply};
use super::responses::{self, given_up};
use crate::backend::Replies;
use crate::error::{Error, Kind, Result};
use crate::infer::{Instant, Times};
use crate::telemetry::stats::{BatchTimes, RESPONSES_KEPT, Responses, ResponsesEnd};
use crate::tensor::{Batch, Tensor};

/// What one execution leaves behind.
pub(super) struct Run {
    pub(super) began: Instant,
    inputs_ready: Option<Instant>,
    outputs_ready: Option<Instant>,
    /// When the instance was done.
    pub(super) ended: Option<Instant>,
    /// The last outputs of each member.
    outputs: SmallVec<[Option<Vec<Tensor>>; 4]>,
    /// What the members of a decoupled model were sent, and those that ran before; empty for an ordinary one.
    sent: Vec<Steps>,
}

/// What one request has behind it, in all its executions.
#[derive(Debug)]
pub struct Steps {
    /// When the first of them began.
    began: Instant,
    /// When the response before was handed over, or the first execution began.
    before: Instant,
    responses: Responses,
}

impl Steps {
    fn new(began: Instant) -> Self {
        Self { began, before: began, responses: Responses::default() }
    }

    /// What the request was sent, if it ends now without another execution.
    pub(super) fn ended(mut self, why: Kind, now: Instant) -> Responses {
        let took = now.saturating_duration_since(self.before);
        self.responses.end = match why {
            Kind::Cancelled | Kind::DeadlineExceeded => ResponsesEnd::Cancelled(took),
            _ => ResponsesEnd::Failed(took),
        };
        self.responses
    }
}

impl Run {
    /// An execution of these requests that begins now.
    pub(super) fn of(entries: &mut [Entry]) -> Self {
        let mut run = Self::new(entries.len());
        if entries.iter().any(|entry| entry.steps.is_some()) {
            let steps = entries.iter_mut().map(|entry| entry.steps.take());
            run.sent = steps.map(|steps| steps.map_or_else(|| Steps::new(run.began), |steps| *steps)).collect();
        }
        run
    }

    /// An execution for so many members that begins now.
    pub(super) fn new(members: usize) -> Self {
        Self {
            began: Instant::now(),
            inputs_ready: None,
            outputs_ready: None,
            ended: None,
            outputs: smallvec![None; members],
            sent: Vec::new(),
        }
    }

    /// Where the instance puts what it produces, for these callers.
    pub(super) fn replies<'a>(&'a mut self, batch: &'a Batch, callers: &'a Callers) -> Collect<'a> {
        Collect { batch, callers, run: self }
    }

    /// The last outputs of each member; none where the execution gave none.
    pub(super) fn outputs(&mut self) -> &mut [Option<Vec<Tensor>>] {
        &mut self.outputs
    }

    /// When it ended; while it goes on, when it began.
    pub(super) fn end(&self) -> Instant {
        self.ended.unwrap_or(self.began)
    }

    /// How long it took.
    pub(super) fn took(&self) -> Duration {
        self.end() - self.began
    }

    /// Its parts, for the statistics.
    pub(super) fn times(&self, rows: usize) -> BatchTimes {
        let inputs_ready = self.inputs_ready.unwrap_or(self.began);
        let outputs_ready = self.outputs_ready.unwrap_or(self.end());
        BatchTimes {
            rows,
            compute_input: inputs_ready - self.began,
            compute_infer: outputs_ready.saturating_duration_since(inputs_ready),
            compute_output: self.end().saturating_duration_since(outputs_ready),
        }
    }

    /// What a member was sent, for the statistics; `None` if the model is not decoupled.
    pub(super) fn take_responses(&mut self, index: usize, entry: &Entry) -> Option<Responses> {
        let sent = self.sent.get_mut(index).filter(|_| matches!(entry.reply, Reply::Many(_)));
        sent.map(|sent| std::mem::take(&mut sent.responses))
    }

    /// When the first execution of a member's request began.
    pub(super) fn first_began(&self, index: usize) -> Instant {
        self.sent.get(index).map_or(self.began, |sent| sent.began)
    }

    /// Ends this execution of a member's request but not the request: if the model is decoupled, what it got is sent.
    /// There is room for it, or nobody takes it any more.
    pub(super) fn step(&mut self, index: usize, entry: &mut Entry) {
        let outputs = self.outputs[index].take();
        if let (Reply::Many(sender), Some(outputs)) = (&entry.reply, outputs)
            && let Ok(answer) = self.answer(index, &Caller::of(entry, sender, None), outputs)
        {
            sender.push(Ok(answer));
        }
        let fresh = Steps::new(self.began);
        entry.steps = Some(Box::new(std::mem::replace(self.sent(index), fresh)));
    }

    /// How a member's request ends, after the instance was done or failed: with a last answer, or, if the model is
    /// decoupled, without.
    pub(super) fn conclude(&mut self, index: usize, entry: &Entry, failure: Option<&Error>) -> Result<Option<Answer>> {
        let outputs = self.outputs[index].take();
        match &entry.reply {
            Reply::Nobody => Ok(None),
            Reply::One(_) | Reply::InTurn(_) => {
                // First, because it is what the caller has heard, whatever became of the execution.
                if entry.reply.is_abandoned() {
                    return Err(given_up(entry.promise.deadline, self.end()));
                }
                let none = || Error::internal("the model gave no outputs for this request");
                let outputs = outputs.ok_or_else(|| failure.cloned().unwrap_or_else(none))?;
                Ok(Some(Answer { outputs, times: self.stages(entry.arrived, self.end()), last: true }))
            }
            Reply::Many(sender) => {
                let concluded = self.conclude_many((index, entry), sender, outputs, failure);
                let now = Instant::now();
                let sent = self.sent(index);
                let took = now.saturating_duration_since(sent.before);
                sent.responses.end = match &concluded {
                    Ok(Some(_)) => ResponsesEnd::Data,
                    Ok(None) => ResponsesEnd::Empty(took),
                    Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::DeadlineExceeded) => {
                        ResponsesEnd::Cancelled(took)
                    }
                    Err(_) => ResponsesEnd::Failed(took),
                };
                concluded
            }
        }
    }

    fn conclude_many(
        &mut self,
        (index, entry): (usize, &Entry),
        sender: &responses::Sender,
        outputs: Option<Vec<Tensor>>,
        failure: Option<&Error>,
    ) -> Result<Option<Answer>> {
        match (outputs, failure) {
            (Some(outputs), _) => {
                let caller = Caller::of(entry, sender, None);
                self.answer(index, &caller, outputs).map(|answer| Some(Answer { last: true, ..answer }))
            }
            (None, _) if sender.is_abandoned() => Err(given_up(entry.promise.deadline, self.end())),
            (None, Some(failure)) => Err(failure.clone()),
            (None, None) => Ok(None),
        }
    }

    /// One answer of a decoupled model, for which there is room then.
    fn answer(&mut self, index: usize, caller: &Caller, outputs: Vec<Tensor>) -> Result<Answer> {
        let computed = Instant::now();
        caller.wait_for_room()?;
        let ended = Instant::now();
        let sent = self.sent(index);
        let since_arrival = ended.saturating_duration_since(caller.arrived);
        sent.responses.first.get_or_insert(since_arrival);
        if sent.responses.times.len() < RESPONSES_KEPT {
            sent.responses.times.push((computed.saturating_duration_since(sent.before), ended - computed));
        }
        sent.responses.count += 1;
        sent.before = ended;
        Ok(Answer { outputs, times: self.stages(caller.arrived, ended), last: false })
    }

    fn sent(&mut self, index: usize) -> &mut Steps {
        let (began, members) = (self.began, self.outputs.len());
        if self.sent.is_empty() {
            self.sent.resize_with(members, || Steps::new(began));
        }
        &mut self.sent[index]
    }

    fn stages(&self, arrived: Instant, ended: Instant) -> Times {
        let inputs_ready = self.inputs_ready.unwrap_or(self.began);
        let outputs_ready = self.outputs_ready.unwrap_or(ended);
        Times { queued: arrived, began: self.began, inputs_ready, outputs_ready, ended }
    }
}

/// Collects the outputs of one execution.
pub(super) struct Collect<'a> {
    batch: &'a Batch,
    callers: &'a Callers,
    run: &'a mut Run,
}

impl Replies for Collect<'_> {
    fn inputs_ready(&mut self) {
        self.run.inputs_ready = Some(Instant::now());
    }

    fn outputs_ready(&mut self) {
        self.run.outputs_ready = Some(Instant::now());
    }

    fn batch(&mut self, outputs: Vec<Tensor>) -> Result<()> {
        let count = outputs.len();
        let mut members: Vec<Vec<Tensor>> = self.batch.members.iter().map(|_| Vec::with_capacity(count)).collect();
        for (index, output) in outputs.into_iter().enumerate() {
            let parts = self.batch.split(index, output)?;
            for (member, part) in members.iter_mut().zip(parts) {
                member.push(part);
            }
        }
        self.run.outputs = members.into_iter().map(Some).collect();
        Ok(())
    }

    fn member(&mut self, index: usize, outputs: Vec<Tensor>) -> Result<()> {
        self.run.outputs[index] = Some(self.batch.own(index, outputs)?);
        Ok(())
    }

    fn send(&mut self, index: usize, outputs: Vec<Tensor>) -> Result<()> {
        let callers = self.callers;
        let Some(caller) = callers.get(index)? else { return Ok(()) };
        let outputs = self.batch.own(index, outputs)?;
        let answer = self.run.answer(index, caller, outputs)?;
        caller.send(answer);
        Ok(())
    }

    fn pause(&mut self, index: usize, time: Duration) -> Result<()> {
        self.callers.get(index)?.map_or(Ok(()), |caller| caller.pause(time))
    }
}
