//! An open ONNX model, and one thread's executions of it: gather, run, take the outputs, check them.
//!
//! Begin with [`OnnxModel::open`].

use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use ort::environment::Environment;

use super::binding::{Binding, type_name};
use super::options::{self, Level, Options};
use super::session::{Session, Settings};
use super::value::Value;
use crate::backend::{Instance, Model, Replies};
use crate::error::{Error, Kind, Result};
use crate::model::{Device, Footprint, ModelConfig};
use crate::tensor::{Batch, DataType, Shape, Tensor, strings};

/// The one session of a model version, shared by all its instances.
#[derive(Clone)]
pub struct OnnxModel {
    session: Arc<Session>,
    config: Arc<ModelConfig>,
    binding: Arc<Binding>,
    footprint: Footprint,
}

impl OnnxModel {
    /// Reads the file at `path` and holds `config` against it.
    pub fn open(environment: &Environment, path: &Path, config: &ModelConfig, footprint: Footprint) -> Result<Self> {
        if let Some(group) = config.instances.iter().find(|group| group.device != Device::Cpu) {
            return Err(Error::invalid(format!(
                "model '{}' wants device {}: models in ONNX run on the CPU only in this server version",
                config.name, group.device
            )));
        }
        let settings = settings(config)?;
        let ignored = options::without_effect(&config.parameters);
        if !ignored.is_empty() {
            tracing::warn!(model = &*config.name, keys = ?ignored, "parameters without effect");
        }
        let session = Session::open(environment, path, &settings)
            .map_err(|error| error.context(format_args!("failed to load model '{}'", config.name)))?;
        let binding = Binding::new(config, &session.describe())?;
        Ok(Self { session: Arc::new(session), config: Arc::new(config.clone()), binding: Arc::new(binding), footprint })
    }

    fn run(&self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let (names, inputs) = self.gather(batch)?;
        replies.inputs_ready();
        let wanted: Vec<&CStr> = self.binding.outputs.iter().map(|bound| bound.name.as_c_str()).collect();
        let returned = self.session.run((&names, &inputs), &wanted)?;
        replies.outputs_ready();
        let outputs = returned.into_iter().enumerate().map(|(index, value)| self.output(index, value, &inputs));
        replies.batch(outputs.collect::<Result<_>>()?)
    }

    /// The inputs of the whole batch, without those that the requests left out.
    fn gather(&self, batch: &Batch) -> Result<(Vec<&CStr>, Vec<Value>)> {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (index, bound) in self.binding.inputs.iter().enumerate().filter(|(index, _)| !batch.is_absent(*index)) {
            names.push(bound.name.as_c_str());
            let shape = if bound.scalar { Shape::new(&[]) } else { batch.shape(index) };
            values.push(match batch.dtype(index) {
                DataType::Bytes => {
                    // The framing was checked when the request came in.
                    let elements: Vec<&[u8]> =
                        batch.parts(index).flat_map(|part| strings::iter(part).flatten()).collect();
                    Value::strings(&shape, &elements)?
                }
                dtype => Value::over(dtype, &shape, &batch.gathered(index).data)?,
            });
        }
        Ok((names, values))
    }

    /// What the execution returned as configured output `index`, checked against the configuration.
    fn output(&self, index: usize, value: Value, inputs: &[Value]) -> Result<Tensor> {
        let spec = &self.config.outputs[index];
        let mut tensor =
            value.into_tensor(inputs).map_err(|error| error.context(format_args!("output '{}'", spec.name)))?;
        if let Some(expected) = spec.dtype.filter(|expected| *expected != tensor.dtype) {
            return Err(Error::new(
                Kind::Backend,
                format!(
                    "configuration expects datatype {} for output '{}', model provides {}",
                    type_name(expected),
                    spec.name,
                    type_name(tensor.dtype)
                ),
            ));
        }
        if self.binding.outputs[index].scalar && tensor.shape.is_empty() {
            tensor.shape = Shape::new(&[1]);
        }
        Ok(tensor)
    }
}

/// How the model's session works.
fn settings(config: &ModelConfig) -> Result<Settings> {
    let options = Options::parse(&config.parameters)?;
    let graph = config.schema.optimization.as_ref().and_then(|optimization| optimization.graph.as_ref());
    let level = Level::of(graph.map_or(0, |graph| graph.level));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let instances = config.instances.iter().map(|group| group.count).sum::<usize>().max(1);
    let threads = options.intra_threads.unwrap_or_else(|| options::threads(cores, instances));
    Ok(Settings { options, level, threads })
}

impl Model for OnnxModel {
    fn footprint(&self) -> Footprint {
        self.footprint.clone()
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        Ok(Box::new(self.clone()))
    }
}

impl Instance for OnnxModel {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        OnnxModel::run(self, batch, replies)
    }
}
