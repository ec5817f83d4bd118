//! Asks a server on another address for its health, as container health checks do.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::Status;
use tonic::transport::Endpoint;

use super::health_wire::HealthCheckRequest;
use super::health_wire::health_check_response::ServingStatus;
use super::health_wire::health_client::HealthClient;
use crate::error::{Error, Result};
use crate::protocol::transport::dial;

/// Whether the server at `address` (`HOST:PORT` or `unix:PATH`) is ready, or with `live` only alive; answers within
/// `timeout`. With `root`, the file of who signed the server's certificate, it is asked in TLS.
///
/// # Errors
/// [`Kind::Unavailable`] if nobody answers there in time, or it says that it is not ready; the message says which.
pub async fn ask(address: &str, root: Option<&Path>, timeout: Duration, live: bool) -> Result<()> {
    let late = |_| Error::unavailable(format!("{address} did not answer within {timeout:?}"));
    match tokio::time::timeout(timeout, answer(address, root)).await.map_err(late)?? {
        Ok(ServingStatus::Serving) => Ok(()),
        // Any answer is alive.
        Ok(_) if live => Ok(()),
        // What a server has answered has no source; else the connection has broken.
        Err(status) if live && std::error::Error::source(&status).is_none() => Ok(()),
        Ok(other) => Err(Error::unavailable(format!("{address} is {}", other.as_str_name()))),
        Err(status) => Err(Error::unavailable(format!("{address} answers {status}"))),
    }
}

/// What it answers, or why it does not.
async fn answer(address: &str, root: Option<&Path>) -> Result<Result<ServingStatus, Status>> {
    let mut stream = Some(TokioIo::new(dial(address, root, true).await?));
    // There is one connection, already; what a second one would be asked for is a failure of the first.
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::unavailable(format!("nobody answers at {address}: {}", innermost(&error))))?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    Ok(answer.map(|answer| answer.into_inner().status()))
}

/// The message of the deepest cause: the outer ones only say that there was a transport.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[tokio::test]
    async fn nobody_there_is_said_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        drop(listener);
        let error = ask(&address, None, Duration::from_secs(5), false).await.expect_err("nobody listens there now");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.message().contains(&address), "{error}");
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_after_the_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let error = ask(&address, None, Duration::from_millis(50), false).await.expect_err("nobody accepts");
        assert!(error.message().contains("did not answer within 50ms"), "{error}");
    }
}
