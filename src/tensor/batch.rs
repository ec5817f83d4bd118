//! Many requests' tensors as one batch: read in order on the way in, split on the way out.
//!
//! A [`Batch`] keeps each member's bytes where they are. A backend that needs one contiguous buffer copies
//! each byte once, from [`Batch::parts`], into memory of its own choosing; one that does not reads the members.

use bytes::Bytes;

use super::{DataType, Shape, Tensor, strings};

/// One request's part of a batch.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// The member's size in the batch dimension; 1 for models without one.
    pub rows: usize,
    /// The inputs in the order of the model's signature, checked against it.
    pub inputs: Vec<Tensor>,
}

/// The members of one execution. All have the same types and, but for the batch dimension, the same shapes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The members in the order in which they were taken from the queue; never empty.
    pub members: Vec<Member>,
}

impl Batch {
    /// The sum of the members' rows.
    pub fn rows(&self) -> usize {
        self.members.iter().map(|member| member.rows).sum()
    }

    /// How many inputs each member has.
    pub fn inputs(&self) -> usize {
        self.members.first().map_or(0, |member| member.inputs.len())
    }

    /// The element type of input `index`.
    pub fn dtype(&self, index: usize) -> DataType {
        self.members[0].inputs[index].dtype
    }

    /// The shape of input `index` over all members: the first dimension is the sum where there is more than one.
    pub fn shape(&self, index: usize) -> Shape {
        let first = &self.members[0].inputs[index].shape;
        if self.members.len() == 1 {
            return first.clone();
        }
        first.replace_rows(self.members.iter().map(|m| m.inputs[index].shape.first().copied().unwrap_or(1)).sum())
    }

    /// The byte length of input `index` over all members.
    pub fn byte_len(&self, index: usize) -> usize {
        self.members.iter().map(|member| member.inputs[index].data.len()).sum()
    }

    /// The bytes of input `index` without a copy, if one member holds all of them.
    pub fn single(&self, index: usize) -> Option<&Bytes> {
        match self.members.as_slice() {
            [only] => Some(&only.inputs[index].data),
            _ => None,
        }
    }

    /// The parts of input `index`, one for each member in order.
    pub fn parts(&self, index: usize) -> impl Iterator<Item = &Bytes> {
        self.members.iter().map(move |member| &member.inputs[index].data)
    }

    /// Splits one output of the whole batch into a view for each member, without copying.
    ///
    /// Returns `None` if the outermost dimension is not the batch's rows, unless there is only one member, which
    /// gets the output as it is.
    pub fn split(&self, output: Tensor) -> Option<Vec<Tensor>> {
        if self.members.len() == 1 {
            return Some(vec![output]);
        }
        let rows = self.rows();
        if output.shape.first().copied() != i64::try_from(rows).ok() {
            return None;
        }
        let elements_per_row = output.shape[1..].iter().product::<i64>() as usize;
        let mut rest = output.data;
        let mut parts = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let length = match output.dtype.size() {
                Some(size) => member.rows * elements_per_row * size,
                None => strings::prefix_len(&rest, member.rows * elements_per_row),
            };
            if length > rest.len() {
                return None;
            }
            parts.push(Tensor {
                dtype: output.dtype,
                shape: output.shape.replace_rows(member.rows as i64),
                data: rest.split_to(length),
            });
        }
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(rows: usize, bytes: &[u8]) -> Member {
        let shape = Shape::new(&[rows as i64, (bytes.len() / rows) as i64]);
        Member { rows, inputs: vec![Tensor { dtype: DataType::Uint8, shape, data: Bytes::copy_from_slice(bytes) }] }
    }

    #[test]
    fn gather_then_split_gives_each_member_its_bytes() {
        let batch = Batch { members: vec![member(1, b"ab"), member(2, b"cdef")] };
        assert_eq!(&*batch.shape(0), &[3, 2]);
        let gathered: Vec<u8> = batch.parts(0).flatten().copied().collect();
        assert_eq!(gathered, b"abcdef");
        let output = Tensor { dtype: DataType::Uint8, shape: batch.shape(0), data: gathered.into() };
        let parts = batch.split(output).expect("the rows match");
        assert_eq!(parts[0].data, "ab");
        assert_eq!(parts[1].data, "cdef");
        assert_eq!(&*parts[1].shape, &[2, 2]);
    }

    #[test]
    fn strings_split_by_their_framing() {
        let batch = Batch { members: vec![member(1, b"a"), member(2, b"bc")] };
        let elements: [&[u8]; 3] = [b"long one", b"", b"x"];
        let output = Tensor { dtype: DataType::Bytes, shape: Shape::new(&[3, 1]), data: strings::encode(elements) };
        let parts = batch.split(output).expect("the rows match");
        assert_eq!(parts[0].data, strings::encode([elements[0]]));
        assert_eq!(parts[1].data, strings::encode([elements[1], elements[2]]));
    }

    #[test]
    fn an_output_of_other_rows_does_not_split() {
        let batch = Batch { members: vec![member(1, b"a"), member(1, b"b")] };
        let output = Tensor { dtype: DataType::Uint8, shape: Shape::new(&[1, 2]), data: Bytes::from_static(b"xy") };
        assert!(batch.split(output).is_none());
    }
}
