//! KServe v2 over HTTP/1.1 and HTTP/2, with Triton's extensions.
//!
//! [`router`] has one line for each route. Bodies are decoded into the messages of `protocol::v2`, which knows what the
//! calls mean; answers and errors leave through `reply`. [`Rest`] is what a
//! [`Port`](super::transport::Port) serves.

mod aside;
pub mod binary;
mod body;
mod chunks;
mod compress;
mod console;
mod cors;
mod counted;
mod deadline;
pub mod decode;
mod encode;
mod generate;
mod health;
mod infer;
pub mod json;
mod logging;
mod mapping;
mod message;
mod models;
mod openapi;
mod path;
pub mod probe;
mod regions;
mod reply;
mod repository;
mod rest;
mod restricted;
pub mod routes;
mod settings;
mod sse;
mod trace;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;

pub use rest::Rest;
pub use routes::router;
pub use settings::Settings;

use crate::error::Result;
use crate::gateway::Gateway;
use crate::telemetry::metrics::Answers;

/// What every handler may use.
pub struct App {
    gateway: Arc<Gateway>,
    /// By the route's place in [`routes::ROUTES`], and behind them all for what has none.
    answers: Answers,
    settings: Settings,
}

impl App {
    /// The state of a front end before `gateway`.
    pub fn new(gateway: Arc<Gateway>, settings: Settings) -> Arc<Self> {
        let answers = gateway.metrics().http_answers(routes::ROUTES.iter().map(|route| route.path).chain(["other"]));
        Arc::new(Self { gateway, answers, settings })
    }

    /// As [`body::read_small`], within the limits of this front end.
    ///
    /// # Errors
    /// Those of [`body::read_small`].
    async fn small_body(&self, body: Body) -> Result<Bytes> {
        body::read_small(body, self.settings.request_bytes_max, &mut self.gateway.portion()).await
    }
}
