//! How long a connection may be idle, take over the head of a request, or take nothing of what is sent.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::peer::{Doing, Peer};

/// Between looks at a connection whose calls are in flight.
const BUSY_INTERVAL: Duration = Duration::from_secs(60);

/// How often a connection is looked at within the time for which its peer may take nothing.
const LOOKS: u32 = 4;

/// The times of one connection; those that are `None` are without limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte of a request's head, or from the beginning of the connection, to the head's end.
    pub head: Option<Duration>,
    /// Without a call in flight.
    pub idle: Option<Duration>,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// The head of a request.
    Head,
    /// The next request.
    Idle,
}

/// Watches one connection from within its task, which what comes from the peer wakes.
pub struct Clock {
    peer: Arc<Peer>,
    limits: Limits,
    /// Set to no later than what is due.
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    /// Watches the connection of `peer`.
    pub fn new(peer: Arc<Peer>, limits: Limits) -> Self {
        Self { peer, limits, sleep: Box::pin(tokio::time::sleep(BUSY_INTERVAL)) }
    }

    /// Ready once something took too long.
    pub fn poll_late(&mut self, ctx: &mut Context<'_>) -> Poll<Late> {
        loop {
            let due = self.due();
            if let Some((at, _)) = due
                && at < self.sleep.deadline()
            {
                self.sleep.as_mut().reset(at);
            }
            ready!(self.sleep.as_mut().poll(ctx));
            let now = Instant::now();
            match self.due() {
                Some((at, late)) if at <= now => return Poll::Ready(late),
                Some((at, _)) => self.sleep.as_mut().reset(at),
                None => self.sleep.as_mut().reset(now + BUSY_INTERVAL),
            }
        }
    }

    /// When the next thing is too late, as far as is known now.
    fn due(&self) -> Option<(Instant, Late)> {
        let since = match self.peer.doing() {
            Doing::Opening => self.peer.opened(),
            Doing::Idle => self.peer.since(),
            Doing::Stalled | Doing::Busy => return None,
        };
        let head = match self.peer.doing() {
            Doing::Opening => Some(since),
            // It is not read before the answer to the request before it was sent.
            _ => self.peer.head_began().map(|began| began.max(since)),
        };
        let head = self.limits.head.zip(head).map(|(limit, began)| (began + limit, Late::Head));
        let idle = self.limits.idle.map(|limit| (since + limit, Late::Idle));
        head.or(idle)
    }
}

/// Resolves once there was something to send to `peer` for `time`, and it took nothing of it; never if that is `None`.
pub async fn stuck(peer: &Peer, time: Option<Duration>) {
    let Some(time) = time else { return std::future::pending().await };
    let (mut seen, mut looks) = (None, 0);
    while looks < LOOKS {
        tokio::time::sleep(time / LOOKS).await;
        let at = peer.stuck_at();
        looks = if at.is_some() && at == seen { looks + 1 } else { 0 };
        seen = at;
    }
}

/// Resolves once `peer` was not busy for `time` from now on.
pub async fn unused(peer: &Peer, time: Duration) {
    loop {
        tokio::time::sleep(time).await;
        if peer.doing() != Doing::Busy && peer.since() + time <= Instant::now() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf as _, Bytes};

    use super::super::peer::Call;
    use super::super::piece::Piece;
    use super::*;
    use crate::gateway::request_memory::Portion;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(120);

    /// How long from now until `peer` is late, and for what.
    async fn late(peer: &Arc<Peer>) -> (Late, u64) {
        let start = Instant::now();
        let mut clock = Clock::new(peer.clone(), Limits { head: Some(HEAD), idle: Some(IDLE) });
        let late = std::future::poll_fn(|ctx| clock.poll_late(ctx)).await;
        (late, start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_head_a_later_head_and_silence_have_their_times() {
        let peer = Peer::new();
        assert_eq!(late(&peer).await, (Late::Head, HEAD.as_secs()));
        let call = Call::begin(&peer);
        drop(call);
        assert_eq!(late(&peer).await, (Late::Idle, IDLE.as_secs()));
        peer.sent_bytes();
        assert_eq!(late(&peer).await, (Late::Head, HEAD.as_secs()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_may_take_any_time() {
        let peer = Peer::new();
        let call = Call::begin(&peer);
        let ends = async {
            tokio::time::sleep(100 * IDLE).await;
            drop(call);
        };
        let ((late, after), ()) = tokio::join!(late(&peer), ends);
        assert_eq!((late, after), (Late::Idle, 101 * IDLE.as_secs()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_came_while_an_answer_was_sent_has_its_time_behind_it() {
        let peer = Peer::new();
        let mut call = Call::begin(&peer);
        let piece = Piece::new(Bytes::from_static(b"answer"), call.answer(), Portion::default());
        drop(call);
        peer.sent_bytes();
        let ends = async {
            tokio::time::sleep(10 * IDLE).await;
            drop(piece);
        };
        let ((late, after), ()) = tokio::join!(late(&peer), ends);
        let in_time = (10 * IDLE + HEAD).as_secs();
        assert!(
            late == Late::Head && (in_time..=in_time + BUSY_INTERVAL.as_secs()).contains(&after),
            "{late:?} {after}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_stuck_and_who_is_sent_nothing_or_takes_slowly_is_not() {
        let (peer, start) = (Peer::new(), Instant::now());
        let mut call = Call::begin(&peer);
        let sends = async {
            tokio::time::sleep(10 * IDLE).await;
            let mut piece = Piece::new(Bytes::from(vec![0; 20]), call.answer(), Portion::default());
            for _ in 0..10 {
                tokio::time::sleep(IDLE / 2).await;
                piece.advance(1);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = sends => {}
            () = stuck(&peer, Some(IDLE)) => {}
        }
        let after = start.elapsed() - 15 * IDLE;
        assert!((IDLE..=IDLE * 3 / 2).contains(&after), "{after:?}");
    }
}
