//! The `pytorch` backend: TorchScript models on libtorch.
//!
//! From the bottom up: `shim.cpp` calls libtorch and catches what it throws, `ffi` finds and loads both, `failure` reads what it says; `device`, `handle`
//! (tensors), `staging` (their memory), `stream` (what is under way) and `module` make them safe; `binding` and `options`
//! read the configuration; `model`, `shared`, `storages`, `precision`, `optimize` and `instance` load, page and run;
//! [`aoti`] is a backend of its own, for models that torch has compiled to native code;
//! [`script`] makes model files and [`inspect`] describes them. Nothing outside this folder knows libtorch.
//!
//! `forward` of a decoupled model returns a list whose elements are the responses: each a tensor, tuple or dictionary of
//! the configured outputs. All of them are computed before the first is sent, because TorchScript has no generators.

pub mod aoti;
mod binding;
mod device;
mod failure;
mod ffi;
mod handle;
mod inspect;
mod instance;
mod message;
mod model;
mod module;
mod optimize;
mod options;
mod precision;
pub mod script;
mod shared;
mod staging;
mod storages;
mod stream;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use device::{cuda_allocated, cuda_memory, devices};
pub use ffi::use_mkl_fast_path;
pub use inspect::inspect;
pub use options::PRECISION;

use super::{Backend, Model};
use crate::error::{Error, Result};
use crate::model::{Device, Footprint, ModelConfig, VersionFiles, schema};

/// Registers as `pytorch`. Models that one such value opens share what is equal.
#[derive(Default)]
pub struct LibTorch {
    opened: shared::Table,
}

/// The platform that clients see.
const PLATFORM: &str = "pytorch_libtorch";

/// Loads libtorch now instead of with the first model.
///
/// # Errors
/// One line saying what is missing or wrong.
pub fn start() -> Result<()> {
    ffi::loaded().map(|_| ())
}

/// Gives memory that the allocators keep for later back, on the host and on devices. Worth it after an unload; takes
/// milliseconds.
pub fn release_unused() {
    ffi::purge();
    if let Err(error) = device::empty_cuda_cache() {
        tracing::warn!(%error, "the devices' allocator keeps its unused memory");
    }
}

impl Backend for LibTorch {
    fn name(&self) -> &'static str {
        "pytorch"
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        Some("model.pt")
    }

    fn uses_cuda(&self) -> bool {
        true
    }

    fn parameter_keys(&self) -> &'static [&'static str] {
        options::KEYS
    }

    fn check_parameters(&self, config: &schema::ModelConfig) -> Vec<(String, String)> {
        options::check(config)
    }

    fn completes_in(&self, files: &VersionFiles, config: &schema::ModelConfig) -> u64 {
        let read = files.model_file.as_deref().filter(|_| !lists_tensors(config));
        read.map_or(0, |path| std::fs::metadata(path).map_or(0, |file| file.len()))
    }

    fn complete(&self, files: &VersionFiles, config: &mut schema::ModelConfig) -> Result<()> {
        config.backend = self.name().to_owned();
        config.platform = PLATFORM.to_owned();
        if lists_tensors(config) {
            return Ok(());
        }
        let path = model_file(files)?;
        let schema = module::Module::load(path, Device::Cpu)
            .and_then(|module| module.schema())
            .map_err(|error| Error::internal(format!("failed to load model '{}': {}", config.name, error.message())))?;
        inspect::complete(&schema, config)
    }

    fn estimate(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Footprint> {
        let path = model_file(files)?;
        let bytes = std::fs::metadata(path).map_err(|_| model::unreadable(path, &config.name))?.len();
        let mut footprint = Footprint::default();
        for device in model::devices_wanted(config) {
            footprint.add(&Footprint::on(device, bytes));
        }
        Ok(footprint)
    }

    fn open(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>> {
        Ok(Arc::new(model::TorchModel::open(model_file(files)?, config, &self.opened)?))
    }
}

/// Whether the configuration says all that the model file would.
fn lists_tensors(config: &schema::ModelConfig) -> bool {
    !config.input.is_empty() && !config.output.is_empty()
}

fn model_file(files: &VersionFiles) -> Result<&Path> {
    let file: &Option<PathBuf> = &files.model_file;
    file.as_deref().ok_or_else(|| Error::invalid("a TorchScript model needs a model file"))
}
