//! Counts a request that never became one: refused, or given up by its caller, before its message was read.

use std::sync::Arc;

use crate::error::Kind;
use crate::gateway::Gateway;

/// A request of which only the head has come; counts as cancelled if it is dropped as that.
pub struct Unread {
    gateway: Arc<Gateway>,
    kind: Option<Kind>,
}

impl Unread {
    /// A request whose call just came.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, kind: Some(Kind::Cancelled) }
    }

    /// It was read; who goes on with it counts it.
    pub fn read(mut self) {
        self.kind = None;
    }

    /// It is refused.
    pub fn refuse(mut self, kind: Kind) {
        self.kind = Some(kind);
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(kind) = self.kind {
            self.gateway.refused(kind);
        }
    }
}
