//! What a load command brings instead of the repository's files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::repository::is_inside;

/// A configuration and files that replace those of the repository for one load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The configuration as JSON.
    pub config: Option<String>,
    /// File contents by their path inside the model directory, such as `1/model.pt`; they replace the whole directory.
    pub files: BTreeMap<String, Bytes>,
}

impl Overrides {
    /// Whether nothing is overridden.
    pub fn is_empty(&self) -> bool {
        self.config.is_none() && self.files.is_empty()
    }

    /// Refuses files of more than `bytes_max` bytes in all.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] with both sizes.
    pub(super) fn check_size(&self, bytes_max: usize) -> Result<()> {
        let bytes: usize = self.files.values().map(Bytes::len).sum();
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the files of the load request have {bytes} bytes, at most {bytes_max} are allowed"
        )))
    }
}

/// A directory that holds override files until it is dropped.
pub(super) struct OverrideDir {
    path: PathBuf,
    /// Removed when dropped; only this process's user may look into it, and nobody can guess its name.
    _holder: tempfile::TempDir,
}

impl OverrideDir {
    /// Writes the files below a new directory of the system's temporary directory.
    pub(super) fn write(model: &str, files: &BTreeMap<String, Bytes>) -> Result<Self> {
        let failed = |error: std::io::Error| Error::internal(format!("cannot write override files: {error}"));
        let holder = tempfile::Builder::new().prefix("nereid-").tempdir().map_err(failed)?;
        let this = Self { path: holder.path().join(model), _holder: holder };
        std::fs::create_dir(&this.path).map_err(failed)?;
        for (name, content) in files {
            if name == "config.pbtxt" || name.starts_with("configs/") {
                tracing::warn!(
                    model,
                    "'file:{name}' of the load request is not read: the configuration is its parameter 'config'"
                );
            }
            if !is_inside(name) {
                return Err(Error::invalid(format!("override file path '{name}' leads out of the model directory")));
            }
            let path = this.path.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(failed)?;
            }
            std::fs::write(&path, content).map_err(failed)?;
        }
        Ok(this)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> BTreeMap<String, Bytes> {
        paths.iter().map(|path| ((*path).to_owned(), Bytes::from_static(b"x"))).collect()
    }

    #[test]
    fn a_configuration_among_the_files_is_said_not_to_be_read() {
        let log = tempfile::NamedTempFile::new().expect("there is room");
        let writer = std::sync::Mutex::new(log.reopen().expect("it is there"));
        let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || {
            OverrideDir::write("m", &files(&["1/config.pbtxt", "config.pbtxt", "configs/large.pbtxt"])).map(|_| ())
        })
        .expect("there is room");
        let log = std::fs::read_to_string(log.path()).expect("it is text");
        let told = |path: &str| log.contains(&format!("'file:{path}' of the load request is not read"));
        assert!(told("config.pbtxt") && told("configs/large.pbtxt") && !told("1/config.pbtxt"), "{log}");
    }
}
