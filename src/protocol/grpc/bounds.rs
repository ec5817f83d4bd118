//! Bounds how many parts a request message has, before it is decoded.
//!
//! Two bytes on the wire can become hundreds in memory, so a limit of bytes alone is none. Knows the field numbers of
//! `ModelInferRequest` and nothing of what is in the fields. Begin with [`check`].

use tonic::Status;

use crate::protocol::v2::PARTS_MAX;

/// The repeated fields of `ModelInferRequest`, from the number of the first on.
const PARTS: [&str; 4] = ["parameters", "inputs", "outputs", "raw_input_contents"];
const FIRST_PART: u64 = 4;

/// Checks an encoded `ModelInferRequest` that lies in `chunks`, `length` bytes in all.
///
/// What is not well formed is left to the decoder to refuse.
///
/// # Errors
/// `INVALID_ARGUMENT` if it has more parts than [`PARTS_MAX`] of one kind.
pub fn check<'a>(chunks: impl Iterator<Item = &'a [u8]>, length: usize) -> Result<(), Status> {
    // Each part takes two bytes at least.
    if length / 2 <= PARTS_MAX {
        return Ok(());
    }
    let mut counts = [0; PARTS.len()];
    let mut reader = Reader { chunk: &[], chunks };
    while let Some(part) = reader.field() {
        let Some(part) = part.checked_sub(FIRST_PART).and_then(|index| usize::try_from(index).ok()) else { continue };
        let Some(count) = counts.get_mut(part) else { continue };
        *count += 1;
        if *count > PARTS_MAX {
            let part = PARTS[part];
            return Err(Status::invalid_argument(format!("the request has more than {PARTS_MAX} {part}")));
        }
    }
    Ok(())
}

struct Reader<'a, I> {
    chunk: &'a [u8],
    chunks: I,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Reader<'a, I> {
    /// Steps over the next field and gives its number; `None` at the end, or if what follows is not well formed.
    fn field(&mut self) -> Option<u64> {
        let key = self.varint()?;
        match key & 7 {
            0 => drop(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let length = self.varint()?;
                self.skip(length)?;
            }
            5 => self.skip(4)?,
            // A group's contents are fields of their own and count like others, which at worst refuses what no client
            // sends.
            3 | 4 => {}
            _ => return None,
        }
        Some(key >> 3)
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
                return Some(*first);
            }
            self.chunk = self.chunks.next()?;
        }
    }

    fn skip(&mut self, count: u64) -> Option<()> {
        let mut count = usize::try_from(count).ok()?;
        while count > self.chunk.len() {
            count -= self.chunk.len();
            self.chunk = self.chunks.next()?;
        }
        self.chunk = &self.chunk[count..];
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::protocol::v2::wire::ModelInferRequest;

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
    fn what_is_no_message_is_left_to_the_decoder() {
        for byte in 0..=255 {
            let _ = check([byte; 20_000].chunks(7), 20_000);
        }
    }
}
