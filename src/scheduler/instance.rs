//! The instance thread: pulls a batch, runs it, replies, records; one of the two places with blocking work.
//!
//! Begin with [`start`]. The thread makes its instance itself, warms it up, and reports before it serves. Who starts it,
//! and what becomes of one that does not come back, is the crew's.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::caller::Callers;
use super::crew::Crew;
use super::entry::{Entry, Pulled};
use super::estimate::SizeClass;
use super::lent::Lent;
use super::limiter::{Claim, Permit};
use super::order::Record;
use super::pinning;
use super::reply::Reply;
use super::run::Run;
use super::underway::Finished;
use super::warm_up::{Warmup, warm_up, warm_up_by, warm_up_in_background};
use super::watch::{Charge, Watch};
use super::{Execution, Scheduler, Verdict, Verdicts};
use crate::backend::{Instance, Model};
use crate::error::{Error, Kind, Result};
use crate::infer::Instant;
use crate::model::{Device, HostPolicy};
use crate::telemetry::metrics::BusyTime;
use crate::telemetry::stats::{ModelStats, RequestTimes};
use crate::tensor::{Batch, Member};

/// What an instance needs to start.
pub struct Starting {
    /// Where it pulls from.
    pub scheduler: Arc<dyn Scheduler>,
    /// What it runs.
    pub model: Arc<dyn Model>,
    /// Where it runs.
    pub device: Device,
    /// Its number among the version's instances.
    pub index: usize,
    /// The name of its thread.
    pub thread_name: String,
    /// What to run before it serves.
    pub warmup: Arc<[Warmup]>,
}

/// What an instance may be given besides.
#[derive(Debug, Default)]
pub(super) struct Extras {
    /// What it asks for before each batch.
    pub(super) claim: Option<Claim>,
    /// Where its thread stays, with the policy's name.
    pub(super) host_policy: Option<(String, HostPolicy)>,
    /// Whether its executions are bounded, so that its requests must be within the crew's reach.
    pub(super) bounded: bool,
    /// Whether its warm-up gives way to those that serve.
    pub(super) in_background: bool,
    /// Who hears when it cannot go on.
    pub(super) crew: Weak<Crew>,
    /// Where the time of its executions is counted.
    pub(super) busy: Option<BusyTime>,
}

/// A started instance.
pub struct Started {
    /// Tells whether the instance is ready to serve, once.
    pub ready: oneshot::Receiver<Result<()>>,
    /// Ends when the queue is closed and empty.
    pub thread: JoinHandle<()>,
    /// What it is doing.
    pub(super) watch: Arc<Watch>,
}

/// Starts an instance on a thread of its own.
///
/// # Errors
/// If the system gives no thread.
pub fn start(starting: Starting) -> Result<Started> {
    start_with(starting, Extras::default())
}

/// As [`start`].
pub(super) fn start_with(starting: Starting, extras: Extras) -> Result<Started> {
    let (report, ready) = oneshot::channel();
    let clock = tokio::runtime::Handle::try_current().ok();
    let watch = Arc::new(Watch::new(report));
    let own = watch.clone();
    let (index, crew) = (starting.index, extras.crew.clone());
    let thread = std::thread::Builder::new().name(starting.thread_name.clone()).spawn(move || {
        // Inside a runtime the instance sees the runtime's clock, which tests make virtual.
        let _clock = clock.as_ref().map(|handle| handle.enter());
        let _over = Over(own.clone());
        let post = Post { starting, extras, watch: own.clone(), renewed: false };
        let ended = guarded(|| {
            post.serve();
            Ok(())
        });
        if let (Err(error), Some(crew)) = (ended, crew.upgrade()) {
            crew.panicked((index, &own), &error);
        }
    });
    let thread = thread.map_err(|error| Error::internal(format!("cannot start an instance thread: {error}")))?;
    Ok(Started { ready, thread, watch })
}

/// Tells that the thread has ended, however it did.
struct Over(Arc<Watch>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// What an instance thread works with.
struct Post {
    starting: Starting,
    extras: Extras,
    watch: Arc<Watch>,
    /// Whether the claim stands in line already.
    renewed: bool,
}

impl Post {
    fn serve(mut self) {
        let mut instance = match guarded(|| self.make()) {
            Ok(instance) => instance,
            Err(error) => {
                self.watch.report(error);
                if let Some(crew) = self.extras.crew.upgrade() {
                    crew.not_ready(self.starting.index, &self.watch);
                }
                return;
            }
        };
        // Before anybody can dismiss it, and before it pulls.
        let joins = || match self.extras.crew.upgrade() {
            Some(crew) => crew.joins(self.starting.index, &self.watch),
            None => self.starting.scheduler.joins(self.starting.index),
        };
        if !self.watch.ready(joins) {
            return;
        }
        if let Some(lent) = self.lent() {
            return self.serve_lending(lent);
        }
        let on_host = !self.starting.model.keeps_outputs();
        while let Some((pulled, permit)) = self.next() {
            let watch = self.extras.bounded.then_some(&self.watch);
            let (scheduler, index) = (&*self.starting.scheduler, self.starting.index);
            let mut hands = Hands { scheduler, index, on_host, watch, busy: self.extras.busy.as_mut(), began: None };
            let done = hands.execute(&mut *instance, pulled, permit);
            self.renewed = done.renewed;
            match self.next_step(done.state) {
                Step::GoOn => {}
                Step::End => return,
                Step::Renew => match guarded(|| self.starting.model.instance(self.starting.device)) {
                    Ok(fresh) => instance = fresh,
                    Err(error) => {
                        tracing::error!(%error, "an instance that panicked cannot be replaced, it is used again");
                    }
                },
            }
        }
    }

    /// The instance in a form in which others may run it, if nothing ties it to this thread or to resources.
    fn lent(&mut self) -> Option<Lent> {
        let Extras { claim: None, host_policy: None, bounded, busy, .. } = &mut self.extras else { return None };
        let instance = self.starting.model.lent()?;
        let (watch, busy) = (bounded.then(|| self.watch.clone()), busy.take());
        let (index, on_host) = (self.starting.index, !self.starting.model.keeps_outputs());
        Some(Lent { index, instance, on_host, watch, busy, state: Afterwards::Usable })
    }

    /// Serves with an instance that others run as long as they can.
    fn serve_lending(self, mut lent: Lent) {
        while let Some((pulled, mut own)) = self.starting.scheduler.pull_lending(lent) {
            if let Some(pulled) = pulled {
                own.execute(&*self.starting.scheduler, pulled);
            }
            match self.next_step(std::mem::replace(&mut own.state, Afterwards::Usable)) {
                Step::GoOn => {}
                Step::End => return,
                Step::Renew => own.instance = self.starting.model.lent().unwrap_or(own.instance),
            }
            lent = own;
        }
    }

    /// What to do after an execution that left the instance so.
    fn next_step(&self, state: Afterwards) -> Step {
        match state {
            Afterwards::Usable => Step::GoOn,
            Afterwards::Lost => {
                tracing::warn!("an instance that was given up has come back, and ends");
                Step::End
            }
            Afterwards::Panicked => Step::Renew,
            Afterwards::Broken(error) => {
                if let Some(crew) = self.extras.crew.upgrade() {
                    crew.broken((self.starting.index, &self.watch), &error);
                }
                Step::End
            }
        }
    }

    fn make(&self) -> Result<Box<dyn Instance>> {
        if let Some((name, policy)) = &self.extras.host_policy {
            pinning::pin(name, policy)?;
        }
        let starting = &self.starting;
        let watch = self.extras.bounded.then_some(&*self.watch);
        let first = starting.warmup.first();
        let Some(first) = first.filter(|_| self.extras.in_background && starting.device == Device::Cpu) else {
            let mut instance = starting.model.instance(starting.device)?;
            warm_up(starting, watch, &mut *instance)?;
            return Ok(instance);
        };
        warm_up_in_background(starting, watch)?;
        let mut instance = starting.model.instance(starting.device)?;
        warm_up_by(first, starting, watch, &mut *instance)?;
        Ok(instance)
    }

    /// The next batch, with the resources that it needs. These are asked for first, so that the batch grows meanwhile
    /// and its requests can still be taken back.
    fn next(&mut self) -> Option<(Pulled, Option<Permit>)> {
        let (scheduler, index) = (&self.starting.scheduler, self.starting.index);
        let Some(claim) = &self.extras.claim else { return scheduler.pull(index).map(|pulled| (pulled, None)) };
        loop {
            if !std::mem::take(&mut self.renewed) && !scheduler.ready(index) {
                return None;
            }
            let Some(mut permit) = claim.acquire(|| scheduler.waiting() > 0) else { continue };
            if let Some(pulled) = scheduler.try_pull(index) {
                permit.used();
                return Some((pulled, Some(permit)));
            }
        }
    }
}

/// Runs one batch and settles each of its requests. `false` if the instance panicked.
#[cfg(test)]
pub(super) fn execute(scheduler: &dyn Scheduler, index: usize, instance: &mut dyn Instance, pulled: Pulled) -> bool {
    execute_begun(scheduler, index, instance, (pulled, None), Instant::now()).usable
}

/// The same for a model that takes inputs where they are.
#[cfg(test)]
pub(super) fn execute_there(scheduler: &dyn Scheduler, index: usize, instance: &mut dyn Instance, pulled: Pulled) {
    let mut hands = Hands { scheduler, index, on_host: false, watch: None, busy: None, began: None };
    hands.execute(instance, pulled, None);
}

/// Runs one batch that was taken at `began` and settles each of its requests.
pub(super) fn execute_begun(
    scheduler: &dyn Scheduler,
    index: usize,
    instance: &mut dyn Instance,
    (pulled, permit): (Pulled, Option<Permit>),
    began: Instant,
) -> Finished {
    let mut hands = Hands { scheduler, index, on_host: true, watch: None, busy: None, began: Some(began) };
    let done = hands.execute(instance, pulled, permit);
    Finished { usable: matches!(done.state, Afterwards::Usable), renewed: done.renewed }
}

/// What an instance thread does after an execution.
enum Step {
    /// The next one.
    GoOn,
    /// The next one, by another instance.
    Renew,
    /// Nothing more.
    End,
}

/// What one execution needs.
pub(super) struct Hands<'a> {
    pub(super) scheduler: &'a dyn Scheduler,
    pub(super) index: usize,
    /// Whether the instance takes inputs in host memory only.
    pub(super) on_host: bool,
    /// Where the requests lie meanwhile, if executions are bounded.
    pub(super) watch: Option<&'a Arc<Watch>>,
    pub(super) busy: Option<&'a mut BusyTime>,
    /// When the batch was taken, if not just now.
    pub(super) began: Option<Instant>,
}

/// An execution whose requests are settled.
pub(super) struct Executed {
    pub(super) state: Afterwards,
    /// Whether the resources that it held were asked for again.
    pub(super) renewed: bool,
}

/// What an execution leaves of its instance.
#[derive(Debug)]
pub(super) enum Afterwards {
    /// It goes on, whether the execution succeeded or not.
    Usable,
    /// It panicked, and may be in any state.
    Panicked,
    /// It came back after it was given up; its requests were settled by then.
    Lost,
    /// It can run nothing any more, for this reason.
    Broken(Error),
}

impl Hands<'_> {
    /// Runs one batch and settles each of its requests.
    pub(super) fn execute(&mut self, instance: &mut dyn Instance, pulled: Pulled, permit: Option<Permit>) -> Executed {
        let Pulled { mut entries, class } = pulled;
        let rows: SmallVec<[usize; 16]> = entries.iter().map(|entry| entry.member.rows).collect();
        let members = entries.iter_mut().map(|entry| std::mem::take(&mut entry.member)).collect();
        let mut run = Run::of(&mut entries);
        run.began = self.began.unwrap_or(run.began);
        let callers = Callers::of(&entries, self.watch);
        let running = self.scheduler.stats().execution_began(entries.len());
        let mut charge = Charge { entries, permit, class, running: Some(running) };
        if let Some(watch) = self.watch {
            watch.begin(std::mem::take(&mut charge));
        }
        let mut attempt = Attempt { hands: self, instance, class, state: Afterwards::Usable, in_parts: false };
        let outcome = guarded(|| attempt.whole(members, &mut run, &callers));
        let Attempt { state, in_parts, .. } = attempt;
        if let Some(watch) = self.watch {
            match watch.end() {
                Some(own) => charge = own,
                None => return Executed { state: Afterwards::Lost, renewed: false },
            }
        }
        run.ended = Some(Instant::now());
        let took = run.took();
        if let Some(busy) = &mut self.busy {
            busy.add(took);
        }
        let renewed = charge.permit.is_some_and(|permit| self.give_back(permit));
        drop(charge.running);
        let entries = charge.entries;
        let verdicts = self.scheduler.executed(Execution {
            instance: self.index,
            class,
            rows: rows.iter().sum(),
            took,
            // The time that the parts took together tells nothing about the whole.
            failed: outcome.is_err() || in_parts,
            outputs: run.outputs(),
            entries: &entries,
        });
        let again = settle(self.scheduler.stats(), (entries, &rows), run, outcome.err(), verdicts);
        if !again.is_empty() {
            self.scheduler.again(self.index, again);
        }
        Executed { state, renewed }
    }

    /// Gives the resources back, and asks for them again if there is something to do with them. `true` if it does.
    fn give_back(&self, permit: Permit) -> bool {
        let again = self.scheduler.waiting() > 0;
        if again {
            permit.renew();
        }
        again
    }
}

/// The execution itself, without what becomes of its requests.
struct Attempt<'a, 'b> {
    hands: &'a Hands<'b>,
    instance: &'a mut dyn Instance,
    class: SizeClass,
    state: Afterwards,
    /// Whether the batch was too much for the memory as a whole.
    in_parts: bool,
}

impl Attempt<'_, '_> {
    /// Runs the members as one batch, and if that needs too much memory, once more in halves.
    fn whole(&mut self, members: Vec<Member>, run: &mut Run, callers: &Callers) -> Result<()> {
        let mut batch = Batch::formed(members, self.hands.scheduler.forms())?;
        if self.hands.on_host {
            batch.fetch()?;
        }
        let outcome = self.once(&batch, run, callers);
        if outcome.as_ref().is_err_and(|error| error.kind() == Kind::OutOfMemory)
            && self.ran_out(batch.rows())
            && batch.members.len() > 1
        {
            self.in_parts = true;
            return self.halves(batch.members, run);
        }
        outcome
    }

    /// Runs the first and the second half of the members of an ordinary model; what one of them gives counts, whatever
    /// becomes of the other.
    fn halves(&mut self, mut members: Vec<Member>, run: &mut Run) -> Result<()> {
        let count = members.len();
        let second = members.split_off(count / 2);
        run.outputs().fill(None);
        let mut outcome = Ok(());
        for (first, part) in [(0, members), (count / 2, second)] {
            let batch = Batch::formed(part, self.hands.scheduler.forms())?;
            let mut own = Run::new(batch.members.len());
            match self.once(&batch, &mut own, &Callers::Nobody) {
                Ok(()) => {
                    self.hands.scheduler.record_run(self.class, batch.rows(), own.began.elapsed());
                    run.outputs()[first..][..batch.members.len()].swap_with_slice(own.outputs());
                }
                Err(error) => {
                    if error.kind() == Kind::OutOfMemory {
                        self.ran_out(batch.rows());
                    }
                    outcome = Err(error);
                }
            }
            if !matches!(self.state, Afterwards::Usable) {
                break;
            }
        }
        outcome
    }

    /// Runs one batch.
    fn once(&mut self, batch: &Batch, run: &mut Run, callers: &Callers) -> Result<()> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.instance.run(batch, &mut run.replies(batch, callers))));
        let outcome = outcome.unwrap_or_else(|payload| {
            self.state = Afterwards::Panicked;
            Err(panic_error(&*payload))
        });
        if let Err(error) = &outcome
            && error.kind() == Kind::DeviceLost
        {
            self.state = Afterwards::Broken(error.clone());
        }
        outcome
    }

    /// Counts a batch that needed too much memory; whether it may run in parts.
    fn ran_out(&self, rows: usize) -> bool {
        let scheduler = self.hands.scheduler;
        scheduler.stats().ran_out_of_memory();
        tracing::warn!(rows, "an execution ran out of memory");
        scheduler.ran_out(self.class, rows)
    }
}

/// Gives each request its outcome, and those back that run again. What was answered is recorded before it is sent, so
/// that a caller who asks for the statistics right after its response finds itself counted.
fn settle(
    stats: &ModelStats,
    (entries, rows): (Vec<Entry>, &[usize]),
    mut run: Run,
    failure: Option<Error>,
    verdicts: Verdicts,
) -> Vec<(usize, Entry)> {
    let batch = run.times(rows.iter().sum());
    let mut answered: SmallVec<[_; 2]> = SmallVec::with_capacity(entries.len());
    let mut again = Vec::new();
    let mut verdicts = verdicts.into_iter().peekable();
    for (index, (mut entry, &rows)) in entries.into_iter().zip(rows).enumerate() {
        let verdict = verdicts.next_if(|(member, _)| *member == index).map(|(_, verdict)| verdict);
        if matches!(entry.reply, Reply::Nobody) {
            continue;
        }
        let concluded = match verdict {
            Some(Verdict::Again) => {
                run.step(index, &mut entry);
                again.push((index, entry));
                continue;
            }
            Some(Verdict::Fail(error)) => run.conclude(index, &entry, Some(&error)),
            None => run.conclude(index, &entry, failure.as_ref()),
        };
        if let Some(responses) = run.take_responses(index, &entry) {
            stats.request_responded(&responses);
        }
        match concluded {
            Ok(answer) => {
                let ended = answer.as_ref().map_or_else(Instant::now, |answer| answer.times.ended);
                let queue = run.first_began(index).saturating_duration_since(entry.arrived);
                let times = RequestTimes { rows, queue, total: ended.saturating_duration_since(entry.arrived) };
                let record = Record { batch, times, arrived: entry.arrived, deadline: entry.promise.deadline };
                answered.push((entry.reply, answer, record));
            }
            Err(error) => entry.settle(stats, error, run.end()),
        }
    }
    if !answered.is_empty() || !again.is_empty() {
        let at_once = answered.iter().filter(|(reply, ..)| !reply.records());
        stats.batch_finished(&batch, at_once.map(|(.., record)| record.times));
    }
    for (reply, answer, record) in answered {
        reply.answer(answer, record);
    }
    again
}

pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(panic_error(&*payload)))
}

fn panic_error(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("the instance panicked: {}", text.unwrap_or("no message")))
}
