//! Every route: one line each, to the handler that answers it.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;

use super::{App, health, reply};

/// The routes in front of `app`.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v2/health/live", get(health::live))
        .route("/v2/health/ready", get(health::ready))
        .fallback(reply::not_found)
        .method_not_allowed_fallback(reply::wrong_method)
        .with_state(app)
}
