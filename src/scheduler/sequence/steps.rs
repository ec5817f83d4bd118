//! The end of an execution: states are kept, and requests that are not done go back to wait for the next.
//!
//! An iterative model (`iterative_sequence`) names an output with the parameter `sequence.done_output`: as long as its
//! first element is zero for a member, the member's request runs again, with the inputs that it came with and the states
//! that this execution gave. If the model is decoupled, the outputs of each execution are a response; if not, those of the
//! last are. In between, the request waits as any other: it can be cancelled, its deadline counts, and it shares the next
//! batch with whoever is there by then, new sequences included. A caller without room for a response is left out of
//! batches until it has taken one, so that it holds back nobody else.

use std::task::Waker;

use super::request::Ran;
use super::states::Kept;
use super::{Gone, Sequences, State, of_others, ring};
use crate::error::{Error, Kind};
use crate::infer::Instant;
use crate::scheduler::entry::Entry;
use crate::scheduler::reply::Reply;
use crate::scheduler::{Execution, Verdict, Verdicts};
use crate::telemetry::stats::Responses;

impl Sequences {
    /// Hears of the end of an execution.
    pub(super) fn step(&self, mut execution: Execution<'_>) -> Verdicts {
        let now = Instant::now();
        let (mut verdicts, mut gone) = (Verdicts::new(), Gone::new());
        let mut state = self.state.lock();
        if !execution.failed && (self.settings.responses.is_none() || self.settings.iterations.is_some()) {
            state.estimates.record(execution.class, execution.rows, execution.took);
        }
        let Some(running) = state.running.remove(&execution.instance) else { return verdicts };
        let mut between: Vec<Option<Ran>> = Vec::new();
        for (index, member) in running.members.into_iter().enumerate() {
            let Some(ran) = member else { continue };
            let (key, steps) = (ran.key, ran.steps);
            match self.next(&mut state, &mut execution, index, &ran) {
                Next::Done => state.table.done(key, now),
                Next::Fail(error) => {
                    execution.outputs[index] = None;
                    verdicts.push((index, Verdict::Fail(error)));
                    state.table.done(key, now);
                }
                Next::Gone(error) => gone.extend(self.end_others(&mut state, &ran, error)),
                Next::Again => {
                    tracing::trace!(steps, "a request runs again");
                    between.resize_with(index + 1, || None);
                    between[index] = Some(ran);
                    verdicts.push((index, Verdict::Again));
                }
            }
        }
        if !between.is_empty() {
            state.between.insert(execution.instance, between);
        }
        ring(&mut state);
        drop(state);
        self.settle(gone, now);
        verdicts
    }

    /// What becomes of a member, whose states are kept here.
    fn next(&self, state: &mut State, execution: &mut Execution<'_>, index: usize, ran: &Ran) -> Next {
        let abandoned = execution.entries.get(index).is_some_and(|entry| entry.reply.is_abandoned());
        if abandoned {
            return Next::Gone(Kind::Cancelled);
        }
        let Some(outputs) = execution.outputs.get_mut(index).and_then(Option::as_mut) else { return Next::Done };
        let done = self.settings.iterations.as_ref().is_none_or(|iterations| iterations.is_done(outputs));
        let states = match self.settings.states.take(outputs, execution.rows > 1) {
            Ok(states) => states,
            Err(error) => return Next::Fail(error),
        };
        match state.table.state(ran.key) {
            Some(kept) => *kept = Some(Kept::new(states, &self.stats)),
            // The sequence was ended while this request of it ran.
            None if !done => return Next::Fail(of_others(Kind::Cancelled)),
            None => {}
        }
        match &self.settings.iterations {
            Some(iterations) if !done && ran.steps >= iterations.steps_max => Next::Fail(Error::new(
                Kind::Backend,
                format!("the model is not done with the request after {} executions", ran.steps),
            )),
            _ if done => Next::Done,
            _ => Next::Again,
        }
    }

    /// Ends the sequence of a request that ran and that nobody waits for any more.
    fn end_others(&self, state: &mut State, ran: &Ran, why: Kind) -> Gone {
        let ended = state.table.end(ran.key);
        self.stats.requests_left(ended.len());
        ended.into_iter().map(|seated| (seated.request.entry, of_others(why))).collect()
    }

    /// Puts requests that run again back into their sequences.
    pub(super) fn bring_back(&self, instance: usize, requests: Vec<(usize, Entry)>) {
        let now = Instant::now();
        let mut gone = Gone::new();
        let mut state = self.state.lock();
        let mut between = state.between.remove(&instance).unwrap_or_default();
        for (index, entry) in requests {
            let Some(ran) = between.get_mut(index).and_then(Option::take) else {
                gone.push((entry, Error::internal("a request that was not asked for came back")));
                continue;
            };
            let key = ran.key;
            let parked = !self.has_room(&entry.reply);
            self.stats.request_waits();
            match state.table.again(key, ran.again(entry), parked) {
                None if parked => {
                    state.parked.insert(key, now);
                }
                None => {}
                Some(seated) => {
                    self.stats.requests_left(1);
                    gone.push((seated.request.entry, of_others(Kind::Cancelled)));
                }
            }
        }
        ring(&mut state);
        drop(state);
        self.settle(gone, now);
    }

    /// Whether a response has room; if not, this scheduler is woken when it has.
    fn has_room(&self, reply: &Reply) -> bool {
        match (reply, self.itself.upgrade()) {
            (Reply::Many(sender), Some(itself)) => sender.has_room(|| Waker::from(itself)),
            _ => true,
        }
    }

    /// Lets the sequences go on whose callers have room again, and ends those whose callers take nothing.
    pub(super) fn stalled(&self, state: &mut State, now: Instant) -> Gone {
        let mut gone = Gone::new();
        let Some(limits) = self.settings.responses.filter(|_| !state.parked.is_empty()) else { return gone };
        for (key, since) in state.parked.clone() {
            let Some(head) = state.table.head(key) else {
                state.parked.remove(&key);
                continue;
            };
            let reply = &head.request.entry.reply;
            if reply.is_abandoned() || self.has_room(reply) {
                state.parked.remove(&key);
                state.table.unpark(key);
            } else if since + limits.stall_max <= now {
                let error = crate::scheduler::responses::stalled(limits.stall_max);
                gone.extend(self.end(state, key, error));
            }
        }
        gone
    }

    /// When the first caller that takes nothing will have done so for too long.
    pub(super) fn next_stall(&self, state: &State) -> Option<Instant> {
        let since = state.parked.values().min()?;
        self.settings.responses.map(|limits| *since + limits.stall_max)
    }
}

/// What becomes of a member of an execution.
enum Next {
    /// It is answered.
    Done,
    Fail(Error),
    /// Nobody waits for it, and its sequence is over.
    Gone(Kind),
    Again,
}

/// What a request was sent that ends between two executions, for the statistics.
pub(super) fn responses(entry: &mut Entry, why: Kind, now: Instant) -> Option<Responses> {
    let steps = entry.steps.take()?;
    matches!(entry.reply, Reply::Many(_)).then(|| steps.ended(why, now))
}
