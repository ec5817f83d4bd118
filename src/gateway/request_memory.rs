//! The memory of requests that are being read or wait for their answers, and of answers on their way: counted over all
//! of them, and bounded.
//!
//! Limits for one request bound nothing where thousands can come at a time. Who reads a request holds a [`Portion`] that
//! grows with what has come, or with what that is when decompressed, and drops it with the last response. Answers are
//! there already when their size is known, so that they are counted and leave less for large requests; small ones find
//! room beside them. Knows nothing of models.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::telemetry::metrics::RequestMemoryMetrics;

/// A request up to this size finds room while there is any; larger ones leave it a quarter of the limit, so that they
/// cannot shut out all others.
const SMALL_BYTES: usize = 64 << 10;

/// What all requests together may hold. Cloning shares it.
#[derive(Clone, Debug)]
pub struct RequestMemory(Arc<Books>);

#[derive(Debug)]
struct Books {
    limit: usize,
    held: AtomicUsize,
    /// The part of it that answers hold.
    owed: AtomicUsize,
    metrics: RequestMemoryMetrics,
}

impl RequestMemory {
    /// A bound of `limit` bytes.
    pub fn new(limit: usize, metrics: RequestMemoryMetrics) -> Self {
        metrics.limited(limit);
        Self(Arc::new(Books { limit, held: AtomicUsize::new(0), owed: AtomicUsize::new(0), metrics }))
    }

    /// What a new request holds: nothing yet.
    pub fn portion(&self) -> Portion {
        Portion { books: Some(self.0.clone()), bytes: 0, owed: 0 }
    }
}

impl Books {
    /// # Errors
    /// As [`Portion::hold`], for a request that would hold `in_all` bytes with these.
    fn hold(&self, bytes: usize, in_all: usize) -> Result<()> {
        let (most, beside) = match in_all <= SMALL_BYTES {
            // Answers may take as much again before they shut these out.
            true => (self.limit, self.owed.load(Ordering::Relaxed).min(self.limit)),
            false => (self.limit - self.limit / 4, 0),
        };
        let fits = |held: usize| held.checked_add(bytes).filter(|held| held.saturating_sub(beside) <= most);
        match self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.metrics.holds(bytes);
                Ok(())
            }
            Err(held) => {
                self.metrics.refused();
                Err(self.refusal(held, in_all, most))
            }
        }
    }

    fn refusal(&self, held: usize, in_all: usize, most: usize) -> Error {
        let limit = self.limit;
        if in_all > most {
            let what = format!("the request takes more than {most} bytes, the most for one where all may take {limit}");
            return Error::invalid(format!("{what}. Use --request-memory-limit to increase the limit."));
        }
        Error::unavailable(format!(
            "the server holds {held} bytes of requests and answers and may hold {limit} (--request-memory-limit), try \
             again later"
        ))
    }

    fn owe(&self, bytes: usize) {
        self.owed.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.holds(bytes);
    }

    fn release(&self, bytes: usize, owed: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.owed.fetch_sub(owed, Ordering::Relaxed);
        self.metrics.releases(bytes);
    }
}

/// What one request, or a part of it, holds; given back when this is dropped. The default one is not bounded.
#[derive(Debug, Default)]
pub struct Portion {
    books: Option<Arc<Books>>,
    bytes: usize,
    /// How many of these are an answer's.
    owed: usize,
}

impl Portion {
    /// Holds so many bytes more.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unavailable`] if all requests together would hold too much;
    /// [`crate::error::Kind::InvalidArgument`] if this one would do so alone.
    pub fn hold(&mut self, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let in_all = self.bytes.saturating_add(bytes);
        if let Some(books) = &self.books {
            books.hold(bytes, in_all)?;
        }
        self.bytes = in_all;
        Ok(())
    }

    /// Holds as many bytes in all, if it does not yet.
    ///
    /// # Errors
    /// As [`Portion::hold`].
    pub fn cover(&mut self, bytes: usize) -> Result<()> {
        self.hold(bytes.saturating_sub(self.bytes))
    }

    /// Holds so many bytes more, which are there already: whatever that makes of the bound, it is for others to wait.
    pub fn owe(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(books) = &self.books {
            books.owe(bytes);
        }
        self.bytes += bytes;
        self.owed += bytes;
    }

    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves so many bytes into a portion of their own.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        let owed = bytes.min(self.owed);
        self.bytes -= bytes;
        self.owed -= owed;
        Self { books: self.books.clone(), bytes, owed }
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        if let Some(books) = self.books.as_ref().filter(|_| self.bytes > 0) {
            books.release(self.bytes, self.owed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::telemetry::metrics::Metrics;

    fn memory(limit: usize) -> (RequestMemory, Metrics) {
        let metrics = Metrics::new();
        (RequestMemory::new(limit, metrics.request_memory()), metrics)
    }

    fn shows(metrics: &Metrics, line: &str) {
        let text = metrics.render();
        assert!(text.lines().any(|each| each == line), "{line} in {text}");
    }

    #[test]
    fn what_is_held_is_shown_and_given_back() {
        let (memory, metrics) = memory(1 << 20);
        shows(&metrics, "nereid_request_memory_limit_bytes 1048576");
        let mut portion = memory.portion();
        portion.hold(100).expect("fits");
        portion.cover(150).expect("fits");
        portion.cover(120).expect("is there");
        shows(&metrics, "nereid_request_memory_bytes 150");
        let part = portion.split(40);
        drop(portion);
        shows(&metrics, "nereid_request_memory_bytes 40");
        drop(part);
        shows(&metrics, "nereid_request_memory_bytes 0");
        assert_eq!(memory.0.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn large_requests_leave_room_for_small_ones() {
        let (memory, metrics) = memory(1 << 20);
        let (mut large, mut other, mut small) = (memory.portion(), memory.portion(), memory.portion());
        large.hold(700 << 10).expect("fits");
        other.hold(60 << 10).expect("is small");
        let refused = other.hold(60 << 10).expect_err("is large by now");
        assert_eq!(refused.kind(), Kind::Unavailable);
        let expected = "the server holds 778240 bytes of requests and answers and may hold 1048576 (--request-memory-limit), try \
             again later";
        assert_eq!(refused.message(), expected);
        shows(&metrics, "nereid_request_memory_refusals_total 1");
        small.hold(64 << 10).expect("is small");
        large.cover(700 << 10).expect("it is there, and wants no more");
        drop(large);
        other.hold(60 << 10).expect("there is room again");
    }

    #[test]
    fn answers_shut_small_requests_out_only_when_they_take_as_much_again() {
        let (memory, _) = memory(100 << 10);
        let (mut answer, mut small, mut large) = (memory.portion(), memory.portion(), memory.portion());
        answer.owe(100 << 10);
        assert_eq!(large.hold(65 << 10).expect_err("answers count").kind(), Kind::Unavailable);
        small.hold(60 << 10).expect("there is room beside answers");
        let mut rest = answer.split(90 << 10);
        rest.owe(70 << 10);
        assert_eq!(memory.portion().hold(1 << 10).expect_err("too many answers").kind(), Kind::Unavailable);
        drop(rest);
        memory.portion().hold(40 << 10).expect("there is room again");
        drop((answer, small));
        assert_eq!([&memory.0.held, &memory.0.owed].map(|bytes| bytes.load(Ordering::Relaxed)), [0, 0]);
    }

    #[test]
    fn small_requests_are_bounded_too() {
        let (memory, _) = memory(100);
        let (mut one, mut other) = (memory.portion(), memory.portion());
        one.hold(60).expect("fits");
        assert_eq!(other.hold(41).expect_err("too much").kind(), Kind::Unavailable);
        other.hold(40).expect("fits");
    }

    #[test]
    fn a_request_that_never_fits_is_the_callers_mistake() {
        let (memory, _) = memory(1 << 20);
        let refused = memory.portion().hold(1 << 20).expect_err("too much");
        assert_eq!(refused.kind(), Kind::InvalidArgument);
        assert!(refused.message().contains("more than 786432 bytes"), "{refused}");
    }

    #[test]
    fn what_is_owed_is_held_beyond_the_limit() {
        let (memory, metrics) = memory(100);
        let (mut answer, mut request) = (memory.portion(), memory.portion());
        answer.owe(250);
        shows(&metrics, "nereid_request_memory_bytes 250");
        assert_eq!(request.hold(1).expect_err("there is no room").kind(), Kind::Unavailable);
        drop(answer.split(60));
        request.hold(10).expect("there is");
        drop(answer);
        shows(&metrics, "nereid_request_memory_bytes 10");
    }

    #[test]
    fn nothing_bounds_the_default() {
        let mut portion = Portion::default();
        portion.hold(usize::MAX).expect("it is not bounded");
        portion.cover(usize::MAX).expect("it is not bounded");
    }
}
