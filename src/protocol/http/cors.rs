//! Lets pages of other origins call from a browser; nobody's, unless the settings name them.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// How long a browser may remember what is allowed.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Whether a page that nobody allowed wants to change something, as a browser tells.
///
/// Browsers send some requests of any page to any server without asking first, and only keep the answer from the page.
pub fn is_foreign(method: &Method, headers: &HeaderMap, origins: &[HeaderValue]) -> bool {
    let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let foreign = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let allowed = || {
        let origin = headers.get(header::ORIGIN);
        origins.iter().any(|each| each == "*" || Some(each) == origin)
    };
    changes && foreign && !allowed()
}

/// What answers a browser's questions, for pages of these origins; `None` if there are none.
///
/// Secrets of restricted groups are not asked for by a preflight, which cannot have them.
pub fn layer(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origins = match origins {
        [] => return None,
        all if all.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        named => AllowOrigin::list(named.to_vec()),
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any)
        .max_age(REMEMBERED);
    Some(layer)
}
