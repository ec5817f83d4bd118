//! The instance thread: pulls a batch, runs it, replies, records; one of the two places with blocking work.
//!
//! Begin with [`start`]. The thread makes its instance itself, warms it up, and reports before it serves.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::entry::{Entry, Pulled};
use super::estimate::SizeClass;
use super::order::Record;
use super::reply::Reply;
use super::run::Run;
use super::{Execution, Scheduler, Verdict, Verdicts};
use crate::backend::{Instance, Model};
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::model::Device;
use crate::telemetry::stats::{ModelStats, RequestTimes};
use crate::tensor::Batch;

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

/// One execution before serving.
#[derive(Clone, Debug)]
pub struct Warmup {
    /// What to run.
    pub batch: Batch,
    /// The sample of the configuration that this is, whose failure fails the start; without one, it is left out when
    /// warming up takes long.
    pub sample: Option<Arc<str>>,
    /// Whether its run time counts for planning.
    pub measured: bool,
}

/// After this time what is not required of the warm-up is left out.
const WARMUP_MAX: Duration = Duration::from_secs(5);

/// A started instance.
pub struct Started {
    /// Tells whether the instance is ready to serve, once.
    pub ready: oneshot::Receiver<Result<()>>,
    /// Ends when the queue is closed and empty.
    pub thread: JoinHandle<()>,
}

/// Starts an instance on a thread of its own.
///
/// # Errors
/// If the system gives no thread.
pub fn start(starting: Starting) -> Result<Started> {
    let (report, ready) = oneshot::channel();
    let clock = tokio::runtime::Handle::try_current().ok();
    let thread = std::thread::Builder::new().name(starting.thread_name.clone()).spawn(move || {
        // Inside a runtime the instance sees the runtime's clock, which tests make virtual.
        let _clock = clock.as_ref().map(|handle| handle.enter());
        serve(&starting, report);
    });
    let thread = thread.map_err(|error| Error::internal(format!("cannot start an instance thread: {error}")))?;
    Ok(Started { ready, thread })
}

fn serve(starting: &Starting, report: oneshot::Sender<Result<()>>) {
    let made = guarded(|| {
        let mut instance = starting.model.instance(starting.device)?;
        warm_up(starting, &mut *instance)?;
        Ok(instance)
    });
    let mut instance = match made {
        Ok(instance) => instance,
        Err(error) => {
            let _ = report.send(Err(error));
            return;
        }
    };
    if report.send(Ok(())).is_err() {
        return;
    }
    while let Some(pulled) = starting.scheduler.pull(starting.index) {
        if execute(&*starting.scheduler, starting.index, &mut *instance, pulled) {
            continue;
        }
        match guarded(|| starting.model.instance(starting.device)) {
            Ok(fresh) => instance = fresh,
            Err(error) => tracing::error!(%error, "an instance that panicked cannot be replaced, it is used again"),
        }
    }
}

fn warm_up(starting: &Starting, instance: &mut dyn Instance) -> Result<()> {
    let began = Instant::now();
    for Warmup { batch, sample, measured } in starting.warmup.iter() {
        if sample.is_none() && began.elapsed() > WARMUP_MAX {
            break;
        }
        let mut run = Run::new(batch.members.len());
        match guarded(|| instance.run(batch, &mut run.replies(batch, &[]))) {
            Ok(()) if *measured => {
                let class = SizeClass::of_row(batch.bytes() / batch.rows().max(1));
                starting.scheduler.record_run(class, batch.rows(), run.began.elapsed());
            }
            Ok(()) => {}
            Err(error) => match sample {
                Some(name) => return Err(error.context(format_args!("failed to run warmup sample '{name}'"))),
                None => tracing::debug!(%error, rows = batch.rows(), "automatic warm-up failed"),
            },
        }
    }
    Ok(())
}

/// Runs one batch and settles each of its requests. `false` if the instance panicked.
pub(super) fn execute(scheduler: &dyn Scheduler, index: usize, instance: &mut dyn Instance, pulled: Pulled) -> bool {
    execute_begun(scheduler, index, instance, pulled, Instant::now())
}

/// The same of a batch that was taken at `began`.
pub(super) fn execute_begun(
    scheduler: &dyn Scheduler,
    index: usize,
    instance: &mut dyn Instance,
    pulled: Pulled,
    began: Instant,
) -> bool {
    let Pulled { mut entries, class } = pulled;
    let rows: Vec<usize> = entries.iter().map(|entry| entry.member.rows).collect();
    let members = entries.iter_mut().map(|entry| std::mem::take(&mut entry.member)).collect();
    let mut run = Run::of(&mut entries);
    run.began = began;
    let mut panicked = false;
    let outcome = Batch::formed(members, scheduler.forms()).and_then(|batch| {
        let outcome = catch_unwind(AssertUnwindSafe(|| instance.run(&batch, &mut run.replies(&batch, &entries))));
        outcome.unwrap_or_else(|payload| {
            panicked = true;
            Err(panic_error(&*payload))
        })
    });
    run.ended = Some(Instant::now());
    let verdicts = scheduler.executed(Execution {
        instance: index,
        class,
        rows: rows.iter().sum(),
        took: run.took(),
        failed: outcome.is_err(),
        outputs: run.outputs(),
        entries: &entries,
    });
    let again = settle(scheduler.stats(), (entries, &rows), run, outcome.err(), verdicts);
    if !again.is_empty() {
        scheduler.again(index, again);
    }
    !panicked
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
    let mut answered = Vec::with_capacity(entries.len());
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

fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(panic_error(&*payload)))
}

fn panic_error(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("the instance panicked: {}", text.unwrap_or("no message")))
}
