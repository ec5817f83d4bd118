//! Where a model version's files lie.

use std::path::PathBuf;

/// The paths that a backend may read for one version; whether they exist is the backend's to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionFiles {
    /// `<repository>/<model>`.
    pub model_dir: PathBuf,
    /// `<repository>/<model>/<version>`.
    pub version_dir: PathBuf,
    /// The model file inside `version_dir`, by configuration or by the backend's default; `None` if the backend needs
    /// no file.
    pub model_file: Option<PathBuf>,
}
