//! Loads that do not come back: after a time they are given up, and nobody waits for their threads any more.
//!
//! A [`Claim`] settles who has the last word: either the load goes on to change what is served, or it was given up and
//! drops what it has opened. Threads that were given up are counted for each model until they end; what they hold, they
//! hold until then.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Key;
use super::order::outdated_load;
use super::permits::Permit;
use crate::error::{Error, Result};

/// The last word about one try to load a model; the first to take it has it.
#[derive(Debug, Default)]
pub(super) struct Claim {
    taken: Mutex<bool>,
    /// Cancelled when the load is given up.
    given_up: CancellationToken,
    /// Threads of instances that were not ready then; they count as the load's.
    left: Mutex<Vec<JoinHandle<()>>>,
    /// The try's, by which it is one of those that run.
    pub(super) permit: Option<Permit>,
}

impl Claim {
    /// Of a try that runs by this.
    pub(super) fn new(permit: Permit) -> Self {
        Self { permit: Some(permit), ..Self::default() }
    }

    /// Whether it was still to be had.
    pub(super) fn take(&self) -> bool {
        !std::mem::replace(&mut *self.taken.lock(), true)
    }

    /// Whether somebody else has it.
    pub(super) fn is_taken(&self) -> bool {
        *self.taken.lock()
    }

    /// Waits for something as long as the load is not given up. Blocking.
    ///
    /// # Errors
    /// Those of `work`, and that nobody waits for the load any more.
    pub(super) fn wait_for(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let ended = self.given_up.run_until_cancelled(work);
        tokio::runtime::Handle::current().block_on(ended).unwrap_or_else(|| Err(outdated_load()))
    }

    /// The load leaves these threads behind.
    pub(super) fn leave(&self, threads: impl Iterator<Item = JoinHandle<()>>) {
        self.left.lock().extend(threads);
    }

    /// Waits until the threads have ended that the load has left behind. Blocking.
    pub(super) fn wait_for_left(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        left.into_iter().for_each(|thread| _ = thread.join());
    }
}

/// The loads that were given up and whose threads go on.
#[derive(Debug)]
pub(super) struct Hanging {
    /// So many may hang of one model, and it is tried once more.
    max: usize,
    claims: Mutex<BTreeMap<Key, Vec<Weak<Claim>>>>,
}

impl Hanging {
    pub(super) fn new(max: usize) -> Self {
        Self { max, claims: Mutex::default() }
    }

    /// Refuses another try of a model of which too many hang.
    ///
    /// # Errors
    /// How many they are.
    pub(super) fn check(&self, key: &Key) -> Result<()> {
        let mut claims = self.claims.lock();
        claims.retain(|_, hanging| {
            // A thread has its claim until it ends.
            hanging.retain(|claim| claim.strong_count() > 0);
            !hanging.is_empty()
        });
        match claims.get(key).map_or(0, Vec::len) {
            count if count > self.max => {
                Err(Error::unavailable(format!("{count} earlier loads of model '{}' have not ended yet", key.name)))
            }
            _ => Ok(()),
        }
    }

    /// Gives a load up; `false` if it has ended, or changes already what is served.
    pub(super) fn give_up(&self, key: &Key, claim: &Arc<Claim>) -> bool {
        let taken = claim.take();
        if taken {
            claim.given_up.cancel();
            self.claims.lock().entry(key.clone()).or_default().push(Arc::downgrade(claim));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_which_too_many_loads_hang_is_not_tried_until_one_ends() {
        let (hanging, key) = (Hanging::new(1), Key::of("m"));
        let claims: Vec<Arc<Claim>> = (0..2).map(|_| Arc::default()).collect();
        for claim in &claims {
            assert_eq!(hanging.check(&key), Ok(()));
            assert!(hanging.give_up(&key, claim));
            assert!(!claim.take(), "the load does not change anything any more");
        }
        let refused = hanging.check(&key).expect_err("two hang");
        assert_eq!(refused.message(), "2 earlier loads of model 'm' have not ended yet");
        assert_eq!(hanging.check(&Key::of("other")), Ok(()));
        drop(claims);
        assert_eq!(hanging.check(&key), Ok(()));
        assert!(hanging.claims.lock().is_empty());
    }

    #[test]
    fn a_load_that_has_the_last_word_is_not_given_up() {
        let (hanging, claim) = (Hanging::new(0), Arc::new(Claim::default()));
        assert!(claim.take());
        assert!(!hanging.give_up(&Key::of("m"), &claim));
        assert_eq!(hanging.check(&Key::of("m")), Ok(()));
    }
}
