//! What a path names: a model and its version, a region of shared memory, a repository.

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;

use super::reply::Failure;
use crate::error::Error;

/// The names in a path, percent-decoded; those that the route does not have are empty.
///
/// Only their text is known here; whether a name may be one is checked where it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// `{model}`.
    pub model: String,
    /// `{version}`, as it is written.
    pub version: String,
    /// `{region}`.
    pub region: String,
    /// `{repository}`.
    pub repository: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let found = RawPathParams::from_request_parts(parts, state).await;
        let found = found.map_err(|_| Error::invalid("a name in the path is not UTF-8"))?;
        let mut named = Self::default();
        for (key, value) in &found {
            match key {
                "model" => named.model = value.to_owned(),
                "version" => named.version = value.to_owned(),
                "region" => named.region = value.to_owned(),
                "repository" => named.repository = value.to_owned(),
                _ => {}
            }
        }
        Ok(named)
    }
}
