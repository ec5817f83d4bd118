//! From requests to executions: one queue for each model version, from which its instances pull.
//!
//! [`Queue`] holds what waits, [`plan`] decides (pure) what runs next, [`Estimates`] learns how long that takes, and
//! [`instance`] is the thread that pulls, runs and replies, by a way that `reply` chooses. The [`Waiter`] is the other end of a request: it owns the
//! request's deadline and takes the request back when it passes. Nothing here knows protocols or repositories.

mod estimate;
mod instance;
mod plan;
mod promise;
mod queue;
mod reply;
mod responses;
mod run;
mod waiter;

pub use estimate::{Estimates, SizeClass};
pub use instance::{Started, Starting, Warmup, start};
pub use plan::{Curve, Limits, Plan, Waiting, plan};
pub use queue::{Pushed, Queue, QueueSettings, Ticket};
pub use reply::{Answer, Receiver};
pub use responses::ResponseLimits;
pub use waiter::Waiter;

#[cfg(test)]
mod decoupled_tests;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
