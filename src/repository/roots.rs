//! The model repositories of one server: directories, and object stores that are shown as directories.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::remote::{Files, Opener, Part, Place, Progress, Reading, Remote, RemoteSettings};
use super::scan::{self, ModelDir, Scan};
use crate::error::Result;
use crate::model::Version;

/// One repository as it is named in the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A directory on this machine.
    Directory(PathBuf),
    /// A path in an object store.
    Remote(Place),
}

/// All repositories; a clone is the same ones.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Where each repository is, or is shown.
    paths: Arc<[PathBuf]>,
    /// How each of them is named in the settings.
    names: Arc<[String]>,
    remotes: Arc<[Arc<Remote>]>,
}

impl From<Vec<PathBuf>> for Roots {
    /// Directories only.
    fn from(paths: Vec<PathBuf>) -> Self {
        let names = paths.iter().map(|path| path.display().to_string()).collect();
        Self { paths: paths.into(), names, remotes: Arc::new([]) }
    }
}

/// A model that was found, and stays as it is on the way to its files until this is dropped.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub dir: ModelDir,
    reading: Option<Reading>,
}

impl From<ModelDir> for Found {
    /// A directory of which all files are there.
    fn from(dir: ModelDir) -> Self {
        Self { dir, reading: None }
    }
}

impl Roots {
    /// Prepares all repositories; nothing is looked at yet. `runtime` makes the connections.
    ///
    /// # Errors
    /// If a cache cannot be written, or credentials cannot be read.
    pub fn open(roots: &[Root], settings: &RemoteSettings, runtime: &Handle) -> Result<Self> {
        let mut opener = Opener::default();
        let (mut paths, mut remotes) = (Vec::new(), Vec::new());
        for root in roots {
            paths.push(match root {
                Root::Directory(path) => path.clone(),
                Root::Remote(place) => {
                    let remote = Arc::new(opener.open(place, settings, runtime.clone())?);
                    remotes.push(remote.clone());
                    remote.root.clone()
                }
            });
        }
        let name = |root: &Root| match root {
            Root::Directory(path) => path.display().to_string(),
            Root::Remote(place) => place.to_string(),
        };
        Ok(Self { paths: paths.into(), names: roots.iter().map(name).collect(), remotes: remotes.into() })
    }

    /// Each repository by itself, with its name.
    pub fn each(&self) -> Vec<(String, Self)> {
        let one = |(path, name): (&PathBuf, &String)| {
            let remotes = self.remotes.iter().filter(|remote| remote.root == *path).cloned().collect();
            let (paths, names) = (Arc::new([path.clone()]), Arc::new([name.clone()]));
            (name.clone(), Self { paths, names, remotes })
        };
        self.paths.iter().zip(self.names.iter()).map(one).collect()
    }

    /// Looks at everything anew. Blocking.
    ///
    /// # Errors
    /// If a repository cannot be read.
    pub fn scan(&self) -> Result<Scan> {
        self.scan_not_older(Duration::ZERO)
    }

    /// As [`Roots::scan`], but what stores said not longer than `age_max` ago is not asked for again. Blocking.
    ///
    /// # Errors
    /// If a repository cannot be read.
    pub fn scan_not_older(&self, age_max: Duration) -> Result<Scan> {
        for remote in self.remotes.iter().filter(|remote| !remote.is_fresh(age_max)) {
            remote.refresh(None)?;
        }
        let mut found = scan::scan(&self.paths)?;
        found.warnings.extend(self.remotes.iter().flat_map(|remote| remote.warnings()));
        Ok(found)
    }

    /// Looks for one model. Blocking.
    ///
    /// # Errors
    /// As [`scan::find`]; also if a repository cannot be read.
    pub fn find(&self, name: &str, warnings: &mut Vec<String>) -> Result<Found> {
        scan::check_name(name)?;
        for remote in self.remotes.iter() {
            remote.refresh(Some(name))?;
        }
        // From here on, so that nothing changes between the look and the reading.
        let mut reading: Vec<Reading> = self.remotes.iter().map(|remote| remote.reading(name)).collect();
        let dir = scan::find(&self.paths, name, warnings)?;
        reading.retain(|reading| dir.path.starts_with(&reading.remote.root));
        Ok(Found { dir, reading: reading.pop() })
    }

    /// Ends everything that waits for an object store; for the end of the server.
    pub fn stop(&self) {
        self.remotes.iter().for_each(|remote| remote.stop());
    }

    /// How far the fetching of a model's files is; `None` if none are being fetched.
    pub fn progress(&self, name: &str) -> Option<Progress> {
        self.remotes.iter().find_map(|remote| remote.progress(name))
    }
}

impl Found {
    /// Fetches what belongs to no version, if anything must be fetched: configurations, labels, data. Blocking.
    ///
    /// # Errors
    /// If a file cannot be fetched.
    pub fn fetch_shared(&self) -> Result<Files> {
        self.fetch(Part::Shared)
    }

    /// Fetches the files of these versions, if anything must be fetched. Blocking.
    ///
    /// # Errors
    /// If a file cannot be fetched.
    pub fn fetch_versions(&self, versions: &[Version]) -> Result<Files> {
        self.fetch(Part::Versions(versions))
    }

    fn fetch(&self, part: Part<'_>) -> Result<Files> {
        match &self.reading {
            Some(reading) => reading.remote.fetch(&self.dir.name, part),
            None => Ok(Files::default()),
        }
    }
}

/// Whether a file is there, or will be once it is fetched.
pub(super) fn is_listed(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
