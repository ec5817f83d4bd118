//! The console: a page at `/` that shows the models and what they do, embedded in the executable.
//!
//! What the page shows comes from the protocol's own routes, by the browser; here are its files, and the two things that
//! the protocol does not tell. The page computes rates and percentiles itself (`console/figures.js`), so that an open
//! console costs the server a few reads every two seconds and holds nothing in it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{App, reply};

/// The path of the page.
pub const PAGE: &str = "/";
const TEXT: &str = include_str!("console/index.html");
/// The page's other files: name, type, text.
const FILES: &[(&str, &str, &str)] = &[
    ("console.css", "text/css; charset=utf-8", include_str!("console/console.css")),
    ("console.js", "text/javascript; charset=utf-8", include_str!("console/console.js")),
    ("figures.js", "text/javascript; charset=utf-8", include_str!("console/figures.js")),
    ("icon.svg", "image/svg+xml", include_str!("console/icon.svg")),
    ("samples.js", "text/javascript; charset=utf-8", include_str!("console/samples.js")),
    ("view.js", "text/javascript; charset=utf-8", include_str!("console/view.js")),
];
/// What a browser may do with the page: load its own files and ask its own server, nothing else.
const HEADERS: &[(HeaderName, &str)] = &[
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // The files belong to the executable, whose next version brings others under the same names.
    (header::CACHE_CONTROL, "no-cache"),
];

/// Whether the path is one of the console's.
pub fn owns(path: &str) -> bool {
    path == PAGE || path.starts_with("/console/")
}

/// The page.
pub async fn page() -> Response {
    text("text/html; charset=utf-8", TEXT)
}

/// One of the page's files.
pub async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(each, ..)| *each == name) {
        Some((_, kind, content)) => text(kind, content),
        None => reply::not_found().await,
    }
}

/// What runs here, and whether models may be loaded by request.
pub async fn status(State(app): State<Arc<App>>) -> Response {
    let status = serde_json::json!({
        "name": app.settings.server_id,
        "version": env!("CARGO_PKG_VERSION"),
        "model_control_mode": app.settings.model_control_mode,
    });
    reply::json(StatusCode::OK, status.to_string())
}

/// The text of `/metrics`, which has a port of its own and is thus out of the page's reach. Empty if there are none.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.gateway.metrics_text()).into_response()
}

fn text(kind: &'static str, content: &'static str) -> Response {
    let mut response = Response::new(content.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.extend(HEADERS.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_page_may_load_only_its_own_files_and_they_are_there() {
        let page = page().await;
        assert!(
            page.headers()[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .is_ok_and(|it| it.starts_with("default-src 'none'"))
        );
        let named = TEXT.split('"').filter_map(|part| part.strip_prefix("console/"));
        let imported = FILES.iter().flat_map(|(_, _, text)| text.split('"').filter_map(|part| part.strip_prefix("./")));
        for name in named.chain(imported) {
            assert_eq!(file(Path(name.to_owned())).await.status(), StatusCode::OK, "{name}");
        }
        assert_eq!(file(Path("../mod.rs".to_owned())).await.status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn nothing_in_the_files_needs_a_looser_policy() {
        for (name, _, text) in FILES.iter().chain(&[("index.html", "", TEXT)]) {
            let foreign = ["style=\"", "onclick", "innerHTML", "eval(", "https://"];
            assert!(foreign.iter().all(|word| !text.contains(word)), "{name}");
        }
    }
}
