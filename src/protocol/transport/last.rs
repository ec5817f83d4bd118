//! Polls a connection after its calls, so that many answers leave in one write.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

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
