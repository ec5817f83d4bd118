//! The BYTES codec: each element is a 4-byte little-endian length followed by that many bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// What is wrong with a serialised BYTES tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Fewer than four bytes are left where a length must stand.
    IncompleteLength,
    /// A length runs past the end of the data.
    IncompleteElement,
    /// The data holds this many elements more or fewer than the shape asks for.
    Count {
        /// Elements found; counting stops one past the expected number.
        found: usize,
    },
}

/// The elements of a serialised BYTES tensor, each as a view of `data`.
pub fn iter(data: &[u8]) -> impl Iterator<Item = std::result::Result<&[u8], Framing>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((length, tail)) = rest.split_first_chunk::<4>() else {
            rest = &[];
            return Some(Err(Framing::IncompleteLength));
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > tail.len() {
            rest = &[];
            return Some(Err(Framing::IncompleteElement));
        }
        let (element, tail) = tail.split_at(length);
        rest = tail;
        Some(Ok(element))
    })
}

/// Checks that `data` holds exactly `expected` well-framed elements.
pub fn check(data: &[u8], expected: usize) -> std::result::Result<(), Framing> {
    let mut found = 0;
    for element in iter(data) {
        element?;
        found += 1;
        if found > expected {
            break;
        }
    }
    if found == expected { Ok(()) } else { Err(Framing::Count { found }) }
}

/// The byte length of the first `elements` elements of well-framed `data`.
pub fn prefix_len(data: &[u8], elements: usize) -> usize {
    iter(data).take(elements).map_while(|element| element.ok()).map(|element| element.len() + 4).sum()
}

/// Serialises elements one after the other. An element of 4 GiB or more cannot be framed and ends the encoding.
pub fn encode<'a>(elements: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    let mut data = BytesMut::new();
    for element in elements {
        let Ok(length) = u32::try_from(element.len()) else { break };
        data.put_u32_le(length);
        data.put_slice(element);
    }
    data.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_reads_back() {
        let elements: [&[u8]; 3] = [b"one", b"", b"\0two"];
        let data = encode(elements);
        assert_eq!(data.len(), 12 + 7);
        let read: Vec<_> = iter(&data).map(|element| element.expect("well framed")).collect();
        assert_eq!(read, elements);
        assert_eq!(check(&data, 3), Ok(()));
        assert_eq!(prefix_len(&data, 2), 11);
    }

    #[test]
    fn bad_framing_is_told_apart() {
        assert_eq!(check(&[1, 0, 0], 1), Err(Framing::IncompleteLength));
        assert_eq!(check(&[2, 0, 0, 0, b'a'], 1), Err(Framing::IncompleteElement));
        assert_eq!(check(&[0, 0, 0, 0], 2), Err(Framing::Count { found: 1 }));
        assert_eq!(check(&[0; 12], 1), Err(Framing::Count { found: 2 }));
        assert_eq!(check(&[], 0), Ok(()));
    }
}
