//! An instance that its thread lends out: while it has nothing to do, the network thread that has just read a request
//! runs it.
//!
//! For models whose executions take microseconds and never block ([`crate::backend::Model::lent`]): to wake another
//! thread and to be woken by it costs several times as much. How many execute at a time stays what the instances
//! allow. Begin with [`Lent`]; the queue keeps it while its thread sleeps.

use std::fmt;
use std::sync::Arc;

use super::Scheduler;
use super::entry::Pulled;
use super::instance::{Afterwards, Hands};
use super::watch::Watch;
use crate::backend::Instance;
use crate::telemetry::metrics::BusyTime;

/// An instance with what its executions need.
pub struct Lent {
    pub(super) index: usize,
    pub(super) instance: Box<dyn Instance + Send>,
    /// Whether it takes inputs in host memory only.
    pub(super) on_host: bool,
    /// Where its requests lie meanwhile, if executions are bounded.
    pub(super) watch: Option<Arc<Watch>>,
    pub(super) busy: Option<BusyTime>,
    /// What the last execution left of it.
    pub(super) state: Afterwards,
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("index", &self.index).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Lent {
    /// Its number among the version's instances.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether it can run the next batch.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.state, Afterwards::Usable)
    }

    /// Runs one batch and settles each of its requests.
    pub(super) fn execute(&mut self, scheduler: &dyn Scheduler, pulled: Pulled) {
        let Self { index, instance, on_host, watch, busy, state } = self;
        let (index, on_host) = (*index, *on_host);
        let mut hands = Hands { scheduler, index, on_host, watch: watch.as_ref(), busy: busy.as_mut(), began: None };
        *state = hands.execute(&mut **instance, pulled, None).state;
    }
}
