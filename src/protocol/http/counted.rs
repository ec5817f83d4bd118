//! Counts responses by route and status.
//!
//! A good one is counted where its route is known, without more ado; another takes its route along, because what is
//! around the routes may still change its status. Begin with [`Counted::count`].

use axum::response::Response;
use http::StatusCode;

use super::routes::ROUTES;
use crate::telemetry::metrics::Answers;

/// The place of a route in [`ROUTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted(pub usize);

impl Counted {
    /// What has no route.
    const OTHER: Self = Self(ROUTES.len());

    /// Counts a good response of this route.
    pub fn count(self, answers: &Answers, response: &mut Response) {
        match response.status() {
            StatusCode::OK => answers.good(self.0, || "200".to_owned()),
            _ => {
                response.extensions_mut().insert(self);
            }
        }
    }

    /// Counts a response that is none of the good ones, as it leaves.
    pub fn leaves(answers: &Answers, response: &Response) {
        let status = response.status();
        if status != StatusCode::OK {
            let route = response.extensions().get().copied().unwrap_or(Self::OTHER);
            answers.other(route.0, status.as_u16(), || status.as_u16().to_string());
        }
    }
}
