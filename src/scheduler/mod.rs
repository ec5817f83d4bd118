//! From requests to executions: one queue for each model version, from which its instances pull.
//!
//! [`Queue`] holds what waits, [`plan`] decides (pure) what runs next, [`Estimates`] learns how long that takes, and
//! [`instance`] is the thread that pulls, runs and replies, by a way that `reply` chooses. The [`Waiter`] is the other end of a request: it owns the
//! request's deadline and takes the request back when it passes. Nothing here knows protocols or repositories.

mod background;
mod caller;
mod capacity;
mod crew;
mod entry;
mod estimate;
mod instance;
mod lanes;
mod lent;
mod levels;
mod limiter;
mod look;
mod order;
mod pinning;
mod plan;
mod promise;
mod queue;
mod reply;
mod responses;
mod run;
mod sequence;
mod settings;
mod sync;
mod turns;
mod underway;
mod waiter;
mod warm_up;
mod watch;

pub use background::{Way, give_way};
pub use crew::{Change, Crew, CrewSettings};
pub use entry::{Entry, Pulled, Ticket};
pub use estimate::{Estimates, SizeClass};
pub use instance::{Started, Starting, start};
pub use lent::Lent;
pub use levels::Levels;
pub use limiter::{Claim, Limiter, Permit};
pub use look::{Look, Want};
pub use plan::{Curve, Limits, Plan, Waiting, plan};
pub use queue::Queue;
pub use reply::{Answer, Receiver};
pub use responses::{ResponseLimits, stalled};
pub use sequence::{SequenceSettings, Sequences};
pub use settings::{Hold, QueueSettings};
pub use underway::{Finished, Underway};
pub use waiter::Waiter;
pub use warm_up::Warmup;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::infer::{Instant, Sequence};
use crate::telemetry::stats::ModelStats;
use crate::tensor::{Forms, Member, Tensor};

/// How the requests of one model version become executions: takes requests in, gives its instances batches.
///
/// A request leaves a scheduler once, by whoever takes it out: an instance that pulls it, its waiter that takes it back,
/// or the scheduler itself when it cannot be in time any more. Who takes it out settles its outcome.
pub trait Scheduler: fmt::Debug + Send + Sync {
    /// Takes a request in, or refuses it at once.
    ///
    /// # Errors
    /// [`crate::error::Kind::QueueFull`], [`crate::error::Kind::BudgetExceeded`] or
    /// [`crate::error::Kind::DeadlineExceeded`] if it is predicted to be late, [`crate::error::Kind::InvalidArgument`] if
    /// it does not fit the way this scheduler works, what [`Scheduler::abort_for`] was given. After [`Scheduler::close`]
    /// the request comes back as it was, for a scheduler that has taken this one's place.
    fn push(self: Arc<Self>, request: Pushed, now: Instant) -> Result<(Ticket, Receiver), Refusal>;

    /// Takes a request back. `false` if it is not here any more: it runs, or has its outcome.
    ///
    /// The caller records the outcome. `why` is what it gives the request up for.
    fn take_back(&self, ticket: &Ticket, why: Kind) -> bool;

    /// Reckons anew when a request should be taken back: run times may have been learned since.
    fn reckon(&self, ticket: &mut Ticket);

    /// What this instance, which has nothing to do, should do now. Never [`Look::Again`]; one that is `patient` sleeps
    /// until it need not wait, another does not block.
    fn look(&self, instance: usize, want: Want, patient: bool) -> Look;

    /// Blocks until there is a batch for this instance. `None` once the scheduler is closed and empty, or the instance is
    /// dismissed.
    fn pull(&self, instance: usize) -> Option<Pulled> {
        self.look(instance, Want::Take, true).batch()
    }

    /// As [`Scheduler::pull`]. Meanwhile others may run the instance, if it can be lent here; it may come back without a
    /// batch then, of no use any more.
    fn pull_lending(&self, lent: Lent) -> Option<(Option<Pulled>, Lent)> {
        self.pull(lent.index()).map(|pulled| (Some(pulled), lent))
    }

    /// Blocks until there is a batch for this instance, and leaves it where it is, so that it goes on growing.
    /// `false` when [`Scheduler::pull`] would give `None`.
    fn ready(&self, instance: usize) -> bool {
        matches!(self.look(instance, Want::Know, true), Look::Ready)
    }

    /// What [`Scheduler::pull`] would give now; does not block.
    fn try_pull(&self, instance: usize) -> Option<Pulled> {
        self.look(instance, Want::Take, false).batch()
    }

    /// Hears that an instance is ready, before it pulls for the first time.
    fn joins(&self, instance: usize);

    /// Lets an instance end: it is given nothing more.
    fn dismiss(&self, instance: usize);

    /// An instance is gone and nobody takes its place: what nobody else can serve is refused for this reason.
    fn deserted(&self, instance: usize, _why: &Error) {
        self.dismiss(instance);
    }

    /// Hears how many instances pull from now on.
    fn staffed(&self, instances: usize);

    /// Hears of the end of each execution, before its requests are answered, and may say that some are not answered by
    /// what it gave them.
    fn executed(&self, execution: Execution<'_>) -> Verdicts;

    /// Takes back the requests that [`Scheduler::executed`] wants to run again, each with its position in the batch.
    fn again(&self, instance: usize, requests: Vec<(usize, Entry)>);

    /// Hears that so many rows took more memory than there is. `true` if the requests of such a batch may run in parts.
    fn ran_out(&self, _class: SizeClass, _rows: usize) -> bool {
        false
    }

    /// Learns how long an execution took that was no request's, or a part of a batch.
    fn record_run(&self, class: SizeClass, rows: usize, took: Duration);

    /// Waits no longer for more requests before it runs anything; see [`Hold`].
    fn release(&self);

    /// Gives requests back from now on; what waits is still served.
    fn close(&self);

    /// Closes and refuses everything that waits.
    fn abort(&self) {
        self.abort_for(stopping());
    }

    /// Closes and refuses everything that waits, and what comes later, for this reason.
    fn abort_for(&self, why: Error);

    /// How the model file sees the tensors of its batches; `None` for as they are.
    fn forms(&self) -> Option<&Arc<Forms>> {
        None
    }

    /// How many requests wait.
    fn waiting(&self) -> usize;

    /// Whether nothing waits or runs, and nothing is kept for requests to come. What callers have not read yet does not
    /// count.
    fn is_idle(&self) -> bool;

    /// The statistics that outcomes are recorded in.
    fn stats(&self) -> &Arc<ModelStats>;
}

/// Why a model that is being unloaded takes no request.
pub fn stopping() -> Error {
    Error::unavailable("Server is stopping, scheduler for model has stopped accepting new inference requests")
}

/// Why a scheduler does not take a request.
#[derive(Debug)]
pub enum Refusal {
    /// It is closed, and the request may be for another one.
    Closed(Box<Pushed>),
    /// The request fails.
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Closed(_) => stopping(),
            Refusal::Error(error) => error,
        }
    }
}

/// The refusal of a request for which there is no room.
pub fn queue_full() -> Error {
    Error::new(Kind::QueueFull, "Exceeds maximum queue size")
}

/// One request to push.
#[derive(Debug)]
pub struct Pushed {
    /// The checked tensors.
    pub member: Member,
    /// When the server had read it.
    pub arrived: Instant,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// The queue timeout that the caller asks for.
    pub timeout: Option<Duration>,
    /// The priority level; 0 for the model's default.
    pub priority: u64,
    /// Its place in a sequence.
    pub sequence: Option<Sequence>,
}

impl Pushed {
    /// A request that can wait for ever.
    pub fn new(member: Member, arrived: Instant) -> Self {
        Self { member, arrived, deadline: None, timeout: None, priority: 0, sequence: None }
    }
}

/// An execution that has ended.
#[derive(Debug)]
pub struct Execution<'a> {
    /// The instance's number.
    pub instance: usize,
    /// The size of its members.
    pub class: SizeClass,
    /// The rows of all members.
    pub rows: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether it failed, as a whole at least.
    pub failed: bool,
    /// The last outputs of each member, as the model file gives them; what is not the caller's is taken out here.
    pub outputs: &'a mut [Option<Vec<Tensor>>],
    /// The requests, one for each member.
    pub entries: &'a [Entry],
}

/// The members of a batch that are not answered by what the execution gave them, by position, ascending; mostly none.
pub type Verdicts = Vec<(usize, Verdict)>;

/// What becomes of such a member.
#[derive(Debug)]
pub enum Verdict {
    /// Its request fails.
    Fail(Error),
    /// Its request runs again; if the model is decoupled, what it got now is sent.
    Again,
}

#[cfg(test)]
mod decoupled_tests;
#[cfg(all(test, feature = "shuttle"))]
mod handover_tests;
#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod queue_tests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod simulation_levels;
#[cfg(test)]
mod tests;
