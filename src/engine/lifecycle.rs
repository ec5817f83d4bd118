//! The states of a model version.
//!
//! ```text
//! (unknown) -> Loading -> Ready -> Unloading -> Unavailable
//!                 |         |                       |
//!                 |         +-> Ready (reload: the new copy takes over)
//!                 +-> Unavailable (failed) <--------+-> Loading
//! ```

use std::fmt;

/// Where a version stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being opened; not served yet.
    Loading,
    /// It is served.
    Ready,
    /// It gets no more requests, and finishes those it has.
    Unloading,
    /// It is not there: unloaded, or failed to load.
    Unavailable,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Loading => "LOADING",
            State::Ready => "READY",
            State::Unloading => "UNLOADING",
            State::Unavailable => "UNAVAILABLE",
        })
    }
}

/// The reason of a version that was taken out of service on purpose.
pub(super) const UNLOADED: &str = "unloaded";
