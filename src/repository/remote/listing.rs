//! What lies in a remote repository, by its store's own account: models, their files, and what identifies each state.

use std::collections::{BTreeMap, BTreeSet};

use object_store::ObjectMeta;
use ring::digest;
use serde::{Deserialize, Serialize};

use super::checksum::hex;
use super::place::Place;

/// How many objects of one repository are looked at.
pub(super) const OBJECTS_MAX: usize = 1_000_000;

/// The longest name of a file on Linux.
const NAME_BYTES_MAX: usize = 255;

/// The models of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    pub(super) models: BTreeMap<String, Model>,
    /// Objects beside the models, by their names.
    pub(super) strays: BTreeSet<String>,
}

/// One model's files, by their paths below the model's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Model {
    pub(super) files: BTreeMap<String, Object>,
    /// Directories, those without files included.
    pub(super) directories: BTreeSet<String>,
}

/// One state of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// The whole path inside the bucket.
    pub(super) path: String,
    pub(super) bytes: u64,
    /// The ETag without its quotes, or the time of the last change where a store has none.
    pub(super) tag: String,
}

/// Names one state of one object in the cache: 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// A file name of the cache as a key.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        let is_key = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_key.then(|| Self(name.to_owned()))
    }
}

impl Object {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let tag = meta.e_tag.as_deref().map(bare).map_or_else(|| meta.last_modified.to_rfc3339(), str::to_owned);
        Self { path: meta.location.to_string(), bytes: meta.size, tag }
    }

    /// Where the cache has it; equal for all repositories of one bucket.
    pub(super) fn key(&self, place: &Place) -> Key {
        let root = place.root().to_string();
        let text = [root.as_str(), &self.path, &self.tag, &self.bytes.to_string()].join("\n");
        Key(hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()))
    }
}

/// An ETag without quotes: stores do not agree on whether listings have them.
fn bare(tag: &str) -> &str {
    tag.trim_start_matches("W/").trim_matches('"')
}

impl Listing {
    /// Sorts `objects`, whose paths begin with `prefix`, into models.
    pub(super) fn of(prefix: &str, objects: Vec<Object>) -> Self {
        let mut listing = Self::default();
        let mut markers = Vec::new();
        for object in objects {
            let rest = object.path.strip_prefix(prefix).unwrap_or(&object.path).trim_start_matches('/').to_owned();
            if !rest.split('/').all(is_file_name) {
                continue;
            }
            // Consoles and file systems on top of a store make objects without contents where they mean directories.
            if object.bytes == 0 && is_directory(&rest) {
                markers.push(rest);
                continue;
            }
            match rest.split_once('/') {
                Some((model, path)) => {
                    listing.models.entry(model.to_owned()).or_default().files.insert(path.to_owned(), object);
                }
                None => {
                    listing.strays.insert(rest);
                }
            }
        }
        for marker in markers {
            let (model, path) = marker.split_once('/').unwrap_or((&marker, ""));
            listing.models.entry(model.to_owned()).or_default().directories.extend(with_parents(path));
        }
        listing.models.values_mut().for_each(Model::complete);
        let Self { models, strays } = &mut listing;
        strays.retain(|name| !models.contains_key(name));
        listing
    }
}

/// Whether a part of a path can be the name of a file.
fn is_file_name(part: &str) -> bool {
    !["", ".", ".."].contains(&part) && part.len() <= NAME_BYTES_MAX && !part.contains('\0')
}

/// Whether an empty object of this path stands for a directory: a model's or a version's.
fn is_directory(path: &str) -> bool {
    match path.split_once('/') {
        None => true,
        Some((_, name)) => name.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// `path` and the directories above it, inside the model.
fn with_parents(path: &str) -> impl Iterator<Item = String> + '_ {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.filter(|end| *end > 0).map(|end| path[..end].to_owned())
}

impl Model {
    /// Adds the directories that files imply, and takes out the files that are directories.
    fn complete(&mut self) {
        for path in self.files.keys() {
            if let Some((above, _)) = path.rsplit_once('/') {
                self.directories.extend(with_parents(above));
            }
        }
        let directories = &self.directories;
        self.files.retain(|path, _| !directories.contains(path));
    }

    /// Whether a file belongs to a version, and if so to which.
    pub(super) fn version_of(path: &str) -> Option<&str> {
        let (first, _) = path.split_once('/')?;
        (!first.starts_with('0') && first.bytes().all(|byte| byte.is_ascii_digit())).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str, bytes: u64) -> Object {
        Object { path: path.to_owned(), bytes, tag: "t".to_owned() }
    }

    fn listing(objects: &[(&str, u64)]) -> Listing {
        Listing::of("models", objects.iter().map(|(path, bytes)| object(path, *bytes)).collect())
    }

    fn names<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
        names.into_iter().map(String::as_str).collect()
    }

    #[test]
    fn objects_become_models_with_files_and_directories() {
        let found = listing(&[("models/a/config.pbtxt", 9), ("models/a/1/deep/er/x", 1), ("models/readme", 3)]);
        assert_eq!(names(found.models["a"].files.keys()), ["1/deep/er/x", "config.pbtxt"]);
        assert_eq!(names(&found.models["a"].directories), ["1", "1/deep", "1/deep/er"]);
        assert_eq!(names(&found.strays), ["readme"]);
    }

    #[test]
    fn empty_objects_may_mean_directories() {
        let found = listing(&[
            ("models", 0),
            ("models/a", 0),
            ("models/a/1", 0),
            ("models/a/1/.keep", 0),
            ("models/a/extra", 0),
            ("models/a/extra/file", 1),
            ("models/b/2", 0),
            ("models/b/empty.txt", 0),
        ]);
        assert_eq!(names(&found.models["a"].directories), ["1", "extra"]);
        assert_eq!(names(found.models["a"].files.keys()), ["1/.keep", "extra/file"]);
        assert_eq!(names(&found.models["b"].directories), ["2"]);
        assert_eq!(names(found.models["b"].files.keys()), ["empty.txt"]);
        assert!(found.strays.is_empty(), "{:?}", found.strays);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_left_out() {
        let found =
            listing(&[("models/a/../../etc/passwd", 1), ("models/./a", 1), ("models/a//b", 1), ("models/a/b\0", 1)]);
        assert_eq!(found, Listing::default());
    }

    #[test]
    fn a_key_changes_with_everything_that_identifies_a_state() {
        let place = |text: &str| Place::parse(text).and_then(Result::ok).expect(text);
        let (one, other) = (place("s3://b/models"), place("s3://c/models"));
        let base = object("models/a/x", 1);
        let key = base.key(&one);
        assert_eq!(Key::of_name(key.as_str()), Some(key.clone()));
        assert_eq!(key, base.key(&place("s3://b")));
        for changed in
            [object("models/a/y", 1), object("models/a/x", 2), Object { tag: "u".to_owned(), ..base.clone() }]
        {
            assert_ne!(changed.key(&one), key);
        }
        assert_ne!(base.key(&other), key);
    }

    #[test]
    fn files_know_their_version() {
        for (path, version) in
            [("1/x", Some("1")), ("12/a/b", Some("12")), ("01/x", None), ("x", None), ("configs/1", None)]
        {
            assert_eq!(Model::version_of(path), version, "{path}");
        }
    }
}
