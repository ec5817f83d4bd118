//! KServe v2 over HTTP/1.1 and HTTP/2, with Triton's extensions.
//!
//! [`router`] has one line for each route. Bodies are decoded into the messages of `protocol::v2`, which knows what the
//! calls mean; answers and errors leave through `reply`. [`Rest`] is what a
//! [`Port`](super::transport::Port) serves.

pub mod binary;
mod body;
mod chunks;
mod compress;
mod console;
mod cors;
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

pub use rest::Rest;
pub use routes::router;
pub use settings::Settings;

use crate::gateway::Gateway;

/// What every handler may use.
pub struct App {
    gateway: Arc<Gateway>,
    settings: Settings,
}

impl App {
    /// The state of a front end before `gateway`.
    pub fn new(gateway: Arc<Gateway>, settings: Settings) -> Arc<Self> {
        Arc::new(Self { gateway, settings })
    }
}
