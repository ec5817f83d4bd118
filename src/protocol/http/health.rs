//! `/v2/health`: by status alone, as load balancers ask.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;

use super::App;

/// 200: who answers is alive.
pub async fn live() -> StatusCode {
    StatusCode::OK
}

/// 200 when every model is ready and the server is not stopping, else 400.
pub async fn ready(State(app): State<Arc<App>>) -> StatusCode {
    if app.gateway.ready() { StatusCode::OK } else { StatusCode::BAD_REQUEST }
}
