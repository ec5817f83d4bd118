//! The way of a request whose model is not there, and is loaded for it: it waits, within its deadline, and goes on.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};

use super::catalog::Catalog;
use super::demand::{Demand, Visit};
use super::entrance::Entrance;
use super::handle::refusal;
use super::manager::Event;
use super::order::What;
use super::overrides::Overrides;
use super::{Handle, stopped};
use crate::error::{Error, Kind, Result};
use crate::infer::{Instant, Request, Responses};
use crate::model::{Residency, Version};
use crate::telemetry::metrics::{InFlight, Metrics};

/// How requests have models loaded; clones are the same.
#[derive(Clone)]
pub(super) struct OnDemand {
    catalog: Arc<Catalog>,
    demand: Arc<Demand>,
    events: mpsc::Sender<Event>,
}

/// A request that waits for its model; counts as cancelled if it is dropped before that ends.
struct Waiting {
    metrics: Metrics,
    ended: bool,
}

impl OnDemand {
    pub(super) fn new(catalog: Arc<Catalog>, demand: Arc<Demand>, events: mpsc::Sender<Event>) -> Self {
        Self { catalog, demand, events }
    }

    /// A version that sleeps, for what does not need it to be there.
    pub(super) fn find(&self, name: &str, version: Option<Version>) -> Option<Arc<Handle>> {
        let key = self.catalog.absent(name).filter(|key| self.demand.returns(key))?;
        self.demand.find(&key, version)
    }

    /// Lets a request wait whose model is not there; `None` if no request loads that model.
    pub(super) fn visit(&self, request: &Request) -> Option<Result<Visit>> {
        let key = self.catalog.absent(&request.model).filter(|key| self.demand.returns(key))?;
        Some(self.demand.visit(&key))
    }

    /// A request has found its model.
    pub(super) fn found(&self, handle: &Handle) {
        if handle.config.residency == Residency::OnDemand {
            self.demand.metrics.hit();
        }
    }

    /// Waits until the model is loaded.
    ///
    /// # Errors
    /// Why it could not be, [`Kind::DeadlineExceeded`] if that takes longer than until the `deadline`.
    async fn load(&self, visit: &Visit, deadline: Option<Instant>) -> Result<()> {
        let ask = || {
            let (events, key) = (self.events.clone(), visit.key().clone());
            async move {
                let (caller, end) = oneshot::channel();
                let what = What::Load(Overrides::default());
                events.send(Event::Ask { key, what, callers: vec![caller] }).await.map_err(|_| stopped())?;
                end.await.map_err(|_| stopped())?
            }
        };
        let began = Instant::now();
        let load = visit.load(ask);
        let result = match deadline {
            None => load.await,
            Some(deadline) => tokio::time::timeout_at(deadline, load).await.unwrap_or_else(|_| {
                let name = &visit.key().name;
                Err(Error::new(Kind::DeadlineExceeded, format!("Deadline Exceeded: model '{name}' is being loaded")))
            }),
        };
        self.demand.metrics.missed(began.elapsed());
        result
    }
}

impl Entrance {
    /// The responses of a request that waits for its model, and starts then. `finds` is how often its model may be
    /// missing once more.
    pub(super) fn wait(
        &self,
        on_demand: &OnDemand,
        asked: (Request, InFlight),
        visit: Visit,
        finds: usize,
    ) -> Responses {
        let (entrance, on_demand) = (self.clone(), on_demand.clone());
        let waiting = Waiting { metrics: self.metrics.clone(), ended: false };
        let start = async move {
            let (mut request, in_flight) = asked;
            let loaded = on_demand.load(&visit, request.deadline).await;
            waiting.end();
            match loaded {
                Ok(()) => {
                    // The time of the load is nobody's fault: only the caller's deadline counts it.
                    request.arrived = Instant::now();
                    entrance.begin((request, in_flight), finds)
                    // The visit ends here, when the request is under way: until then the model does not leave.
                }
                Err(error) => {
                    entrance.metrics.request_unrouted(error.kind());
                    refusal(error)
                }
            }
        };
        Box::pin(stream::once(start).flatten())
    }
}

impl Waiting {
    /// It is counted elsewhere.
    fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.ended {
            self.metrics.request_unrouted(Kind::Cancelled);
        }
    }
}
