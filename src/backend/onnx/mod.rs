//! The `onnxruntime` backend: models in ONNX on the library of the same name, on the host's processors.
//!
//! From the bottom up: `runtime` finds and loads the library; `value` (tensors) and `session` make it safe;
//! `description` says what a file is, `complete`, `binding` and `options` hold a configuration against it, and `model` runs. Nothing
//! outside this folder knows the library. It is there only if somebody put it there (`scripts/setup-onnxruntime`, or
//! `--onnxruntime`): otherwise these models, and nothing else, fail to load.

mod binding;
mod complete;
mod description;
mod inspect;
mod model;
mod options;
mod runtime;
mod session;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::environment::Environment;

pub use self::inspect::inspect;

use self::description::Description;
use self::options::{Level, Options};
use self::session::{Session, Settings};
use super::{Backend, Model};
use crate::error::{Error, Result};
use crate::model::{Device, Footprint, ModelConfig, VersionFiles, schema};

/// Registers as `onnxruntime`.
#[derive(Clone, Debug, Default)]
pub struct Onnx {
    library: Option<PathBuf>,
}

/// The platform that clients see.
const PLATFORM: &str = "onnxruntime_onnx";

impl Onnx {
    /// Runs models with the library at this path; `None` to look where it usually is.
    pub fn new(library: Option<PathBuf>) -> Self {
        Self { library }
    }
}

impl Backend for Onnx {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        Some("model.onnx")
    }

    fn parameter_keys(&self) -> &'static [&'static str] {
        options::KEYS
    }

    fn check_parameters(&self, config: &schema::ModelConfig) -> Vec<(String, String)> {
        options::check(config)
    }

    fn completes_in(&self, files: &VersionFiles, config: &schema::ModelConfig) -> u64 {
        let read = files.model_file.as_deref().filter(|_| !complete::is_complete(config));
        read.map_or(0, |path| fs::metadata(path).map_or(0, |file| file.len() + beside(path)))
    }

    fn complete(&self, files: &VersionFiles, config: &mut schema::ModelConfig) -> Result<()> {
        config.backend = self.name().to_owned();
        config.platform = PLATFORM.to_owned();
        if complete::is_complete(config) {
            return Ok(());
        }
        let path = model_file(files, &config.name)?;
        let environment = runtime::environment(self.library.as_deref())?;
        let description = describe(&environment, path)
            .map_err(|error| error.context(format_args!("failed to load model '{}'", config.name)))?;
        complete::complete(&description, config)
    }

    fn estimate(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Footprint> {
        let path = model_file(files, &config.name)?;
        let own = fs::metadata(path).map_err(|_| unreadable(path, &config.name))?.len();
        Ok(Footprint::on(Device::Cpu, own + beside(path)))
    }

    fn open(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>> {
        let footprint = self.estimate(files, config)?;
        let environment = runtime::environment(self.library.as_deref())?;
        Ok(Arc::new(model::OnnxModel::open(&environment, model_file(files, &config.name)?, config, footprint)?))
    }
}

/// What a file says, which is opened only to be looked at.
fn describe(environment: &Environment, path: &Path) -> Result<Description> {
    let options = Options::parse(&BTreeMap::new())?;
    let session = Session::open(environment, path, &Settings { options, level: Level::None, threads: 1 })?;
    Ok(session.describe())
}

fn model_file<'a>(files: &'a VersionFiles, model: &str) -> Result<&'a Path> {
    let file = files.model_file.as_deref().ok_or_else(|| Error::invalid("a model in ONNX needs a model file"))?;
    if file.is_file() { Ok(file) } else { Err(unreadable(file, model)) }
}

/// The bytes of the other files beside the model's: large models keep their weights there.
fn beside(path: &Path) -> u64 {
    let Some(entries) = path.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return 0 };
    let others = entries.flatten().map(|entry| entry.path()).filter(|other| other != path);
    others.filter_map(|other| fs::metadata(other).ok()).filter(fs::Metadata::is_file).map(|file| file.len()).sum()
}

/// The error of a model file that is not there, named from the model's folder on.
fn unreadable(path: &Path, model: &str) -> Error {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let version = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    Error::unavailable(format!("unable to find '{model}/{version}/{file}' for model '{model}'"))
}
