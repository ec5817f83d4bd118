//! A piece of an answer on its way to the socket.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::peer::Flow;

/// A buffer of an answer; all of it was written to the socket, or never will be, when this is dropped.
///
/// hyper takes an answer's buffers long before the peer does: those of HTTP/1.1 wait for the socket, those of HTTP/2 for
/// the peer's windows, too. So the buffers themselves tell what has left.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    flow: Arc<Flow>,
}

impl Piece {
    /// A piece of the answer `flow`.
    pub fn new(bytes: Bytes, flow: &Arc<Flow>) -> Self {
        flow.piece_begins();
        Self { bytes, flow: flow.clone() }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.flow.moved();
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flow.piece_ends();
    }
}
