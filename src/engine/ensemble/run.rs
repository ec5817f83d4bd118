//! One request's way through an ensemble: a step starts as soon as its inputs are there.
//!
//! A [`Run`] gives the request's responses. It goes on when it is polled, holds everything that is under way for the
//! request, and so cancels all of it when it is dropped. Tensors go from step to step as views.

use std::collections::BTreeSet;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio::time::Sleep;

use super::account::{Account, Outcome};
use super::gate::Pass;
use super::graph::{Plan, Step, fitted};
use super::task::{Event, Running, Start, Task};
use super::values::{Lineage, Value, Values};
use super::{Accepted, Ensemble};
use crate::error::{Error, Kind, Result};
use crate::infer::{Instant, Output, Parameters, Request, Response, Times};
use crate::scheduler::stopping;
use crate::tensor::{NamedTensor, Tensor};

/// A request that is under way in an ensemble.
pub(super) struct Run {
    ensemble: Arc<Ensemble>,
    /// What is passed on to the steps.
    request: Request,
    /// The outputs to give, in order.
    wanted: Vec<usize>,
    /// The steps that are run.
    needed: Vec<bool>,
    values: Values,
    tasks: FuturesUnordered<Task>,
    /// Decoupled steps whose next response has no room.
    held: Vec<Running>,
    /// By step, how many of its starts wait for others to end.
    blocked: Vec<usize>,
    /// By step, how many responses it has given.
    given: Vec<u64>,
    /// The number of the next response: they leave in the order in which the decoupled step gave what they come of.
    next: u64,
    /// For starts that wait, fires at the caller's deadline, as what runs has one of its own, and when it is time to see
    /// whether those before them have callers.
    timer: Option<Pin<Box<Sleep>>>,
    account: Account,
    /// Why it cannot even begin.
    failed: Option<Error>,
    over: bool,
    pass: Pass,
}

impl Run {
    /// Starts the steps that need nothing but the request's inputs.
    pub(super) fn new(ensemble: Arc<Ensemble>, accepted: Accepted) -> Self {
        let Accepted { request, checked, pass, account } = accepted;
        let plan = &ensemble.plan;
        let wanted = checked.outputs.unwrap_or_else(|| (0..plan.outputs.len()).collect());
        let needed = plan.needed(&wanted);
        let mut takers: Vec<usize> =
            plan.takers.iter().map(|steps| steps.iter().filter(|&&step| needed[step]).count()).collect();
        wanted.iter().for_each(|&output| takers[plan.outputs[output].tensor] += 1);
        let steps = plan.steps.len();
        let mut run = Self {
            request,
            wanted,
            needed,
            values: Values::new(takers),
            tasks: FuturesUnordered::new(),
            held: Vec::new(),
            blocked: vec![0; steps],
            given: vec![0; steps],
            next: 0,
            timer: None,
            account,
            failed: None,
            over: false,
            pass,
            ensemble,
        };
        let rows = run.ensemble.plan.batches.then_some(checked.rows);
        let value = |tensor: Tensor| Value {
            tensor: (!tensor.is_absent()).then_some(tensor),
            rows,
            queued: Duration::ZERO,
            lineage: None,
        };
        let tensors = run.ensemble.plan.inputs.clone();
        run.failed = run.put(0, tensors.into_iter().zip(checked.inputs.into_iter().map(value))).err();
        run
    }

    /// What lets it in.
    pub(super) fn pass(&self) -> &Pass {
        &self.pass
    }

    /// Whether it has given its last response.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    fn plan(&self) -> &Plan {
        &self.ensemble.plan
    }

    /// Keeps what came, and starts the steps that have all their inputs now.
    fn put(&mut self, number: u64, values: impl Iterator<Item = (usize, Value)>) -> Result<()> {
        let ensemble = self.ensemble.clone();
        let mut takers = BTreeSet::new();
        for (tensor, value) in values {
            takers.extend(ensemble.plan.takers[tensor].iter().copied().filter(|&step| self.needed[step]));
            self.values.put(tensor, number, value);
        }
        for index in takers {
            let step = &ensemble.plan.steps[index];
            if step.inputs.iter().all(|input| self.values.has(input.tensor, number)) {
                let start = self.prepare(index, step, number);
                self.begin(start)?;
            }
        }
        Ok(())
    }

    /// Takes a step's inputs.
    fn prepare(&mut self, index: usize, step: &Step, number: u64) -> Start {
        let mut inputs = Vec::with_capacity(step.inputs.len());
        let (mut queued, mut lineage) = (Duration::ZERO, None);
        for input in &step.inputs {
            let Some(value) = self.values.take(input.tensor, number) else { continue };
            queued = queued.max(value.queued);
            lineage = lineage.or(value.lineage);
            // What was left out is left out here too; whether it may be, the step's own model checks.
            let Some(tensor) = value.tensor else { continue };
            let shape = fitted(&tensor.shape, value.rows, input.dims.as_ref(), step.batches);
            inputs.push(NamedTensor { name: input.name.clone(), tensor: Tensor { shape, ..tensor } });
        }
        let first = inputs.first().and_then(|input| input.tensor.shape.first());
        let rows = first.map_or(1, |&rows| usize::try_from(rows).unwrap_or(0));
        Start {
            step: index,
            number,
            inputs,
            rows: step.batches.then_some(rows),
            queued,
            lineage,
            since: Instant::now(),
        }
    }

    /// Starts a step, or lets it wait while as many requests as may be are in it.
    fn begin(&mut self, start: Start) -> Result<()> {
        let Some(step) = self.ensemble.gate.step(start.step).cloned() else {
            self.launch(start, None);
            return Ok(());
        };
        match step.clone().try_acquire_owned() {
            Ok(permit) => self.launch(start, Some(permit)),
            Err(TryAcquireError::Closed) => return Err(stopping()),
            Err(TryAcquireError::NoPermits) => {
                self.blocked[start.step] += 1;
                self.tasks.push(Task::wait(start, step));
                if self.timer.is_none() {
                    self.set_timer(Instant::now() + self.ensemble.gate.stall_max);
                }
            }
        }
        Ok(())
    }

    fn launch(&mut self, start: Start, permit: Option<OwnedSemaphorePermit>) {
        let step = &self.ensemble.plan.steps[start.step];
        let mut outputs = step.wanted.clone();
        if self.request.follow.is_some() {
            // Who follows the request may want to see its tensors.
            outputs.iter_mut().for_each(|output| output.keep = false);
        }
        let now = Instant::now();
        let queued = start.queued + now.saturating_duration_since(start.since);
        let mut request = Request {
            model: step.model.clone(),
            version: step.version,
            id: self.request.id.clone(),
            inputs: start.inputs,
            inputs_shared: self.request.inputs_shared,
            outputs,
            arrived: now,
            deadline: self.request.deadline,
            // What is left of it: no time at all is refused by a model that looks at it.
            timeout: self.request.timeout.map(|timeout| timeout.saturating_sub(queued).max(Duration::from_nanos(1))),
            priority: self.request.priority,
            sequence: self.request.sequence.clone(),
            parameters: self.request.parameters.clone(),
            follow: None,
        };
        let follow = self.request.follow.as_ref().map(|follow| follow.passed_on(&request));
        request.follow.clone_from(&follow);
        self.tasks.push(Task::run(Running {
            step: start.step,
            number: start.number,
            responses: self.ensemble.members.infer(request),
            rows: start.rows,
            queued,
            lineage: start.lineage,
            under_way: Arc::new(AtomicUsize::new(0)),
            times: None,
            follow,
            _permit: permit,
        }));
    }

    fn happened(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Permitted(start, permit) => {
                self.blocked[start.step] -= 1;
                let permit = permit.map_err(|_| stopping())?;
                self.launch(start, Some(permit));
                Ok(())
            }
            Event::Answered(running, Some(response)) => {
                if let Some(follow) = &running.follow {
                    match &response {
                        Ok(response) => follow.responded(response),
                        Err(error) => follow.failed(error),
                    }
                }
                self.answered(running, response?)
            }
            Event::Answered(running, None) if self.plan().steps[running.step].decoupled => {
                self.account.step_ended(running.times);
                Ok(())
            }
            Event::Answered(..) => Err(Error::internal("a step ended without a response")),
        }
    }

    fn answered(&mut self, mut running: Running, response: Response) -> Result<()> {
        let ensemble = self.ensemble.clone();
        let step = &ensemble.plan.steps[running.step];
        let waited = response.times.map_or(Duration::ZERO, |times| times.began.saturating_duration_since(times.queued));
        running.times = response.times.or(running.times);
        let (number, lineage) = if step.decoupled {
            let number = self.given[running.step];
            self.given[running.step] += 1;
            (number, Some(Lineage::new(&running.under_way, running.lineage.clone())))
        } else {
            (running.number, running.lineage.clone())
        };
        let mut outputs: Vec<Output> = response.outputs;
        let (rows, queued) = (running.rows, running.queued + waited);
        let values = step.outputs.iter().map(|(name, tensor)| {
            let found = outputs.iter().position(|output| output.name == *name);
            let given = found.map(|index| outputs.swap_remove(index).tensor);
            (*tensor, Value { tensor: given, rows, queued, lineage: lineage.clone() })
        });
        let values: Vec<_> = values.collect();
        drop(lineage);
        if step.decoupled && !response.last {
            self.held.push(running);
        } else {
            self.account.step_ended(running.times);
            // Its place in the step is free before the next steps begin.
            drop(running);
        }
        self.put(number, values.into_iter())
    }

    /// Goes on with the decoupled steps whose next response has room.
    fn resume(&mut self) {
        if self.held.is_empty() {
            return;
        }
        for running in std::mem::take(&mut self.held) {
            let followers = &self.plan().steps[running.step].followers;
            let full = running.under_way.load(Ordering::Relaxed) >= self.ensemble.responses_max;
            if full || followers.iter().any(|&step| self.blocked[step] > 0) {
                self.held.push(running);
            } else {
                self.tasks.push(Task::run(running));
            }
        }
    }

    fn nothing_is_under_way(&self) -> bool {
        self.tasks.is_empty() && self.held.is_empty()
    }

    /// The next response, if all its outputs are there.
    fn response(&mut self) -> Option<Response> {
        let ensemble = self.ensemble.clone();
        let plan = &ensemble.plan;
        let tensor = |&output: &usize| plan.outputs[output].tensor;
        if !self.wanted.iter().all(|output| self.values.has(tensor(output), self.next)) {
            return None;
        }
        let (values, number) = (&mut self.values, self.next);
        let outputs = self.wanted.iter().filter_map(|&output| {
            let output = &plan.outputs[output];
            let value = values.take(output.tensor, number)?;
            let given = value.tensor?;
            let shape = fitted(&given.shape, value.rows, output.dims.as_ref(), plan.batches);
            Some(Output { name: output.name.clone(), tensor: Tensor { shape, ..given }, placed: false })
        });
        let outputs: Vec<Output> = outputs.collect();
        self.next += 1;
        let now = Instant::now();
        let began = self.account.began();
        let (inputs_ready, outputs_ready) = (began, now);
        Some(Response {
            model: ensemble.name.clone(),
            version: ensemble.version,
            id: self.request.id.clone(),
            outputs,
            parameters: Parameters::new(),
            last: !plan.decoupled,
            times: Some(Times { queued: self.request.arrived, began, inputs_ready, outputs_ready, ended: now }),
        })
    }

    /// The response to give now. That it is the last one of a decoupled ensemble is known if nothing is under way.
    fn give(&mut self) -> Option<Response> {
        let mut response = self.response()?;
        self.account.responded();
        self.resume();
        let next_is_there =
            self.wanted.iter().all(|&output| self.values.has(self.plan().outputs[output].tensor, self.next));
        response.last |= self.nothing_is_under_way() && !next_is_there;
        if response.last {
            self.end(Outcome::Answered);
        }
        Some(response)
    }

    /// Ends the request with its one outcome, and everything that is under way for it.
    fn end(&mut self, outcome: Outcome) {
        self.over = true;
        self.timer = None;
        self.tasks.clear();
        self.held.clear();
        self.account.settle(outcome);
    }

    /// Ends the request with this error; as the caller hears it.
    pub(super) fn fail(&mut self, error: &Error) -> Error {
        let kind = match error.kind() {
            // The caller knows the ensemble only, and that is there.
            Kind::NotFound => Kind::Unavailable,
            kind => kind,
        };
        self.end(Outcome::Failed(kind));
        Error::new(kind, format!("in ensemble '{}', {error}", self.ensemble.name))
    }

    /// What the stream gives when nothing more can happen.
    fn finish(&mut self) -> Option<Result<Response>> {
        if self.plan().decoupled {
            self.end(Outcome::Ended);
            return None;
        }
        let message = "unexpected deadlock, at least one output is not set while no more ensemble steps can be made";
        Some(Err(self.fail(&Error::invalid(message))))
    }

    /// Whether the deadline has passed while a start waits for its place.
    fn is_late(&mut self, ctx: &mut Context<'_>) -> bool {
        while self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(ctx).is_ready()) {
            self.timer = None;
            if self.blocked.iter().all(|&waiting| waiting == 0) {
                return false;
            }
            let now = Instant::now();
            if self.request.deadline.is_some_and(|deadline| deadline <= now) {
                return true;
            }
            let gate = &self.ensemble.gate;
            let next = gate.give_up(now).unwrap_or(now + gate.stall_max);
            self.set_timer(next);
        }
        false
    }

    /// Has the timer fire at `next`, or at the deadline if that is earlier.
    fn set_timer(&mut self, next: Instant) {
        let at = self.request.deadline.map_or(next, |deadline| deadline.min(next));
        self.timer = Some(Box::pin(tokio::time::sleep_until(at)));
    }

    /// Goes on as far as it can, to the next response; `None` once there are no more. Not called again after that.
    pub(super) fn poll(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Result<Response>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(self.fail(&error))));
        }
        while !self.over {
            if let Some(response) = self.give() {
                return Poll::Ready(Some(Ok(response)));
            }
            self.resume();
            match self.tasks.poll_next_unpin(ctx) {
                Poll::Ready(Some(event)) => {
                    if let Err(error) = self.happened(event) {
                        return Poll::Ready(Some(Err(self.fail(&error))));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(self.finish()),
                Poll::Pending if self.is_late(ctx) => {
                    let error = Error::new(Kind::DeadlineExceeded, "the deadline passed before the next step had room");
                    return Poll::Ready(Some(Err(self.fail(&error))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.over {
            self.account.settle(Outcome::Failed(Kind::Cancelled));
        }
    }
}
