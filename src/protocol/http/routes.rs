//! Every route, as data: the method, the path, what it is about, and who answers it.
//!
//! The router is built from [`ROUTES`], restrictions go by its categories, and the description that `/openapi.json`
//! serves is compared with it.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use super::compress::{Coded, both_ways};
use super::counted::Counted;
use super::{
    App, console, generate, health, infer, logging, models, openapi, regions, reply, repository, restricted, trace,
};
use crate::protocol::category::Category;
use crate::protocol::category::Category::*;

/// One method of one path.
pub struct Route {
    /// `GET` or `POST`; `HEAD` is answered wherever `GET` is.
    pub method: &'static str,
    /// The path, with `{name}` for what it names.
    pub path: &'static str,
    /// What it is about; `None` for what anybody may read.
    pub category: Option<Category>,
    handler: fn() -> MethodRouter<Arc<App>>,
}

/// What anybody may read: it says nothing about this server.
const fn open(path: &'static str, handler: fn() -> MethodRouter<Arc<App>>) -> Route {
    Route { method: "GET", path, category: None, handler }
}

const fn read(path: &'static str, category: Category, handler: fn() -> MethodRouter<Arc<App>>) -> Route {
    Route { method: "GET", path, category: Some(category), handler }
}

const fn write(path: &'static str, category: Category, handler: fn() -> MethodRouter<Arc<App>>) -> Route {
    Route { method: "POST", path, category: Some(category), handler }
}

/// All routes. A long table on purpose: one line each.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    open("/openapi.json", || get(openapi::describe)),

    open(console::PAGE, || get(console::page)),
    open("/console/{file}", || get(console::file)),
    read("/console/status", Metadata, || get(console::status)),
    read("/console/metrics", Statistics, || get(console::metrics)),

    read("/v2", Metadata, || get(models::server)),
    read("/v2/health/live", Health, || get(health::live)),
    read("/v2/health/ready", Health, || get(health::ready)),

    read("/v2/models", ModelRepository, || get(models::list)),
    read("/v2/models/stats", Statistics, || get(models::statistics)),
    read("/v2/models/{model}", Metadata, || get(models::describe)),
    read("/v2/models/{model}/ready", Health, || get(models::ready)),
    read("/v2/models/{model}/config", ModelConfig, || get(models::config)),
    read("/v2/models/{model}/stats", Statistics, || get(models::statistics)),
    read("/v2/models/{model}/versions/{version}", Metadata, || get(models::describe)),
    read("/v2/models/{model}/versions/{version}/ready", Health, || get(models::ready)),
    read("/v2/models/{model}/versions/{version}/config", ModelConfig, || get(models::config)),
    read("/v2/models/{model}/versions/{version}/stats", Statistics, || get(models::statistics)),

    write("/v2/models/{model}/infer", Inference, || post(infer::infer)),
    write("/v2/models/{model}/versions/{version}/infer", Inference, || post(infer::infer)),
    write("/v2/models/{model}/generate", Inference, || post(generate::once)),
    write("/v2/models/{model}/versions/{version}/generate", Inference, || post(generate::once)),
    write("/v2/models/{model}/generate_stream", Inference, || post(generate::events)),
    write("/v2/models/{model}/versions/{version}/generate_stream", Inference, || post(generate::events)),

    read("/v2/trace/setting", Trace, || get(trace::read)),
    write("/v2/trace/setting", Trace, || post(trace::update)),
    read("/v2/models/{model}/trace/setting", Trace, || get(trace::read)),
    write("/v2/models/{model}/trace/setting", Trace, || post(trace::update)),
    read("/v2/models/{model}/versions/{version}/trace/setting", Trace, || get(trace::of_version)),
    write("/v2/models/{model}/versions/{version}/trace/setting", Trace, || post(trace::of_version)),
    read("/v2/systemsharedmemory/status", SharedMemory, || get(regions::system)),
    read("/v2/systemsharedmemory/region/{region}/status", SharedMemory, || get(regions::system)),
    write("/v2/systemsharedmemory/region/{region}/register", SharedMemory, || post(regions::register_system)),
    write("/v2/systemsharedmemory/unregister", SharedMemory, || post(regions::unregister_system)),
    write("/v2/systemsharedmemory/region/{region}/unregister", SharedMemory, || post(regions::unregister_system)),
    read("/v2/cudasharedmemory/status", SharedMemory, || get(regions::cuda)),
    read("/v2/cudasharedmemory/region/{region}/status", SharedMemory, || get(regions::cuda)),
    write("/v2/cudasharedmemory/region/{region}/register", SharedMemory, || post(regions::register_cuda)),
    write("/v2/cudasharedmemory/unregister", SharedMemory, || post(regions::unregister_cuda)),
    write("/v2/cudasharedmemory/region/{region}/unregister", SharedMemory, || post(regions::unregister_cuda)),

    read("/v2/logging", Logging, || get(logging::read)),
    write("/v2/logging", Logging, || post(logging::update)),

    write("/v2/repository/index", ModelRepository, || post(repository::index)),
    write("/v2/repository/models/{model}/load", ModelRepository, || post(repository::load)),
    write("/v2/repository/models/{model}/unload", ModelRepository, || post(repository::unload)),
    write("/v2/repository/{repository}/index", ModelRepository, || post(repository::index)),
    write("/v2/repository/{repository}/models/{model}/load", ModelRepository, || post(repository::load)),
    write("/v2/repository/{repository}/models/{model}/unload", ModelRepository, || post(repository::unload)),
];

/// The routes in front of `app`.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    let routes = ROUTES.iter().enumerate();
    for (at, route) in routes.filter(|(_, route)| app.settings.console || !console::owns(route.path)) {
        let coded = Coded {
            app: app.clone(),
            route: Counted(at),
            inference: route.category == Some(Inference),
            // Clients decompress what infer answers and nothing else, whatever their headers say.
            answers: route.path.ends_with("/infer"),
        };
        let mut handler = (route.handler)().layer(from_fn_with_state(coded, both_ways));
        if let Some(category) = route.category.filter(|category| app.settings.restrictions.restrict(*category)) {
            handler = handler.route_layer(from_fn_with_state((app.clone(), category, Counted(at)), restricted::permit));
        }
        router = router.route(route.path, handler);
    }
    router.fallback(reply::not_found).method_not_allowed_fallback(reply::wrong_method).with_state(app)
}
