//! What stands in for a model: answers each request as it is told, fails or panics.

use nereid::backend::{Instance, Replies};
use nereid::error::{Error, Kind, Result};
use nereid::tensor::{Batch, DataType, Member, Shape, Tensor};

/// What puppets say when they panic.
pub const PANIC: &str = "the puppet was told to panic";

/// How an execution ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Well,
    Failure,
    Panic,
    /// It does not come back.
    Never,
}

/// An instance that ends its next execution as told; a function makes each member's outputs of its position and inputs.
pub struct Puppet<F> {
    pub end: End,
    /// Whether it gives the outputs of the whole batch at once.
    pub whole: bool,
    pub outputs: F,
}

impl<F: FnMut(usize, &Member) -> Vec<Tensor>> Instance for Puppet<F> {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        replies.inputs_ready();
        match self.end {
            End::Panic => std::panic::panic_any(PANIC),
            End::Failure | End::Never => return Err(Error::new(Kind::Backend, "the puppet was told to fail")),
            End::Well => {}
        }
        let outputs: Vec<Vec<Tensor>> =
            batch.members.iter().enumerate().map(|(index, member)| (self.outputs)(index, member)).collect();
        replies.outputs_ready();
        if self.whole {
            return replies.batch(joined(&outputs));
        }
        outputs.into_iter().enumerate().try_for_each(|(index, outputs)| replies.member(index, outputs))
    }
}

/// The outputs of a batch, made of its members'.
fn joined(members: &[Vec<Tensor>]) -> Vec<Tensor> {
    let output = |index: usize| {
        let parts = members.iter().map(|outputs| &outputs[index]);
        let rows = parts.clone().map(|part| part.shape[0]).sum();
        let data: Vec<u8> = parts.flat_map(|part| part.data.iter().copied()).collect();
        let first = &members[0][index];
        Tensor::new(first.dtype, first.shape.replace_rows(rows), data.into())
    };
    (0..members[0].len()).map(output).collect()
}

/// The tensors of request `id`: rows of so many copies of its id.
pub fn member(id: u64, rows: usize, width: usize) -> Member {
    Member::new(rows, vec![numbers(&[rows as i64, width as i64], &vec![id; rows * width])])
}

/// A tensor of these numbers.
pub fn numbers(shape: &[i64], values: &[u64]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(DataType::Uint64, Shape::new(shape), data.into())
}

/// Whose tensor this is.
pub fn id(tensor: &Tensor) -> u64 {
    tensor.data.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}
