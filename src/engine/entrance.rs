//! Where requests come in: finds the version of each and starts it there.
//!
//! Between the look at the catalog and the start, the version may be taken out of service. Then the request comes back as
//! it was, and what has taken the version's place is looked for: readers see that before the old version takes no more.

use std::sync::Arc;

use super::Handle;
use super::handle::{Returned, refusal};
use crate::error::Result;
use crate::infer::{Infer, Instant, Request, Responses};
use crate::scheduler::stopping;
use crate::telemetry::metrics::{InFlight, Metrics};

/// How often a request is sent on to what has taken the place of a version.
const FINDS_MAX: usize = 8;

/// Finds the version that a request means.
type Find = dyn Fn(&Request) -> Result<Arc<Handle>> + Send + Sync;

/// One way to versions; clones are the same.
#[derive(Clone)]
pub(super) struct Entrance {
    metrics: Metrics,
    find: Arc<Find>,
}

impl Entrance {
    /// A way to the versions that `find` finds.
    pub(super) fn new(
        metrics: &Metrics,
        find: impl Fn(&Request) -> Result<Arc<Handle>> + Send + Sync + 'static,
    ) -> Self {
        Self { metrics: metrics.clone(), find: Arc::new(find) }
    }

    /// Starts a request that is counted as received.
    pub(super) fn start(&self, mut request: Request, mut in_flight: InFlight) -> Responses {
        let now = Instant::now();
        let mut refused = None;
        for _ in 0..FINDS_MAX {
            match (self.find)(&request).map(|handle| handle.infer(request, in_flight, self, now)) {
                Ok(Ok(responses)) => return responses,
                Ok(Err(Returned(returned))) => (request, in_flight) = *returned,
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let error = refused.unwrap_or_else(stopping);
        self.metrics.request_unrouted(error.kind());
        refusal(error)
    }
}

impl Infer for Entrance {
    fn infer(&self, request: Request) -> Responses {
        let in_flight = self.metrics.request_received();
        self.start(request, in_flight)
    }
}

#[cfg(test)]
#[path = "entrance_tests.rs"]
mod tests;
