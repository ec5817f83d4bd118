//! The locks that requests are handed over with, so that a test can take every order of threads through them.
//!
//! Ordinarily these are parking_lot's. With the feature `shuttle`, which only tests turn on, they are shuttle's under
//! the same names, and the tests of `handover_tests` run the schedulers' own code under a scheduler of threads that
//! decides at each lock who goes on.

#[cfg(not(feature = "shuttle"))]
pub(super) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(feature = "shuttle")]
pub(super) use watched::{Condvar, Mutex, MutexGuard};

#[cfg(feature = "shuttle")]
mod watched {
    use std::ops::{Deref, DerefMut};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use shuttle::sync;

    /// A mutex without poisoning.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(sync::Mutex<T>);

    /// A held mutex.
    pub struct MutexGuard<'a, T> {
        mutex: &'a sync::Mutex<T>,
        /// `None` only while [`MutexGuard::unlocked`] or a wait has it.
        held: Option<sync::MutexGuard<'a, T>>,
    }

    /// A condition variable whose waits with a time never end by it: time does not pass there.
    #[derive(Debug)]
    pub struct Condvar {
        inner: sync::Condvar,
        /// Who waits and was not notified; changes only while the mutex is held.
        waiting: AtomicUsize,
    }

    /// Whether a wait ended by its time.
    pub struct TimedOut(bool);

    impl TimedOut {
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard { mutex: &self.0, held: Some(lock(&self.0)) }
        }
    }

    fn lock<T>(mutex: &sync::Mutex<T>) -> sync::MutexGuard<'_, T> {
        mutex.lock().expect("no test panics while it holds a lock")
    }

    impl<T> MutexGuard<'_, T> {
        pub fn unlocked<R>(guard: &mut Self, work: impl FnOnce() -> R) -> R {
            drop(guard.held.take());
            let result = work();
            guard.held = Some(lock(guard.mutex));
            result
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.held.as_deref().expect("held while it can be reached")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.held.as_deref_mut().expect("held while it can be reached")
        }
    }

    impl Condvar {
        pub fn new() -> Self {
            Self { inner: sync::Condvar::new(), waiting: AtomicUsize::new(0) }
        }

        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.held.take().expect("held while it can be reached");
            self.waiting.fetch_add(1, Relaxed);
            guard.held = Some(self.inner.wait(held).expect("no test panics while it holds a lock"));
        }

        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _time: Duration) -> TimedOut {
            self.wait(guard);
            TimedOut(false)
        }

        /// Whether somebody is woken.
        pub fn notify_one(&self) -> bool {
            self.inner.notify_one();
            self.waiting.fetch_update(Relaxed, Relaxed, |waiting| waiting.checked_sub(1)).is_ok()
        }

        /// How many are woken.
        pub fn notify_all(&self) -> usize {
            self.inner.notify_all();
            self.waiting.swap(0, Relaxed)
        }
    }
}
