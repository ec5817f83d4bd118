//! Embeds sentences with the served model `minilm`, and prints how alike each two of them are.
//!
//! usage: `cargo run --example embed [SENTENCE ...]`, while `make run` serves in another terminal.
//! The client is generated from `proto/`; the tokenizer is the smallest that is right for English in ASCII.

use std::collections::HashMap;
use std::error::Error;
use std::fs;

use bytes::Bytes;
use nereid::protocol::v2::wire::grpc_inference_service_client::GrpcInferenceServiceClient;
use nereid::protocol::v2::wire::model_infer_request::InferInputTensor;
use nereid::protocol::v2::wire::{ModelInferRequest, ModelInferResponse};

const SERVER: &str = "http://127.0.0.1:8001";
const VOCABULARY: &str = "third_party/minilm/vocab.txt";
const SENTENCES: [&str; 3] = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Stocks fell on Monday."];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut sentences: Vec<String> = std::env::args().skip(1).collect();
    if sentences.is_empty() {
        sentences = SENTENCES.map(str::to_owned).to_vec();
    }
    let tokenizer = Tokenizer::new(&fs::read_to_string(VOCABULARY)?);
    let tokens = sentences.iter().map(|sentence| tokenizer.encode(sentence)).collect::<Result<Vec<_>, _>>()?;

    let mut client = GrpcInferenceServiceClient::connect(SERVER).await?;
    let response = client.model_infer(request(&tokens)).await?.into_inner();
    let embeddings = embeddings(&response)?;

    for (index, one) in embeddings.iter().enumerate() {
        for (other_index, other) in embeddings.iter().enumerate().skip(index + 1) {
            let alike: f32 = one.iter().zip(other).map(|(a, b)| a * b).sum();
            println!("{alike:5.2}  {} | {}", sentences[index], sentences[other_index]);
        }
    }
    Ok(())
}

/// A request for all sentences at once; shorter ones are filled with zeros, which the mask leaves out.
fn request(tokens: &[Vec<i64>]) -> ModelInferRequest {
    let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in tokens {
        for column in 0..longest {
            ids.extend(row.get(column).copied().unwrap_or(0).to_le_bytes());
            mask.extend(i64::from(column < row.len()).to_le_bytes());
        }
    }
    let shape = vec![tokens.len() as i64, longest as i64];
    let input = |name: &str| InferInputTensor {
        name: name.to_owned(),
        datatype: "INT64".to_owned(),
        shape: shape.clone(),
        ..Default::default()
    };
    ModelInferRequest {
        model_name: "minilm".to_owned(),
        inputs: vec![input("input_ids"), input("attention_mask")],
        raw_input_contents: vec![Bytes::from(ids), Bytes::from(mask)],
        ..Default::default()
    }
}

/// The rows of the only output, FP32 [sentences, 384].
fn embeddings(response: &ModelInferResponse) -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
    let output = response.outputs.first().ok_or("the response has no output")?;
    let raw = response.raw_output_contents.first().ok_or("the response has no data")?;
    let width = usize::try_from(*output.shape.last().ok_or("the output has no shape")?)?;
    let numbers: Vec<f32> =
        raw.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
    Ok(numbers.chunks_exact(width).map(<[f32]>::to_vec).collect())
}

/// WordPiece over a vocabulary of lower-case pieces; a piece that goes on with a word begins with `##`.
struct Tokenizer {
    ids: HashMap<String, i64>,
}

impl Tokenizer {
    fn new(vocabulary: &str) -> Self {
        Self { ids: vocabulary.lines().map(str::to_owned).zip(0..).collect() }
    }

    /// The ids of a sentence between the marks of its beginning and end.
    fn encode(&self, sentence: &str) -> Result<Vec<i64>, String> {
        if !sentence.is_ascii() {
            return Err(format!("this example's tokenizer knows ASCII only, got '{sentence}'"));
        }
        let mut ids = vec![self.id("[CLS]")?];
        for word in words(&sentence.to_ascii_lowercase()) {
            ids.extend(self.pieces(word)?);
        }
        ids.push(self.id("[SEP]")?);
        Ok(ids)
    }

    /// The longest known piece from the left, again and again; a word with a part that is no piece is unknown as a whole.
    fn pieces(&self, word: &str) -> Result<Vec<i64>, String> {
        let mut ids = Vec::new();
        let mut rest = word;
        while !rest.is_empty() {
            let prefix = if ids.is_empty() { "" } else { "##" };
            let found = (1..=rest.len())
                .rev()
                .find_map(|end| self.ids.get(&format!("{prefix}{}", &rest[..end])).map(|&id| (end, id)));
            let Some((end, id)) = found else { return Ok(vec![self.id("[UNK]")?]) };
            ids.push(id);
            rest = &rest[end..];
        }
        Ok(ids)
    }

    fn id(&self, piece: &str) -> Result<i64, String> {
        self.ids.get(piece).copied().ok_or_else(|| format!("{VOCABULARY} has no piece {piece}"))
    }
}

/// Splits at white space, and makes each punctuation mark a word of its own.
fn words(sentence: &str) -> impl Iterator<Item = &str> {
    sentence.split_ascii_whitespace().flat_map(|chunk| {
        let mut rest = chunk;
        std::iter::from_fn(move || {
            let end = match rest.find(|c: char| c.is_ascii_punctuation()) {
                Some(0) => 1,
                Some(at) => at,
                None if rest.is_empty() => return None,
                None => rest.len(),
            };
            let (word, after) = rest.split_at(end);
            rest = after;
            Some(word)
        })
    })
}
