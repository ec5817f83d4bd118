//! Mode `countdown`: a request is executed as often as its input says, for models with `iterative_sequence`.
//!
//! Input `IN` (INT32, dims 1: how often), output `OUT` (INT32, dims 1: how often it is still to be executed). The model
//! counts in a state with the input `COUNT_IN` and the output `COUNT`, and says by the output `DONE`, a state or an output,
//! when it is done (INT32, dims 1, each); the configuration has `sequence.done_output: DONE`. A request is executed at least
//! once.

use bytes::Bytes;

use crate::backend::Replies;
use crate::error::{Error, Result};
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::{ModelConfig, schema};
use crate::tensor::{Batch, DataType, Tensor};

/// What is wrong with a configuration for this mode, if anything.
pub(super) fn mistake(config: &schema::ModelConfig) -> Option<String> {
    let int32 = schema::DataType::TypeInt32;
    let input = config.input.iter().any(|input| input.name == "IN" && input.data_type() == int32 && input.dims == [1]);
    let output = |name: &str| config.output.iter().any(|output| output.name == name && output.data_type() == int32);
    let states = match &config.scheduling_choice {
        Some(SchedulingChoice::SequenceBatching(batching)) if batching.iterative_sequence => batching.state.as_slice(),
        _ => &[],
    };
    let state = |name: &str| states.iter().find(|state| state.output_name == name && state.data_type() == int32);
    let counts = state("COUNT").is_some_and(|state| state.input_name == "COUNT_IN" && state.dims == [1]);
    let right = input && output("OUT") && counts && (state("DONE").is_some() || output("DONE"));
    (!right).then(|| {
        "mode countdown needs 'iterative_sequence', the input IN, the output OUT, a state with the input COUNT_IN and the \
         output COUNT, and DONE as the output of another state or of the model, all TYPE_INT32 with dims 1"
            .to_owned()
    })
}

/// Where the tensors are in the model's order.
#[derive(Clone)]
pub(super) struct Countdown {
    input: usize,
    count: usize,
    outputs: Vec<Told>,
}

/// What an output tells.
#[derive(Clone, Copy)]
enum Told {
    Left,
    Count,
    Done,
}

impl Countdown {
    /// For a configuration without a [`mistake`].
    ///
    /// # Errors
    /// If a tensor is missing all the same, or there is another.
    pub(super) fn new(config: &ModelConfig) -> Result<Self> {
        let find = |name: &str| {
            let found = config.inputs.iter().position(|input| *input.name == *name);
            found.ok_or_else(|| Error::invalid(format!("model '{}' has no input '{name}'", config.name)))
        };
        let told = |name: &str| match name {
            "OUT" => Ok(Told::Left),
            "COUNT" => Ok(Told::Count),
            "DONE" => Ok(Told::Done),
            other => Err(Error::invalid(format!("mode countdown has no output '{other}'"))),
        };
        let outputs = config.outputs.iter().map(|output| told(&output.name)).collect::<Result<_>>()?;
        Ok(Self { input: find("IN")?, count: find("COUNT_IN")?, outputs })
    }

    /// One execution for each member.
    ///
    /// # Errors
    /// If the outputs are not taken.
    pub(super) fn run(&self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        replies.outputs_ready();
        for (index, member) in batch.members.iter().enumerate() {
            let (input, count) = (&member.inputs[self.input], word(&member.inputs[self.count]) + 1);
            let left = (word(input) - count).max(0);
            let output = |told: &Told| {
                Tensor::new(
                    DataType::Int32,
                    input.shape.clone(),
                    Bytes::copy_from_slice(
                        &match told {
                            Told::Left => left,
                            Told::Count => count,
                            Told::Done => i32::from(left == 0),
                        }
                        .to_le_bytes(),
                    ),
                )
            };
            replies.member(index, self.outputs.iter().map(output).collect())?;
        }
        Ok(())
    }
}

fn word(tensor: &Tensor) -> i32 {
    tensor.data.first_chunk().map_or(0, |word| i32::from_le_bytes(*word))
}
