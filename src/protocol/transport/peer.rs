//! What one connection's peer is doing, as far as limits need to know it: shared by the connection, its calls and the
//! accepting loop, which sends somebody away when there are too many.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// What a peer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It has not completed the head of any request yet.
    Opening,
    /// None of its calls is in flight.
    Idle,
    /// All its calls in flight wait for the rest of their requests.
    Stalled,
    /// A call of it is being answered, or something of an answer is still to be sent.
    Busy,
}

/// One connection's peer. The counters guard nothing, so that no order among them is needed.
#[derive(Debug)]
pub struct Peer {
    opened: Instant,
    /// It has completed the head of a request.
    known: AtomicBool,
    /// Calls from the head of their request to the end of their answer.
    calls: AtomicUsize,
    /// Those of them whose request is not read to its end.
    unread: AtomicUsize,
    /// Those of these that are being waited for, within a time.
    awaited: AtomicUsize,
    /// Calls that are not over and of whose answers something is still to be sent.
    sending: AtomicUsize,
    /// Pieces of answers that did not leave to their end, also those of calls that hyper is done with.
    pieces: AtomicUsize,
    /// A write waits for the socket.
    blocked: AtomicBool,
    /// How often something of an answer has left.
    moves: AtomicU64,
    /// When a call, or what was left to send of it, last ended or began to be waited for, in milliseconds after `opened`.
    changed: AtomicU64,
    /// When the first byte of a request's head came, in milliseconds after `opened` and one more; 0 if none did.
    head: AtomicU64,
    leaving: CancellationToken,
}

impl Peer {
    /// The peer of a connection that is accepted now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            known: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            awaited: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            changed: AtomicU64::new(0),
            head: AtomicU64::new(0),
            leaving: CancellationToken::new(),
        })
    }

    /// What it is doing now.
    pub fn doing(&self) -> Doing {
        match (self.calls.load(Relaxed), self.awaited.load(Relaxed)) {
            (0, _) if !self.known.load(Relaxed) => Doing::Opening,
            _ if self.is_sending() => Doing::Busy,
            (0, _) => Doing::Idle,
            (calls, awaited) if calls == awaited => Doing::Stalled,
            _ => Doing::Busy,
        }
    }

    /// When it began to be [`Doing::Idle`] or [`Doing::Stalled`], if it is.
    pub fn since(&self) -> Instant {
        self.opened + Duration::from_millis(self.changed.load(Relaxed))
    }

    /// When it was accepted.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether a request of it that was read to its end is not answered to its end, or an answer not sent to its end.
    pub fn is_owed(&self) -> bool {
        self.calls.load(Relaxed) > self.unread.load(Relaxed) || self.is_sending()
    }

    /// A number that stays the same as long as it takes nothing of what is to be sent to it; `None` if there is nothing
    /// to send, or if a call is executed that waits for nothing from it.
    pub fn stuck_at(&self) -> Option<u64> {
        let waiting = self.sending.load(Relaxed) + self.awaited.load(Relaxed);
        let is_stuck = self.is_sending() && self.calls.load(Relaxed) <= waiting;
        is_stuck.then(|| self.moves.load(Relaxed))
    }

    /// Something of an answer has left.
    pub fn moved(&self) {
        self.moves.fetch_add(1, Relaxed);
    }

    /// A piece of an answer has left to its end, or never will.
    fn piece_ends(&self) {
        // A call that is not over will say when it is.
        if self.calls.load(Relaxed) == 0 {
            self.changed.store(self.now(), Relaxed);
        }
        self.pieces.fetch_sub(1, Relaxed);
    }

    /// Says whether a write waits for the socket.
    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Relaxed);
        if !blocked {
            self.moved();
            self.changed.store(self.now(), Relaxed);
        }
    }

    fn is_sending(&self) -> bool {
        self.pieces.load(Relaxed) > 0 || self.blocked.load(Relaxed) && self.known.load(Relaxed)
    }

    /// Bytes came; between calls, they begin the head of a request.
    pub fn sent_bytes(&self) {
        if self.calls.load(Relaxed) == 0 && self.head.load(Relaxed) == 0 {
            self.head.store(self.now() + 1, Relaxed);
        }
    }

    /// When the head of a request began to come that is not complete.
    pub fn head_began(&self) -> Option<Instant> {
        let after = self.head.load(Relaxed).checked_sub(1)?;
        Some(self.opened + Duration::from_millis(after))
    }

    /// Asks its connection to end.
    pub fn send_away(&self) {
        self.leaving.cancel();
    }

    /// Whether its connection was asked to end.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Resolves when its connection is asked to end.
    pub fn leaving(&self) -> WaitForCancellationFuture<'_> {
        self.leaving.cancelled()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One call in flight; over when dropped.
#[derive(Debug)]
pub struct Call {
    peer: Arc<Peer>,
    /// Its answer, once that has begun.
    flow: Option<Arc<Flow>>,
}

impl Call {
    /// The head of a request is complete.
    pub fn begin(peer: &Arc<Peer>) -> Self {
        peer.calls.fetch_add(1, Relaxed);
        peer.known.store(true, Relaxed);
        peer.head.store(0, Relaxed);
        Self { peer: peer.clone(), flow: None }
    }

    /// Its answer, which begins with the first of these.
    pub fn answer(&mut self) -> &Arc<Flow> {
        let flow = || Flow { peer: self.peer.clone(), pieces: AtomicUsize::new(0), over: AtomicBool::new(false) };
        self.flow.get_or_insert_with(|| Arc::new(flow()))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.peer.changed.store(self.peer.now(), Relaxed);
        if let Some(flow) = &self.flow {
            flow.over.store(true, Relaxed);
            if flow.pieces.load(Relaxed) > 0 {
                self.peer.sending.fetch_sub(1, Relaxed);
            }
        }
        self.peer.calls.fetch_sub(1, Relaxed);
    }
}

/// One call's answer on its way, which can outlast the call: hyper is done with it before the peer is.
#[derive(Debug)]
pub struct Flow {
    peer: Arc<Peer>,
    /// Those that did not leave to their end.
    pieces: AtomicUsize,
    /// Whether the call is.
    over: AtomicBool,
}

impl Flow {
    /// A piece is to be sent.
    pub fn piece_begins(&self) {
        self.peer.pieces.fetch_add(1, Relaxed);
        if self.pieces.fetch_add(1, Relaxed) == 0 && !self.over.load(Relaxed) {
            self.peer.sending.fetch_add(1, Relaxed);
        }
    }

    /// Something of a piece has left.
    pub fn moved(&self) {
        self.peer.moved();
    }

    /// A piece has left to its end, or never will.
    pub fn piece_ends(&self) {
        if self.pieces.fetch_sub(1, Relaxed) == 1 && !self.over.load(Relaxed) {
            self.peer.sending.fetch_sub(1, Relaxed);
        }
        self.peer.piece_ends();
    }
}

/// One request that is not read to its end; dropped when it is.
#[derive(Debug)]
pub struct Unread {
    peer: Arc<Peer>,
    awaited: bool,
}

impl Unread {
    /// A request with a body.
    pub fn begin(peer: &Arc<Peer>) -> Self {
        peer.unread.fetch_add(1, Relaxed);
        Self { peer: peer.clone(), awaited: false }
    }

    /// Says whether somebody waits for more of it now.
    pub fn set_awaited(&mut self, awaited: bool) {
        if awaited == self.awaited {
            return;
        }
        self.awaited = awaited;
        if awaited {
            self.peer.changed.store(self.peer.now(), Relaxed);
            self.peer.awaited.fetch_add(1, Relaxed);
        } else {
            self.peer.awaited.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.set_awaited(false);
        self.peer.unread.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf as _, Bytes};

    use super::super::piece::Piece;
    use super::*;
    use crate::gateway::request_memory::Portion;

    #[test]
    fn what_a_peer_does_follows_its_calls() {
        let peer = Peer::new();
        assert_eq!(peer.doing(), Doing::Opening);
        let call = Call::begin(&peer);
        let mut unread = Unread::begin(&peer);
        assert_eq!((peer.doing(), peer.is_owed()), (Doing::Busy, false));
        unread.set_awaited(true);
        assert_eq!(peer.doing(), Doing::Stalled);
        let second = Call::begin(&peer);
        assert_eq!((peer.doing(), peer.is_owed()), (Doing::Busy, true));
        drop((second, unread));
        assert_eq!((peer.doing(), peer.is_owed()), (Doing::Busy, true));
        drop(call);
        assert_eq!((peer.doing(), peer.is_owed()), (Doing::Idle, false));
    }

    #[test]
    fn a_call_is_owed_until_the_last_of_its_answer_has_left() {
        let peer = Peer::new();
        let mut call = Call::begin(&peer);
        let mut piece = Piece::new(Bytes::from_static(b"answer"), call.answer(), Portion::default());
        let at = peer.stuck_at().expect("there is something to send");
        let mut silent = Call::begin(&peer);
        assert_eq!(peer.stuck_at(), None, "another call is executed");
        drop(Piece::new(Bytes::from_static(b"a part"), silent.answer(), Portion::default()));
        assert_eq!(peer.stuck_at(), None, "and goes on after its first response");
        drop(silent);
        drop(call);
        assert_eq!((peer.doing(), peer.is_owed(), peer.stuck_at()), (Doing::Busy, true, Some(at)));
        piece.advance(1);
        assert_ne!(peer.stuck_at(), Some(at));
        drop(piece);
        assert_eq!((peer.doing(), peer.is_owed(), peer.stuck_at()), (Doing::Idle, false, None));
        peer.set_blocked(true);
        assert_eq!((peer.doing(), peer.is_owed()), (Doing::Busy, true));
        peer.set_blocked(false);
        assert_eq!((peer.doing(), peer.is_owed()), (Doing::Idle, false));
    }

    #[test]
    fn a_head_begins_with_bytes_between_calls_and_ends_with_the_call() {
        let peer = Peer::new();
        peer.sent_bytes();
        assert!(peer.head_began().is_some());
        let call = Call::begin(&peer);
        peer.sent_bytes();
        assert_eq!(peer.head_began(), None);
        drop(call);
        assert_eq!(peer.head_began(), None);
        peer.sent_bytes();
        assert!(peer.head_began().is_some());
    }
}
