//! The routes as the transport serves them.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use http::{HeaderValue, Request, Response, StatusCode, header};
use tower::ServiceExt as _;

use super::counted::Counted;
use super::{App, Settings, cors, reply, router};
use crate::gateway::Gateway;
use crate::gateway::request_memory::Portion;
use crate::protocol::transport::{Body, Service};
use crate::protocol::v2::context;
use crate::telemetry::metrics::Answers;

/// Answers HTTP requests.
pub struct Rest {
    gateway: Arc<Gateway>,
    router: Router,
    answers: Answers,
    cors_origins: Vec<HeaderValue>,
}

impl Rest {
    /// The routes in front of `gateway`.
    pub fn new(gateway: Arc<Gateway>, settings: Settings) -> Self {
        let cors_origins = settings.cors_origins.clone();
        let cors = cors::layer(&cors_origins);
        let app = App::new(gateway.clone(), settings);
        let answers = app.answers.clone();
        let router = router(app);
        let router = match cors {
            Some(cors) => router.layer(cors),
            None => router,
        };
        Self { gateway, router, answers, cors_origins }
    }

    async fn answer(&self, mut request: Request<Body>) -> Response<axum::body::Body> {
        if cors::is_foreign(request.method(), request.headers(), &self.cors_origins) {
            return reply::error(StatusCode::FORBIDDEN, "pages of other origins may not do this");
        }
        let late = request.body_mut().late();
        let id = context::given(request.headers());
        let answered: Result<_, Infallible> = self.router.clone().oneshot(request.map(axum::body::Body::new)).await;
        let Ok(mut response) = answered;
        // Whatever a route makes of a body that stopped arriving, this is what it is.
        if late.is_some_and(|late| late.is_late()) {
            let route: Option<Counted> = response.extensions().get().copied();
            response = reply::error(StatusCode::REQUEST_TIMEOUT, "the request's body stopped arriving");
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            if let Some(route) = route {
                response.extensions_mut().insert(route);
            }
        }
        if let Some(id) = id {
            response.headers_mut().insert(context::REQUEST_ID, id);
        }
        response
    }
}

impl Service for Rest {
    type Body = axum::body::Body;

    async fn call(&self, request: Request<Body>) -> Response<axum::body::Body> {
        let response = self.answer(request).await;
        Counted::leaves(&self.answers, &response);
        response
    }

    fn portion(&self) -> Portion {
        self.gateway.portion()
    }
}
