//! An open package, and one thread's executions of it: check, gather, run, take the outputs.
//!
//! Begin with [`AotiModel::open`]. All instances share one copy of the weights.

use std::path::Path;
use std::sync::Arc;

use super::super::device;
use super::super::ffi::VERSION;
use super::super::handle::Handle;
use super::super::message;
use super::super::staging::Staging;
use super::super::stream::Stream;
use super::archive::Archive;
use super::binding::{Binding, Wanted};
use super::description::{BUILD, Description};
use super::package::Package;
use super::processor;
use crate::backend::{Instance, Model, Replies};
use crate::error::{Error, Kind, Result};
use crate::model::{Device, Footprint, Instances, ModelConfig, TensorSpec};
use crate::tensor::{Batch, DataType, Shape, Tensor};

/// Executions that may be under way besides one for each instance: those that were given up and do not end.
const SPARE_RUNNERS: usize = 4;
/// Threads of one operation. The code of a package that was built for more has no way to report an error from them.
const THREADS: usize = 1;

/// A package that is ready to run.
#[derive(Clone)]
pub struct AotiModel {
    config: Arc<ModelConfig>,
    description: Arc<Description>,
    binding: Arc<Binding>,
    package: Arc<Package>,
    /// How many it has runners for.
    instances: usize,
    footprint: Footprint,
}

/// An instance on its own thread, with the memory that it gathers inputs in.
struct Worker {
    model: AotiModel,
    staging: Staging,
    stream: Stream,
}

impl AotiModel {
    /// Holds `config` against the package at `path`, and then loads its code.
    pub fn open(path: &Path, config: &ModelConfig, footprint: Footprint) -> Result<Self> {
        let named = |error: Error| error.context(format_args!("failed to load model '{}'", config.name));
        only_what_a_package_can(config).map_err(named)?;
        let mut archive = Archive::open(path).map_err(named)?;
        let description = archive.metadata().and_then(|metadata| Description::read(&metadata)).map_err(named)?;
        runs_here(&description).map_err(named)?;
        let (inputs, outputs) = (config.inputs.iter(), config.outputs.iter());
        let (inputs, outputs): (Vec<_>, Vec<_>) =
            (inputs.map(|spec| wanted(config, spec)).collect(), outputs.map(|spec| wanted(config, spec)).collect());
        let rows = i64::try_from(config.max_batch_rows).unwrap_or(i64::MAX);
        let binding = Binding::new(&inputs, &outputs, rows, &description).map_err(named)?;
        let instances = count(&config.instances);
        let package = load(&mut archive, instances + SPARE_RUNNERS).map_err(named)?;
        Ok(Self {
            config: Arc::new(config.clone()),
            description: Arc::new(description),
            binding: Arc::new(binding),
            package: Arc::new(package),
            instances,
            footprint,
        })
    }
}

impl Instance for Worker {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        let Self { model, staging, stream } = self;
        let given: Vec<(DataType, Shape)> =
            model.binding.inputs.iter().map(|&index| (batch.dtype(index), batch.shape(index))).collect();
        model.description.check(&given)?;
        let inputs = model.binding.inputs.iter().map(|&index| Handle::gathered(batch, index, true, staging));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        replies.inputs_ready();
        // SAFETY: `gathered` makes dense tensors in host memory of the batch's types and shapes, which were checked.
        let outputs = unsafe { model.package.run(&inputs) }.map_err(execute_failure)?;
        drop(inputs);
        replies.outputs_ready();
        let mut outputs: Vec<Option<Handle>> = outputs.into_iter().map(Some).collect();
        let specs = model.config.outputs.iter().zip(&model.binding.outputs);
        let tensors = specs.map(|(spec, &number)| {
            let output = outputs.get_mut(number).and_then(Option::take);
            model.output(spec, number, output, stream)
        });
        replies.batch(tensors.collect::<Result<_>>()?)
    }
}

impl AotiModel {
    /// What the package gave as its output of this number, held against its description.
    fn output(&self, spec: &TensorSpec, number: usize, output: Option<Handle>, stream: &Stream) -> Result<Tensor> {
        let failed = |why: &str| Error::new(Kind::Backend, format!("output '{}' {why}", spec.name));
        let output = output.ok_or_else(|| failed("was not computed"))?;
        let tensor = output.into_host(false).and_then(|output| stream.arrived(vec![output]));
        let tensor = tensor.map_err(|error| error.context(format_args!("output '{}'", spec.name)))?.pop();
        let tensor = tensor.ok_or_else(|| failed("was not computed"))?;
        let described = &self.description.outputs[number];
        if tensor.dtype != described.dtype || tensor.shape.len() != described.dims.len() {
            let (dtype, shape) = (tensor.dtype, &tensor.shape);
            let shape_described = self.description.shape(described);
            return Err(failed(&format!(
                "is {dtype} of shape {shape}, the package describes it as {} of shape {shape_described}",
                described.dtype
            )));
        }
        Ok(tensor)
    }
}

impl Model for AotiModel {
    fn footprint(&self) -> Footprint {
        self.footprint.clone()
    }

    fn can_have(&self, instances: &[Instances]) -> bool {
        // More would wait for runners while their executions count as under way.
        count(instances) <= self.instances
    }

    fn instance(&self, device: Device) -> Result<Box<dyn Instance>> {
        // What the package leaves to libtorch's own operators is not to use more threads than the package does.
        device::begin_thread(device, THREADS)?;
        let (staging, stream) = (Staging::new(device), Stream::of_thread(device)?);
        Ok(Box::new(Worker { model: self.clone(), staging, stream }))
    }
}

/// The error of an execution. A package writes its own reasons to standard error, and libtorch then tells only where.
fn execute_failure(error: Error) -> Error {
    let what = "AOTInductor execute failure";
    match error.message().contains("API call failed") {
        true => {
            Error::new(error.kind(), format!("{what}: the package's code reports an error, and why on standard error"))
        }
        false => error.context(what),
    }
}

fn count(instances: &[Instances]) -> usize {
    instances.iter().map(|group| group.count).sum::<usize>().max(1)
}

/// Loads the code, from files that are gone afterwards.
fn load(archive: &mut Archive, runners: usize) -> Result<Package> {
    let failed = |error| Error::internal(format!("no folder to unpack the package into: {error}"));
    let folder = tempfile::Builder::new().prefix("nereid-aoti-").tempdir().map_err(failed)?;
    let library = archive.unpack(folder.path())?;
    Package::load(&library, runners).map_err(|error| load_failure(&error, folder.path()))
}

/// The error of a library in this folder. One that no code may be mapped from is usual for `/tmp` in containers.
fn load_failure(error: &Error, folder: &Path) -> Error {
    let mut told = message::one_line(error.message());
    if told.contains("failed to map segment") {
        let above = folder.parent().unwrap_or(folder).display();
        told.push_str(&format!("; if '{above}' is mounted 'noexec', set TMPDIR to a directory that is not"));
    }
    Error::new(error.kind(), told)
}

/// What the configuration asks for that no package does.
fn only_what_a_package_can(config: &ModelConfig) -> Result<()> {
    let wrong = |what: String| Err(Error::invalid(what));
    if let Some(group) = config.instances.iter().find(|group| group.device != Device::Cpu) {
        return wrong(format!("packages run on the CPU only in this server version, not on device {}", group.device));
    }
    if config.decoupled {
        return wrong("it cannot be decoupled: a package gives one response".to_owned());
    }
    match config.inputs.iter().find(|spec| spec.optional) {
        Some(spec) => wrong(format!("input '{}' cannot be optional: a package takes all of its inputs", spec.name)),
        None => Ok(()),
    }
}

/// Whether code that was built so can run in this process.
fn runs_here(package: &Description) -> Result<()> {
    let (major, minor) = VERSION;
    if !package.torch.starts_with(&format!("{major}.{minor}.")) {
        let message =
            format!("the package was built by torch {}, this server has {major}.{minor}: {BUILD}", package.torch);
        return Err(Error::invalid(message));
    }
    if package.device != "cpu" {
        let message = format!("the package was built for device '{}': {BUILD}", package.device);
        return Err(Error::invalid(message));
    }
    if package.threads != THREADS {
        let threads = package.threads;
        let why = "an error in one of them would end the server";
        return Err(Error::invalid(format!("the package was built for {threads} threads, and {why}: {BUILD}")));
    }
    processor::check(&package.instructions)
}

/// What the configuration says of a tensor, as far as it is the same in each execution.
fn wanted(config: &ModelConfig, spec: &TensorSpec) -> Wanted {
    let by_batch = config.batch_outputs.iter().any(|output| output.targets.contains(&spec.name));
    let dims = spec.model_dims().filter(|_| !spec.ragged && !by_batch);
    Wanted { name: spec.name.to_string(), dtype: spec.dtype, dims: dims.map(|dims| dims.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::super::description::tests::encoder;
    use super::*;

    #[test]
    fn code_that_cannot_run_here_is_refused() {
        assert!(runs_here(&encoder()).is_ok());
        let refused = |package: Description| runs_here(&package).expect_err("it cannot").message().to_owned();
        let other = Description { torch: "2.1.0".to_owned(), ..encoder() };
        assert!(refused(other).starts_with("the package was built by torch 2.1.0, this server has 2.11: build it"));
        assert!(refused(Description { torch: "2.110.0".to_owned(), ..encoder() }).contains("torch 2.110.0"));
        assert!(refused(Description { device: "cuda".to_owned(), ..encoder() }).contains("for device 'cuda'"));
        assert!(refused(Description { threads: 2, ..encoder() }).contains("for 2 threads"));
        assert!(refused(Description { instructions: "AVX1024".to_owned(), ..encoder() }).contains("AVX1024"));
    }

    #[test]
    fn an_error_of_the_packages_code_is_told_without_libtorchs_source() {
        let told = |text: &'static str| execute_failure(Error::new(Kind::Backend, text)).message().to_owned();
        let expected = "AOTInductor execute failure: the package's code reports an error, and why on standard error";
        assert_eq!(told("run_func_( container_handle_, x ) API call failed at runner.cpp, line 164"), expected);
        assert_eq!(
            told("expected inputs vector size to be 1"),
            "AOTInductor execute failure: expected inputs vector size to be 1"
        );
    }

    #[test]
    fn a_folder_that_no_code_may_be_mapped_from_is_told_with_what_helps() {
        let told = |text: &'static str| {
            let folder = Path::new("/tmp/nereid-aoti-x");
            load_failure(&Error::new(Kind::Backend, text), folder).message().to_owned()
        };
        assert_eq!(
            told("Error in dlopen: m.so: failed to map segment from shared object"),
            "Error in dlopen: m.so: failed to map segment from shared object; if '/tmp' is mounted 'noexec', set TMPDIR to a \
             directory that is not"
        );
        assert_eq!(told("no such symbol"), "no such symbol");
    }

    #[test]
    fn what_no_package_does_is_refused() {
        let mut config = ModelConfig::new("m", "torch_aoti");
        config.inputs = vec![TensorSpec { optional: true, ..TensorSpec::new("x", None, None) }];
        let refused =
            |config: &ModelConfig| only_what_a_package_can(config).expect_err("it cannot").message().to_owned();
        assert!(refused(&config).starts_with("input 'x' cannot be optional"));
        config.decoupled = true;
        assert!(refused(&config).starts_with("it cannot be decoupled"));
    }
}
