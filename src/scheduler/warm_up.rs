//! What an instance runs before it serves.

use std::sync::Arc;
use std::time::Duration;

use super::background::{Clock, Way, give_way};
use super::caller::Callers;
use super::estimate::SizeClass;
use super::instance::{Starting, guarded};
use super::run::Run;
use super::watch::{Charge, Watch};
use crate::backend::Instance;
use crate::error::{Error, Kind, Result};
use crate::tensor::Batch;

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

/// What an instance runs where another one has run all: the configuration's samples, and one execution, which starts what
/// belongs to its thread. The module, and what it has specialised on, is shared.
pub(super) fn brief(all: &[Warmup]) -> Arc<[Warmup]> {
    let (samples, automatic): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|warmup| warmup.sample.is_some());
    samples.into_iter().chain(automatic.into_iter().take(1)).collect()
}

/// Runs all of the warm-up; `watch` sees each execution.
pub(super) fn warm_up(starting: &Starting, watch: Option<&Watch>, instance: &mut dyn Instance) -> Result<()> {
    let clock = Clock::start();
    for warmup in starting.warmup.iter() {
        if warmup.sample.is_none() && clock.took() > WARMUP_MAX {
            break;
        }
        warm_up_by(warmup, starting, watch, instance)?;
    }
    Ok(())
}

/// The same by an instance that stands in for the one that will serve, on a thread that gives way: what the first
/// executions make of a model, they make for all of its instances on the host.
pub(super) fn warm_up_in_background(starting: &Starting, watch: Option<&Watch>) -> Result<()> {
    let clock = tokio::runtime::Handle::try_current().ok();
    let work = || {
        let _clock = clock.as_ref().map(|handle| handle.enter());
        give_way(Way::All);
        guarded(|| {
            let mut instance = starting.model.instance(starting.device)?;
            warm_up(starting, watch, &mut *instance)
        })
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("nereid-warmup".to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| Error::internal(format!("cannot start a warm-up thread: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(Error::internal("the warm-up panicked")))
    })
}

/// Runs one execution.
pub(super) fn warm_up_by(
    Warmup { batch, sample, measured }: &Warmup,
    starting: &Starting,
    watch: Option<&Watch>,
    instance: &mut dyn Instance,
) -> Result<()> {
    let class = || SizeClass::of_row(batch.bytes() / batch.rows().max(1));
    let mut run = Run::new(batch.members.len());
    if let Some(watch) = watch {
        watch.begin(Charge::default());
    }
    let clock = Clock::start();
    let outcome = guarded(|| instance.run(batch, &mut run.replies(batch, &Callers::Nobody)));
    let took = clock.took();
    if let Some(watch) = watch {
        watch.end();
    }
    match (outcome, sample) {
        (Ok(()), _) => {
            if *measured {
                starting.scheduler.record_run(class(), batch.rows(), took);
            }
            Ok(())
        }
        (Err(error), _) if error.kind() == Kind::DeviceLost => Err(error),
        (Err(error), Some(name)) => Err(error.context(format_args!("failed to run warmup sample '{name}'"))),
        (Err(error), None) => {
            if error.kind() == Kind::OutOfMemory {
                starting.scheduler.ran_out(class(), batch.rows());
            }
            tracing::debug!(%error, rows = batch.rows(), "automatic warm-up failed");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::backend::{Model, Replies};
    use crate::model::{Device, Footprint};
    use crate::scheduler::background::tests::policy;
    use crate::scheduler::instance::{Extras, start_with};
    use crate::scheduler::tests::settings;
    use crate::scheduler::{Queue, Scheduler as _};
    use crate::tensor::{DataType, Member, Shape, Tensor};

    /// Notes who ran how many rows, and on a thread of which scheduling policy.
    #[derive(Default)]
    struct Notes {
        made: Mutex<usize>,
        runs: Mutex<Vec<(usize, usize, i32)>>,
        fails: bool,
    }

    struct Noting(usize, Arc<Notes>);

    impl Model for Arc<Notes> {
        fn footprint(&self) -> Footprint {
            Footprint::default()
        }

        fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
            let mut made = self.made.lock();
            *made += 1;
            Ok(Box::new(Noting(*made, self.clone())))
        }
    }

    impl Instance for Noting {
        fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
            self.1.runs.lock().push((self.0, batch.rows(), policy().0));
            if self.1.fails {
                return Err(Error::internal("on purpose"));
            }
            let rows = batch.members.iter().enumerate();
            rows.into_iter().try_for_each(|(index, member)| replies.member(index, member.inputs.clone()))
        }
    }

    fn warmup(rows: usize) -> Warmup {
        let tensor = Tensor::new(DataType::Uint8, Shape::new(&[rows as i64, 1]), vec![0; rows].into());
        Warmup { batch: Batch::new(vec![Member::new(rows, vec![tensor])]), sample: Some("s".into()), measured: true }
    }

    /// What is noted of a start, and how that ended.
    fn noted(in_background: bool, fails: bool) -> (Vec<(usize, usize, i32)>, Result<()>) {
        let notes = Arc::new(Notes { fails, ..Notes::default() });
        let queue = Arc::new(Queue::new(settings(4), Arc::default()));
        let starting = Starting {
            scheduler: queue.clone(),
            model: Arc::new(notes.clone()),
            device: Device::Cpu,
            index: 0,
            thread_name: "noting".to_owned(),
            warmup: [warmup(1), warmup(4)].into(),
        };
        let extras = Extras { in_background, ..Extras::default() };
        let started = start_with(starting, extras).expect("a thread starts");
        let ready = started.ready.blocking_recv().expect("it tells");
        queue.close();
        started.thread.join().expect("no panic");
        let runs = std::mem::take(&mut *notes.runs.lock());
        (runs, ready)
    }

    #[test]
    fn in_the_background_another_instance_warms_up_on_a_thread_that_gives_way() {
        let (usual, idle) = (policy().0, libc::SCHED_IDLE);
        assert_eq!(noted(false, false), (vec![(1, 1, usual), (1, 4, usual)], Ok(())));
        assert_eq!(noted(true, false), (vec![(1, 1, idle), (1, 4, idle), (2, 1, usual)], Ok(())));
    }

    #[test]
    fn all_but_the_first_instance_run_samples_and_one_execution_more() {
        let automatic = |rows| Warmup { sample: None, ..warmup(rows) };
        let rows = |all: &[Warmup]| brief(all).iter().map(|each| each.batch.rows()).collect::<Vec<_>>();
        assert_eq!(rows(&[warmup(3), automatic(1), automatic(2), automatic(4)]), [3, 1]);
        assert_eq!(rows(&[automatic(2), automatic(4)]), [2]);
        assert_eq!(rows(&[]), [0; 0]);
    }

    #[test]
    fn a_sample_that_fails_in_the_background_fails_the_start() {
        let (runs, ready) = noted(true, true);
        assert_eq!(runs.len(), 1);
        assert_eq!(ready.expect_err("it fails").message(), "failed to run warmup sample 's': on purpose");
    }
}
