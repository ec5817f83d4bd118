//! A connection's bytes: TCP or a Unix-domain socket, plain or in TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::listener::Socket;

/// One connection, as bytes without their encryption.
pub enum Stream {
    /// As the socket has them.
    Plain(Socket),
    /// Encrypted on the socket.
    Tls(Box<TlsStream<Socket>>),
}

/// Calls the method of whatever the value is.
macro_rules! each {
    ($self:ident: $($variant:path)|+, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            $($variant($stream) => {
                let $stream = Pin::new($stream);
                $call
            })+
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, ctx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self: Socket::Tcp | Socket::Unix, stream => stream.poll_read(ctx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, ctx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self: Socket::Tcp | Socket::Unix, stream => stream.poll_write(ctx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self: Socket::Tcp | Socket::Unix, stream => stream.poll_write_vectored(ctx, data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self: Socket::Tcp | Socket::Unix, stream => stream.poll_flush(ctx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self: Socket::Tcp | Socket::Unix, stream => stream.poll_shutdown(ctx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, ctx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self: Stream::Plain | Stream::Tls, stream => stream.poll_read(ctx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, ctx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self: Stream::Plain | Stream::Tls, stream => stream.poll_write(ctx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self: Stream::Plain | Stream::Tls, stream => stream.poll_write_vectored(ctx, data))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self: Stream::Plain | Stream::Tls, stream => stream.poll_flush(ctx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self: Stream::Plain | Stream::Tls, stream => stream.poll_shutdown(ctx))
    }
}
