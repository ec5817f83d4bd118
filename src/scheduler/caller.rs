//! Who gets responses while an execution goes on: the callers of a decoupled model.
//!
//! Apart from the requests themselves, which can be taken from an execution that does not end.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::reply::{Answer, Reply};
use super::responses::{Outlet, Sender};
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::infer::Instant;

/// Who hears of an execution before it has ended.
#[derive(Debug)]
pub(super) enum Callers {
    /// Nobody: it is a warm-up.
    Nobody,
    /// Nobody: each member has one response, at the end.
    Later,
    /// These, one for each member.
    Now(Vec<Option<Caller>>),
}

impl Callers {
    /// Those of the requests of one batch; `watch` is told while they are waited for.
    pub(super) fn of(entries: &[Entry], watch: Option<&Arc<Watch>>) -> Self {
        let caller = |entry: &Entry| match &entry.reply {
            Reply::Many(sender) => Some(Caller::of(entry, sender, watch)),
            _ => None,
        };
        match entries.iter().any(|entry| matches!(entry.reply, Reply::Many(_))) {
            true => Self::Now(entries.iter().map(caller).collect()),
            false => Self::Later,
        }
    }

    /// The caller of one member; `None` if nobody needs to hear.
    pub(super) fn get(&self, index: usize) -> Result<Option<&Caller>> {
        match self {
            Self::Nobody => Ok(None),
            Self::Later => Err(Error::internal("the model is not decoupled, it has one response for each request")),
            Self::Now(callers) => Ok(callers.get(index).and_then(Option::as_ref)),
        }
    }
}

/// One caller of a decoupled model.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) arrived: Instant,
    deadline: Option<Instant>,
    outlet: Outlet,
    watch: Option<Arc<Watch>>,
}

impl Caller {
    pub(super) fn of(entry: &Entry, sender: &Sender, watch: Option<&Arc<Watch>>) -> Self {
        let (outlet, watch) = (Outlet::clone(sender), watch.cloned());
        Self { arrived: entry.arrived, deadline: entry.promise.deadline, outlet, watch }
    }

    /// Blocks until another response has room.
    ///
    /// # Errors
    /// Once nobody takes a response any more.
    pub(super) fn wait_for_room(&self) -> Result<()> {
        self.waiting(|| self.outlet.wait_for_room(self.deadline))
    }

    /// Blocks for `time`.
    ///
    /// # Errors
    /// As [`Caller::wait_for_room`], at once when it comes true.
    pub(super) fn pause(&self, time: Duration) -> Result<()> {
        self.waiting(|| self.outlet.pause(time, self.deadline))
    }

    /// Sends without looking for room.
    pub(super) fn send(&self, answer: Answer) {
        self.outlet.push(Ok(answer));
    }

    fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        if let Some(watch) = &self.watch {
            watch.pause();
        }
        let result = wait();
        if let Some(watch) = &self.watch {
            watch.resume();
        }
        result
    }
}
