//! How many loads run at the same time. One that waits long for memory lets others run meanwhile: those of other devices,
//! those that need none, and those that others wait for.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::stopped;
use crate::error::Result;
use crate::infer::Instant;

/// So many loads may have stepped aside and not have ended: each has a thread, and perhaps files in a cache.
const ASIDE_MAX: usize = 64;
/// How long a load waits before it steps aside. Most waits are over by then.
const ASIDE_AFTER: Duration = Duration::from_secs(1);
/// How long one waits that finds so many there already: what all of them wait for may be had by a load only that has not
/// begun.
const ASIDE_ANYWAY: Duration = Duration::from_secs(60);

/// What loads need to run; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Permits {
    running: Arc<Semaphore>,
    /// As many loads more, which have waited for memory: they do not wait behind all that have not begun.
    returning: Arc<Semaphore>,
    aside: Arc<Semaphore>,
}

/// A load that runs, or has stepped aside.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Permits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` while it stands aside, and once it has ended.
    held: Option<OwnedSemaphorePermit>,
    /// Kept until the load has ended, so that it can step aside again.
    one_of_few: Option<OwnedSemaphorePermit>,
    /// Since when it stands aside.
    since: Option<Instant>,
    /// How long it stood aside before.
    before: Duration,
    ended: bool,
}

impl Permits {
    /// So many loads run.
    pub(super) fn new(max: usize) -> Self {
        let semaphore = |count: usize| Arc::new(Semaphore::new(count));
        let max = max.max(1);
        Self { running: semaphore(max), returning: semaphore(max), aside: semaphore(ASIDE_MAX) }
    }

    /// Waits until another load may run.
    ///
    /// # Errors
    /// If none will.
    pub(super) async fn acquire(&self) -> Result<Permit> {
        let held = self.running.clone().acquire_owned().await.map_err(|_| stopped())?;
        Ok(Permit { permits: self.clone(), state: Mutex::new(State { held: Some(held), ..State::default() }) })
    }
}

impl Permit {
    /// The load has waited for memory for so long: if that is long, and few do so, others run until it comes back.
    pub(super) fn step_aside(&self, waited: Duration) {
        let mut state = self.state.lock();
        if waited < ASIDE_AFTER || state.held.is_none() {
            return;
        }
        if state.one_of_few.is_none() {
            state.one_of_few = self.permits.aside.clone().try_acquire_owned().ok();
        }
        if state.one_of_few.is_some() || waited >= ASIDE_ANYWAY {
            (state.held, state.since) = (None, Some(Instant::now()));
        }
    }

    /// Whether the load may take memory and run: it does, or may do so now if it stands aside. One that has ended is not
    /// counted any more, and finds out by itself.
    pub(super) fn may_run(&self) -> bool {
        let mut state = self.state.lock();
        if state.held.is_none() && !state.ended {
            state.held = self.permits.returning.clone().try_acquire_owned().ok();
        }
        state.held.is_some() || state.ended
    }

    /// The load did not get memory: as long as it stands aside, others have its turn.
    pub(super) fn has_to_wait(&self) {
        let mut state = self.state.lock();
        if state.since.is_some() {
            state.held = None;
        }
    }

    /// The load has what it waited for.
    pub(super) fn runs(&self) {
        let mut state = self.state.lock();
        state.before = state.aside();
        state.since = None;
    }

    /// For how long it stood aside.
    pub(super) fn aside(&self) -> Duration {
        self.state.lock().aside()
    }

    /// The load has ended, or nobody waits for it any more.
    pub(super) fn end(&self) {
        *self.state.lock() = State { ended: true, ..State::default() };
    }
}

impl State {
    fn aside(&self) -> Duration {
        self.before + self.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_steps_aside_lets_others_run_and_comes_back_before_those_that_have_not_begun() {
        let permits = Permits::new(1);
        let first = permits.acquire().await.expect("nobody runs");
        first.step_aside(Duration::ZERO);
        assert!(permits.acquire().now_or_never().is_none(), "most waits are short");
        first.step_aside(ASIDE_AFTER);
        let second = permits.acquire().await.expect("the first one has stepped aside");
        assert!(first.may_run() && first.may_run(), "beside the second one");
        assert_eq!(permits.returning.available_permits(), 0);
        second.step_aside(ASIDE_AFTER);
        assert!(!second.may_run(), "another one has come back");
        first.has_to_wait();
        assert!(second.may_run(), "as the first one still waits");
        second.runs();
        second.has_to_wait();
        assert!(!first.may_run(), "the second one is not aside any more");
        drop((first, second));
        assert_eq!((permits.returning.available_permits(), permits.running.available_permits()), (1, 1));
        assert_eq!(permits.aside.available_permits(), ASIDE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_aside_is_known() {
        let permit = Permits::new(1).acquire().await.expect("nobody runs");
        permit.step_aside(ASIDE_AFTER);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(permit.aside(), Duration::from_secs(3));
        assert!(permit.may_run());
        permit.runs();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(permit.aside(), Duration::from_secs(3));
        permit.step_aside(ASIDE_AFTER);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(permit.aside(), Duration::from_secs(5));
    }

    #[tokio::test]
    async fn who_is_given_up_is_not_counted_any_more() {
        let permits = Permits::new(1);
        let permit = permits.acquire().await.expect("nobody runs");
        permit.step_aside(ASIDE_AFTER);
        assert!(permit.may_run());
        permit.end();
        assert!(permit.may_run());
        let available = [&permits.returning, &permits.running, &permits.aside].map(|of| of.available_permits());
        assert_eq!(available, [1, 1, ASIDE_MAX]);
    }

    #[tokio::test]
    async fn few_step_aside() {
        let permits = Permits::new(1);
        let mut aside = Vec::new();
        for _ in 0..ASIDE_MAX {
            let permit = permits.acquire().await.expect("the others stand aside");
            permit.step_aside(ASIDE_AFTER);
            aside.push(permit);
        }
        let other = permits.acquire().await.expect("the others stand aside");
        other.step_aside(ASIDE_AFTER);
        assert!(other.may_run() && permits.returning.available_permits() == 1, "it has stayed");
        assert!(permits.acquire().now_or_never().is_none());
        other.step_aside(ASIDE_ANYWAY);
        assert!(permits.acquire().now_or_never().is_some());
        let back = aside.pop().expect("there are many");
        assert!(back.may_run());
        back.runs();
        back.step_aside(ASIDE_AFTER);
        assert_eq!(permits.returning.available_permits(), 1, "it has stepped aside again");
    }
}
