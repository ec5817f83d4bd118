//! Who follows a request that models pass on to other models.

use std::fmt;
use std::sync::Arc;

use super::{Request, Response};
use crate::error::Error;

/// Hears what becomes of one request, and follows the requests that it is passed on as.
pub trait Follow: fmt::Debug + Send + Sync {
    /// Follows a request that this one is passed on as, from now until the last who holds the result drops it.
    fn passed_on(&self, request: &Request) -> Arc<dyn Follow>;

    /// Hears of a response.
    fn responded(&self, response: &Response);

    /// Hears why there is none.
    fn failed(&self, error: &Error);
}
