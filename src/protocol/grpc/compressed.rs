//! Undoes the compression of one message, in turns, so that a small message that becomes a large one neither takes more
//! memory than there is for requests nor keeps the thread.

use std::io::{self, Read};

use bytes::buf::Reader;
use bytes::{Buf as _, BytesMut};
use flate2::bufread::{GzDecoder, ZlibDecoder};
use http::HeaderMap;
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::framing::{self, Chunks};
use super::messages::Message;
use crate::gateway::request_memory::Portion;
use crate::protocol::status;
use crate::protocol::v2::{TURN_BYTES, room_for_more};

/// The header that says what the messages of a call may be compressed by.
const GRPC_ENCODING: &str = "grpc-encoding";

/// The least that is decompressed at a time.
const STEP_BYTES_MIN: usize = 4 << 10;

/// How messages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// By gzip.
    Gzip,
    /// By zlib, which gRPC calls deflate.
    Deflate,
}

impl Encoding {
    /// Takes the header that names one of these, or none, out of a call's headers.
    ///
    /// # Errors
    /// `UNIMPLEMENTED`, with those that are known, if it names another.
    pub fn take(headers: &mut HeaderMap) -> Result<Option<Self>, Status> {
        let Some(value) = headers.remove(GRPC_ENCODING) else { return Ok(None) };
        match value.as_bytes() {
            b"identity" => Ok(None),
            b"gzip" => Ok(Some(Self::Gzip)),
            b"deflate" => Ok(Some(Self::Deflate)),
            _ => {
                let mut status = Status::unimplemented(format!("messages compressed by {value:?} are not supported"));
                let known = MetadataValue::from_static("gzip,deflate,identity");
                status.metadata_mut().insert("grpc-accept-encoding", known);
                Err(status)
            }
        }
    }
}

/// A message that is being decompressed.
#[derive(Debug)]
pub struct Opening {
    decoder: Decoder,
    plain: BytesMut,
    /// What the compressed bytes hold, and these.
    portion: Portion,
}

#[derive(Debug)]
enum Decoder {
    Gzip(GzDecoder<Reader<Chunks>>),
    Deflate(ZlibDecoder<Reader<Chunks>>),
}

impl Read for Decoder {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(room),
            Self::Deflate(decoder) => decoder.read(room),
        }
    }
}

impl Opening {
    /// Begins with `message`, which holds `portion`.
    pub fn new(encoding: Encoding, message: Chunks, portion: Portion) -> Self {
        let decoder = match encoding {
            Encoding::Gzip => Decoder::Gzip(GzDecoder::new(message.reader())),
            Encoding::Deflate => Decoder::Deflate(ZlibDecoder::new(message.reader())),
        };
        Self { decoder, plain: BytesMut::new(), portion }
    }

    /// Goes on for as long as a task may; tells whether all is done.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` beyond `bytes_max`; `INTERNAL` if it cannot be decompressed; those of [`Portion::hold`].
    pub fn turn(&mut self, bytes_max: usize) -> Result<bool, Status> {
        let end = self.plain.len() + TURN_BYTES;
        while self.plain.len() < end {
            let begin = self.plain.len();
            // Twice as much at each step, so that what is small takes little.
            let step = begin.clamp(STEP_BYTES_MIN, TURN_BYTES);
            if self.plain.capacity() - begin < step {
                self.plain.reserve(step + room_for_more(begin, bytes_max.saturating_sub(begin)));
            }
            self.plain.resize(begin + step, 0);
            let read = self.decoder.read(&mut self.plain[begin..]);
            let count = read.map_err(|error| Status::internal(format!("cannot decompress the message: {error}")))?;
            self.plain.truncate(begin + count);
            if count == 0 {
                return Ok(true);
            }
            if self.plain.len() > bytes_max {
                return Err(framing::too_large(self.plain.len(), bytes_max));
            }
            self.portion.hold(count).map_err(|error| status::grpc(&error))?;
        }
        Ok(false)
    }

    /// The message, and what it holds.
    pub fn into_message(mut self) -> Message {
        let portion = self.portion.split(self.plain.len());
        Message { bytes: self.plain.freeze().into(), portion }
    }
}
