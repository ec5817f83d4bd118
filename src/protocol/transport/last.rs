//! Polls a connection after its calls, so that many answers leave in one write.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use futures_util::future::Either;

use crate::infer::round;

/// Polls `inner` only after every other task that is ready.
///
/// A connection is woken by each of its calls that has something to send. So many calls that are answered at a time are
/// written with one system call instead of one each.
pub struct Last<F> {
    inner: F,
    waited: bool,
}

impl<F: Unpin> Last<F> {
    /// `inner`, put off.
    pub fn new(inner: F) -> Self {
        Self { inner, waited: false }
    }

    /// What is put off.
    pub fn inner(self: Pin<&mut Self>) -> Pin<&mut F> {
        Pin::new(&mut self.get_mut().inner)
    }
}

impl<F: Future + Unpin> Last<F> {
    /// What is put off, or `other` if that comes first; `other` is asked only after what is put off was polled, and sees
    /// what that has changed.
    pub async fn or<T>(mut self: Pin<&mut Self>, other: impl Future<Output = T>) -> Either<F::Output, T> {
        let mut other = pin!(other);
        std::future::poll_fn(|ctx| match self.as_mut().poll(ctx) {
            Poll::Ready(output) => Poll::Ready(Either::Left(output)),
            Poll::Pending if self.waited => Poll::Pending,
            Poll::Pending => other.as_mut().poll(ctx).map(Either::Right),
        })
        .await
    }
}

impl<F: Future + Unpin> Future for Last<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<F::Output> {
        self.waited = !self.waited;
        if self.waited {
            return round::another_turn(ctx);
        }
        self.inner().poll(ctx)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn the_other_sees_what_the_last_has_done() {
        let polls = Cell::new(0);
        let inner = std::future::poll_fn(|_| {
            polls.set(polls.get() + 1);
            Poll::<()>::Pending
        });
        let seen = pin!(Last::new(inner)).or(async { polls.get() }).await;
        assert!(matches!(seen, Either::Right(1)), "{seen:?}");
    }
}
