//! Puts the rooms together; not complete yet.

use std::sync::Arc;

use crate::backend::{Backend, identity, libtorch};
use crate::config::Config;
use crate::error::{Error, Result};

/// The kinds of model files that this server runs.
pub fn backends() -> Vec<Arc<dyn Backend>> {
    vec![Arc::new(libtorch::LibTorch), Arc::new(identity::Identity)]
}

/// Serves until it is told to stop.
///
/// # Errors
/// Always, until it is written.
pub async fn run(_config: Config) -> Result<()> {
    Err(Error::internal("not built yet"))
}
