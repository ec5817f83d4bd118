//! What an instance that looks for work asks a queue, and what it is told.

use std::time::Duration;

use super::entry::Pulled;
use crate::infer::Instant;

/// What an instance that looks is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The next batch.
    Take,
    /// Whether there is one.
    Know,
}

/// What an instance should do.
#[derive(Debug)]
pub enum Look {
    /// Run these.
    Run(Pulled),
    /// There is a batch to take.
    Ready,
    /// Look again at once.
    Again,
    /// Sleep until something is pushed, or at most for this time.
    Wait(Option<Duration>),
    /// End.
    Closed,
}

impl Look {
    /// The batch, if there is one.
    pub(super) fn batch(self) -> Option<Pulled> {
        match self {
            Look::Run(pulled) => Some(pulled),
            Look::Ready | Look::Again | Look::Wait(_) | Look::Closed => None,
        }
    }
}

/// What the plan says.
pub(super) enum Next {
    /// Run these.
    Run(Pulled),
    /// There is a batch to take.
    Ready,
    /// Nothing until then.
    Wait(Instant),
}
