//! The way from an ensemble to its members: by the catalog, anew for each step.

use std::sync::{Arc, Weak};

use super::super::catalog::Catalog;
use super::super::handle;
use super::gate::stopping;
use crate::infer::{Infer, Instant, Request, Responses};
use crate::telemetry::metrics::Metrics;

/// Answers what the steps of an ensemble ask. Each step is a request of its own, and counted as such.
pub(super) struct Members {
    /// Of the ensemble.
    pub(super) namespace: Arc<str>,
    /// Has the ensemble, and so is not held by it.
    pub(super) catalog: Weak<Catalog>,
    pub(super) metrics: Metrics,
}

impl Infer for Members {
    fn infer(&self, request: Request) -> Responses {
        let in_flight = self.metrics.request_received();
        let found = match self.catalog.upgrade() {
            Some(catalog) => catalog.find_member(&self.namespace, &request.model, request.version),
            None => Err(stopping()),
        };
        match found {
            Ok(handle) => handle.infer(request, in_flight, Instant::now()),
            Err(error) => {
                self.metrics.request_unrouted(error.kind());
                handle::refusal(error)
            }
        }
    }
}
