//! To be written.

use crate::config::Config;
use crate::error::{Error, Result};

/// Serves until it is told to stop.
///
/// # Errors
/// Always, until it is written.
pub async fn run(_config: Config) -> Result<()> {
    Err(Error::internal("not built yet"))
}
