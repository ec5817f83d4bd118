//! An instance's work without its thread, step by step: for who moves time by hand, such as a simulation.
//!
//! What happens in each step is what the instance thread does; only the waiting between the steps is the caller's.

use super::Scheduler;
use super::entry::Pulled;
use super::instance::execute_begun;
use crate::backend::Instance;
use crate::infer::Instant;
use crate::tensor::Member;

/// A batch that an instance has taken and not run yet.
#[derive(Debug)]
pub struct Underway {
    index: usize,
    pulled: Pulled,
    began: Instant,
}

impl Underway {
    /// Takes what the scheduler gives instance `index` now.
    pub fn begin(scheduler: &dyn Scheduler, index: usize) -> Option<Self> {
        let began = Instant::now();
        scheduler.try_pull(index).map(|pulled| Self { index, pulled, began })
    }

    /// What it has taken.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.pulled.entries.iter().map(|entry| &entry.member)
    }

    /// Runs the batch and settles its requests; its execution has taken until now. `false` if the instance panicked.
    pub fn finish(self, scheduler: &dyn Scheduler, instance: &mut dyn Instance) -> bool {
        execute_begun(scheduler, self.index, instance, self.pulled, self.began)
    }
}
