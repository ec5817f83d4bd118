//! A piece of an answer on its way to the socket.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::peer::Flow;
use crate::gateway::request_memory::Portion;

/// A buffer of an answer; all of it was written to the socket, or never will be, when this is dropped.
///
/// hyper takes an answer's buffers long before the peer does: those of HTTP/1.1 wait for the socket, those of HTTP/2 for
/// the peer's windows, too. So the buffers themselves tell what has left.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    flow: Arc<Flow>,
    /// What it counts for, until it has left.
    _portion: Portion,
}

impl Piece {
    /// A piece of the answer `flow`, whose memory is counted by `portion`.
    pub fn new(bytes: Bytes, flow: &Arc<Flow>, portion: Portion) -> Self {
        flow.piece_begins();
        Self { bytes, flow: flow.clone(), _portion: portion }
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
