//! One thread's executions of a module: gather, run, take the outputs apart, check them.
//!
//! What a decoupled model returns is a list: each element is one response, in the form in which an ordinary model returns
//! its only one. Knows the batch and the configuration; does not know how the module came to be, nor who asked.

use std::sync::Arc;

use super::binding::{Binding, type_name};
use super::device;
use super::handle::Handle;
use super::message;
use super::module::{Effects, Input, Inputs, Module, Output, OutputValue, Returned, Run};
use super::options::Options;
use super::precision;
use crate::backend::{Instance, Replies};
use crate::error::{Error, Kind, Result};
use crate::model::{Device, ModelConfig, TensorSpec};
use crate::tensor::{Batch, DataType, Shape, Tensor, strings};

/// Everything that an execution needs besides its batch.
#[derive(Clone)]
pub struct TorchInstance {
    /// The weights and graph, shared with other instances unless it writes to its own state.
    pub module: Arc<Module>,
    /// The model's configuration.
    pub config: Arc<ModelConfig>,
    /// Which input is which argument.
    pub binding: Arc<Binding>,
    /// What an execution may write to.
    pub effects: Effects,
    /// The model's parameters.
    pub options: Options,
    /// Where it runs.
    pub device: Device,
}

impl Instance for TorchInstance {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let inputs = self.gather(batch)?;
        replies.inputs_ready();
        let returned =
            self.module.run(&self.how(), &inputs).map_err(|error| error.context("PyTorch execute failure"))?;
        drop(inputs);
        replies.outputs_ready();
        if self.config.decoupled {
            return self.respond(&returned, batch, replies);
        }
        let outputs = self.collect(returned.outputs()?, batch)?;
        drop(returned);
        self.clean()?;
        replies.batch(outputs)
    }
}

impl TorchInstance {
    /// Sends each element of the list that a decoupled model returned.
    fn respond(&self, returned: &Returned, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let mut items = returned.items()?;
        let last = items.pop();
        for item in items {
            let outputs = self.collect(item.outputs()?, batch)?;
            replies.send(0, outputs)?;
        }
        let last = last.map(|item| self.collect(item.outputs()?, batch)).transpose()?;
        self.clean()?;
        if let Some(outputs) = last {
            replies.member(0, outputs)?;
        }
        Ok(())
    }

    fn clean(&self) -> Result<()> {
        if self.options.cache_cleaning && self.device != Device::Cpu {
            device::empty_cuda_cache()?;
        }
        Ok(())
    }

    /// How this model is run.
    pub fn how(&self) -> Run {
        Run {
            device: self.device,
            inference_mode: self.options.inference_mode,
            optimized_executor: self.options.optimized_executor,
            as_dictionary: self.binding.as_dictionary,
            float_type: self.options.precision.float_type(),
        }
    }

    /// The batch as `forward`'s arguments. One that the requests left out has its default, else `None`; what follows a
    /// default is given by name.
    pub fn gather<'a>(&'a self, batch: &'a Batch) -> Result<Inputs<'a>> {
        let mut inputs = Vec::with_capacity(self.binding.inputs.len());
        let mut in_order = None;
        for bound in &self.binding.inputs {
            let index = bound.input;
            if batch.is_absent(index) {
                if bound.can_be_left_out {
                    in_order.get_or_insert(inputs.len());
                } else {
                    inputs.push((&*bound.name, Input::Nothing));
                }
                continue;
            }
            let input = if batch.dtype(index) == DataType::Bytes {
                // The framing was checked when the request came in.
                Input::Strings(batch.parts(index).flat_map(|part| strings::iter(part).flatten()).collect())
            } else {
                Input::Tensor(Handle::gathered(batch, index, !self.effects.inputs, self.device)?)
            };
            inputs.push((&*bound.name, input));
        }
        Ok(Inputs { in_order: in_order.unwrap_or(inputs.len()), list: inputs })
    }

    /// The configured outputs among what was returned, checked against the configuration.
    fn collect(&self, returned: Vec<Output>, batch: &Batch) -> Result<Vec<Tensor>> {
        let names: Vec<String> = returned.iter().map(|output| output.name.clone()).collect();
        let mut values: Vec<Option<OutputValue>> = returned.into_iter().map(|output| Some(output.value)).collect();
        let specs = &self.config.outputs;
        let mut outputs = Vec::with_capacity(specs.len());
        for (spec, position) in specs.iter().zip(self.binding.locate(specs, &names)) {
            let Some(position) = position else {
                let message = format!(
                    "The output {} in the model configuration refers to an output index which doesn't exist. This \
                     model has {} outputs",
                    spec.name,
                    values.len()
                );
                return Err(Error::new(Kind::Backend, message));
            };
            let value = values[position].take().ok_or_else(|| {
                Error::new(Kind::Backend, format!("output '{}' refers to the same value as another output", spec.name))
            })?;
            let tensor = self.tensor(outputs.len(), position, value, batch)?;
            self.check(spec, &tensor, batch.rows())?;
            outputs.push(tensor);
        }
        Ok(outputs)
    }

    /// A returned value as configured output `index`; it stays on the device if the batch wants that.
    fn tensor(&self, index: usize, position: usize, value: OutputValue, batch: &Batch) -> Result<Tensor> {
        let spec = &self.config.outputs[index];
        match value {
            OutputValue::Tensor(handle) => {
                let handle = precision::as_declared(handle, self.options.precision, spec.dtype)?;
                let copy = self.effects.state;
                let tensor = match batch.keeps(index) {
                    // The rows of several members are parted later.
                    true => {
                        let own = batch.lasts(index) && batch.members.len() == 1;
                        handle.into_resident(copy, own, batch.reads(index))
                    }
                    false => handle.into_tensor(copy),
                };
                tensor.map_err(|error| error.context(format_args!("output '{}'", spec.name)))
            }
            OutputValue::Strings(elements) => {
                let rows = (self.config.max_batch_rows > 0).then(|| batch.rows());
                let data = strings::encode(elements.iter().map(Vec::as_slice));
                Ok(Tensor::new(DataType::Bytes, strings_shape(spec, elements.len(), rows), data))
            }
            OutputValue::Other(kind) => {
                let message =
                    format!("output at index {position} must be of type Tensor or List[str], received {kind}");
                Err(Error::new(Kind::Backend, message))
            }
        }
    }

    /// Checks an output against the configuration.
    fn check(&self, spec: &TensorSpec, tensor: &Tensor, rows: usize) -> Result<()> {
        let batching = self.config.max_batch_rows > 0;
        if let Some(expected) = spec.dtype
            && expected != tensor.dtype
        {
            return Err(Error::invalid(format!(
                "configuration expects datatype {} for output '{}', model provides {}",
                type_name(spec.dtype),
                spec.name,
                type_name(Some(tensor.dtype))
            )));
        }
        if tensor.shape.is_empty() && (batching || spec.dims.as_ref().is_some_and(|dims| !dims.is_empty())) {
            return Err(Error::invalid(format!("output '{}' is a scalar which is not supported.", spec.name)));
        }
        let by_rows = !self.config.batch_outputs.iter().any(|output| output.targets.contains(&spec.name));
        if batching && by_rows && tensor.shape.first().copied() != i64::try_from(rows).ok() {
            let message = format!(
                "output '{}' has shape {} for a batch of {rows}, its first dimension must be the batch's",
                spec.name, tensor.shape
            );
            return Err(Error::new(Kind::Backend, message));
        }
        Ok(())
    }
}

/// The shape of a list of strings: as configured if that can hold them, else one dimension.
fn strings_shape(spec: &TensorSpec, elements: usize, rows: Option<usize>) -> Shape {
    let flat = Shape::new(&[elements as i64]);
    let Some(dims) = spec.model_dims() else { return flat };
    let shape = rows.map_or_else(|| dims.clone(), |rows| dims.with_rows(rows as i64));
    shape.resolved(elements).unwrap_or(flat)
}

/// The libtorch text of a load error, for the model's index entry.
pub fn load_failure(config: &ModelConfig, error: &Error) -> Error {
    Error::new(
        Kind::Internal,
        format!("failed to load model '{}': {}", config.name, message::one_line(error.message())),
    )
}
