//! Reads the `grpc-timeout` header, how long the caller waits, and keeps to it while a request is read.

use std::time::Duration;

use http::HeaderMap;
use tonic::Status;

use crate::error::{Error, Result};
use crate::infer::Instant;

/// When the caller stops waiting, if its call's headers came just now; `None` if it does not.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the header is not one to eight digits and a unit of `HMSmun`.
pub fn deadline(headers: &HeaderMap) -> Result<Option<Instant>> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    match parse(value.as_bytes()) {
        Some(limit) => Ok(Instant::now().checked_add(limit)),
        None => Err(Error::invalid(format!("malformed grpc-timeout header {value:?}"))),
    }
}

/// The result of `reading`, unless `deadline` comes first.
///
/// # Errors
/// `DEADLINE_EXCEEDED` then.
pub async fn before<T>(
    deadline: Option<Instant>,
    reading: impl Future<Output = std::result::Result<T, Status>>,
) -> std::result::Result<T, Status> {
    let Some(deadline) = deadline else { return reading.await };
    let late = |_| Status::deadline_exceeded("Deadline Exceeded");
    tokio::time::timeout_at(deadline, reading).await.map_err(late)?
}

fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        let seconds = |text: &str| parse(text.as_bytes()).map(|limit| limit.as_secs_f64());
        assert_eq!(seconds("2H"), Some(7200.0));
        assert_eq!(seconds("2M"), Some(120.0));
        assert_eq!(seconds("99999999S"), Some(99_999_999.0));
        assert_eq!(seconds("250m"), Some(0.25));
        assert_eq!(seconds("5u"), Some(5e-6));
        assert_eq!(seconds("5n"), Some(5e-9));
    }

    #[test]
    fn what_is_not_a_timeout_is_refused() {
        for text in ["", "S", "5", "5s", "-5S", "123456789S", "1.5S"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
