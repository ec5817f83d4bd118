//! What an instance is doing, seen from outside: whether it executes, since when, and whose requests.
//!
//! While an instance whose executions are bounded executes, its requests lie here and not on its stack. So they can be
//! taken from it when it does not come back. Whoever takes them out settles them: the instance at the end of its
//! execution, or the crew that writes it off.

use std::fmt;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::entry::Entry;
use super::estimate::SizeClass;
use super::limiter::Permit;
use super::reply::Reply;
use super::responses::given_up;
use super::{Execution, Scheduler};
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::telemetry::metrics::Running;

/// One instance's watch; shared by its thread and its crew.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Held for a few moves; taken at the beginning and the end of an execution only if executions are bounded.
    state: Mutex<State>,
    /// The instance has ended, or is lost.
    over: Condvar,
}

#[derive(Default)]
struct State {
    /// Tells whether the instance is ready to serve, once.
    report: Option<oneshot::Sender<Result<()>>>,
    phase: Phase,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("phase", &self.phase).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
enum Phase {
    /// It begins, waits, or answers.
    #[default]
    Idle,
    Executing {
        /// `None` while it waits for a caller that is slow to take responses.
        since: Option<Instant>,
        charge: Charge,
    },
    /// It did not come back in time, and is not waited for any more once what it had is settled.
    Lost {
        settled: bool,
    },
    Ended,
}

/// What an execution has in its hands.
#[derive(Debug, Default)]
pub(super) struct Charge {
    pub(super) entries: Vec<Entry>,
    pub(super) permit: Option<Permit>,
    pub(super) class: SizeClass,
    /// Counts it as running.
    pub(super) running: Option<Running>,
}

impl Charge {
    /// Fails the requests of an execution that has not ended after `took`, and gives back what it holds.
    pub(super) fn fail(
        self,
        scheduler: &dyn Scheduler,
        (instance, took): (usize, Duration),
        error: &Error,
        now: Instant,
    ) {
        let Charge { entries, permit, class, running } = self;
        drop(running);
        drop(permit);
        if !entries.is_empty() {
            let mut outputs: Vec<_> = entries.iter().map(|_| None).collect();
            let _ = scheduler.executed(Execution {
                instance,
                class,
                rows: entries.iter().map(|entry| entry.promise.rows).sum(),
                took,
                failed: true,
                outputs: &mut outputs,
                entries: &entries,
            });
        }
        for entry in entries.into_iter().filter(|entry| !matches!(entry.reply, Reply::Nobody)) {
            // As at the end of any execution, what the caller has heard counts.
            let gone = entry.reply.is_abandoned();
            let error = if gone { given_up(entry.promise.deadline, now) } else { error.clone() };
            entry.settle(scheduler.stats(), error, now);
        }
    }
}

/// What a look at an instance's watch tells.
#[derive(Debug)]
pub(super) enum Sight {
    /// It executes, and should be looked at again then.
    Until(Instant),
    /// It does nothing that could last too long.
    Idle,
    /// Its execution has lasted too long. It is lost from now on, and its requests are the looker's to settle.
    Overdue(Charge),
    /// It has ended.
    Ended,
}

impl Watch {
    pub(super) fn new(report: oneshot::Sender<Result<()>>) -> Self {
        let state = State { report: Some(report), phase: Phase::Idle };
        Self { state: Mutex::new(state), over: Condvar::new() }
    }

    /// Tells why the instance does not become ready, if it has not told anything yet. `true` if it had not.
    pub(super) fn report(&self, error: Error) -> bool {
        let report = self.state.lock().report.take();
        report.map(|report| report.send(Err(error))).is_some()
    }

    /// Tells that the instance is ready, after it `joins`. `false` if nobody wants it any more.
    pub(super) fn ready(&self, joins: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Lost { .. }) {
            return false;
        }
        let report = state.report.take();
        drop(state);
        report.is_some_and(|report| {
            joins();
            report.send(Ok(())).is_ok()
        })
    }

    /// An execution begins.
    pub(super) fn begin(&self, charge: Charge) {
        self.state.lock().phase = Phase::Executing { since: Some(Instant::now()), charge };
    }

    /// The execution has ended. `None` if it was written off meanwhile.
    pub(super) fn end(&self) -> Option<Charge> {
        let mut state = self.state.lock();
        match std::mem::take(&mut state.phase) {
            Phase::Executing { charge, .. } => Some(charge),
            other => {
                state.phase = other;
                None
            }
        }
    }

    /// The execution waits for its caller; that does not count.
    pub(super) fn pause(&self) {
        self.set_since(None);
    }

    /// The execution goes on.
    pub(super) fn resume(&self) {
        self.set_since(Some(Instant::now()));
    }

    fn set_since(&self, new: Option<Instant>) {
        if let Phase::Executing { since, .. } = &mut self.state.lock().phase {
            *since = new;
        }
    }

    /// Whether the execution that is under way, if there is one, should have ended by `now`.
    pub(super) fn look(&self, now: Instant, time_max: Duration) -> Sight {
        let mut state = self.state.lock();
        match &mut state.phase {
            Phase::Executing { since: Some(since), .. } if *since + time_max > now => Sight::Until(*since + time_max),
            Phase::Executing { since: Some(_), charge } => {
                let charge = std::mem::take(charge);
                state.phase = Phase::Lost { settled: false };
                Sight::Overdue(charge)
            }
            Phase::Executing { since: None, .. } | Phase::Idle => Sight::Idle,
            Phase::Lost { .. } | Phase::Ended => Sight::Ended,
        }
    }

    /// What the lost instance had is settled, and another has taken its place if one does: who waits for its end, which
    /// may never come, goes on.
    pub(super) fn written_off(&self) {
        self.state.lock().phase = Phase::Lost { settled: true };
        self.over.notify_all();
    }

    /// The thread ends.
    pub(super) fn ended(&self) {
        let mut state = self.state.lock();
        state.report = None;
        if !matches!(state.phase, Phase::Lost { .. }) {
            state.phase = Phase::Ended;
        }
        self.over.notify_all();
    }

    /// Blocks until the thread has ended or is written off; `true` for ended.
    pub(super) fn wait_until_over(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            match state.phase {
                Phase::Ended => return true,
                Phase::Lost { settled: true } => return false,
                Phase::Idle | Phase::Executing { .. } | Phase::Lost { settled: false } => self.over.wait(&mut state),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn overdue(watch: &Watch) -> bool {
        matches!(watch.look(Instant::now() + LIMIT, LIMIT), Sight::Overdue(_))
    }

    #[test]
    fn a_wait_for_the_caller_does_not_count() {
        let watch = Watch::default();
        assert!(!overdue(&watch), "nothing executes");
        watch.begin(Charge::default());
        watch.pause();
        assert!(!overdue(&watch));
        watch.resume();
        assert!(overdue(&watch));
        assert!(watch.end().is_none());
        watch.written_off();
        assert!(!watch.wait_until_over(), "it is lost, and nobody waits for it");
    }

    #[test]
    fn what_was_lost_stays_lost() {
        let watch = Watch::default();
        watch.begin(Charge::default());
        assert!(overdue(&watch));
        assert!(!overdue(&watch), "once");
        watch.pause();
        watch.resume();
        watch.written_off();
        watch.ended();
        assert!(!watch.wait_until_over());
    }

    #[test]
    fn of_an_execution_that_ends_while_it_is_written_off_one_side_has_the_requests() {
        for _ in 0..500 {
            let watch = Arc::new(Watch::default());
            watch.begin(Charge::default());
            let other = watch.clone();
            let looker = std::thread::spawn(move || overdue(&other));
            let ended = watch.end().is_some();
            let lost = looker.join().expect("it does not panic");
            assert!(ended != lost);
        }
    }
}
