//! A body for tonic, whose codec reserves memory for a message as soon as its header says how long it is: here the header
//! waits until the whole message has come, so that an announcement costs its caller as much as the server.
//!
//! What was compressed is passed on as it was before that, and what each message holds is in [`Portions`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tonic::Status;

use super::compressed::{Encoding, Opening};
use super::framing::{self, Chunks, HEADER_BYTES};
use crate::gateway::request_memory::Portion;
use crate::protocol::status;

/// The memory of the messages that were passed on, in their order. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Portions(Arc<Mutex<VecDeque<Portion>>>);

impl Portions {
    /// What the next message holds.
    pub fn next(&self) -> Portion {
        self.0.lock().pop_front().unwrap_or_default()
    }

    fn push(&self, portion: Portion) {
        self.0.lock().push_back(portion);
    }
}

/// The messages of a gRPC body, each passed on when all of it is there.
#[derive(Debug)]
pub struct Whole<B> {
    body: B,
    bytes_max: usize,
    /// What messages may be compressed by.
    encoding: Option<Encoding>,
    /// What came of messages that are not whole, and what that holds.
    held: Chunks,
    portion: Portion,
    /// The message before these, as long as it is decompressed.
    opening: Option<Opening>,
    whole: VecDeque<Bytes>,
    portions: Portions,
    has_ended: bool,
}

impl<B> Whole<B> {
    /// The messages of `body`, up to the first that announces more than `bytes_max` bytes, which is for tonic to refuse.
    /// `portion` grows with what comes.
    pub fn new(body: B, bytes_max: usize, encoding: Option<Encoding>, portion: Portion) -> Self {
        Self {
            body,
            bytes_max,
            encoding,
            held: Chunks::default(),
            portion,
            opening: None,
            whole: VecDeque::new(),
            portions: Portions::default(),
            has_ended: false,
        }
    }

    /// What the messages hold that were passed on.
    pub fn portions(&self) -> Portions {
        self.portions.clone()
    }

    /// Passes on the messages that are whole now, up to one that is compressed.
    fn sort(&mut self) {
        while self.opening.is_none()
            && let Some(header) = self.held.peek_header()
        {
            let bytes = if header.length > self.bytes_max { HEADER_BYTES } else { HEADER_BYTES + header.length };
            if self.held.remaining() < bytes {
                return;
            }
            let portion = self.portion.split(bytes);
            match self.encoding.filter(|_| header.is_compressed && header.length <= self.bytes_max) {
                Some(encoding) => {
                    self.held.advance(HEADER_BYTES);
                    self.opening = Some(Opening::new(encoding, self.held.split_to(header.length), portion));
                }
                None => {
                    self.whole.extend(self.held.split_to(bytes));
                    self.portions.push(portion);
                }
            }
            if header.length > self.bytes_max {
                self.end();
            }
        }
    }

    /// Decompresses for a turn; pending if that did not do.
    ///
    /// # Errors
    /// Those of [`Opening::turn`].
    fn open(&mut self, ctx: &Context<'_>) -> Poll<Result<(), Status>> {
        let Some(opening) = &mut self.opening else { return Poll::Ready(Ok(())) };
        if !opening.turn(self.bytes_max)? {
            ctx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some((message, portion)) = self.opening.take().map(Opening::into_message) {
            self.whole.extend([framing::header(message.len()), message].into_iter().filter(|bytes| !bytes.is_empty()));
            self.portions.push(portion);
        }
        self.sort();
        Poll::Ready(Ok(()))
    }

    /// Nothing of what is held can become whole any more. Of that, tonic gets less than a header: enough to see that the
    /// stream broke off.
    fn end(&mut self) {
        self.has_ended = true;
        let rest = std::mem::take(&mut self.held).copy_start(HEADER_BYTES - 1);
        self.whole.extend(Some(rest).filter(|rest| !rest.is_empty()));
    }

    /// The body ends with `status`.
    fn fail(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.has_ended = true;
        self.opening = None;
        self.held = Chunks::default();
        Poll::Ready(Some(Err(status)))
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for Whole<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.whole.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.opening.is_some() {
                match ready!(this.open(ctx)) {
                    Ok(()) => continue,
                    Err(status) => return this.fail(status),
                }
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut this.body).poll_frame(ctx)) {
                None => this.end(),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                Some(Ok(frame)) => {
                    // gRPC has no trailers in requests.
                    let Ok(data) = frame.into_data() else { continue };
                    if let Err(error) = this.portion.hold(data.len()) {
                        return this.fail(status::grpc(&error));
                    }
                    this.held.push(data);
                    this.sort();
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let holds_nothing = self.whole.is_empty() && self.opening.is_none();
        holds_nothing && (self.has_ended || self.held.remaining() == 0 && self.body.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::gateway::request_memory::RequestMemory;
    use crate::telemetry::metrics::Metrics;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend((0..length).map(|index| index as u8));
        bytes
    }

    /// What is passed on of `bytes`, which come in pieces of `size`, up to their end.
    async fn passed(bytes: &[u8], size: usize, bytes_max: usize) -> Vec<u8> {
        let pieces: Vec<_> =
            bytes.chunks(size).map(|piece| Ok::<_, Status>(Frame::data(piece.to_vec().into()))).collect();
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let mut whole = Whole::new(body, bytes_max, None, Portion::default());
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

    /// `plain` as a compressed message.
    fn compressed(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        let mut small = vec![0; HEADER_BYTES];
        match encoding {
            Encoding::Gzip => drop(flate2::bufread::GzEncoder::new(plain, level).read_to_end(&mut small)),
            Encoding::Deflate => drop(flate2::bufread::ZlibEncoder::new(plain, level).read_to_end(&mut small)),
        }
        let length = (small.len() - HEADER_BYTES) as u32;
        small[0] = 1;
        small[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
        small
    }

    /// As [`passed`], for a body that may be compressed; with what the messages hold.
    async fn opened(bytes: &[u8], size: usize, encoding: Encoding) -> Result<(Vec<u8>, Vec<usize>), Status> {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Frame::data(piece.to_vec().into()))).collect();
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let memory = RequestMemory::new(10_000_000, Metrics::off().request_memory());
        let mut whole = Whole::new(body, 2_000_000, Some(encoding), memory.portion());
        let mut passed = Vec::new();
        while let Some(frame) = whole.frame().await.transpose()? {
            passed.extend(frame.into_data().expect("no trailers"));
        }
        let portions = std::mem::take(&mut *whole.portions.0.lock());
        Ok((passed, portions.iter().map(Portion::bytes).collect()))
    }

    #[tokio::test]
    async fn compressed_messages_are_passed_on_as_they_were() {
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let plain = [message(7), message(0), message(1_000_000), message(300)];
            let contents = |index: usize| &plain[index][HEADER_BYTES..];
            let small = [
                compressed(encoding, contents(0)),
                compressed(encoding, contents(1)),
                compressed(encoding, contents(2)),
                plain[3].clone(),
            ];
            for size in [1, 7, 1000, 1 << 20] {
                let (passed, held) = opened(&small.concat(), size, encoding).await.expect("well formed");
                assert!(passed == plain.concat(), "{encoding:?} {size}");
                assert_eq!(held, [7, 0, 1_000_000, 305]);
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_decompressed_ends_the_body() {
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let refused = opened(&compressed(encoding, &[0; 2_000_001]), 1000, encoding).await.expect_err("too large");
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
            let mut broken = compressed(encoding, &[7; 1000]);
            broken[HEADER_BYTES] ^= 0xff;
            let refused = opened(&broken, 1000, encoding).await.expect_err("broken");
            assert_eq!(refused.code(), tonic::Code::Internal);
            let mut short = compressed(encoding, &[7; 1000]);
            short.pop();
            short[4] -= 1;
            let refused = opened(&short, 1000, encoding).await.expect_err("cut");
            assert_eq!(refused.code(), tonic::Code::Internal);
        }
    }

    #[tokio::test]
    async fn a_header_alone_passes_nothing_on() {
        let header = Frame::data(Bytes::from(message(100)[..HEADER_BYTES].to_vec()));
        let pieces = futures_util::stream::iter([Ok::<_, Status>(header)]);
        let body = StreamBody::new(futures_util::StreamExt::chain(pieces, futures_util::stream::pending()));
        let mut whole = Whole::new(body, 300, None, Portion::default());
        let waited = futures_util::FutureExt::now_or_never(whole.frame());
        assert!(waited.is_none(), "{waited:?}");
    }
}
