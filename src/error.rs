//! What can go wrong, as a closed list of kinds.
//!
//! An [`Error`] carries a [`Kind`], on which callers and the wire status branch, and a message for people.
//! It does not know gRPC, HTTP or metrics: `protocol/status.rs` maps kinds to both protocols, `telemetry` to labels.

use std::borrow::Cow;
use std::fmt;

/// Why something was refused or failed; decides the wire status and the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The caller's request or configuration is wrong and will be wrong again.
    InvalidArgument,
    /// The named model, version or resource is unknown.
    NotFound,
    /// The name is already taken.
    AlreadyExists,
    /// The operation is not offered by this server or for this model.
    Unimplemented,
    /// The model or the server is not ready, or is stopping.
    Unavailable,
    /// The queue holds as many requests as its limit allows.
    QueueFull,
    /// The request is predicted to miss its deadline or the model's latency budget.
    BudgetExceeded,
    /// The request's queue timeout passed before it was executed.
    TimedOut,
    /// The caller's own deadline passed.
    DeadlineExceeded,
    /// The caller went away or cancelled.
    Cancelled,
    /// The model raised an error while it executed.
    Backend,
    /// The model needs more memory for what it was given than there is.
    OutOfMemory,
    /// A device fails whatever it is given from now on.
    DeviceLost,
    /// A defect or a broken resource of the server itself.
    Internal,
}

impl Kind {
    /// Every kind, in declaration order.
    pub const ALL: [Kind; 14] = [
        Kind::InvalidArgument,
        Kind::NotFound,
        Kind::AlreadyExists,
        Kind::Unimplemented,
        Kind::Unavailable,
        Kind::QueueFull,
        Kind::BudgetExceeded,
        Kind::TimedOut,
        Kind::DeadlineExceeded,
        Kind::Cancelled,
        Kind::Backend,
        Kind::OutOfMemory,
        Kind::DeviceLost,
        Kind::Internal,
    ];
}

/// A failure with its kind; cheap enough to be cloned to every request of a failed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: Cow<'static, str>,
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with a message for people: what is wrong, with the offending values.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The caller is wrong and would be wrong again.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// The named thing is unknown.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// The model or server cannot serve this now.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// A defect or broken resource of the server.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// The kind, for branching.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same kind with `context` and a colon before the message.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{context}: {}", self.message).into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
