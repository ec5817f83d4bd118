//! An open TorchScript model: one module on each device, shared by all instances there, and with models of equal files.
//!
//! Begin with [`TorchModel::open`].

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::binding::Binding;
use super::instance::{TorchInstance, Worker, load_failure};
use super::module::{Effects, Module};
use super::options::{self, Options};
use super::precision;
use super::shared::{Form, Opened, Share, Table};
use super::stream::Stream;
use super::{device, ffi, optimize};
use crate::backend::{Instance, Model, Paged, Spill};
use crate::error::{Error, Kind, Result};
use crate::model::{Device, Footprint, Instances, ModelConfig};

/// The weights of a model version.
pub struct TorchModel {
    config: Arc<ModelConfig>,
    binding: Arc<Binding>,
    options: Options,
    effects: Effects,
    modules: BTreeMap<Device, Share>,
    threads: usize,
}

impl TorchModel {
    /// Loads the file once for each device that has instances, or takes what `table` has of it.
    pub fn open(path: &Path, config: &ModelConfig, table: &Table) -> Result<Self> {
        let options = Options::parse(&config.parameters)?;
        let ignored = options::without_effect(&config.parameters);
        if !ignored.is_empty() {
            tracing::warn!(model = &*config.name, keys = ?ignored, "parameters without effect");
        }
        if !path.is_file() {
            return Err(unreadable(path, &config.name));
        }
        let mut model = Self {
            threads: threads_of(&config.instances, &options),
            config: Arc::new(config.clone()),
            binding: Arc::new(Binding { inputs: Vec::new(), as_dictionary: false, outputs: Vec::new() }),
            options,
            effects: Effects { inputs: true, state: true },
            modules: BTreeMap::new(),
        };
        for device in devices_of(config)? {
            let share = table.open(path, Form::of(&model.options, device), || model.load(path, device))?;
            model.binding = Arc::new(Binding::new(&model.config, &share.schema)?);
            model.effects = share.effects;
            model.tell_effects(device);
            model.modules.insert(device, share);
        }
        Ok(model)
    }

    /// The file's module as it is to be served.
    fn load(&self, path: &Path, device: Device) -> Result<Opened> {
        let before = ffi::thread_allocated();
        let module = Module::load(path, device).map_err(|error| load_failure(&self.config, &error))?;
        // This thread has read all of it, and what it has given back again does not count. What executions leave in
        // libtorch's libraries later, which they keep for each thread, is not the module's.
        let grown = before.zip(ffi::thread_allocated()).map_or(0, |(before, after)| after.wrapping_sub(before));
        let of_host = if device == Device::Cpu { sum_of_weights(&module, ffi::allocation_bytes)? } else { 0 };
        let skeleton = u64::try_from(grown.cast_signed()).unwrap_or_default().saturating_sub(of_host);
        let schema = module.schema().map_err(|error| load_failure(&self.config, &error))?;
        let binding = Arc::new(Binding::new(&self.config, &schema)?);
        let effects = module.effects().unwrap_or(self.effects);
        let (module, bytes) = precision::converted(module, self.options.precision, device, &self.config)?;
        device::begin_thread(device, self.threads)?;
        let plain = TorchInstance { binding, effects, ..self.instance_of(Arc::new(module), device) };
        precision::check(&plain, path)?;
        let module = match optimize::best(plain)? {
            Some(module) => module,
            None => {
                let module = Module::load(path, device).map_err(|error| load_failure(&self.config, &error))?;
                Arc::new(precision::converted(module, self.options.precision, device, &self.config)?.0)
            }
        };
        // Instances have streams of their own, on which nobody waits for this one.
        Stream::of_thread(device)?.wait()?;
        Ok(Opened { module, schema, effects, bytes, skeleton })
    }

    /// Says what costs memory or time because of what `forward` may write to.
    fn tell_effects(&self, device: Device) {
        let model = &*self.config.name;
        let instances = instances_on(&self.config.instances, device);
        if self.effects.state && instances > 1 {
            let reason = "forward may write to what the module holds";
            tracing::warn!(model, %device, instances, reason, "each instance has its own copy of the weights");
        }
        if self.effects.inputs {
            let reason = "forward may write to its inputs";
            tracing::info!(model, %device, reason, "inputs are copied before each execution");
        }
    }

    fn instance_of(&self, module: Arc<Module>, device: Device) -> TorchInstance {
        TorchInstance {
            module,
            config: Arc::clone(&self.config),
            binding: Arc::clone(&self.binding),
            effects: self.effects,
            options: self.options,
            device,
        }
    }
}

impl Model for TorchModel {
    /// What several versions share is the oldest one's; when that is unloaded, the next one's.
    fn footprint(&self) -> Footprint {
        let mut footprint = Footprint::default();
        for (&device, share) in &self.modules {
            footprint.add(&share.footprint());
            if self.effects.state {
                // A copy for each instance besides, so that no two threads write to one.
                footprint
                    .add(&Footprint::on(device, share.bytes * instances_on(&self.config.instances, device) as u64));
            }
        }
        footprint
    }

    fn can_have(&self, instances: &[Instances]) -> bool {
        // Each would have a copy of the state, and those that are there keep their threads.
        !self.effects.state && threads_of(instances, &self.options) == self.threads
    }

    fn paged(&self) -> Option<Paged> {
        // What instances have written to their copies is lost with them, as by an unload; that is left to an unload.
        if self.effects.state {
            return None;
        }
        let mut paged = Paged::default();
        for (&device, share) in &self.modules {
            let (footprint, spilled) = share.paged()?;
            paged.footprint.add(&footprint);
            paged.spilled += spilled;
            paged.resident.add(&Footprint::on(device, share.bytes));
        }
        Some(paged)
    }

    fn page_out(&self, spill: Option<&Arc<Spill>>) -> Result<()> {
        for (at, share) in self.modules.values().enumerate() {
            if let Err(error) = share.page_out(spill) {
                self.modules.values().take(at).try_for_each(Share::page_in)?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn page_in(&self) -> Result<()> {
        self.modules.values().try_for_each(Share::page_in)
    }

    fn keeps_outputs(&self) -> bool {
        true
    }

    fn instance(&self, device: Device) -> Result<Box<dyn Instance>> {
        device::begin_thread(device, self.threads)?;
        let shared = self.modules.get(&device).ok_or_else(|| {
            Error::new(Kind::Internal, format!("model '{}' was not loaded for device {device}", self.config.name))
        })?;
        let module = if self.effects.state { Arc::new(shared.module.copy()?) } else { Arc::clone(&shared.module) };
        Ok(Box::new(Worker::new(self.instance_of(module, device))?))
    }
}

/// The error of a model file that is not there, named from the model's folder on.
pub fn unreadable(path: &Path, model: &str) -> Error {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let version = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    Error::unavailable(format!("unable to find '{model}/{version}/{file}' for model '{model}'"))
}

/// The devices that the configuration has instances on, each once.
pub fn devices_wanted(config: &ModelConfig) -> Vec<Device> {
    let mut wanted: Vec<Device> = config.instances.iter().map(|group| group.device).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

fn devices_of(config: &ModelConfig) -> Result<Vec<Device>> {
    let wanted = devices_wanted(config);
    if wanted.iter().any(|device| *device != Device::Cpu) {
        let present = device::devices()?;
        if let Some(absent) = wanted.iter().find(|device| !present.contains(device)) {
            let message = format!("model '{}' wants device {absent}, which this machine does not have", config.name);
            return Err(Error::invalid(message));
        }
    }
    Ok(wanted)
}

fn instances_on(instances: &[Instances], device: Device) -> usize {
    instances.iter().filter(|group| group.device == device).map(|group| group.count).sum::<usize>().max(1)
}

/// Cores for one operation of one instance: as configured, else the host's, shared among the model's instances there.
fn threads_of(instances: &[Instances], options: &Options) -> usize {
    options.threads.unwrap_or_else(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (cores / instances_on(instances, Device::Cpu)).max(1)
    })
}

/// The bytes of the parameters and buffers; memory that several of them share counts once.
pub fn weight_bytes(module: &Module) -> Result<u64> {
    sum_of_weights(module, |bytes| bytes)
}

fn sum_of_weights(module: &Module, of: impl Fn(u64) -> u64) -> Result<u64> {
    let mut seen = HashSet::new();
    let weights = module.weights()?.into_iter().filter(|weight| seen.insert(weight.address));
    Ok(weights.map(|weight| of(weight.bytes)).sum())
}
