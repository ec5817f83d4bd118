//! How many loads run at the same time. One that waits for memory lets others run meanwhile: those of other devices, and
//! those that need none.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::stopped;
use crate::error::Result;

/// So many loads may wait for memory and not be counted among those that run: each has a thread.
const ASIDE_MAX: usize = 64;
/// How long others wait before they are not counted either: what they wait for may be had by a load only that has not
/// begun.
const ASIDE_AFTER: Duration = Duration::from_secs(1);

/// What loads need to run; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Permits {
    running: Arc<Semaphore>,
    /// One load more, which has waited for memory: it does not wait behind all that have not begun.
    returning: Arc<Semaphore>,
    aside: Arc<Semaphore>,
}

/// A load that runs.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Permits,
    /// `None` while it waits, and once it has ended. Locked for a move.
    held: Mutex<Option<OwnedSemaphorePermit>>,
    ended: CancellationToken,
}

/// A load that waits beside those that run.
pub(super) struct Aside<'a> {
    permit: &'a Permit,
    _one_of_few: Option<OwnedSemaphorePermit>,
}

impl Permits {
    /// So many loads run.
    pub(super) fn new(max: usize) -> Self {
        let [running, returning, aside] = [max.max(1), 1, ASIDE_MAX].map(|count| Arc::new(Semaphore::new(count)));
        Self { running, returning, aside }
    }

    /// Waits until another load may run.
    ///
    /// # Errors
    /// If none will.
    pub(super) async fn acquire(&self) -> Result<Permit> {
        let held = self.running.clone().acquire_owned().await.map_err(|_| stopped())?;
        Ok(Permit { permits: self.clone(), held: Mutex::new(Some(held)), ended: CancellationToken::new() })
    }
}

impl Permit {
    /// Others run until this load comes back, which has waited for so long; `None` if that is too short, as many wait.
    pub(super) fn step_aside(&self, waited: Duration) -> Option<Aside<'_>> {
        let one_of_few = self.permits.aside.clone().try_acquire_owned().ok();
        if one_of_few.is_none() && waited < ASIDE_AFTER {
            return None;
        }
        *self.held.lock() = None;
        Some(Aside { permit: self, _one_of_few: one_of_few })
    }

    /// The load has ended, or nobody waits for it any more.
    pub(super) fn end(&self) {
        self.ended.cancel();
        *self.held.lock() = None;
    }
}

impl Aside<'_> {
    /// Waits until it may run again; `false` if it is `overtaken` before that, or has ended for all others. Blocking.
    pub(super) fn come_back(self, overtaken: &CancellationToken) -> bool {
        let Permits { running, returning, .. } = self.permit.permits.clone();
        let held = Handle::current().block_on(async {
            tokio::select! {
                biased;
                () = overtaken.cancelled() => None,
                () = self.permit.ended.cancelled() => None,
                held = returning.acquire_owned() => held.ok(),
                held = running.acquire_owned() => held.ok(),
            }
        });
        let mut own = self.permit.held.lock();
        // Whoever ends it from now on finds what it holds.
        *own = held.filter(|_| !self.permit.ended.is_cancelled());
        own.is_some()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::engine::loader::on_thread;

    /// Steps aside and comes back on a thread of its own; tells how that went.
    async fn comes_back(permit: &Arc<Permit>, overtaken: &CancellationToken) -> bool {
        let (permit, overtaken) = (permit.clone(), overtaken.clone());
        let back = move || permit.step_aside(Duration::ZERO).is_some_and(|aside| aside.come_back(&overtaken));
        on_thread("comes-back", back).await.expect("it does not panic")
    }

    #[tokio::test]
    async fn who_steps_aside_lets_others_run_and_comes_back_before_those_that_have_not_begun() {
        let (permits, never) = (Permits::new(1), CancellationToken::new());
        let first = Arc::new(permits.acquire().await.expect("nobody runs"));
        assert!(permits.acquire().now_or_never().is_none());
        let aside = first.step_aside(Duration::ZERO).expect("nobody waits so");
        let second = permits.acquire().await.expect("the first one has stepped aside");
        drop(aside);
        assert!(comes_back(&first, &never).await, "beside the second one");
        assert!(permits.acquire().now_or_never().is_none(), "those that have not begun wait for the second one");
        drop((first, second));
        assert_eq!((permits.returning.available_permits(), permits.running.available_permits()), (1, 1));
        assert_eq!(permits.aside.available_permits(), ASIDE_MAX);
    }

    #[tokio::test]
    async fn who_is_overtaken_or_given_up_does_not_come_back() {
        let permits = Permits::new(1);
        let own = Arc::new(permits.acquire().await.expect("nobody runs"));
        let (overtaken, never) = (CancellationToken::new(), CancellationToken::new());
        let others = {
            let aside = own.step_aside(Duration::ZERO).expect("nobody waits so");
            let others = (permits.acquire().await, permits.returning.clone().acquire_owned().await);
            drop(aside);
            others
        };
        overtaken.cancel();
        assert!(!comes_back(&own, &overtaken).await);
        let (waits, end) = tokio::join!(comes_back(&own, &never), async {
            tokio::task::yield_now().await;
            own.end();
        });
        assert_eq!((waits, end), (false, ()));
        drop(others);
        assert!(!comes_back(&own, &never).await, "not even if there is room");
        assert_eq!((permits.returning.available_permits(), permits.running.available_permits()), (1, 1));
    }

    #[tokio::test]
    async fn if_many_wait_beside_those_that_run_others_do_so_after_a_while_only() {
        let permits = Permits::new(1);
        let permit = permits.acquire().await.expect("nobody runs");
        let aside: Vec<_> = (0..ASIDE_MAX).map_while(|_| permit.step_aside(Duration::ZERO)).collect();
        assert_eq!(aside.len(), ASIDE_MAX);
        let other = permits.acquire().await.expect("nobody runs");
        assert!(other.step_aside(Duration::ZERO).is_none() && permits.acquire().now_or_never().is_none());
        let _aside = other.step_aside(ASIDE_AFTER).expect("it has waited");
        assert!(permits.acquire().now_or_never().is_some());
    }
}
