//! A request's body, which must not stop arriving.

use std::error::Error;
use std::fmt;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::peer::{Peer, Unread};

/// The body of a request, as it comes from the network.
///
/// Reading it fails with [`BodyError::TimedOut`] if nothing more of it comes for some time while somebody waits for it.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    /// `None` if it may be silent for any time.
    timeout: Option<Duration>,
    /// Whether it may now.
    is_patient: bool,
    /// There while it is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
    /// `None` once it is read to its end.
    unread: Option<Unread>,
    late: Option<Late>,
}

/// Tells whether a body stopped arriving, also after the body itself is gone.
#[derive(Clone, Debug, Default)]
pub struct Late(Arc<AtomicBool>);

impl Late {
    /// Whether it did.
    pub fn is_late(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// Nothing more of it came for this time.
    TimedOut(Duration),
    /// The connection or the call broke off.
    Broken(hyper::Error),
}

impl Body {
    /// The body `incoming` of a request from `peer`, of which something must come every `timeout`.
    pub fn new(incoming: Incoming, timeout: Option<Duration>, peer: &Arc<Peer>) -> Self {
        let unread = (!incoming.is_end_stream()).then(|| Unread::begin(peer));
        Self { incoming, timeout, is_patient: false, waiting: None, unread, late: None }
    }

    /// From now on it may be silent for any time, or no longer: that of a stream of requests may between two of them.
    pub fn set_patient(&mut self, is_patient: bool) {
        if self.is_patient != is_patient {
            self.is_patient = is_patient;
            self.waiting = None;
        }
    }

    /// What will tell whether this body stopped arriving; `None` if all of it is there.
    pub fn late(&mut self) -> Option<Late> {
        let _ = self.unread.as_ref()?;
        Some(self.late.get_or_insert_default().clone())
    }

    fn poll_waiting(&mut self, ctx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(timeout) = self.timeout.filter(|_| !self.is_patient) else { return Poll::Pending };
        if let Some(unread) = &mut self.unread {
            unread.set_awaited(true);
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        waiting.as_mut().poll(ctx).map(|()| {
            if let Some(Late(late)) = &self.late {
                late.store(true, Ordering::Relaxed);
            }
            BodyError::TimedOut(timeout)
        })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(ctx) else {
            return this.poll_waiting(ctx).map(|error| Some(Err(error)));
        };
        this.waiting = None;
        if !matches!(frame, Some(Ok(_))) || this.incoming.is_end_stream() {
            this.unread = None;
        } else if let Some(unread) = &mut this.unread {
            unread.set_awaited(false);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::TimedOut(time) => write!(f, "nothing more of the request came for {} s", time.as_secs_f64()),
            BodyError::Broken(error) => write!(f, "the request broke off: {error}"),
        }
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BodyError::TimedOut(_) => None,
            BodyError::Broken(error) => Some(error),
        }
    }
}
