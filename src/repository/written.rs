//! One model's configuration on its way: read, completed by its backend, finished.
//!
//! [`read`] gives a [`Written`]: names and backend are settled, so that the backend can complete its `schema`;
//! [`Written::finish`] then checks everything and gives what the server works with.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::bind::{Dialect, bind};
use super::files::is_inside;
use super::mistakes::{Findings, Mistake, Mistakes, Positions};
use super::roots::is_listed;
use super::version_policy::{Selected, select};
use super::{Facts, ModelDir, json, meant, normalise, pbtxt, validate};
use crate::error::Result;
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::{ModelConfig, Residency, Version, VersionFiles, schema};

/// The largest configuration that is read.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// Where a configuration comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// `config.pbtxt` of the model's directory; without one, the backend completes everything.
    File,
    /// `configs/NAME.pbtxt` if the model has it, otherwise `config.pbtxt`.
    Named(&'a str),
    /// Protobuf text that replaces the file.
    Text(&'a [u8]),
    /// JSON that replaces the file.
    Json(&'a str),
}

/// A configuration that was read and not yet checked.
#[derive(Clone, Debug)]
pub struct Written {
    /// The configuration; for the backend to complete.
    pub schema: schema::ModelConfig,
    /// What is suspicious but allowed.
    pub warnings: Mistakes,
    positions: Positions,
    directory: PathBuf,
}

/// A finished configuration.
#[derive(Debug)]
pub struct Finished {
    /// What the server works with.
    pub config: ModelConfig,
    /// What is suspicious but allowed, from reading on.
    pub warnings: Vec<Mistake>,
    /// Where each key was written, for mistakes that only other models show.
    pub positions: Positions,
}

/// Reads the configuration of `model` and settles its name, platform and backend.
///
/// # Errors
/// All mistakes: of syntax, names and types, of the backend's choice, and of the rules as far as they can be told.
pub fn read(model: &ModelDir, source: Source<'_>, facts: &Facts) -> Result<Written, Mistakes> {
    let (schema, positions, found) = match source {
        Source::File => read_file(&model.path, &model.path.join("config.pbtxt")),
        Source::Named(name) => {
            let named = model.path.join("configs").join(format!("{name}.pbtxt"));
            let file = if named.is_file() { named } else { model.path.join("config.pbtxt") };
            read_file(&model.path, &file)
        }
        Source::Text(text) => read_text(text, Path::new("config text")),
        Source::Json(text) => read_json(text),
    };
    let Findings { mut mistakes, warnings } = found;
    let Some(schema) = schema else { return mistakes.into_result(()).and(Err(Mistakes::default())) };
    let mut written = Written { schema, warnings, positions, directory: model.path.clone() };
    let misread = Misread::of(&mistakes);
    let names = normalise::names(&mut written.schema, model, &written.positions, facts);
    for mistake in names.iter().filter(|mistake| !misread.explains_backend(mistake)) {
        mistakes.push(mistake.clone());
    }
    if mistakes.is_empty() {
        return Ok(written);
    }
    // Nothing will be completed or finished, so that the rules are tried now, to tell all mistakes at once.
    let found = written.check(facts).mistakes;
    for mistake in found.iter().filter(|mistake| !misread.explains(mistake, &written.positions)) {
        mistakes.push(mistake.clone());
    }
    mistakes.into_result(written)
}

/// What could not be read, and so may be the cause of other mistakes.
struct Misread {
    keys: Vec<String>,
    /// Whether the model's maximum of rows is among them.
    max_batch_size: bool,
}

impl Misread {
    fn of(mistakes: &Mistakes) -> Self {
        let keys = mistakes.iter().flat_map(|mistake| {
            let around = mistake.key.rsplit_once('.').map(|(around, _)| around.to_owned());
            [around, Some(mistake.key.clone())]
        });
        let max_batch_size = mistakes.iter().any(|mistake| {
            [Some(&mistake.key), mistake.suggestion.as_ref()].into_iter().flatten().any(|key| key == "max_batch_size")
        });
        Self { keys: keys.flatten().collect(), max_batch_size }
    }

    /// Whether no backend is named only because its name was misread.
    fn explains_backend(&self, mistake: &Mistake) -> bool {
        let misread = |name: &str| self.keys.iter().any(|key| key == name);
        mistake.key == "backend" && (misread("backend") || misread("platform"))
    }

    /// Whether a broken rule may only be the consequence of something that was misread.
    fn explains(&self, mistake: &Mistake, positions: &Positions) -> bool {
        if self.keys.is_empty() {
            return false;
        }
        let inside = |key: &String| {
            mistake.key.strip_prefix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        // What a batch may be is held against the model's maximum.
        let of_batch = self.max_batch_size
            && ["dynamic_batching", "model_warmup", "sequence_batching", "reshape"]
                .iter()
                .any(|key| mistake.key.contains(key));
        of_batch || !positions.wrote(&mistake.key) || self.keys.iter().any(inside)
    }
}

/// Reads protobuf text; the configuration is `None` if the syntax is wrong.
pub(super) fn read_text(text: &[u8], file: &Path) -> (Option<schema::ModelConfig>, Positions, Findings) {
    let mut positions = Positions::of_text(file);
    if text.len() > CONFIG_BYTES_MAX {
        let message = format!("{} bytes are more than the limit of {CONFIG_BYTES_MAX}", text.len());
        let mistake = positions.mistake("", message);
        return (None, positions, Findings::from(mistake));
    }
    let (fields, faults) = pbtxt::parse(text);
    let (schema, mut found) = bind(fields, Dialect::Text, &mut positions);
    let right = faults.is_empty();
    for (key, fault) in faults {
        let mistake = positions.mistake(key, fault.message);
        found.mistakes.push(Mistake { position: Some(fault.at), ..mistake });
    }
    found.mistakes.sort();
    (right.then_some(schema), positions, found)
}

fn read_file(directory: &Path, path: &Path) -> (Option<schema::ModelConfig>, Positions, Findings) {
    let alone = Positions::of(path);
    let text = match read_bounded(path) {
        Ok(Some(text)) => text,
        Ok(None) => return (Some(schema::ModelConfig::default()), Positions::of(directory), Findings::default()),
        Err(message) => {
            let mistake = alone.mistake("", message);
            return (None, alone, Findings::from(mistake));
        }
    };
    read_text(&text, path)
}

fn read_json(text: &str) -> (Option<schema::ModelConfig>, Positions, Findings) {
    let mut positions = Positions::of(Path::new("config override"));
    if text.len() > CONFIG_BYTES_MAX {
        let message = format!("{} bytes are more than the limit of {CONFIG_BYTES_MAX}", text.len());
        let mistake = positions.mistake("", message);
        return (None, positions, Findings::from(mistake));
    }
    match json::parse(text) {
        Ok(fields) => {
            let (schema, found) = bind(fields, Dialect::Json, &mut positions);
            (Some(schema), positions, found)
        }
        Err(message) => {
            let mistake = positions.mistake("", message);
            (None, positions, Findings::from(mistake))
        }
    }
}

/// The file's bytes; `None` if there is no such file.
fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let mut text = Vec::new();
    file.take(CONFIG_BYTES_MAX as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() > CONFIG_BYTES_MAX {
        return Err(format!("the file is larger than the limit of {CONFIG_BYTES_MAX} bytes"));
    }
    Ok(Some(text))
}

/// The model file at `path`: a directory there stands for the file in it that has the backend's `default` name, and
/// holds what belongs to that, such as weights beside a model in ONNX.
fn within(path: PathBuf, default: Option<&str>) -> PathBuf {
    let inside = default.filter(|_| path.is_dir()).map(|name| path.join(name));
    inside.filter(|inside| is_listed(inside)).unwrap_or(path)
}

impl Written {
    /// Whether it is made of other models, so that no backend has a part in it.
    pub fn is_ensemble(&self) -> bool {
        matches!(self.schema.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_)))
    }

    /// How firmly the model is in memory.
    pub fn residency(&self) -> Residency {
        meant::residency(&self.schema)
    }

    /// The versions to serve of those that are `present`.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if none is left.
    pub fn versions(&self, present: &[Version]) -> Result<Selected> {
        select(&self.schema.name, self.schema.version_policy.as_ref(), present)
    }

    /// Where the files of a version lie.
    ///
    /// # Errors
    /// If the model file's name leads out of the version's directory: it must not even be looked at.
    pub fn files(&self, version: Version, facts: &Facts) -> Result<VersionFiles, Mistakes> {
        let name = &self.schema.default_model_filename;
        if !name.is_empty() && !is_inside(name) {
            let message = format!("file '{name}' must stay inside the version directory");
            return Err(self.positions.mistake("default_model_filename", message).into());
        }
        let version_dir = self.directory.join(version.to_string());
        let default = facts.backend(&self.schema.backend).and_then(|backend| backend.default_model_filename.as_deref());
        let name = match self.schema.default_model_filename.as_str() {
            "" => default,
            name => Some(name),
        };
        let model_file = name.map(|name| version_dir.join(name)).map(|path| within(path, default));
        Ok(VersionFiles { model_dir: self.directory.clone(), model_file, version_dir })
    }

    /// Fills in the defaults, checks everything, and gives what the server works with.
    ///
    /// # Errors
    /// All mistakes, in the order of the file.
    pub fn finish(mut self, facts: &Facts) -> Result<Finished, Mistakes> {
        let found = self.check(facts);
        self.warnings.extend(found.warnings);
        self.warnings.sort();
        found.mistakes.into_result(())?;
        normalise::defaults(&mut self.schema, facts);
        let config = meant::config(&self.schema, &self.directory, facts)
            .map_err(|(key, message)| Mistakes::from(self.positions.mistake(key, message)))?;
        let warnings = self.warnings.into_warnings(&self.positions);
        Ok(Finished { config, warnings, positions: self.positions })
    }

    /// Everything that is wrong or suspicious, as far as the configuration alone tells.
    fn check(&self, facts: &Facts) -> Findings {
        validate::validate(&self.schema, &self.positions, &self.directory, facts)
    }
}
