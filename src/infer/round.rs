//! A network thread's round: what it does between two waits for the network.
//!
//! One read brings many requests. Waking an instance for each of them costs two system calls a request; so a thread that
//! works in rounds puts wake-ups off until it has handled all that it read. Other threads wake at once. What a thread has
//! put off is its own to do, and spares no other thread its wake-up: it may be busy with something else for long.
//! Begin with [`put_off`].

use std::cell::RefCell;
use std::task::{Context, Poll, Waker};
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

/// Puts the wake-up off to the end of the round, where it is done once however often it was put off. `false` if this
/// thread has no rounds, so that it must be done now.
pub fn put_off(wake_up: impl FnOnce() -> Waker) -> bool {
    let full = ROUND.with(|round| {
        let mut round = round.borrow_mut();
        let round = round.as_mut()?;
        let waker = wake_up();
        if !round.iter().any(|other| other.will_wake(&waker)) {
            round.push(waker);
        }
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

/// Whether this thread has put something off.
#[cfg(test)]
pub fn has_put_off() -> bool {
    ROUND.with(|round| round.borrow().as_ref().is_some_and(|round| !round.is_empty()))
}

/// Has a task polled again after every other one that is ready. A thread that is never without work never waits, so the
/// round ends here.
pub fn another_turn<T>(ctx: &Context<'_>) -> Poll<T> {
    end();
    ctx.waker().wake_by_ref();
    Poll::Pending
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
    fn a_round_wakes_each_once_at_its_end_or_when_it_is_full_and_other_threads_have_none() {
        let counts: Vec<_> = (0..PUT_OFF_MAX).map(|_| Arc::new(Count::default())).collect();
        let put_one_off = |index: usize| put_off(|| Waker::from(counts[index].clone()));
        let woken = || counts.iter().map(|count| count.0.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert!(!put_one_off(0));
        begin();
        for _ in 0..PUT_OFF_MAX {
            assert!(put_one_off(0) && put_one_off(1));
        }
        assert_eq!(woken()[..3], [0, 0, 0]);
        end();
        assert_eq!(woken()[..3], [1, 1, 0]);
        (0..PUT_OFF_MAX).for_each(|index| assert!(put_one_off(index)));
        assert!(!has_put_off());
        assert_eq!((woken()[..3].to_vec(), woken()[PUT_OFF_MAX - 1]), (vec![2, 2, 1], 1));
    }

    #[test]
    fn a_task_that_asks_for_another_turn_ends_the_round() {
        let (promised, own) = (Arc::new(Count::default()), Arc::new(Count::default()));
        begin();
        assert!(put_off(|| Waker::from(promised.clone())));
        let task = Waker::from(own.clone());
        assert_eq!(another_turn::<()>(&Context::from_waker(&task)), Poll::Pending);
        assert_eq!([promised, own].map(|count| count.0.load(Ordering::Relaxed)), [1, 1]);
    }
}
