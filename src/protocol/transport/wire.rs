//! A connection's bytes as hyper gets them: what was read to tell the version comes first, what comes is told to the
//! [`Peer`], and a peer that takes nothing of what is sent is given up.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::peer::Peer;
use super::preface::Beginning;
use crate::telemetry::metrics::PortMetrics;

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] if the peer takes nothing for some time.
pub struct Wire<S> {
    stream: S,
    beginning: Beginning,
    peer: Arc<Peer>,
    send_timeout: Option<Duration>,
    metrics: PortMetrics,
    /// Whether the peer takes nothing.
    blocked: bool,
    /// There while it does, if that may not last.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Wire<S> {
    /// The rest of a stream behind its beginning.
    pub fn new(
        (stream, beginning): (S, Beginning),
        peer: Arc<Peer>,
        send_timeout: Option<Duration>,
        metrics: PortMetrics,
    ) -> Self {
        Self { stream, beginning, peer, send_timeout, metrics, blocked: false, stalled: None }
    }

    fn count(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = written {
            self.metrics.sent(*count);
        }
    }

    /// The outcome of a write, unless it has been waiting for too long.
    fn sent<T>(&mut self, polled: Poll<io::Result<T>>, ctx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_pending() != self.blocked {
            self.blocked = !self.blocked;
            self.peer.set_blocked(self.blocked);
        }
        let (Some(timeout), true) = (self.send_timeout, polled.is_pending()) else {
            self.stalled = None;
            return polled;
        };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        stalled.as_mut().poll(ctx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, ctx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let rest = this.beginning.rest();
        if !rest.is_empty() {
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..count]);
            this.beginning.take(count);
            this.metrics.received(count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(ctx, buffer);
        let count = buffer.filled().len() - before;
        if count > 0 {
            this.metrics.received(count);
            this.peer.sent_bytes();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, ctx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(ctx, data);
        this.count(&polled);
        this.sent(polled, ctx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(ctx, data);
        this.count(&polled);
        this.sent(polled, ctx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_flush(ctx);
        this.sent(polled, ctx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_shutdown(ctx);
        this.sent(polled, ctx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::peer::{Call, Doing};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_takes_slowly_is_not() {
        let timeout = Duration::from_secs(10);
        let (mut peer, own) = tokio::io::duplex(64);
        let known = Peer::new();
        drop(Call::begin(&known));
        let mut own = Wire::new((own, Beginning::default()), known.clone(), Some(timeout), PortMetrics::default());
        let slowly = async {
            for _ in 0..10 {
                tokio::time::sleep(timeout / 2).await;
                peer.read_exact(&mut [0; 32]).await.expect("it was sent");
            }
            peer
        };
        let (sent, _peer) = tokio::join!(own.write_all(&[0; 384]), slowly);
        sent.expect("something was taken all the time");
        assert_eq!(known.doing(), Doing::Idle);
        let gone = own.write_all(&[0; 64]).await.expect_err("nothing is taken any more");
        assert_eq!((gone.kind(), known.doing()), (io::ErrorKind::TimedOut, Doing::Busy));
    }
}
