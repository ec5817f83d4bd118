//! How the messages of inference are read and written where tonic does it: as generated, but for the bounds on requests.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::bounds;
use crate::protocol::v2::wire::ModelInferRequest;

/// Reads requests for inference and writes `Answer`s.
#[derive(Clone, Copy, Debug)]
pub struct InferCodec<Answer>(PhantomData<Answer>);

impl<Answer> Default for InferCodec<Answer> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Answer: Message + Send + 'static> Codec for InferCodec<Answer> {
    type Encode = Answer;
    type Decode = ModelInferRequest;
    type Encoder = ProstEncoder<Answer>;
    type Decoder = Bounded;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Answer, ModelInferRequest>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Bounded
    }
}

/// Decodes requests that keep to [`bounds`].
#[derive(Clone, Copy, Debug)]
pub struct Bounded;

impl Decoder for Bounded {
    type Item = ModelInferRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<ModelInferRequest>, Status> {
        // One message, decompressed, in one piece.
        bounds::check([buffer.chunk()].into_iter(), buffer.remaining())?;
        let malformed = |error| Status::internal(format!("malformed request message: {error}"));
        ModelInferRequest::decode(buffer).map(Some).map_err(malformed)
    }
}
