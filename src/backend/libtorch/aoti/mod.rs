//! The `torch_aoti` backend: packages of AOTInductor (`model.pt2`), models that torch has compiled to native code.
//!
//! A package is a shared library with weights. Loading it runs its code with the server's rights, and the code checks no
//! input: so it is loaded only if the operator allows that, only if it describes its inputs, and only checked inputs get to
//! it. From the bottom up: `archive` reads the file, `description` says what it takes, `processor` whether its instructions
//! are there, `binding` and `complete` hold a configuration against it; `ffi` and `package` call `shim_aoti.cpp`; `model`
//! loads and runs; [`inspect`] describes it to people. Everything before `package` runs nothing of the file.

pub(super) mod archive;
mod binding;
mod complete;
mod description;
pub(super) mod ffi;
mod inspect;
mod model;
mod package;
mod processor;

use std::fs;
use std::path::Path;
use std::sync::Arc;

pub use inspect::inspect;

use self::archive::Archive;
use self::description::Description;
use super::model::unreadable;
use crate::backend::{Backend, Model};
use crate::error::{Error, Result};
use crate::model::{Device, Footprint, ModelConfig, VersionFiles, schema};

/// Registers as `torch_aoti`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Aoti {
    allowed: bool,
}

/// The platform that clients see.
const PLATFORM: &str = "torch_aoti";

impl Aoti {
    /// Loads packages only if that is `allowed`.
    pub fn new(allowed: bool) -> Self {
        Self { allowed }
    }
}

impl Backend for Aoti {
    fn name(&self) -> &'static str {
        PLATFORM
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        Some("model.pt2")
    }

    fn complete(&self, files: &VersionFiles, config: &mut schema::ModelConfig) -> Result<()> {
        config.backend = self.name().to_owned();
        config.platform = PLATFORM.to_owned();
        let path = model_file(files, &config.name)?;
        let name = config.name.clone();
        let description = Archive::open(path).and_then(|mut archive| Description::read(&archive.metadata()?));
        description
            .and_then(|description| complete::complete(&description, config))
            .map_err(|error| error.context(format_args!("failed to load model '{name}'")))
    }

    fn estimate(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Footprint> {
        // The library copies the weights; the pages of its file, which stays mapped, the system takes back when it wants.
        let path = model_file(files, &config.name)?;
        let bytes = fs::metadata(path).map_err(|_| unreadable(path, &config.name))?.len();
        Ok(Footprint::on(Device::Cpu, bytes))
    }

    fn open(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>> {
        if !self.allowed {
            return Err(Error::unavailable(format!(
                "model '{}' is a package of AOTInductor, native code that would run with the server's rights: it is loaded \
                 only with --allow-aoti",
                config.name
            )));
        }
        let footprint = self.estimate(files, config)?;
        Ok(Arc::new(model::AotiModel::open(model_file(files, &config.name)?, config, footprint)?))
    }
}

fn model_file<'a>(files: &'a VersionFiles, model: &str) -> Result<&'a Path> {
    let file = files.model_file.as_deref().ok_or_else(|| Error::invalid("a package needs a model file"))?;
    if file.is_file() { Ok(file) } else { Err(unreadable(file, model)) }
}
