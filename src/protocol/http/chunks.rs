//! A body that is a short list of buffers, so that the bytes of tensors are handed to the socket and not copied.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// Buffers up to this size are copied behind the one before, which is cheaper than a write of their own.
const COPY_BYTES_MAX: usize = 16 << 10;

/// The buffers that were not sent yet, and what is kept until they are.
pub struct Chunks<K> {
    list: VecDeque<Bytes>,
    bytes: u64,
    _kept: K,
}

impl<K> Chunks<K> {
    /// `head` with `blobs` behind it; `kept` is dropped with the body.
    pub fn new(mut head: Vec<u8>, blobs: Vec<Bytes>, kept: K) -> Self {
        let mut list = VecDeque::new();
        let mut large = blobs.into_iter().peekable();
        while let Some(blob) = large.next_if(|blob| blob.len() <= COPY_BYTES_MAX) {
            head.extend_from_slice(&blob);
        }
        list.push_back(Bytes::from(head));
        list.extend(large);
        list.retain(|chunk| !chunk.is_empty());
        let bytes = list.iter().map(|chunk| chunk.len() as u64).sum();
        Self { list, bytes, _kept: kept }
    }
}

impl<K: Unpin> http_body::Body for Chunks<K> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let chunk = this.list.pop_front();
        this.bytes -= chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.list.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn small_buffers_join_the_head_and_large_ones_stay_what_they_are() {
        let large = Bytes::from(vec![7; COPY_BYTES_MAX + 1]);
        let blobs = vec![Bytes::from_static(b"small"), Bytes::new(), large.clone(), Bytes::from_static(b"tail")];
        let mut body = Chunks::new(b"head".to_vec(), blobs, ());
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(4 + 5 + large.len() as u64 + 4));
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            frames.extend(frame.expect("it cannot fail").into_data());
        }
        assert_eq!(frames, [Bytes::from_static(b"headsmall"), large.clone(), Bytes::from_static(b"tail")]);
        assert_eq!(frames[1].as_ptr(), large.as_ptr());
    }
}
