//! Fills what a configuration leaves out from the model file, by the reference server's rules. Pure.
//!
//! A model whose inputs and outputs all have a free first dimension takes batches; where the configuration gives no
//! maximum it is [`MAX_BATCH_SIZE`], and requests are batched. That dimension is not among the configured ones. Beyond
//! those rules, a written tensor with as many dimensions as the file's says that there is no batch dimension, and what
//! the server itself gives to a model of sequences is nothing that callers see.

use super::description::{Description, Outlet};
use crate::error::{Error, Result};
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::schema::{self, ModelConfig, ModelInput, ModelOutput, ModelTensorReshape};
use crate::model::written_type;

/// The most rows of one execution where only the file says that it takes batches: the reference server's default.
const MAX_BATCH_SIZE: i32 = 4;

/// Whether the configuration lists its inputs and its outputs, so that the file need not be read.
pub fn is_complete(config: &ModelConfig) -> bool {
    lists_inputs(config) && !config.output.is_empty()
}

/// Fills in inputs, outputs, and how many rows an execution takes.
///
/// # Errors
/// If the configuration asks for batches and the file takes none, or if a tensor cannot be one of the protocol.
pub fn complete(file: &Description, config: &mut ModelConfig) -> Result<()> {
    batching(file, config)?;
    let (of_sequences, batching) = (made_for_sequences(config), config.max_batch_size > 0);
    let shown = |outlet: &&Outlet| !outlet.optional && !of_sequences.contains(&outlet.name);
    if !lists_inputs(config) {
        let inputs = file.inputs.iter().filter(shown).map(|outlet| {
            let Form { data_type, dims, reshape } = form(outlet, batching, &config.name)?;
            Ok(ModelInput {
                name: outlet.name.clone(),
                data_type: data_type.into(),
                dims,
                reshape,
                ..Default::default()
            })
        });
        config.input = inputs.collect::<Result<_>>()?;
    }
    if config.output.is_empty() {
        let outputs = file.outputs.iter().filter(shown).map(|outlet| {
            let Form { data_type, dims, reshape } = form(outlet, batching, &config.name)?;
            Ok(ModelOutput {
                name: outlet.name.clone(),
                data_type: data_type.into(),
                dims,
                reshape,
                ..Default::default()
            })
        });
        config.output = outputs.collect::<Result<_>>()?;
    }
    Ok(())
}

fn lists_inputs(config: &ModelConfig) -> bool {
    !config.input.is_empty() || !config.batch_input.is_empty()
}

fn batching(file: &Description, config: &mut ModelConfig) -> Result<()> {
    let mut outlets = file.inputs.iter().filter(|input| !input.optional).chain(&file.outputs);
    if !outlets.all(Outlet::can_batch) {
        if config.max_batch_size == 0 {
            return Ok(());
        }
        return Err(Error::invalid(format!(
            "autofill failed for model '{}': model does not support batching while non-zero max_batch_size is specified",
            config.name
        )));
    }
    if config.max_batch_size == 0 && !is_written_in_full(file, config) {
        config.max_batch_size = MAX_BATCH_SIZE;
    }
    if config.max_batch_size > 1 && config.scheduling_choice.is_none() {
        config.scheduling_choice = Some(SchedulingChoice::DynamicBatching(schema::ModelDynamicBatching::default()));
    }
    Ok(())
}

/// Whether a tensor of the configuration has as many dimensions as the file's, so that none is the batch's.
fn is_written_in_full(file: &Description, config: &ModelConfig) -> bool {
    let inputs = config.input.iter().map(|input| (&input.name, input.dims.len()));
    let outputs = config.output.iter().map(|output| (&output.name, output.dims.len()));
    let mut written = inputs.chain(outputs);
    written.any(|(name, rank)| {
        let mut outlets = file.inputs.iter().chain(&file.outputs);
        outlets.any(|outlet| outlet.name == *name && outlet.dims.len() == rank)
    })
}

/// The names of the tensors by which the server and a model of sequences speak to each other.
fn made_for_sequences(config: &ModelConfig) -> Vec<String> {
    let Some(SchedulingChoice::SequenceBatching(batching)) = &config.scheduling_choice else { return Vec::new() };
    let controls = batching.control_input.iter().map(|control| control.name.clone());
    let states = batching.state.iter().flat_map(|state| [state.input_name.clone(), state.output_name.clone()]);
    controls.chain(states).collect()
}

/// What a configuration says about a tensor besides its name.
struct Form {
    data_type: schema::DataType,
    dims: Vec<i64>,
    reshape: Option<ModelTensorReshape>,
}

/// An outlet without its batch dimension. No dimension at all is one of size 1 in a configuration.
fn form(outlet: &Outlet, batching: bool, model: &str) -> Result<Form> {
    let Some(dtype) = outlet.dtype else {
        let message = format!("autofill failed for model '{model}': '{}' has type {}", outlet.name, outlet.kind);
        return Err(Error::invalid(message));
    };
    let data_type = written_type(dtype);
    let dims = outlet.dims[usize::from(batching)..].to_vec();
    if !dims.is_empty() {
        return Ok(Form { data_type, dims, reshape: None });
    }
    let reshape = batching.then(ModelTensorReshape::default);
    Ok(Form { data_type, dims: vec![1], reshape })
}

#[cfg(test)]
#[path = "complete_tests.rs"]
mod tests;
