//! The queue's part in lending: it keeps what is lent while its thread sleeps, and lets the end of a network thread's
//! round run it.

use std::time::Duration;

use super::{Queue, State};
use crate::infer::Instant;
use crate::scheduler::entry::Pulled;
use crate::scheduler::lent::Lent;
use crate::scheduler::look::{Look, Want};
use crate::scheduler::sync::MutexGuard;

/// How long a network thread runs a lent instance in one go; what is left is for the instance's own thread.
const LENT_TIME_MAX: Duration = Duration::from_micros(200);

impl State {
    /// Takes the instance back that was lent, unless somebody runs it.
    fn take_lent(&mut self, instance: usize) -> Option<Lent> {
        let at = self.lent.iter().position(|lent| lent.index == instance)?;
        Some(self.lent.swap_remove(at))
    }
}

impl Queue {
    /// Ends a round: runs what waits if an instance is lent, else wakes one.
    pub(super) fn wake_or_run(&self) {
        let mut state = self.state.lock();
        match state.lent.pop() {
            Some(lent) => self.run_lent(state, lent),
            // Who runs a lent instance looks again before it ends.
            None => self.wake_one(&mut state),
        }
    }

    /// Runs what waits by an instance that was lent, and gives it back.
    fn run_lent(&self, mut state: MutexGuard<'_, State>, mut lent: Lent) {
        state.lent_out += 1;
        let began = Instant::now();
        let mut now = began;
        let done = loop {
            match self.look_once(&mut state, lent.index, now, Want::Take) {
                Look::Run(pulled) => MutexGuard::unlocked(&mut state, || lent.execute(self, pulled)),
                Look::Again => {}
                Look::Wait(None) => break true,
                // To wait for a time, or to end, is its own thread's.
                Look::Wait(Some(_)) | Look::Ready | Look::Closed => break false,
            }
            now = Instant::now();
            if !lent.is_usable() || now.saturating_duration_since(began) > LENT_TIME_MAX {
                break false;
            }
        };
        state.idles(lent.index);
        state.lent_out -= 1;
        state.lent.push(lent);
        if !done {
            self.wake_all(&mut state);
        }
    }

    /// As [`super::Scheduler::pull_lending`].
    pub(super) fn pull_or_lend(&self, lent: Lent) -> Option<(Option<Pulled>, Lent)> {
        let index = lent.index;
        let mut own = Some(lent);
        let mut state = self.state.lock();
        loop {
            let Some(lent) = own.take().or_else(|| state.take_lent(index)) else {
                // Somebody runs it, and wakes this thread if it is needed.
                self.sleep(&mut state, None);
                continue;
            };
            if !lent.is_usable() {
                return Some((None, lent));
            }
            match self.look_once(&mut state, index, Instant::now(), Want::Take) {
                Look::Run(pulled) => return Some((Some(pulled), lent)),
                Look::Again | Look::Ready => own = Some(lent),
                Look::Wait(time) => {
                    state.lent.push(lent);
                    self.sleep(&mut state, time);
                }
                Look::Closed => return None,
            }
        }
    }
}
