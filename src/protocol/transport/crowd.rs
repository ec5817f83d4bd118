//! All connections of a port, and who of them is sent away when there are too many.
//!
//! A peer that sends nothing costs its owner nothing, so that a limit of connections alone would let one machine keep
//! all others out. So at the limit room is made: by the connection that has been open longest without a complete head
//! of a request, else by the one that has been idle, or stopped in the middle of its requests, for longest. Whose call is being
//! answered is never sent away.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::peer::{Doing, Peer};

/// Who has been idle for less than this is likely to go on.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// Between warnings that say the same.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// What is said in the log, but not every time.
#[derive(Debug, Default)]
pub struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it is to be said now.
    pub fn now(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() > WARNING_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

/// The connections of a port.
#[derive(Debug, Default)]
pub struct Crowd {
    /// In the order of their coming, without those that were found to be past their opening.
    opening: VecDeque<Weak<Peer>>,
    /// In the order of their coming.
    all: VecDeque<Weak<Peer>>,
    warned: Seldom,
}

impl Crowd {
    /// Counts `peer` in, as long as its connection lasts.
    pub fn add(&mut self, peer: &Arc<Peer>) {
        for list in [&mut self.opening, &mut self.all] {
            // Those that ended are cleared away whenever the list would grow, so that it stays as long as it must be.
            if list.len() == list.capacity() {
                list.retain(|peer| peer.strong_count() > 0);
                list.reserve(list.len() + 64);
            }
            list.push_back(Arc::downgrade(peer));
        }
    }

    /// Sends one peer away, if there is one to spare.
    pub fn make_room(&mut self) -> bool {
        let Some(peer) = self.oldest_opening().or_else(|| self.longest_idle()) else { return false };
        peer.send_away();
        true
    }

    /// Says in the log that there are too many, but not every time.
    pub fn warn(&mut self, port: &'static str, connections: usize) {
        if self.warned.now() {
            tracing::warn!(port, connections, "too many connections, closing those that do nothing");
        }
    }

    /// Whether a request that came is not answered yet, or an answer not sent.
    pub fn is_owed(&self) -> bool {
        self.all.iter().filter_map(Weak::upgrade).any(|peer| peer.is_owed())
    }

    fn oldest_opening(&mut self) -> Option<Arc<Peer>> {
        // Who is past its opening never comes back to it, so that each is looked at once.
        while let Some(peer) = self.opening.pop_front() {
            let peer = peer.upgrade().filter(|peer| peer.doing() == Doing::Opening && !peer.is_leaving());
            if peer.is_some() {
                return peer;
            }
        }
        None
    }

    fn longest_idle(&self) -> Option<Arc<Peer>> {
        let now = Instant::now();
        let spare = |peer: &Arc<Peer>| {
            matches!(peer.doing(), Doing::Idle | Doing::Stalled)
                && !peer.is_leaving()
                && now.saturating_duration_since(peer.since()) >= IDLE_MIN
        };
        self.all.iter().filter_map(Weak::upgrade).filter(spare).min_by_key(|peer| peer.since())
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::{Call, Unread};
    use super::*;

    fn crowd(peers: &[&Arc<Peer>]) -> Crowd {
        let mut crowd = Crowd::default();
        peers.iter().for_each(|peer| crowd.add(peer));
        crowd
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_that_says_nothing_goes_first_then_the_longest_idle_and_nobody_busy() {
        let [busy, idle, stalled, first, second] = std::array::from_fn(|_| Peer::new());
        let _call = Call::begin(&busy);
        drop(Call::begin(&idle));
        tokio::time::advance(Duration::from_millis(10)).await;
        let _stalled = Call::begin(&stalled);
        let mut unread = Unread::begin(&stalled);
        unread.set_awaited(true);
        let mut crowd = crowd(&[&busy, &idle, &stalled, &first, &second]);
        let mut gone = || {
            let made = crowd.make_room();
            [&busy, &idle, &stalled, &first, &second].map(|peer| u8::from(peer.is_leaving())).map(|it| (it, made).0)
        };
        assert_eq!(gone(), [0, 0, 0, 1, 0]);
        assert_eq!(gone(), [0, 0, 0, 1, 1]);
        assert_eq!(gone(), [0, 0, 0, 1, 1], "idle for too short a time");
        tokio::time::advance(2 * IDLE_MIN).await;
        assert_eq!(gone(), [0, 1, 0, 1, 1]);
        assert_eq!(gone(), [0, 1, 1, 1, 1]);
        assert!(!crowd.make_room());
    }

    #[tokio::test]
    async fn who_is_gone_takes_no_memory() {
        let mut crowd = Crowd::default();
        let stays = Peer::new();
        crowd.add(&stays);
        for _ in 0..10_000 {
            crowd.add(&Peer::new());
        }
        assert!(crowd.all.len() < 500 && crowd.opening.len() < 500, "{} {}", crowd.all.len(), crowd.opening.len());
        assert!(crowd.make_room() && stays.is_leaving());
    }
}
