//! Tells HTTP/2 from HTTP/1 by the first bytes of a connection.
//!
//! Who waits for them bounds the time: a peer that sends nothing, or half a preface, would otherwise keep its place
//! among the connections for ever. Knows how many bytes the beginning of HTTP/2 has, not what is in them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// How HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The preface and the header of the frame that must follow it.
const BEGINNING_BYTES: usize = PREFACE.len() + 9;

/// What a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 or HTTP/1.1, or what is no HTTP at all.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The bytes that were read to find out; they belong before the rest of the connection.
#[derive(Debug)]
pub struct Beginning {
    bytes: [u8; BEGINNING_BYTES],
    begin: usize,
    end: usize,
}

impl Default for Beginning {
    fn default() -> Self {
        Self { bytes: [0; BEGINNING_BYTES], begin: 0, end: 0 }
    }
}

impl Beginning {
    /// The bytes that were not taken yet.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.begin..self.end]
    }

    /// Takes `count` bytes, which must be there.
    pub fn take(&mut self, count: usize) {
        self.begin += count;
        assert!(self.begin <= self.end, "took more than there is");
    }
}

/// Reads as much of `stream` as it takes to know, and for HTTP/2 until the first frame begins.
///
/// # Errors
/// Those of the stream; [`io::ErrorKind::UnexpectedEof`] if it ends before that.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Version, Beginning)> {
    let mut beginning = Beginning::default();
    loop {
        let known = beginning.end.min(PREFACE.len());
        if beginning.bytes[..known] != PREFACE[..known] {
            return Ok((Version::Http1, beginning));
        }
        if beginning.end == BEGINNING_BYTES {
            return Ok((Version::Http2, beginning));
        }
        match stream.read(&mut beginning.bytes[beginning.end..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => beginning.end += count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(mut bytes: &[u8]) -> io::Result<(Version, Vec<u8>)> {
        let (version, beginning) = read(&mut bytes).await?;
        Ok((version, [beginning.rest(), bytes].concat()))
    }

    #[tokio::test]
    async fn the_version_is_told_and_no_byte_is_lost() {
        let http2 = [PREFACE, b"\0\0\0\x04\0\0\0\0\0 and more"].concat();
        for (bytes, expected) in [
            (&http2[..], Version::Http2),
            (b"GET / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"POST /v2 HTTP/1.1\r\n\r\n", Version::Http1),
            (b"PRI * HTTP/1.0\r\n\r\n", Version::Http1),
            (b"\x16\x03\x01", Version::Http1),
        ] {
            let (version, read) = read_all(bytes).await.expect("long enough");
            assert_eq!((version, &read[..]), (expected, bytes));
        }
    }

    #[tokio::test]
    async fn half_a_beginning_tells_nothing() {
        for bytes in [&b""[..], b"P", PREFACE, &[PREFACE, b"\0\0\0\x04\0\0\0\0"].concat()] {
            assert_eq!(read_all(bytes).await.expect_err("too short").kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
