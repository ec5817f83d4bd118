//! Bounds the time in which a new connection must begin to speak HTTP/2.
//!
//! Otherwise a peer that sends nothing, or half a preface, would keep its place among the connections for ever. Knows
//! how many bytes the beginning of HTTP/2 has, not what is in them.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// The preface and the header of the frame that must follow it.
const BEGINNING_BYTES: usize = 24 + 9;

/// A stream whose reads fail with [`io::ErrorKind::TimedOut`] if the beginning has not come in time.
pub struct Handshake<S> {
    stream: S,
    /// `None` once the beginning is there.
    awaited: Option<Awaited>,
}

struct Awaited {
    bytes: usize,
    timeout: Pin<Box<Sleep>>,
}

impl<S> Handshake<S> {
    /// Gives the peer of `stream` until `timeout` from now.
    pub fn new(stream: S, timeout: Duration) -> Self {
        let timeout = Box::pin(tokio::time::sleep(timeout));
        Self { stream, awaited: Some(Awaited { bytes: BEGINNING_BYTES, timeout }) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Handshake<S> {
    fn poll_read(self: Pin<&mut Self>, ctx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(ctx, buffer);
        let Some(awaited) = &mut this.awaited else { return polled };
        if polled.is_pending() {
            return awaited.timeout.as_mut().poll(ctx).map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        awaited.bytes = awaited.bytes.saturating_sub(buffer.filled().len() - before);
        if awaited.bytes == 0 {
            this.awaited = None;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Handshake<S> {
    fn poll_write(self: Pin<&mut Self>, ctx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(ctx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(ctx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(ctx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(ctx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn half_a_beginning_times_out_and_a_whole_one_may_be_silent_afterwards() {
        let timeout = Duration::from_secs(10);
        for (sent, fails) in [(0, true), (5, true), (BEGINNING_BYTES - 1, true), (BEGINNING_BYTES, false)] {
            let (mut peer, own) = tokio::io::duplex(1024);
            let mut own = Handshake::new(own, timeout);
            peer.write_all(&vec![0; sent]).await.expect("there is room");
            own.read_exact(&mut vec![0; sent]).await.expect("it was sent");
            let ended = tokio::time::timeout(2 * timeout, own.read_u8()).await;
            let failed = ended.is_ok_and(|read| read.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
            assert_eq!(failed, fails, "{sent} bytes");
        }
    }
}
