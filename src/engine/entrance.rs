//! Where requests come in: finds the version of each and starts it there.
//!
//! Between the look at the catalog and the start, the version may be taken out of service. Then the request comes back as
//! it was, and what has taken the version's place is looked for: readers see that before the old version takes no more.

use std::sync::Arc;

use super::Handle;
use super::handle::{Returned, refusal};
use super::on_demand::OnDemand;
use crate::error::{Error, Result};
use crate::infer::{Infer, Instant, Request, Responses};
use crate::telemetry::metrics::{InFlight, Metrics};

/// How often a request is sent on to what has taken the place of a version.
const FINDS_MAX: usize = 8;

/// Finds the version that a request means.
type Find = dyn Fn(&Request) -> Result<Arc<Handle>> + Send + Sync;

/// One way to versions; clones are the same.
#[derive(Clone)]
pub(super) struct Entrance {
    pub(super) metrics: Metrics,
    find: Arc<Find>,
    /// Has models loaded that are not there; `None` if nobody does.
    on_demand: Option<OnDemand>,
}

impl Entrance {
    /// A way to the versions that `find` finds.
    pub(super) fn new(
        metrics: &Metrics,
        find: impl Fn(&Request) -> Result<Arc<Handle>> + Send + Sync + 'static,
    ) -> Self {
        Self { metrics: metrics.clone(), find: Arc::new(find), on_demand: None }
    }

    /// The same for requests that may have their models loaded.
    #[must_use]
    pub(super) fn loading(self, on_demand: OnDemand) -> Self {
        Self { on_demand: Some(on_demand), ..self }
    }

    /// Starts a request that is counted as received.
    pub(super) fn start(&self, request: Request, in_flight: InFlight) -> Responses {
        self.begin((request, in_flight), FINDS_MAX)
    }

    /// The same for a request that is sent on at most so often.
    pub(super) fn begin(&self, (mut request, mut in_flight): (Request, InFlight), finds: usize) -> Responses {
        let now = Instant::now();
        for left in (0..finds).rev() {
            let handle = match (self.find)(&request) {
                Ok(handle) => handle,
                Err(error) => return self.missing((request, in_flight), left, error),
            };
            if let Some(on_demand) = self.on_demand.as_ref().filter(|_| finds == FINDS_MAX) {
                on_demand.found(&handle);
            }
            match handle.infer(request, in_flight, self, now) {
                Ok(responses) => return responses,
                Err(Returned(returned)) => (request, in_flight) = *returned,
            }
        }
        let why = "was replaced or left each time before the request could start there; try again";
        self.refuse(Error::unavailable(format!("model '{}' {why}", request.model)))
    }

    /// The responses of a request whose model is not there.
    fn missing(&self, asked: (Request, InFlight), finds: usize, error: Error) -> Responses {
        let visit = self.on_demand.as_ref().and_then(|on_demand| Some((on_demand, on_demand.visit(&asked.0)?)));
        match visit {
            Some((on_demand, Ok(visit))) => self.wait(on_demand, asked, visit, finds),
            Some((_, Err(error))) => self.refuse(error),
            None => self.refuse(error),
        }
    }

    fn refuse(&self, error: Error) -> Responses {
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
