//! The standard health service, `grpc.health.v1.Health`.
//!
//! There is one answer for the whole server: the service name is ignored, as the reference server does.

use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use futures_util::stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::health_wire::health_check_response::ServingStatus;
use super::health_wire::health_server::Health;
use super::health_wire::{HealthCheckRequest, HealthCheckResponse};
use crate::gateway::Gateway;

/// Answers whether the server is ready.
pub struct HealthService {
    gateway: Arc<Gateway>,
}

impl HealthService {
    /// The health of what is behind `gateway`.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(answer(self.gateway.ready())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Sends the health now and at each change; ends, after a last `NOT_SERVING`, when the server stops.
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watching = Watching { gateway: self.gateway.clone(), readiness: self.gateway.readiness(), sent: None };
        let changes = stream::unfold(watching, |mut watching| async move {
            let ready = watching.next().await?;
            Some((Ok(answer(ready)), watching))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

struct Watching {
    gateway: Arc<Gateway>,
    readiness: watch::Receiver<bool>,
    /// What the client knows.
    sent: Option<bool>,
}

impl Watching {
    /// The next health that differs from what the client knows; `None` once that can no longer come.
    async fn next(&mut self) -> Option<bool> {
        loop {
            let draining = self.gateway.is_draining();
            let ready = *self.readiness.borrow_and_update() && !draining;
            if self.sent != Some(ready) {
                self.sent = Some(ready);
                return Some(ready);
            }
            if draining {
                return None;
            }
            tokio::select! {
                changed = self.readiness.changed() => changed.ok()?,
                () = self.gateway.draining() => {}
            }
        }
    }
}

fn answer(ready: bool) -> HealthCheckResponse {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}
