//! Bounds how many parts a request message has, and says what memory it takes to decode it, before that is done.
//!
//! Two bytes on the wire can become dozens in memory, so a limit of bytes alone is none. Knows the field numbers of
//! `ModelInferRequest` and of its inputs and outputs, and nothing of what is in the fields. Begin with [`check`].

use tonic::Status;

use crate::protocol::v2::PARTS_MAX;

/// The repeated fields of `ModelInferRequest`, from the number of the first on; and those of its inputs and outputs.
const PARTS: [&str; 5] = ["parameters", "inputs", "outputs", "raw_input_contents", "parameters of inputs and outputs"];
const FIRST_PART: u64 = 4;
const INPUTS: u64 = 5;
const OUTPUTS: u64 = 6;
const INNER_PARAMETERS: usize = 4;

/// The fields of `InferInputTensor` that can become larger than they are, and that of `InferRequestedOutputTensor`.
const INPUT_SHAPE: u64 = 3;
const INPUT_PARAMETERS: u64 = 4;
const INPUT_CONTENTS: u64 = 5;
const OUTPUT_PARAMETERS: u64 = 2;

/// What an element of `InferTensorContents` takes, as it is decoded and as part of a tensor, by the number of its field:
/// BOOL, INT32, INT64, UINT32, UINT64, FP32, FP64; of BYTES without its own bytes.
const ELEMENT_BYTES: [usize; 8] = [2, 8, 16, 8, 16, 8, 16, size_of::<bytes::Bytes>() + 4];
const BYTES_CONTENTS: u64 = 8;

/// Checks an encoded `ModelInferRequest` that lies in `chunks`, `length` bytes in all; gives the bytes that it takes
/// beside these once it is decoded, those of tensors made of typed contents included, as far as that is much.
///
/// What is not well formed is left to the decoder to refuse.
///
/// # Errors
/// `INVALID_ARGUMENT` if it has more parts than [`PARTS_MAX`] of one kind.
pub fn check<'a>(chunks: impl Iterator<Item = &'a [u8]>, length: usize) -> Result<usize, Status> {
    // Each part takes two bytes at least.
    if length / 2 <= PARTS_MAX {
        return Ok(0);
    }
    let mut message = Message { reader: Reader { chunk: &[], chunks, at: 0 }, counts: [0; PARTS.len()], bytes: 0 };
    message.read();
    match message.counts.iter().position(|&count| count > PARTS_MAX) {
        Some(part) => Err(Status::invalid_argument(format!("the request has more than {PARTS_MAX} {}", PARTS[part]))),
        None => Ok(message.bytes),
    }
}

/// What was found so far of a message.
struct Message<'a, I> {
    reader: Reader<'a, I>,
    counts: [usize; PARTS.len()],
    bytes: usize,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Message<'a, I> {
    /// Reads all of it; `None` where it is not well formed, up to which it is decoded, too.
    fn read(&mut self) -> Option<()> {
        while self.counts.iter().all(|&count| count <= PARTS_MAX) {
            let (field, value) = self.reader.field()?;
            let part = field.checked_sub(FIRST_PART).and_then(|index| usize::try_from(index).ok());
            if let Some(count) = part.and_then(|part| self.counts[..INNER_PARAMETERS].get_mut(part)) {
                *count += 1;
            }
            match value {
                Value::Within(end) if field == INPUTS => self.input(end)?,
                Value::Within(end) if field == OUTPUTS => self.output(end)?,
                value => self.reader.skip(&value)?,
            }
        }
        Some(())
    }

    fn input(&mut self, end: u64) -> Option<()> {
        while self.reader.at < end {
            let (field, value) = self.reader.field()?;
            match (field, &value) {
                (INPUT_SHAPE, Value::Within(end)) => self.bytes += size_of::<i64>() * self.reader.varints(*end)?,
                (INPUT_SHAPE, _) => {
                    self.bytes += 2 * size_of::<i64>();
                    self.reader.skip(&value)?;
                }
                (INPUT_CONTENTS, Value::Within(end)) => self.contents(*end)?,
                _ => {
                    self.counts[INNER_PARAMETERS] += usize::from(field == INPUT_PARAMETERS);
                    self.reader.skip(&value)?;
                }
            }
        }
        Some(())
    }

    fn output(&mut self, end: u64) -> Option<()> {
        while self.reader.at < end {
            let (field, value) = self.reader.field()?;
            self.counts[INNER_PARAMETERS] += usize::from(field == OUTPUT_PARAMETERS);
            self.reader.skip(&value)?;
        }
        Some(())
    }

    fn contents(&mut self, end: u64) -> Option<()> {
        while self.reader.at < end {
            let (field, value) = self.reader.field()?;
            let index = usize::try_from(field).ok().and_then(|field| field.checked_sub(1));
            let each = index.and_then(|index| ELEMENT_BYTES.get(index)).copied().unwrap_or_default();
            if let Value::Within(end) = value
                && !matches!(field, 6..=BYTES_CONTENTS)
            {
                self.bytes += each * self.reader.varints(end)?;
                continue;
            }
            let begin = self.reader.at;
            self.reader.skip(&value)?;
            // All of it is there, so that these are no numbers that somebody made up.
            let bytes = usize::try_from(self.reader.at - begin).unwrap_or(usize::MAX);
            self.bytes += match value {
                Value::Within(_) if field == BYTES_CONTENTS => each + bytes,
                // Numbers of a fixed length, each as long as in the tensor.
                Value::Within(_) => 2 * bytes,
                // A vector that grows by one has room for as many more.
                _ => 2 * each,
            };
        }
        Some(())
    }
}

/// What stands behind a field's key.
enum Value {
    /// A varint.
    Varint,
    /// So many bytes.
    Fixed(u64),
    /// Bytes up to this position.
    Within(u64),
    /// Nothing: a group's contents are fields of their own and count like others, which at worst refuses what no client
    /// sends.
    Group,
}

struct Reader<'a, I> {
    chunk: &'a [u8],
    chunks: I,
    /// The bytes that were read or skipped.
    at: u64,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Reader<'a, I> {
    /// The number of the next field, and what stands behind it; `None` at the end, or if what follows is not well formed.
    fn field(&mut self) -> Option<(u64, Value)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint,
            1 => Value::Fixed(8),
            2 => {
                let length = self.varint()?;
                Value::Within(self.at.checked_add(length)?)
            }
            5 => Value::Fixed(4),
            3 | 4 => Value::Group,
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn skip(&mut self, value: &Value) -> Option<()> {
        match value {
            Value::Varint => self.varint().map(drop),
            Value::Fixed(count) => self.skip_to(self.at + count),
            Value::Within(end) => self.skip_to(*end),
            Value::Group => Some(()),
        }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        loop {
            if let Some((first, rest)) = self.chunk.split_first() {
                self.chunk = rest;
                self.at += 1;
                return Some(*first);
            }
            self.chunk = self.chunks.next()?;
        }
    }

    /// Skips varints up to `end`, and counts them.
    fn varints(&mut self, end: u64) -> Option<usize> {
        let mut count = 0;
        self.pass(end, |bytes| count += bytes.iter().filter(|&&byte| byte < 0x80).count())?;
        Some(count)
    }

    fn skip_to(&mut self, end: u64) -> Option<()> {
        self.pass(end, |_| ())
    }

    /// Shows all bytes up to `end` to `look`.
    fn pass(&mut self, end: u64, mut look: impl FnMut(&[u8])) -> Option<()> {
        while self.at < end {
            if self.chunk.is_empty() {
                self.chunk = self.chunks.next()?;
            }
            let left = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            let (bytes, rest) = self.chunk.split_at(left.min(self.chunk.len()));
            look(bytes);
            self.chunk = rest;
            self.at += bytes.len() as u64;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use prost::Message as _;

    use super::*;
    use crate::protocol::v2::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use crate::protocol::v2::wire::{InferParameter, InferTensorContents, ModelInferRequest};

    #[test]
    fn parts_are_counted_by_kind_however_the_message_was_cut() {
        for (field, kind) in [(4, "parameters"), (5, "inputs"), (6, "outputs"), (7, "raw_input_contents")] {
            let mut message = [field << 3 | 2, 0].repeat(PARTS_MAX);
            message.extend(ModelInferRequest { id: "x".repeat(300), ..Default::default() }.encode_to_vec());
            for size in [1, 3, 1000, usize::MAX] {
                assert!(check(message.chunks(size), message.len()).is_ok(), "{kind}");
            }
            message.extend([field << 3 | 2, 0]);
            for size in [1, 3, 1000, usize::MAX] {
                let refused = check(message.chunks(size), message.len()).expect_err(kind);
                assert_eq!(refused.message(), format!("the request has more than 4096 {kind}"));
            }
        }
    }

    #[test]
    fn parameters_of_inputs_and_outputs_are_counted_together() {
        let each_has = |count: usize| {
            let parameters: HashMap<_, _> = (0..count).map(|at| (at.to_string(), InferParameter::default())).collect();
            let inputs = vec![InferInputTensor { parameters: parameters.clone(), ..Default::default() }];
            let outputs = vec![InferRequestedOutputTensor { parameters, ..Default::default() }];
            ModelInferRequest { inputs, outputs, ..Default::default() }.encode_to_vec()
        };
        let fits = each_has(PARTS_MAX / 2);
        assert!(check(fits.chunks(7), fits.len()).is_ok());
        let more = each_has(PARTS_MAX / 2 + 1);
        let refused = check(more.chunks(7), more.len()).expect_err("one too many of both");
        assert_eq!(refused.message(), "the request has more than 4096 parameters of inputs and outputs");
    }

    #[test]
    fn typed_contents_count_as_what_they_become() {
        let contents = |contents| {
            let input = InferInputTensor { contents: Some(contents), shape: vec![1; 10], ..Default::default() };
            let message = ModelInferRequest { inputs: vec![input], ..Default::default() }.encode_to_vec();
            let found: Vec<usize> =
                [1, 7, usize::MAX].map(|size| check(message.chunks(size), message.len()).expect("it may be")).into();
            assert!(found.iter().all(|bytes| *bytes == found[0]), "{found:?}");
            found[0] - 80
        };
        let none = InferTensorContents::default;
        const COUNT: usize = 10_000;
        assert_eq!(contents(InferTensorContents { bool_contents: vec![true; COUNT], ..none() }), 2 * COUNT);
        assert_eq!(contents(InferTensorContents { int_contents: vec![-1; COUNT], ..none() }), 8 * COUNT);
        assert_eq!(contents(InferTensorContents { int64_contents: vec![1; COUNT], ..none() }), 16 * COUNT);
        assert_eq!(contents(InferTensorContents { uint_contents: vec![1000; COUNT], ..none() }), 8 * COUNT);
        assert_eq!(contents(InferTensorContents { uint64_contents: vec![1; COUNT], ..none() }), 16 * COUNT);
        assert_eq!(contents(InferTensorContents { fp32_contents: vec![1.0; COUNT], ..none() }), 8 * COUNT);
        assert_eq!(contents(InferTensorContents { fp64_contents: vec![1.0; COUNT], ..none() }), 16 * COUNT);
        let texts = vec![bytes::Bytes::new(); COUNT];
        assert_eq!(contents(InferTensorContents { bytes_contents: texts, ..none() }), 36 * COUNT);
        // Each with a key of its own, as writers may have it, too.
        let apart = [3 << 3, 1].repeat(COUNT);
        let message = nested(INPUTS, &nested(INPUT_CONTENTS, &apart));
        assert_eq!(check(message.chunks(9), message.len()).expect("it may be"), 32 * COUNT);
    }

    /// A field of so many bytes.
    fn nested(field: u64, bytes: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        prost::encoding::encode_varint(field << 3 | 2, &mut message);
        prost::encoding::encode_varint(bytes.len() as u64, &mut message);
        [&message, bytes].concat()
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        // Texts that are said to be as long as can be.
        let endless = nested(INPUTS, &nested(INPUT_CONTENTS, &[&[8 << 3 | 2][..], &[0xff; 8], &[0x7f]].concat()));
        let message = [endless, vec![0; 20_000]].concat();
        assert!(check(message.chunks(7), message.len()).is_ok_and(|bytes| bytes == 0));
        for byte in 0..=255 {
            let _ = check([byte; 20_000].chunks(7), 20_000);
        }
    }
}
