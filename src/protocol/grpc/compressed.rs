//! Undoes the compression of one message, in turns, so that a small message that becomes a large one neither takes more
//! memory than there is for requests nor keeps the thread.

use std::io::{self, BufRead, Read};

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

/// The least room that is made for what is decompressed.
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
    /// Its bytes as far as they are there, and room for more behind them.
    plain: BytesMut,
    length: usize,
    /// What the compressed bytes hold, and these.
    portion: Portion,
}

#[derive(Debug)]
enum Decoder {
    Gzip(GzDecoder<Metered>),
    Deflate(ZlibDecoder<Metered>),
}

impl Read for Decoder {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(room),
            Self::Deflate(decoder) => decoder.read(room),
        }
    }
}

impl Decoder {
    /// Lets it read as much as a task may at a time.
    fn begin_turn(&mut self) {
        let metered = match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
        };
        metered.left = TURN_BYTES;
    }
}

/// The compressed bytes, of which there are only so many in a turn: some of which nothing comes are read as well.
#[derive(Debug)]
struct Metered {
    bytes: Chunks,
    left: usize,
}

impl Read for Metered {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(room)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Metered {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && self.bytes.has_remaining() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let chunk = self.bytes.chunk();
        Ok(&chunk[..chunk.len().min(self.left)])
    }

    fn consume(&mut self, count: usize) {
        self.left -= count;
        self.bytes.advance(count);
    }
}

impl Opening {
    /// Begins with `message`, which holds `portion`.
    pub fn new(encoding: Encoding, message: Chunks, portion: Portion) -> Self {
        let metered = Metered { bytes: message, left: 0 };
        let decoder = match encoding {
            Encoding::Gzip => Decoder::Gzip(GzDecoder::new(metered)),
            Encoding::Deflate => Decoder::Deflate(ZlibDecoder::new(metered)),
        };
        Self { decoder, plain: BytesMut::new(), length: 0, portion }
    }

    /// Goes on for as long as a task may; tells whether all is done.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` beyond `bytes_max`; `INTERNAL` if it cannot be decompressed; those of [`Portion::hold`].
    pub fn turn(&mut self, bytes_max: usize) -> Result<bool, Status> {
        self.decoder.begin_turn();
        let end = self.length + TURN_BYTES;
        while self.length < end {
            if self.plain.len() == self.length {
                self.make_room(bytes_max);
            }
            let count = match self.decoder.read(&mut self.plain[self.length..]) {
                Ok(0) => return Ok(true),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Status::internal(format!("cannot decompress the message: {error}"))),
            };
            self.length += count;
            if self.length > bytes_max {
                return Err(framing::too_large(self.length, bytes_max));
            }
            self.portion.hold(count).map_err(|error| status::grpc(&error))?;
        }
        Ok(false)
    }

    /// Twice as much at each step, so that what is small takes little.
    fn make_room(&mut self, bytes_max: usize) {
        let step = self.length.clamp(STEP_BYTES_MIN, TURN_BYTES);
        if self.plain.capacity() - self.length < step {
            self.plain.reserve(step + room_for_more(self.length, bytes_max.saturating_sub(self.length)));
        }
        self.plain.resize(self.length + step, 0);
    }

    /// The message, and what it holds.
    pub fn into_message(mut self) -> Message {
        self.plain.truncate(self.length);
        let portion = self.portion.split(self.length);
        Message { bytes: self.plain.freeze().into(), portion }
    }
}
