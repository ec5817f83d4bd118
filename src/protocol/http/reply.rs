//! What leaves: JSON bodies, and errors as `{"error": message}` with the status of their kind.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::error::Error;
use crate::protocol::status;

/// The result of a handler.
pub type Answer<T = Response> = Result<T, Failure>;

/// An error on its way out.
#[derive(Debug)]
pub struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (_, code) = status::of(self.0.kind());
        let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        error(code, &status::shorten(self.0.message()))
    }
}

/// A body of JSON.
pub fn json(code: StatusCode, body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer to what was done and has nothing to say.
pub fn done() -> Response {
    StatusCode::OK.into_response()
}

/// The body of an error.
pub fn error(code: StatusCode, message: &str) -> Response {
    json(code, serde_json::json!({ "error": message }).to_string())
}

/// No route has this path.
pub async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "Not Found")
}

/// The path has a route, for another method.
pub async fn wrong_method() -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}
