//! What a load command brings instead of the repository's files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
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

/// The names of the directories for override files begin so.
const PREFIX: &str = "nereid-override-";
/// The file in one of them that is locked as long as it is needed.
const LOCK: &str = "lock";

/// A directory that holds override files until it is dropped.
pub(super) struct OverrideDir {
    path: PathBuf,
    /// Removed when dropped; only this process's user may look into it, and nobody can guess its name.
    _holder: tempfile::TempDir,
    _lock: File,
}

impl OverrideDir {
    /// Writes the files below a new directory of the system's temporary directory.
    pub(super) fn write(model: &str, files: &BTreeMap<String, Bytes>) -> Result<Self> {
        Self::write_in(&std::env::temp_dir(), model, files)
    }

    fn write_in(temporary: &Path, model: &str, files: &BTreeMap<String, Bytes>) -> Result<Self> {
        let failed = |error: io::Error| Error::internal(format!("cannot write override files: {error}"));
        let holder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(temporary).map_err(failed)?;
        let lock = locked(holder.path()).map_err(failed)?;
        let this = Self { path: holder.path().join("files").join(model), _holder: holder, _lock: lock };
        std::fs::create_dir_all(&this.path).map_err(failed)?;
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

/// A new file in `directory` that is locked by the time it has its name, so that nobody finds it unlocked before.
fn locked(directory: &Path) -> io::Result<File> {
    let unnamed = directory.join("new");
    let lock = File::create(&unnamed)?;
    // Where files cannot be locked, what a process leaves stays.
    if lock.try_lock().is_ok() {
        std::fs::rename(&unnamed, directory.join(LOCK))?;
    }
    Ok(lock)
}

/// Removes from the system's temporary directory what this user's servers that were killed during a load left there.
pub(super) fn remove_abandoned() {
    remove_abandoned_in(&std::env::temp_dir());
}

fn remove_abandoned_in(temporary: &Path) {
    let user = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        // Others may put there what they like.
        let is_own = || entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user);
        if !name.to_string_lossy().starts_with(PREFIX) || !is_own() {
            continue;
        }
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            match std::fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed override files of a server that was killed"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove override files"),
            }
        }
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

    #[test]
    fn only_what_a_killed_server_left_is_removed() {
        let temporary = tempfile::tempdir().expect("there is room");
        let place = |name: String, file: &str| {
            let path = temporary.path().join(name);
            std::fs::create_dir(&path).expect("there is room");
            std::fs::write(path.join(file), "").expect("there is room");
            path
        };
        let living = OverrideDir::write_in(temporary.path(), "m", &files(&["1/model.pt"])).expect("there is room");
        let abandoned = place(format!("{PREFIX}a"), LOCK);
        let not_locked_yet = place(format!("{PREFIX}b"), "new");
        let of_a_person = place("nereid-a".to_owned(), LOCK);
        std::os::unix::fs::symlink(&of_a_person, temporary.path().join(format!("{PREFIX}c"))).expect("there is room");
        remove_abandoned_in(temporary.path());
        assert!(!abandoned.exists());
        assert!(not_locked_yet.join("new").exists() && of_a_person.join(LOCK).exists());
        assert!(living.path().join("1/model.pt").exists());
        drop(living);
        assert_eq!(std::fs::read_dir(temporary.path()).expect("a directory").count(), 3);
    }
}
