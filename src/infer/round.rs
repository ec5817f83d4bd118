//! A network thread's round: what it does between two waits for the network.
//!
//! One read brings many requests. Waking an instance for each of them costs two system calls a request; so a thread that
//! works in rounds puts wake-ups off until it has handled all that it read. Other threads wake at once.
//! Begin with [`put_off`].

use std::cell::RefCell;
use std::task::Waker;
#[cfg(not(feature = "shuttle"))]
use std::thread_local;

#[cfg(feature = "shuttle")]
use shuttle::thread_local;

/// The most that is put off; one more ends the round.
const PUT_OFF_MAX: usize = 16;

thread_local! {
    /// `None` on a thread that does not work in rounds.
    static ROUND: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// Makes this thread work in rounds: who calls this calls [`end`] each time before the thread waits.
pub fn begin() {
    ROUND.with(|round| {
        round.borrow_mut().get_or_insert_default();
    });
}

/// Puts the wake-up off to the end of the round. `false` if this thread has no rounds, so that it must be done now.
pub fn put_off(wake_up: impl FnOnce() -> Waker) -> bool {
    let full = ROUND.with(|round| {
        let mut round = round.borrow_mut();
        let round = round.as_mut()?;
        round.push(wake_up());
        Some(round.len() >= PUT_OFF_MAX)
    });
    if full == Some(true) {
        end();
    }
    full.is_some()
}

/// Does what was put off.
pub fn end() {
    // Taken out first: a wake-up may run code that puts off others.
    while let Some(waker) = ROUND.with(|round| round.borrow_mut().as_mut()?.pop()) {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_round_wakes_at_its_end_or_when_it_is_full_and_other_threads_have_none() {
        let count = Arc::new(Count::default());
        let put_one_off = || put_off(|| Waker::from(count.clone()));
        assert!(!put_one_off());
        begin();
        assert!(put_one_off() && put_one_off());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        end();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        for _ in 0..PUT_OFF_MAX {
            assert!(put_one_off());
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 2 + PUT_OFF_MAX);
    }
}
