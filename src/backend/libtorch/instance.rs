//! One thread's executions of a module: gather, run, take the outputs apart, wait for them, check them.
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
use super::staging::Staging;
use super::stream::{Arriving, Stream};
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

/// An instance on its own thread: how it executes, the memory that it uses again and again, and what it has started on its
/// device.
pub struct Worker {
    torch: TorchInstance,
    staging: Staging,
    stream: Stream,
}

impl Worker {
    /// One that has executed nothing yet, for the calling thread.
    pub fn new(torch: TorchInstance) -> Result<Self> {
        let (staging, stream) = (Staging::new(torch.device), Stream::of_thread(torch.device)?);
        Ok(Self { torch, staging, stream })
    }

    fn execute(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let Self { torch, staging, stream } = self;
        let failed = |error: Error| error.context("PyTorch execute failure");
        let inputs = torch.gather(batch, staging)?;
        replies.inputs_ready();
        let returned = torch.module.run(&torch.how(), &inputs).map_err(failed)?;
        drop(inputs);
        stream.mark().map_err(failed)?;
        let at_once = torch.config.decoupled || stream.is_past_mark().map_err(failed)?;
        if at_once {
            stream.wait_for_mark().map_err(failed)?;
            replies.outputs_ready();
        }
        if torch.config.decoupled {
            return torch.respond(&returned, batch, replies, stream);
        }
        // The outputs' copies are started while the computation goes on, so that the device need not wait for that.
        let outputs = torch.collect(returned.outputs()?, batch)?;
        drop(returned);
        if !at_once {
            stream.wait_for_mark().map_err(failed)?;
            replies.outputs_ready();
        }
        let outputs = torch.arrived(outputs, batch, stream)?;
        torch.clean()?;
        replies.batch(outputs)
    }
}

impl Instance for Worker {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let outcome = self.execute(batch, replies);
        if outcome.is_err()
            && let Err(error) = self.stream.wait()
        {
            // What was started may still read this memory.
            self.staging = Staging::new(self.torch.device);
            if error.kind() == Kind::DeviceLost {
                return Err(error);
            }
        }
        outcome
    }
}

impl TorchInstance {
    /// Sends each element of the list that a decoupled model returned.
    fn respond(&self, returned: &Returned, batch: &Batch, replies: &mut dyn Replies, stream: &Stream) -> Result<()> {
        let outputs = |item: Returned| self.arrived(self.collect(item.outputs()?, batch)?, batch, stream);
        let mut items = returned.items()?;
        let last = items.pop();
        for item in items {
            replies.send(0, outputs(item)?)?;
        }
        let last = last.map(outputs).transpose()?;
        self.clean()?;
        if let Some(outputs) = last {
            replies.member(0, outputs)?;
        }
        Ok(())
    }

    /// The outputs once they are there, checked against the configuration.
    fn arrived(&self, outputs: Vec<Arriving>, batch: &Batch, stream: &Stream) -> Result<Vec<Tensor>> {
        let outputs = stream.arrived(outputs)?;
        for (spec, output) in self.config.outputs.iter().zip(&outputs) {
            self.check(spec, output, batch.rows())?;
        }
        Ok(outputs)
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
    pub fn gather<'a>(&'a self, batch: &'a Batch, staging: &mut Staging) -> Result<Inputs<'a>> {
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
                Input::Tensor(Handle::gathered(batch, index, !self.effects.inputs, staging)?)
            };
            inputs.push((&*bound.name, input));
        }
        Ok(Inputs { in_order: in_order.unwrap_or(inputs.len()), list: inputs })
    }

    /// The configured outputs among what was returned, on their way.
    fn collect(&self, returned: Vec<Output>, batch: &Batch) -> Result<Vec<Arriving>> {
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
            outputs.push(self.tensor(outputs.len(), position, value, batch)?);
        }
        Ok(outputs)
    }

    /// A returned value as configured output `index`; it stays on the device if the batch wants that.
    fn tensor(&self, index: usize, position: usize, value: OutputValue, batch: &Batch) -> Result<Arriving> {
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
                    false => handle.into_host(copy),
                };
                tensor.map_err(|error| error.context(format_args!("output '{}'", spec.name)))
            }
            OutputValue::Strings(elements) => {
                let rows = (self.config.max_batch_rows > 0).then(|| batch.rows());
                let data = strings::encode(elements.iter().map(Vec::as_slice));
                let tensor = Tensor::new(DataType::Bytes, strings_shape(spec, elements.len(), rows), data);
                Ok(Arriving::new(tensor, None))
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
