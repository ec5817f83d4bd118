//! What a load command brings instead of the repository's files.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::error::{Error, Result};

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
}

/// A directory that holds override files until it is dropped.
pub(super) struct OverrideDir {
    path: PathBuf,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl OverrideDir {
    /// Writes the files below a new directory of the system's temporary directory.
    pub(super) fn write(model: &str, files: &BTreeMap<String, Bytes>) -> Result<Self> {
        let unique = format!("nereid-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let this = Self { path: std::env::temp_dir().join(unique).join(model) };
        let failed = |error: std::io::Error| Error::internal(format!("cannot write override files: {error}"));
        std::fs::create_dir_all(&this.path).map_err(failed)?;
        for (name, content) in files {
            let relative = Path::new(name);
            if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(Error::invalid(format!("override file path '{name}' leads out of the model directory")));
            }
            let path = this.path.join(relative);
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

impl Drop for OverrideDir {
    fn drop(&mut self) {
        if let Some(parent) = self.path.parent()
            && let Err(error) = std::fs::remove_dir_all(parent)
        {
            tracing::warn!(%error, path = %parent.display(), "cannot remove override files");
        }
    }
}
