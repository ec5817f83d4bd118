//! An instance's work without its thread, step by step: for who moves time by hand, such as a simulation.
//!
//! What happens in each step is what the instance thread does; only the waiting between the steps is the caller's.

use super::Scheduler;
use super::entry::Pulled;
use super::instance::execute_begun;
use super::limiter::Permit;
use super::look::{Look, Want};
use super::watch::Charge;
use crate::backend::Instance;
use crate::error::Error;
use crate::infer::Instant;
use crate::tensor::Member;

/// A batch that an instance has taken and not run yet.
#[derive(Debug)]
pub struct Underway {
    index: usize,
    pulled: Pulled,
    permit: Option<Permit>,
    began: Instant,
}

/// What an execution leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Whether the instance can go on; if not, it panicked.
    pub usable: bool,
    /// Whether the resources that it held were asked for again.
    pub renewed: bool,
}

impl Underway {
    /// Takes what the scheduler gives instance `index` now, with the resources that it holds.
    ///
    /// # Errors
    /// What else the instance should do.
    pub fn begin(scheduler: &dyn Scheduler, index: usize, permit: Option<Permit>) -> Result<Self, Look> {
        let began = Instant::now();
        match scheduler.look(index, Want::Take, false) {
            Look::Run(pulled) => {
                let mut permit = permit;
                permit.iter_mut().for_each(Permit::used);
                Ok(Self { index, pulled, permit, began })
            }
            look => Err(look),
        }
    }

    /// What it has taken.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.pulled.entries.iter().map(|entry| &entry.member)
    }

    /// Runs the batch and settles its requests; its execution has taken until now.
    pub fn finish(self, scheduler: &dyn Scheduler, instance: &mut dyn Instance) -> Finished {
        execute_begun(scheduler, self.index, instance, (self.pulled, self.permit), self.began)
    }

    /// Gives the instance up with the batch, as a crew does with one that hangs.
    pub fn lose(self, scheduler: &dyn Scheduler, why: &Error) {
        let Pulled { entries, class } = self.pulled;
        let now = Instant::now();
        let charge = Charge { entries, permit: self.permit, class, running: None };
        charge.fail(scheduler, (self.index, now - self.began), why, now);
    }
}
