//! What an instance that looks for work asks a queue, and what it is told.

use std::time::Duration;

use super::entry::Pulled;
use crate::infer::Instant;

/// What an instance that looks is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// The next batch.
    Take,
    /// Whether there is one.
    Know,
}

/// What an instance should do.
#[derive(Debug)]
pub(super) enum Look {
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

/// What the plan says.
pub(super) enum Next {
    /// Run these.
    Run(Pulled),
    /// There is a batch to take.
    Ready,
    /// Nothing until then.
    Wait(Instant),
}
