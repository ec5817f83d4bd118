//! A body for tonic, whose codec reserves memory for a message as soon as its header says how long it is: here the header
//! waits until the whole message has come, so that an announcement costs its caller as much as the server.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame};

use super::framing::{Chunks, HEADER_BYTES};

/// The messages of a gRPC body, each passed on when all of it is there.
#[derive(Debug)]
pub struct Whole<B> {
    body: B,
    bytes_max: usize,
    /// What came of messages that are not whole.
    held: Chunks,
    whole: VecDeque<Bytes>,
    has_ended: bool,
}

impl<B> Whole<B> {
    /// The messages of `body`, up to the first that announces more than `bytes_max` bytes, which is for tonic to refuse.
    pub fn new(body: B, bytes_max: usize) -> Self {
        Self { body, bytes_max, held: Chunks::default(), whole: VecDeque::new(), has_ended: false }
    }

    /// Passes on the messages that are whole now.
    fn sort(&mut self) {
        while let Some(length) = self.held.peek_length() {
            let bytes = if length > self.bytes_max { HEADER_BYTES } else { HEADER_BYTES + length };
            if self.held.remaining() < bytes {
                return;
            }
            self.held.move_to(bytes, &mut self.whole);
            if length > self.bytes_max {
                self.end();
            }
        }
    }

    /// Nothing of what is held can become whole any more. Of that, tonic gets less than a header: enough to see that the
    /// stream broke off.
    fn end(&mut self) {
        self.has_ended = true;
        let rest = std::mem::take(&mut self.held).copy_start(HEADER_BYTES - 1);
        self.whole.extend(Some(rest).filter(|rest| !rest.is_empty()));
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Whole<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.whole.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut this.body).poll_frame(ctx)) {
                None => this.end(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => {
                    // gRPC has no trailers in requests.
                    let Ok(data) = frame.into_data() else { continue };
                    this.held.push(data);
                    this.sort();
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.whole.is_empty() && (self.has_ended || self.held.remaining() == 0 && self.body.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend((0..length).map(|index| index as u8));
        bytes
    }

    /// What is passed on of `bytes`, which come in pieces of `size`, up to their end.
    async fn passed(bytes: &[u8], size: usize, bytes_max: usize) -> Vec<u8> {
        let pieces: Vec<_> =
            bytes.chunks(size).map(|piece| Ok::<_, Infallible>(Frame::data(piece.to_vec().into()))).collect();
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let mut whole = Whole::new(body, bytes_max);
        let mut passed = Vec::new();
        while let Some(frame) = whole.frame().await {
            passed.extend(frame.expect("it does not fail").into_data().expect("no trailers"));
        }
        assert!(whole.is_end_stream());
        passed
    }

    #[tokio::test]
    async fn messages_are_passed_on_however_they_were_cut() {
        let bytes = [message(0), message(7), message(300), message(1)].concat();
        for size in [1, 2, 3, 5, 7, 100, 1000] {
            assert_eq!(passed(&bytes, size, 300).await, bytes, "{size}");
        }
    }

    #[tokio::test]
    async fn what_never_becomes_whole_is_cut_to_less_than_a_header() {
        let bytes = [message(3), message(9)[..10].to_vec()].concat();
        for size in [1, 4, 1000] {
            assert_eq!(passed(&bytes, size, 300).await, bytes[..8 + HEADER_BYTES - 1], "{size}");
        }
    }

    #[tokio::test]
    async fn a_header_that_announces_too_much_is_passed_on_at_once() {
        let bytes = [message(3), message(400)].concat();
        for size in [1, 4, 1000] {
            let passed = passed(&bytes[..20], size, 300).await;
            assert_eq!(passed[..8 + HEADER_BYTES], bytes[..8 + HEADER_BYTES], "{size}");
        }
    }

    #[tokio::test]
    async fn a_header_alone_passes_nothing_on() {
        let header = Frame::data(Bytes::from(message(100)[..HEADER_BYTES].to_vec()));
        let pieces = futures_util::stream::iter([Ok::<_, Infallible>(header)]);
        let body = StreamBody::new(futures_util::StreamExt::chain(pieces, futures_util::stream::pending()));
        let mut whole = Whole::new(body, 300);
        let waited = futures_util::FutureExt::now_or_never(whole.frame());
        assert!(waited.is_none(), "{waited:?}");
    }
}
