//! Looks at the model repositories: which models are there, which versions, and what was touched.
//!
//! Reads names, sizes and times, never contents. Begin with [`scan`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::remote;
use crate::error::{Error, Result};
use crate::model::Version;

/// Directories of a model that are not versions and are no cause for a warning.
const KNOWN_DIRECTORIES: [&str; 3] = ["warmup", "initial_state", "configs"];

/// How deep a model directory is looked into for changes.
const DEPTH_MAX: usize = 6;

/// How many files of one model are watched for changes.
const FILES_MAX: usize = 10_000;

/// One look at all repositories.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// The models by name.
    pub models: BTreeMap<String, ModelDir>,
    /// Models that are there and cannot be read, by name, each with the reason.
    pub unreadable: BTreeMap<String, String>,
    /// Models that are in more than one root, by name, each with the reason why that cannot be.
    pub duplicates: BTreeMap<String, String>,
    /// What was ignored and may be a mistake, one sentence each.
    pub warnings: Vec<String>,
    /// The names of the models in each root, in the order of the roots, or why it cannot be read.
    pub roots: Vec<Result<BTreeSet<String>>>,
}

/// One model's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDir {
    /// The directory's name, which is the model's.
    pub name: String,
    /// The directory.
    pub path: PathBuf,
    /// The versions that have a directory, ascending.
    pub versions: Vec<Version>,
    /// Changes when a file of the model changes.
    pub stamp: Stamp,
}

/// The times, sizes and identities of a model's files; equal as long as nothing was touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    files: BTreeMap<PathBuf, FileStamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: (i64, i64),
    bytes: u64,
    inode: (u64, u64),
}

/// Looks at every root; a model that is in two of them is unavailable.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if a root cannot be read.
pub fn scan(roots: &[PathBuf]) -> Result<Scan> {
    let found = scan_readable(roots);
    match found.roots.iter().find_map(|root| root.as_ref().err()) {
        Some(error) => Err(error.clone()),
        None => Ok(found),
    }
}

/// As [`scan`], but looks at the others if a root cannot be read.
pub(super) fn scan_readable(roots: &[PathBuf]) -> Scan {
    let mut found = Scan::default();
    let mut places: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for root in roots {
        let models = model_directories(root, &mut found.warnings);
        for (name, path) in models.iter().flatten() {
            places.entry(name.clone()).or_default().push(path.clone());
        }
        found.roots.push(models.map(|models| models.into_iter().map(|(name, _)| name).collect()));
    }
    for (name, paths) in places {
        if let [path] = paths.as_slice() {
            match look(&name, path, &mut found.warnings) {
                Ok(model) => {
                    found.models.insert(name, model);
                }
                Err(error) => {
                    found.unreadable.insert(name, format!("cannot read '{}': {error}", path.display()));
                }
            }
        } else {
            let paths: Vec<_> = paths.iter().map(|path| format!("'{}'", path.display())).collect();
            let reason = format!("model '{name}' is in more than one repository: {}", paths.join(", "));
            found.duplicates.insert(name, reason);
        }
    }
    found
}

/// The directory of one model in the roots, without looking at the others.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if `name` is no plain directory name or is in several roots,
/// [`crate::error::Kind::NotFound`] if it is in none, [`crate::error::Kind::Unavailable`] if it cannot be read.
pub fn find(roots: &[PathBuf], name: &str, warnings: &mut Vec<String>) -> Result<ModelDir> {
    check_name(name)?;
    let mut paths = roots.iter().map(|root| root.join(name)).filter(|path| path.is_dir());
    let Some(path) = paths.next() else {
        return Err(Error::not_found(format!("model '{name}' is in no model repository")));
    };
    if let Some(other) = paths.next() {
        return Err(Error::invalid(format!(
            "model '{name}' is in more than one repository: '{}', '{}'",
            path.display(),
            other.display()
        )));
    }
    look(name, &path, warnings)
        .map_err(|error| Error::unavailable(format!("cannot read '{}': {error}", path.display())))
}

/// Looks at one model's directory; what is ignored goes to `warnings`.
///
/// # Errors
/// If the directory cannot be read.
pub fn look(name: &str, path: &Path, warnings: &mut Vec<String>) -> io::Result<ModelDir> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let file_name = entry.file_name().to_string_lossy().into_owned();
        if file_name.starts_with('.') || !entry.path().is_dir() || KNOWN_DIRECTORIES.contains(&file_name.as_str()) {
            continue;
        }
        match version(&file_name) {
            Some(version) => versions.push(version),
            None => warnings.push(format!(
                "'{}' is ignored: a version directory is a positive integer without leading zero",
                entry.path().display()
            )),
        }
    }
    versions.sort_unstable();
    let mut stamp = Stamp::default();
    stamp.add(path, Path::new(""), 0);
    Ok(ModelDir { name: name.to_owned(), path: path.to_owned(), versions, stamp })
}

/// Refuses names that are not the name of one directory.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] for an empty name, one with a separator, or a hidden one.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        let shown = name.escape_debug();
        return Err(Error::invalid(format!("invalid model name '{shown}': expected the name of a model directory")));
    }
    Ok(())
}

impl Stamp {
    /// Whether the files that all versions read are the same; configurations do not count.
    pub fn same_common_files(&self, other: &Stamp) -> bool {
        let is_common = |path: &Path| match path.components().next() {
            Some(Component::Normal(first)) => {
                let first = first.to_string_lossy();
                version(&first).is_none() && first != "config.pbtxt" && first != "configs"
            }
            _ => false,
        };
        self.files_where(is_common).eq(other.files_where(is_common))
    }

    /// Whether the files of a version are the same.
    pub fn same_version(&self, other: &Stamp, version: Version) -> bool {
        let directory = version.to_string();
        let is_inside = |path: &Path| path.starts_with(&directory);
        self.files_where(is_inside).eq(other.files_where(is_inside))
    }

    /// How many bytes the files of a version hold.
    pub fn bytes(&self, version: Version) -> u64 {
        let directory = version.to_string();
        self.files_where(|path| path.starts_with(&directory)).map(|(_, file)| file.bytes).sum()
    }

    fn files_where(&self, is_meant: impl Fn(&Path) -> bool) -> impl Iterator<Item = (&PathBuf, &FileStamp)> {
        self.files.iter().filter(move |(path, _)| is_meant(path))
    }

    fn add(&mut self, directory: &Path, relative: &Path, depth: usize) {
        // What cannot be read is left out; it comes in, as a change, once it can be.
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') || self.files.len() >= FILES_MAX {
                continue;
            }
            // A file in an object store, fetched or not: its link says which state of it this is.
            if let Some((first, second)) = remote::key_of_link(&entry.path()) {
                let stamp = FileStamp { modified: (0, 0), bytes: 0, inode: (first, second) };
                self.files.insert(relative.join(entry.file_name()), stamp);
                continue;
            }
            // Follows links, so that replacing the target of one is a change.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            let relative = relative.join(entry.file_name());
            if metadata.is_dir() {
                // A directory's own entry tells of versions that are empty.
                self.files.insert(relative.clone(), FileStamp { modified: (0, 0), bytes: 0, inode: (0, 0) });
                if depth < DEPTH_MAX {
                    self.add(&entry.path(), &relative, depth + 1);
                }
            } else {
                let stamp = FileStamp {
                    modified: (metadata.mtime(), metadata.mtime_nsec()),
                    bytes: metadata.len(),
                    inode: (metadata.dev(), metadata.ino()),
                };
                self.files.insert(relative, stamp);
            }
        }
    }
}

/// What lies in a root.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it cannot be read.
pub(super) fn entries(root: &Path) -> Result<fs::ReadDir> {
    fs::read_dir(root).map_err(|error| cannot_read(root, &error))
}

fn cannot_read(root: &Path, error: &io::Error) -> Error {
    Error::invalid(format!("cannot read model repository '{}': {error}", root.display()))
}

fn model_directories(root: &Path, warnings: &mut Vec<String>) -> Result<Vec<(String, PathBuf)>> {
    let mut models = Vec::new();
    for entry in entries(root)? {
        let entry = entry.map_err(|error| cannot_read(root, &error))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            warnings.push(format!("'{}' is ignored: a model name is valid UTF-8", path.display()));
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            models.push((name, path));
        } else {
            warnings.push(format!("'{}' is ignored: a model repository holds one directory per model", path.display()));
        }
    }
    models.sort();
    Ok(models)
}

fn version(name: &str) -> Option<Version> {
    let digits = !name.starts_with('0') && name.bytes().all(|byte| byte.is_ascii_digit());
    // Versions are signed 64-bit integers in the configuration and on the wire.
    name.parse::<i64>().ok().filter(|version| digits && *version > 0)?.try_into().ok()
}
