//! The states of a model version.
//!
//! ```text
//! (unknown) -> Loading -> Ready -> Unloading -> Unavailable
//!                 |         |                       |
//!                 |         +-> Ready (reload: the new copy takes over)
//!                 +-> Unavailable (failed) <--------+-> Loading
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::progress::Progress;
use crate::model::Version;

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
pub const UNLOADED: &str = "unloaded";

/// The reason of a version that is loaded by its first request.
pub const ASLEEP: &str = "on demand: not loaded";

/// The reason of a version whose memory others needed; its next request loads it again.
pub const EVICTED: &str = "evicted: others needed its memory";

/// The reason of a version that was evicted and whose weights are kept in a cheaper place.
pub const PAGED_OUT: &str = "paged out: others needed its memory";

/// A version as readers see it; `S` is what serves it.
#[derive(Clone, Debug)]
pub struct VersionView<S> {
    /// Where it stands.
    pub state: State,
    /// Why, if there is more to say.
    pub reason: Arc<str>,
    /// Present while it is served, and then for as long as others have requests in flight that need it.
    pub serving: Option<S>,
}

impl<S> VersionView<S> {
    /// Whether it takes requests.
    pub fn is_served(&self) -> bool {
        self.state == State::Ready
    }
}

/// A model as readers see it.
#[derive(Clone, Debug)]
pub struct ModelView<S> {
    /// Its versions.
    pub versions: BTreeMap<Version, VersionView<S>>,
    /// Why no version is known.
    pub reason: Arc<str>,
    /// Whether the model should be served.
    pub wanted: bool,
    /// Of the load that goes on.
    pub progress: Option<Arc<Progress>>,
}

impl<S> Default for ModelView<S> {
    fn default() -> Self {
        Self { versions: BTreeMap::new(), reason: "".into(), wanted: false, progress: None }
    }
}

impl<S> ModelView<S> {
    /// Whether everything of it that should be served is.
    pub fn is_ready(&self) -> bool {
        let good = |view: &VersionView<S>| view.state == State::Ready || &*view.reason == UNLOADED;
        !self.versions.is_empty() && self.versions.values().all(good)
    }

    /// Sets a version that is not served.
    pub(super) fn set(&mut self, version: Version, state: State, reason: &str) {
        self.versions.insert(version, VersionView { state, reason: reason.into(), serving: None });
    }

    /// The same with something else for what serves a version.
    pub(super) fn map<T>(&self, mut of: impl FnMut(&S) -> T) -> ModelView<T> {
        let versions = self.versions.iter().map(|(version, view)| {
            let serving = view.serving.as_ref().map(&mut of);
            (*version, VersionView { state: view.state, reason: view.reason.clone(), serving })
        });
        ModelView {
            versions: versions.collect(),
            reason: self.reason.clone(),
            wanted: self.wanted,
            progress: self.progress.clone(),
        }
    }
}
