//! The messages in the body of a gRPC call, each once all of it has come, and decompressed.
//!
//! tonic's codec reserves memory for a message as soon as its header says how long it is, and decompresses it at one go;
//! here an announcement costs its caller as much as the server, and what is large does not keep the thread. Begin with
//! [`Messages`]; for the services that tonic serves, [`Whole`] makes a body of them again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_core::Stream;
use futures_util::StreamExt as _;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tonic::Status;

use super::compressed::{Encoding, Opening};
use super::framing::{self, Chunks, HEADER_BYTES};
use crate::gateway::request_memory::Portion;
use crate::infer::round;
use crate::protocol::status;
use crate::protocol::transport::{self, BodyError};

/// One message.
#[derive(Debug)]
pub struct Message {
    /// Its bytes, without the header.
    pub bytes: Chunks,
    /// The memory that it holds.
    pub portion: Portion,
}

/// A body of a call, which may fall silent between messages if there can be any number of them.
pub trait CallBody: Body<Data = Bytes, Error = BodyError> + Unpin {
    /// From now on it may be silent for any time, or no longer.
    fn set_patient(&mut self, is_patient: bool);
}

impl CallBody for transport::Body {
    fn set_patient(&mut self, is_patient: bool) {
        transport::Body::set_patient(self, is_patient);
    }
}

/// How many messages a call has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// One, which must not stop arriving.
    One,
    /// Any number, at any time; each must not stop arriving.
    Any,
}

/// The messages of a body, in their order. After an error there are none.
#[derive(Debug)]
pub struct Messages<B> {
    /// `None` once it has ended.
    body: Option<B>,
    count: Count,
    bytes_max: usize,
    /// What they may be compressed by.
    encoding: Option<Encoding>,
    /// What came behind the bytes below; no more than a frame.
    came: Bytes,
    /// The next message's header, as far as it has come.
    header_bytes: SmallVec<[u8; HEADER_BYTES]>,
    /// The same once all of it is there, and what came of the message itself, which holds the portion.
    header: Option<framing::Header>,
    held: Chunks,
    portion: Portion,
    /// The message before these, as long as it is decompressed.
    opening: Option<Opening>,
}

impl<B: CallBody> Messages<B> {
    /// The messages of `body`, up to the first of more than `bytes_max` bytes. `portion` grows with what comes.
    pub fn new(body: B, count: Count, bytes_max: usize, encoding: Option<Encoding>, portion: Portion) -> Self {
        Self {
            body: Some(body),
            count,
            bytes_max,
            encoding,
            came: Bytes::new(),
            header_bytes: SmallVec::new(),
            header: None,
            held: Chunks::default(),
            portion,
            opening: None,
        }
    }

    /// The one message that there is.
    ///
    /// # Errors
    /// `INTERNAL` if there is not exactly one; `RESOURCE_EXHAUSTED` if it is too large, as soon as its header says so;
    /// `INTERNAL` if it cannot be decompressed; `CANCELLED` if the client went away, `DEADLINE_EXCEEDED` if it stopped
    /// sending; those of [`Portion::hold`].
    pub async fn only(mut self) -> Result<Message, Status> {
        let not_one = || Status::internal("the request is not exactly one message");
        let message = self.next().await.ok_or_else(not_one)??;
        while self.came.is_empty()
            && let Some(body) = self.body.as_mut().filter(|body| !body.is_end_stream())
        {
            let Some(frame) = body.frame().await.transpose().map_err(unreadable)? else { break };
            self.came = frame.into_data().unwrap_or_default();
        }
        if self.came.is_empty() { Ok(message) } else { Err(not_one()) }
    }

    /// The next message, if all of it is there; one that is compressed is left to be decompressed.
    ///
    /// # Errors
    /// If its header cannot be right; those of [`Portion::hold`].
    fn take(&mut self) -> Result<Option<Message>, Status> {
        if self.header.is_none() {
            let count = self.came.len().min(HEADER_BYTES - self.header_bytes.len());
            self.header_bytes.extend_from_slice(&self.came[..count]);
            self.came.advance(count);
            let Some(header) = framing::Header::read(&self.header_bytes) else { return Ok(None) };
            self.check(header)?;
            self.header_bytes.clear();
            self.header = Some(header);
        }
        let Some(header) = self.header else { return Ok(None) };
        let missing = header.length - self.held.remaining();
        let piece = self.came.split_to(missing.min(self.came.len()));
        self.portion.hold(piece.len()).map_err(|error| status::grpc(&error))?;
        self.held.push(piece);
        if self.held.remaining() < header.length {
            return Ok(None);
        }
        self.header = None;
        let (bytes, portion) = (std::mem::take(&mut self.held), self.portion.split(header.length));
        match self.encoding.filter(|_| header.flag == 1) {
            None => Ok(Some(Message { bytes, portion })),
            Some(encoding) => {
                self.opening = Some(Opening::new(encoding, bytes, portion));
                Ok(None)
            }
        }
    }

    fn check(&self, header: framing::Header) -> Result<(), Status> {
        if header.length > self.bytes_max {
            return Err(framing::too_large(header.length, self.bytes_max));
        }
        match header.flag {
            0 => Ok(()),
            1 if self.encoding.is_some() => Ok(()),
            1 => Err(Status::internal("compressed message without a grpc-encoding header")),
            flag => Err(Status::internal(format!("message with the flag {flag}, which is none of gRPC's"))),
        }
    }

    fn poll_message(&mut self, ctx: &mut Context<'_>) -> Poll<Result<Option<Message>, Status>> {
        loop {
            if let Some(opening) = &mut self.opening {
                if !opening.turn(self.bytes_max)? {
                    return round::another_turn(ctx);
                }
                return Poll::Ready(Ok(self.opening.take().map(Opening::into_message)));
            }
            if let Some(message) = self.take()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if self.opening.is_some() {
                continue;
            }
            let is_within = self.header.is_some() || !self.header_bytes.is_empty();
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(None)) };
            body.set_patient(self.count == Count::Any && !is_within);
            match ready!(Pin::new(body).poll_frame(ctx)).transpose().map_err(unreadable)? {
                // gRPC has no trailers in requests.
                Some(frame) => self.came = frame.into_data().unwrap_or_default(),
                None if is_within => return Poll::Ready(Err(Status::internal("the request ends within a message"))),
                None => self.body = None,
            }
        }
    }
}

fn unreadable(error: BodyError) -> Status {
    match error {
        BodyError::TimedOut(_) => Status::deadline_exceeded(error.to_string()),
        BodyError::Broken(_) => Status::cancelled(error.to_string()),
    }
}

impl<B: CallBody> Stream for Messages<B> {
    type Item = Result<Message, Status>;

    fn poll_next(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let next = ready!(this.poll_message(ctx));
        if next.is_err() {
            (this.body, this.header, this.opening) = (None, None, None);
            (this.held, this.came, this.portion) = (Chunks::default(), Bytes::new(), Portion::default());
            this.header_bytes.clear();
        }
        Poll::Ready(next.transpose())
    }
}

/// What the last message that was passed on holds, also after that body is gone. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<Portion>>);

/// A body of whole messages that are not compressed, for tonic.
#[derive(Debug)]
pub struct Whole<B> {
    messages: Messages<B>,
    /// Of the message that is passed on.
    frames: VecDeque<Bytes>,
    kept: Kept,
}

impl<B> Whole<B> {
    /// A body of `messages`, which puts into `kept` what they hold.
    pub fn new(messages: Messages<B>, kept: Kept) -> Self {
        Self { messages, frames: VecDeque::new(), kept }
    }
}

impl<B: CallBody> Body for Whole<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.frames.is_empty()
            && let Some(message) = ready!(this.messages.poll_next_unpin(ctx)).transpose()?
        {
            *this.kept.0.lock() = message.portion;
            this.frames.push_back(framing::header(message.bytes.remaining()));
            this.frames.extend(message.bytes);
        }
        Poll::Ready(this.frames.pop_front().map(Frame::data).map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::task::Waker;

    use futures_util::FutureExt as _;
    use http_body_util::StreamBody;
    use tonic::Code;

    use super::*;
    use crate::gateway::request_memory::RequestMemory;
    use crate::telemetry::metrics::Metrics;

    const BYTES_MAX: usize = 2_000_000;

    fn framed(flag: u8, contents: &[u8]) -> Vec<u8> {
        [&[flag], &(contents.len() as u32).to_be_bytes()[..], contents].concat()
    }

    fn contents(length: usize) -> Vec<u8> {
        (0..length).map(|index| index as u8).collect()
    }

    /// `plain` as a compressed message.
    fn compressed(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        let mut small = Vec::new();
        let read = match encoding {
            Encoding::Gzip => flate2::bufread::GzEncoder::new(plain, level).read_to_end(&mut small),
            Encoding::Deflate => flate2::bufread::ZlibEncoder::new(plain, level).read_to_end(&mut small),
        };
        read.expect("it cannot fail");
        framed(1, &small)
    }

    type Pieces = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, BodyError>> + Send>>;

    impl CallBody for StreamBody<Pieces> {
        fn set_patient(&mut self, _: bool) {}
    }

    /// The messages of `bytes`, which come in pieces of `size`.
    fn messages(bytes: &[u8], size: usize, encoding: Option<Encoding>) -> Messages<StreamBody<Pieces>> {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Frame::data(piece.to_vec().into()))).collect();
        let pieces: Pieces = Box::pin(futures_util::stream::iter(pieces));
        let memory = RequestMemory::new(10_000_000, Metrics::off().request_memory());
        Messages::new(StreamBody::new(pieces), Count::Any, BYTES_MAX, encoding, memory.portion())
    }

    /// All of them, each with what it holds, up to an error.
    async fn all(mut messages: Messages<StreamBody<Pieces>>) -> (Vec<(Vec<u8>, usize)>, Option<Code>) {
        let mut all = Vec::new();
        while let Some(message) = messages.next().await {
            match message {
                Ok(Message { mut bytes, portion }) => {
                    all.push((bytes.copy_to_bytes(bytes.remaining()).to_vec(), portion.bytes()));
                }
                Err(status) => {
                    assert!(messages.next().await.is_none(), "nothing follows an error");
                    return (all, Some(status.code()));
                }
            }
        }
        (all, None)
    }

    #[tokio::test]
    async fn messages_are_the_same_however_they_were_cut() {
        let lengths = [0, 7, 300, 1];
        let bytes = lengths.map(|length| framed(0, &contents(length))).concat();
        let expected: Vec<_> = lengths.iter().map(|&length| (contents(length), length)).collect();
        for size in [1, 2, 3, 5, 7, 100, 1000] {
            assert_eq!(all(messages(&bytes, size, None)).await, (expected.clone(), None), "{size}");
            let kept = Kept::default();
            let whole = Whole::new(messages(&bytes, size, None), kept.clone());
            assert_eq!(whole.collect().await.expect("well formed").to_bytes(), bytes, "{size}");
            assert_eq!(kept.0.lock().bytes(), 1, "what the last holds");
        }
    }

    #[tokio::test]
    async fn compressed_messages_are_what_they_were() {
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let lengths = [7, 0, 1_000_000];
            let mut bytes = lengths.map(|length| compressed(encoding, &contents(length))).concat();
            bytes.extend(framed(0, &contents(300)));
            let expected: Vec<_> = [7, 0, 1_000_000, 300].map(|length| (contents(length), length)).into();
            for size in [1, 7, 1000, 1 << 20] {
                assert!(
                    all(messages(&bytes, size, Some(encoding))).await == (expected.clone(), None),
                    "{encoding:?} {size}"
                );
            }
        }
    }

    #[tokio::test]
    async fn what_is_wrong_ends_them() {
        let first = framed(0, &contents(3));
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let mut broken = compressed(encoding, &[7; 1000]);
            broken[HEADER_BYTES] ^= 0xff;
            let mut short = compressed(encoding, &[7; 1000]);
            short.pop();
            short[4] -= 1;
            for (wrong, expected) in [
                (compressed(encoding, &[0; BYTES_MAX + 1]), Code::ResourceExhausted),
                ([&[0][..], &(BYTES_MAX as u32 + 1).to_be_bytes()].concat(), Code::ResourceExhausted),
                (broken, Code::Internal),
                (short, Code::Internal),
                (contents(3), Code::Internal),
                (framed(0, &contents(3))[..7].to_vec(), Code::Internal),
                (vec![0, 0, 0, 0, 1], Code::Internal),
                (framed(2, &contents(3)), Code::Internal),
            ] {
                for size in [1, 1000] {
                    let found = all(messages(&[&first[..], &wrong].concat(), size, Some(encoding))).await;
                    assert_eq!(found, (vec![(contents(3), 3)], Some(expected)), "{encoding:?} {wrong:?}");
                }
            }
        }
        let undeclared = all(messages(&framed(1, &contents(3)), 10, None)).await;
        assert_eq!(undeclared, (vec![], Some(Code::Internal)));
    }

    #[tokio::test]
    async fn others_have_their_turn_while_a_message_is_decompressed() {
        round::begin();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            // Nothing comes of these, and one byte of each.
            let empty = [&[0x78, 0x9c][..], &[0, 0, 0, 0xff, 0xff].repeat(100_000)].concat();
            let bytes = match encoding {
                Encoding::Gzip => compressed(encoding, &[0; 1_000_000]),
                Encoding::Deflate => framed(1, &empty),
            };
            let mut messages = messages(&bytes, 16 << 10, Some(encoding));
            let mut turns = 0;
            round::put_off(|| Waker::noop().clone());
            while messages.next().now_or_never().is_none() {
                turns += 1;
            }
            assert!((7..40).contains(&turns), "{encoding:?}: {turns} turns");
            assert!(!round::has_put_off(), "other threads have their turn, too");
        }
    }

    #[tokio::test]
    async fn one_message_is_neither_none_nor_two() {
        let one = framed(0, &contents(9));
        let two = [one.clone(), one.clone()].concat();
        for size in [1, 5, 1000] {
            let only = messages(&one, size, None).only().await.expect("there is one");
            assert_eq!((only.bytes.remaining(), only.portion.bytes()), (9, 9));
            for wrong in [&[][..], &two, &two[..15], &one[..13]] {
                assert_eq!(messages(wrong, size, None).only().await.expect_err("wrong").code(), Code::Internal);
            }
        }
    }

    #[tokio::test]
    async fn an_announcement_reserves_nothing_and_shows_nothing() {
        let memory = RequestMemory::new(10_000_000, Metrics::off().request_memory());
        let header = Bytes::from(framed(0, &contents(100))[..HEADER_BYTES].to_vec());
        let pieces = futures_util::stream::iter([Ok(Frame::data(header))]);
        let pieces: Pieces = Box::pin(futures_util::StreamExt::chain(pieces, futures_util::stream::pending()));
        let mut messages = Messages::new(StreamBody::new(pieces), Count::One, BYTES_MAX, None, memory.portion());
        assert!(messages.next().now_or_never().is_none());
        assert_eq!((messages.portion.bytes(), messages.held.remaining()), (0, 0));
    }
}
