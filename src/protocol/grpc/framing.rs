//! One gRPC message in an HTTP/2 body, read and written without moving tensor bytes.
//!
//! tonic's codec gathers every message in one contiguous buffer, in both directions. Here a message that is read stays
//! in the network's buffers ([`Chunks`]), and one that is written is a short list of buffers ([`Body`]), so that a
//! tensor's bytes are touched by the socket only. Knows nothing of what messages mean.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use prost::Message as _;
use smallvec::SmallVec;
use tonic::Status;

use super::bounds;
use super::head::Head;
use super::messages::Message;
use crate::gateway::request_memory::Portion;
use crate::infer::Response;
use crate::protocol::status;
use crate::protocol::v2::wire::ModelInferRequest;

/// The flag byte and the length before each message.
pub const HEADER_BYTES: usize = 5;

/// The number of the field `ModelInferResponse.raw_output_contents`.
const RAW_OUTPUT_CONTENTS: u32 = 6;

/// A piece of a message below this size is put together with the one before it.
const SMALL_BYTES: usize = 512;
/// Raw contents up to this size are copied behind the message, which is cheaper than a chunk of their own.
const COPY_BYTES_MAX: usize = 16 << 10;

/// The buffers of one message as they came from the network.
#[derive(Debug, Default)]
pub struct Chunks {
    /// Never holds an empty buffer.
    list: VecDeque<Bytes>,
    remaining: usize,
}

impl Chunks {
    /// Adds what came next. Small pieces are put together: a buffer takes more than its bytes.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.remaining += chunk.len();
        let is_small = |last: &mut Bytes| last.len().min(chunk.len()) < SMALL_BYTES && last.len() < COPY_BYTES_MAX;
        let chunk = match self.list.pop_back_if(is_small) {
            None => chunk,
            Some(last) => {
                let mut both = last.try_into_mut().unwrap_or_else(|last| BytesMut::from(&last[..]));
                both.extend_from_slice(&chunk);
                both.freeze()
            }
        };
        self.list.push_back(chunk);
    }
}

impl From<Bytes> for Chunks {
    fn from(chunk: Bytes) -> Self {
        let mut chunks = Self::default();
        chunks.push(chunk);
        chunks
    }
}

/// Its buffers.
impl IntoIterator for Chunks {
    type Item = Bytes;
    type IntoIter = std::collections::vec_deque::IntoIter<Bytes>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// 1 for a message that is compressed, 0 for another.
    pub flag: u8,
    /// The message's bytes.
    pub length: usize,
}

impl Header {
    /// The header that these bytes are; `None` if they are too few.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let &[flag, a, b, c, d] = bytes else { return None };
        Some(Self { flag, length: u32::from_be_bytes([a, b, c, d]) as usize })
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.list.front().map_or(&[], |front| front)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end");
        self.remaining -= count;
        while let Some(front) = self.list.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.list.pop_front();
        }
    }

    /// A view if the bytes lie in one buffer; otherwise one copy into memory of exactly that size.
    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        assert!(length <= self.remaining, "read past the end");
        match self.list.front_mut() {
            Some(front) if length < front.len() => {
                self.remaining -= length;
                front.split_to(length)
            }
            Some(front) if length == front.len() => {
                self.remaining -= length;
                self.list.pop_front().unwrap_or_default()
            }
            _ => {
                let mut copy = BytesMut::with_capacity(length);
                copy.put(self.take(length));
                copy.freeze()
            }
        }
    }
}

/// The request for inference that a message is, and the memory that it holds.
///
/// # Errors
/// `INVALID_ARGUMENT` beyond [`bounds`]; `INTERNAL` if it is not one; those of [`Portion::hold`].
pub fn request(message: Message) -> Result<(ModelInferRequest, Portion), Status> {
    let Message { bytes, mut portion } = message;
    let more = bounds::check(bytes.list.iter().map(|chunk| &chunk[..]), bytes.remaining)?;
    portion.hold(more).map_err(|error| status::grpc(&error))?;
    let malformed = |error| Status::internal(format!("malformed request message: {error}"));
    Ok((ModelInferRequest::decode(bytes).map_err(malformed)?, portion))
}

/// What stands before a message of `length` bytes, fewer than 4 GiB, that is not compressed.
pub fn header(length: usize) -> Bytes {
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_u8(0);
    header.put_u32(length as u32);
    header.freeze()
}

/// The refusal of a request message that is larger than allowed.
pub fn too_large(length: usize, bytes_max: usize) -> Status {
    Status::resource_exhausted(format!("Received message larger than max ({length} vs. {bytes_max})"))
}

/// The refusal of a response message that is larger than allowed.
pub fn response_too_large(length: usize, bytes_max: usize) -> Status {
    Status::invalid_argument(format!(
        "Response has byte size {length} which exceeds gRPC's byte size limit {bytes_max}."
    ))
}

/// One message to be sent and an OK status behind it.
#[derive(Debug)]
pub struct Body {
    chunks: smallvec::IntoIter<[Bytes; 1]>,
    done: bool,
}

impl Body {
    /// Frames the message of `response`: its head, and one entry of raw contents for each output.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the message is larger than `bytes_max`.
    pub fn new(response: Response, bytes_max: usize) -> Result<Self, Status> {
        let tag = RAW_OUTPUT_CONTENTS;
        let field_header = |data: &Bytes| prost::encoding::key_len(tag) + prost::length_delimiter_len(data.len());
        let head = Head::new(&response);
        let short = head.encoded_len();
        let raw = || response.outputs.iter().map(|output| &output.tensor.data);
        let length = short + raw().map(|data| field_header(data) + data.len()).sum::<usize>();
        let Some(framed) = u32::try_from(length).ok().filter(|_| length <= bytes_max) else {
            return Err(response_too_large(length, bytes_max));
        };
        let copied: usize =
            raw().map(|data| field_header(data) + if data.len() <= COPY_BYTES_MAX { data.len() } else { 0 }).sum();
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + short + copied);
        buffer.put_u8(0);
        buffer.put_u32(framed);
        head.encode(&mut buffer);
        let mut chunks: SmallVec<[Bytes; 1]> = SmallVec::new();
        for data in response.outputs.into_iter().map(|output| output.tensor.data) {
            prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut buffer);
            prost::encoding::encode_varint(data.len() as u64, &mut buffer);
            if data.len() <= COPY_BYTES_MAX {
                buffer.put_slice(&data);
            } else {
                chunks.push(buffer.split().freeze());
                chunks.push(data);
            }
        }
        if !buffer.is_empty() {
            chunks.push(buffer.freeze());
        }
        Ok(Self { chunks: chunks.into_iter(), done: false })
    }

    /// The bytes of the message that were not taken yet.
    pub fn remaining(&self) -> u64 {
        self.chunks.as_slice().iter().map(|chunk| chunk.len() as u64).sum()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(chunk) = self.chunks.next() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if std::mem::replace(&mut self.done, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::encode;
    use super::*;
    use crate::infer::{Output, Parameters};
    use crate::protocol::v2::wire::ModelInferResponse;
    use crate::tensor::{DataType, Shape, Tensor};

    /// A response with these bytes as its outputs.
    fn response(id: &str, raw: &[Bytes]) -> Response {
        let output = |data: &Bytes| Output {
            name: Arc::from("OUT"),
            tensor: Tensor::new(DataType::Uint8, Shape::new(&[data.len() as i64]), data.clone()),
            placed: false,
        };
        let (model, id, outputs) = (Arc::from("m"), id.to_owned(), raw.iter().map(output).collect());
        Response { model, version: 1, id, outputs, parameters: Parameters::new(), last: true, times: None }
    }

    #[test]
    fn small_pieces_are_put_together() {
        let data = Bytes::from((0..40_000).map(|index| index as u8).collect::<Vec<_>>());
        let chunks = chunked(&data, 3);
        assert_eq!(chunks.list.len(), 3, "of at most 16 KiB each");
        assert_eq!(chunks.into_iter().collect::<Vec<_>>().concat(), data);
        let views = chunked(&data, 10_000);
        assert_eq!(views.list.iter().map(|chunk| chunk.as_ptr()).min(), Some(data.as_ptr()), "they are not copied");
        assert_eq!(views.list.len(), 4);
    }

    fn chunked(data: &Bytes, size: usize) -> Chunks {
        let mut chunks = Chunks::default();
        for start in (0..data.len()).step_by(size) {
            chunks.push(data.slice(start..data.len().min(start + size)));
        }
        chunks
    }

    #[test]
    fn a_message_reads_the_same_however_it_was_cut() {
        let message = ModelInferRequest {
            model_name: "m".into(),
            id: "some id".into(),
            raw_input_contents: vec![Bytes::from(vec![7; 300]), Bytes::new(), Bytes::from(vec![9; 50])],
            ..ModelInferRequest::default()
        };
        let data = Bytes::from(message.encode_to_vec());
        for size in [1, 2, 3, 7, 64, 301, data.len()] {
            assert_eq!(ModelInferRequest::decode(chunked(&data, size)).expect("whole"), message, "cut to {size}");
        }
    }

    #[test]
    fn a_tensor_within_one_buffer_is_a_view_of_it() {
        let tensor = Bytes::from(vec![5; 1000]);
        let message = ModelInferRequest { raw_input_contents: vec![tensor], ..ModelInferRequest::default() };
        let data = Bytes::from(message.encode_to_vec());
        let range = data.as_ptr_range();
        let decoded = ModelInferRequest::decode(chunked(&data, data.len())).expect("whole");
        assert!(range.contains(&decoded.raw_input_contents[0].as_ptr()));
    }

    #[test]
    fn a_written_message_reads_back_and_large_contents_are_not_copied() {
        let large = Bytes::from(vec![3; COPY_BYTES_MAX + 1]);
        let raw = vec![Bytes::from_static(b"ab"), large.clone(), Bytes::new()];
        let response = response("7", &raw);
        let expected = encode::response(response.clone());
        let body = Body::new(response, usize::MAX).expect("small enough");
        assert!(body.chunks.as_slice().iter().any(|chunk| chunk.as_ptr() == large.as_ptr()));
        let mut all: Bytes = body.chunks.flatten().collect();
        assert_eq!((all.get_u8(), all.get_u32() as usize), (0, all.remaining()));
        let message = ModelInferResponse::decode(all).expect("well formed");
        assert_eq!(message.raw_output_contents, raw);
        assert_eq!(message, expected);
    }

    #[test]
    fn a_response_over_the_limit_is_refused() {
        let response = response("", &[Bytes::from(vec![0; 98])]);
        let length = encode::response(response.clone()).encoded_len();
        let refused = Body::new(response.clone(), length - 1).expect_err("one byte too many");
        let expected = format!("Response has byte size {length} which exceeds gRPC's byte size limit {}.", length - 1);
        assert_eq!(refused.message(), expected);
        assert!(Body::new(response, length).is_ok());
    }
}
