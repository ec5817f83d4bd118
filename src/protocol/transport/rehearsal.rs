//! A call of each kind on every network thread, before anybody else makes one.
//!
//! The first use of some variables of a thread, such as hyper's date, registers what is to happen at the thread's end,
//! and for that glibc takes the lock that it holds while a library is loaded. For libtorch that is a sixth of a second,
//! in which the first answers of a server that starts would wait. Begin with [`rehearse`].

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

/// More than any of the calls and their answers have.
const BYTES: usize = 4096;

const HTTP1: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// The preface (RFC 9113, section 3.4), no settings (6.5), and the headers `:method: GET`, `:scheme: http`, `:path: /` and
/// `:authority: x` of stream 1, which ends with them (6.2; RFC 7541, appendix A).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \0\0\0\x04\0\0\0\0\0\
    \0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x";

/// The type of a frame of headers.
const HEADERS: u8 = 1;

/// Makes the calls, to nobody, on this thread.
pub async fn rehearse() {
    let (client, server) = said(HTTP1).await;
    let _ = http1::Builder::new().serve_connection(server, service_fn(answer)).await;
    drop(client);
    let (client, server) = said(HTTP2).await;
    let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(server, service_fn(answer));
    tokio::select! {
        _ = serving => {}
        _ = headers(client) => {}
    }
}

/// The first headers that come over HTTP/2, as they are written.
async fn headers(mut client: DuplexStream) -> io::Result<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload).await?;
        if head[3] == HEADERS {
            return Ok(payload);
        }
    }
}

/// Both ends of a connection, of which the first has said this.
async fn said(bytes: &[u8]) -> (DuplexStream, TokioIo<DuplexStream>) {
    let (mut client, server) = duplex(BYTES);
    let _ = client.write_all(bytes).await;
    (client, TokioIo::new(server))
}

async fn answer(_: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    Ok(Response::new(Empty::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_calls_are_answered() {
        let (mut client, server) = said(HTTP1).await;
        http1::Builder::new().serve_connection(server, service_fn(answer)).await.expect("it is HTTP");
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.expect("open");
        assert!(read.starts_with(b"HTTP/1.1 200 OK\r\n"), "{read:?}");

        let (client, server) = said(HTTP2).await;
        let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(server, service_fn(answer));
        let heard = tokio::select! {
            ended = serving => panic!("it goes on: {ended:?}"),
            heard = headers(client) => heard.expect("open"),
        };
        assert_eq!(heard[0], 0x88, "entry 8 of the static table, `:status: 200`");
    }

    #[tokio::test]
    async fn a_rehearsal_ends() {
        rehearse().await;
    }
}
