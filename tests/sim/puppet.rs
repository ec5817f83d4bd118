//! What stands in for a model: gives each request its own bytes back, fails or panics as it is told.

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
}

/// An instance that ends its next execution as told.
pub struct Puppet(pub End);

impl Instance for Puppet {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        replies.inputs_ready();
        match self.0 {
            End::Panic => std::panic::panic_any(PANIC),
            End::Failure => Err(Error::new(Kind::Backend, "the puppet was told to fail")),
            End::Well => {
                replies.outputs_ready();
                for (index, member) in batch.members.iter().enumerate() {
                    replies.member(index, member.inputs.clone())?;
                }
                Ok(())
            }
        }
    }
}

/// The tensors of request `id`: rows of so many copies of its id.
pub fn member(id: u64, rows: usize, width: usize) -> Member {
    let data: Vec<u8> = std::iter::repeat_n(id.to_le_bytes(), rows * width).flatten().collect();
    let shape = Shape::new(&[rows as i64, width as i64]);
    Member { rows, inputs: vec![Tensor { dtype: DataType::Uint64, shape, data: data.into() }] }
}

/// Whose tensor this is.
pub fn id(tensor: &Tensor) -> u64 {
    tensor.data.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}
