//! Mode `repeat`: one response for each element of an input, as in the reference server's example of a decoupled model.
//!
//! Inputs `IN` (INT32, any number), `DELAY` (UINT32, as many: milliseconds before each response) and `WAIT` (UINT32, one:
//! milliseconds from the start for which the instance is busy at least). Outputs `OUT` (INT32, the element) and `IDX`
//! (UINT32, its position). The request ends without a response of its own. An instance repeats for one request at a
//! time, so responses of as many requests interleave as there are instances.

use std::time::Duration;

use bytes::Bytes;

use crate::backend::Replies;
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::model::{ModelConfig, schema};
use crate::tensor::{Batch, DataType, Shape, Tensor};

/// Each input with its type and whether it may have any number of elements, else one.
const INPUTS: [(&str, schema::DataType, bool); 3] = [
    ("IN", schema::DataType::TypeInt32, true),
    ("DELAY", schema::DataType::TypeUint32, true),
    ("WAIT", schema::DataType::TypeUint32, false),
];

const OUTPUTS: [(&str, schema::DataType); 2] =
    [("OUT", schema::DataType::TypeInt32), ("IDX", schema::DataType::TypeUint32)];

/// What is wrong with a configuration for this mode, if anything.
pub(super) fn mistake(config: &schema::ModelConfig) -> Option<String> {
    if !config.model_transaction_policy.is_some_and(|policy| policy.decoupled) {
        return Some("mode repeat needs model_transaction_policy { decoupled: true }".to_owned());
    }
    if config.max_batch_size > 0 {
        return Some("mode repeat needs max_batch_size: 0".to_owned());
    }
    let dims = |many: bool| if many { -1 } else { 1 };
    let inputs = INPUTS.iter().all(|(name, dtype, many)| {
        config
            .input
            .iter()
            .any(|input| input.name == *name && input.data_type() == *dtype && input.dims == [dims(*many)])
    });
    let outputs = OUTPUTS.iter().all(|(name, dtype)| {
        config.output.iter().any(|output| output.name == *name && output.data_type() == *dtype && output.dims == [1])
    });
    let right = inputs && outputs && config.input.len() == INPUTS.len() && config.output.len() == OUTPUTS.len();
    (!right).then(|| {
        "mode repeat needs the inputs IN (TYPE_INT32, dims -1), DELAY (TYPE_UINT32, dims -1) and WAIT (TYPE_UINT32, \
         dims 1), and the outputs OUT (TYPE_INT32, dims 1) and IDX (TYPE_UINT32, dims 1)"
            .to_owned()
    })
}

/// Where the tensors are in the model's order.
#[derive(Clone)]
pub(super) struct Repeat {
    input: usize,
    delay: usize,
    wait: usize,
    /// `OUT` is the first output, `IDX` the second.
    value_first: bool,
}

impl Repeat {
    /// For a configuration without a [`mistake`].
    ///
    /// # Errors
    /// If an input is missing all the same.
    pub(super) fn new(config: &ModelConfig) -> Result<Self> {
        let find = |name: &str| {
            let found = config.inputs.iter().position(|input| *input.name == *name);
            found.ok_or_else(|| Error::invalid(format!("model '{}' has no input '{name}'", config.name)))
        };
        let value_first = config.outputs.first().is_some_and(|output| &*output.name == "OUT");
        Ok(Self { input: find("IN")?, delay: find("DELAY")?, wait: find("WAIT")?, value_first })
    }

    /// Sends the responses of each member.
    ///
    /// # Errors
    /// If a member has not as many delays as elements, or once nobody takes its responses.
    pub(super) fn run(&self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let began = Instant::now();
        for (index, member) in batch.members.iter().enumerate() {
            let values = words(&member.inputs[self.input]);
            let delays = words(&member.inputs[self.delay]);
            if values.len() != delays.len() {
                return Err(Error::invalid(format!(
                    "expected as many elements of DELAY as of IN, got {} and {}",
                    delays.len(),
                    values.len()
                )));
            }
            for (position, (value, delay)) in values.iter().zip(delays).enumerate() {
                replies.pause(index, milliseconds(*delay))?;
                let position = u32::try_from(position).unwrap_or(u32::MAX).to_le_bytes();
                let (out, idx) = (one(DataType::Int32, *value), one(DataType::Uint32, position));
                replies.send(index, if self.value_first { vec![out, idx] } else { vec![idx, out] })?;
            }
            let wait = words(&member.inputs[self.wait]).first().map_or(Duration::ZERO, |wait| milliseconds(*wait));
            replies.pause(index, wait.saturating_sub(began.elapsed()))?;
        }
        Ok(())
    }
}

fn words(tensor: &Tensor) -> &[[u8; 4]] {
    tensor.data.as_chunks::<4>().0
}

fn milliseconds(word: [u8; 4]) -> Duration {
    Duration::from_millis(u32::from_le_bytes(word).into())
}

fn one(dtype: DataType, word: [u8; 4]) -> Tensor {
    Tensor::new(dtype, Shape::new(&[1]), Bytes::copy_from_slice(&word))
}
