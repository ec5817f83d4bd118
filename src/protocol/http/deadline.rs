//! The caller's deadline: HTTP has none of its own, but a proxy that gives up after a time says after which.

use std::time::Duration;

use http::HeaderMap;

use crate::infer::Instant;

/// The milliseconds for which Envoy, and what is made of it, waits for the answer to a request that it passes on.
const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";

/// When the caller stops waiting, if its request's headers came just now; `None` if nobody says so.
///
/// The caller has not written the header itself, so that one without a meaning is no mistake of its request.
pub fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let limit = headers.get(EXPECTED)?.to_str().ok()?.parse::<u32>().ok().filter(|limit| *limit > 0)?;
    Some(Instant::now() + Duration::from_millis(limit.into()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_time_without_meaning_is_none() {
        let read = |value| {
            let headers = HeaderMap::from_iter([(http::HeaderName::from_static(EXPECTED), value)]);
            deadline(&headers).map(|deadline| deadline - Instant::now())
        };
        assert_eq!(read(HeaderValue::from_static("1500")), Some(Duration::from_millis(1500)));
        for text in ["0", "", "-1", "1.5", "1s", "99999999999"] {
            assert_eq!(read(HeaderValue::from_static(text)), None, "{text}");
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
