//! Refuses requests that lack the secret of their category.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;

use super::counted::Counted;
use super::{App, reply};
use crate::error::Kind;
use crate::protocol::category::Category;
use crate::protocol::restricted::Refusal;

/// Lets a request of a restricted category pass if it has the secret; else 403, as the reference server has it.
pub async fn permit(
    State((app, category, route)): State<(Arc<App>, Category, Counted)>,
    request: Request,
    next: Next,
) -> Response {
    match app.settings.restrictions.check(category, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Refusal(header)) => {
            if category == Category::Inference {
                app.gateway.refused(Kind::Unavailable);
            }
            let message = format!("This API is restricted, expecting header '{header}'");
            let mut response = reply::error(StatusCode::FORBIDDEN, &message);
            route.count(&app.answers, &mut response);
            response
        }
    }
}
