//! Work on large texts, which would keep a network thread from its other connections for milliseconds.

use std::sync::LazyLock;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::protocol::v2::TURN_BYTES;

/// So many work at the same time, over all front ends. Others wait as their callers, who still hold the text, and are gone
/// when these are.
static PLACES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(available_parallelism().map_or(1, std::num::NonZero::get)));

/// Does `work`, on a thread of the runtime's for such work if it is about more than `TURN_BYTES` bytes.
///
/// # Errors
/// Those of `work`; [`crate::error::Kind::Internal`] if it panics.
pub async fn aside<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if bytes <= TURN_BYTES {
        return work();
    }
    let place = PLACES.acquire().await.expect("nobody closes it");
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    done.await.unwrap_or_else(|error| Err(Error::internal(format!("work on a large text was given up: {error}"))))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;
    use crate::error::Kind;

    #[tokio::test]
    async fn others_have_their_turn_while_a_large_text_is_worked_on() {
        let (sender, receiver) = mpsc::channel();
        let waits = move || {
            let sent = receiver.recv_timeout(Duration::from_secs(60));
            sent.map_err(|_| Error::internal("nobody else had a turn"))
        };
        let (large, ()) = tokio::join!(aside(TURN_BYTES + 1, waits), async move { sender.send(7).expect("it waits") });
        assert_eq!(large, Ok(7));
    }

    #[tokio::test]
    async fn what_is_small_stays_where_it_is() {
        let thread = |bytes| aside(bytes, || Ok::<ThreadId, _>(thread::current().id()));
        assert_eq!(thread(TURN_BYTES).await, Ok(thread::current().id()));
        assert_ne!(thread(TURN_BYTES + 1).await, Ok(thread::current().id()));
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let failed = aside(TURN_BYTES + 1, || -> Result<()> { panic!("on purpose") }).await;
        assert_eq!(failed.expect_err("it panics").kind(), Kind::Internal);
    }
}
