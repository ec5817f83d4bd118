//! Asks a server on another address whether it is ready, or alive, as container health checks do where gRPC is off.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;

use crate::error::{Error, Result};
use crate::protocol::transport::dial;

/// Whether the server at `address` (`HOST:PORT` or `unix:PATH`) is ready, or with `live` only alive; answers within
/// `timeout`. With `root`, the file of who signed the server's certificate, it is asked in TLS.
///
/// # Errors
/// [`crate::error::Kind::Unavailable`] if nobody answers there in time, or it says that it is not ready; the message
/// says which.
pub async fn ask(address: &str, root: Option<&Path>, timeout: Duration, live: bool) -> Result<()> {
    let late = |_| Error::unavailable(format!("{address} did not answer within {timeout:?}"));
    let what = if live { "live" } else { "ready" };
    tokio::time::timeout(timeout, answer(address, root, what)).await.map_err(late)?
}

async fn answer(address: &str, root: Option<&Path>, what: &str) -> Result<()> {
    let silent = |error: &dyn std::fmt::Display| Error::unavailable(format!("nobody answers at {address}: {error}"));
    let stream = dial(address, root, false).await?;
    let host = if address.starts_with("unix:") { "localhost" } else { address };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| silent(&error))?;
    let request = Request::get(format!("/v2/health/{what}")).header(header::HOST, host).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Error::invalid(format!("'{address}' is not HOST:PORT: {error}")))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| silent(&error))?;
        match response.status() {
            StatusCode::OK => Ok(()),
            // Who is not told is answered.
            StatusCode::FORBIDDEN if what == "live" => Ok(()),
            StatusCode::BAD_REQUEST => Err(Error::unavailable(format!("{address} is not {what}"))),
            other => Err(Error::unavailable(format!("{address} answers {other}"))),
        }
    };
    // The connection does the reading and writing; once there is an answer, nobody needs it.
    tokio::select! {
        answer = answer => answer,
        Err(error) = connection => Err(silent(&error)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What is said of a server that answers with `head`.
    async fn of_server(head: &'static str) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(head.as_bytes()).await;
        };
        tokio::join!(ask(&address, None, Duration::from_secs(5), false), serve).0
    }

    #[tokio::test]
    async fn only_ok_is_ready() {
        assert!(of_server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_ok());
        let error = of_server("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.expect_err("it is not");
        assert!(error.message().ends_with("is not ready"), "{error}");
        let error = of_server("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await.expect_err("it is not");
        assert!(error.message().contains("answers 403"), "{error}");
        assert!(of_server("").await.expect_err("it hangs up").message().starts_with("nobody answers"));
    }

    #[tokio::test]
    async fn who_is_asked_whether_it_is_alive_is_not_asked_whether_it_is_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            let mut head = [0; 1024];
            let read = stream.read(&mut head).await.expect("it asks something");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            String::from_utf8_lossy(&head[..read]).into_owned()
        };
        let (live, asked) = tokio::join!(ask(&address, None, Duration::from_secs(5), true), serve);
        assert_eq!(live, Ok(()));
        assert!(asked.starts_with("GET /v2/health/live "), "{asked}");
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_after_the_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let error = ask(&address, None, Duration::from_millis(50), false).await.expect_err("nobody accepts");
        assert!(error.message().contains("did not answer within 50ms"), "{error}");
    }
}
