//! A remote repository as a directory: a link into the cache for each object, whether it was fetched or not.
//!
//! What a link says names the state of the object, so that looking at the tree tells of changes without any download.
//! Each process has a tree of its own, which another one removes if this one could not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::cache::{Cache, make};
use super::listing::{Listing, Model};
use super::place::Place;
use crate::error::{Error, Result};

/// The directory in which this process keeps the trees of its repositories.
#[derive(Debug)]
pub(super) struct Trees {
    directory: PathBuf,
    /// Locked as long as this process lives.
    _lock: File,
}

impl Drop for Trees {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_file(lock_path(&self.directory));
    }
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.with_extension("lock")
}

impl Trees {
    /// Makes this process's directory, and removes those of processes that are gone.
    pub(super) fn open(cache: &Cache) -> Result<Self> {
        let trees = cache.directory().join("trees");
        let open = || -> io::Result<Self> {
            let _all = cache.lock_all()?;
            remove_abandoned(&trees)?;
            let prefix = format!("{}-", std::process::id());
            let (lock, path) = tempfile::Builder::new().prefix(&prefix).suffix(".lock").tempfile_in(&trees)?.keep()?;
            lock.lock()?;
            let directory = path.with_extension("");
            make(&directory)?;
            Ok(Self { directory, _lock: lock })
        };
        open().map_err(|error| Error::internal(format!("cannot write in '{}': {error}", trees.display())))
    }

    /// The root of a repository's tree, which no other repository's is inside of.
    pub(super) fn root(&self, place: &Place) -> io::Result<PathBuf> {
        let root = self.directory.join(place.directory()).join("@");
        make(&root)?;
        Ok(root)
    }
}

fn remove_abandoned(trees: &Path) -> io::Result<()> {
    for entry in fs::read_dir(trees)? {
        let path = entry?.path();
        let is_lock = path.extension().is_some_and(|extension| extension == "lock");
        // A process that ends at this moment removes its own.
        if is_lock && File::open(&path).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(path.with_extension(""));
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Makes the tree at `root` show `after` where it showed `before`; models for which `keep` holds stay as they are.
///
/// Returns what it shows now.
pub(super) fn show(
    root: &Path,
    before: &Listing,
    mut after: Listing,
    keep: impl Fn(&str) -> bool,
    link: impl Fn(&super::listing::Object) -> PathBuf,
) -> io::Result<Listing> {
    let names: BTreeSet<String> = before.models.keys().chain(after.models.keys()).cloned().collect();
    for name in names {
        let (old, new) = (before.models.get(&name), after.models.get(&name));
        if old == new {
            continue;
        }
        if keep(&name) {
            match old {
                Some(old) => after.models.insert(name, old.clone()),
                None => after.models.remove(&name),
            };
            continue;
        }
        let directory = root.join(&name);
        match new {
            None => fs::remove_dir_all(&directory)?,
            Some(new) => show_model(&directory, old.unwrap_or(&Model::default()), new, &link)?,
        }
    }
    Ok(after)
}

fn show_model(
    directory: &Path,
    before: &Model,
    after: &Model,
    link: impl Fn(&super::listing::Object) -> PathBuf,
) -> io::Result<()> {
    make(directory)?;
    for path in before.files.keys().filter(|path| !after.files.contains_key(*path)) {
        fs::remove_file(directory.join(path))?;
    }
    for path in before.directories.iter().rev().filter(|path| !after.directories.contains(*path)) {
        fs::remove_dir(directory.join(path))?;
    }
    for path in &after.directories {
        make(&directory.join(path))?;
    }
    for (path, object) in after.files.iter().filter(|(path, object)| before.files.get(*path) != Some(object)) {
        match symlink(link(object), directory.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Renamed, so that nobody finds the file missing.
                let beside = directory.join(format!(".new-{}", std::process::id()));
                symlink(link(object), &beside)?;
                fs::rename(&beside, directory.join(path))?;
            }
            made => made?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::listing::Object;
    use super::*;

    fn listing(objects: &[(&str, &str)]) -> Listing {
        let object = |(path, tag): &(&str, &str)| Object { path: (*path).to_owned(), bytes: 1, tag: (*tag).to_owned() };
        Listing::of("", objects.iter().map(object).collect())
    }

    fn target(object: &Object) -> PathBuf {
        PathBuf::from(format!("/{}", object.tag))
    }

    /// Every path below `root`, with what links say.
    fn seen(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut left = vec![root.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).expect("a directory").flatten() {
                let path = entry.path();
                let shown = path.strip_prefix(root).expect("below").display().to_string();
                match fs::read_link(&path) {
                    Ok(target) => found.push(format!("{shown} -> {}", target.display())),
                    Err(_) => {
                        found.push(shown);
                        left.push(path);
                    }
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_tree_follows_every_kind_of_change() {
        let root = tempfile::tempdir().expect("there is room");
        let show = |before: &Listing, after| {
            show(root.path(), before, after, |name| name == "busy", target).expect("writable")
        };
        let one = show(&Listing::default(), listing(&[("a/config", "1"), ("a/1/f", "2"), ("b/1/f", "3")]));
        assert_eq!(seen(root.path()), ["a", "a/1", "a/1/f -> /2", "a/config -> /1", "b", "b/1", "b/1/f -> /3"]);
        let two = show(&one, listing(&[("a/config", "1"), ("a/1/f", "9"), ("a/2/f", "4"), ("c/1", "5")]));
        assert_eq!(
            seen(root.path()),
            ["a", "a/1", "a/1/f -> /9", "a/2", "a/2/f -> /4", "a/config -> /1", "c", "c/1 -> /5"]
        );
        // A file becomes a directory, and a directory a file.
        let three = show(&two, listing(&[("a/config/x", "6"), ("a/1", "7")]));
        assert_eq!(seen(root.path()), ["a", "a/1 -> /7", "a/config", "a/config/x -> /6"]);
        show(&three, Listing::default());
        assert!(seen(root.path()).is_empty());
    }

    #[test]
    fn a_link_that_is_there_already_is_replaced() {
        let root = tempfile::tempdir().expect("there is room");
        let show = |after| show(root.path(), &Listing::default(), after, |_| false, target);
        show(listing(&[("a/1/f", "1"), ("a/config", "1")])).expect("writable");
        show(listing(&[("a/1/f", "2"), ("a/config", "1")])).expect("it replaces what is there");
        assert_eq!(seen(root.path()), ["a", "a/1", "a/1/f -> /2", "a/config -> /1"]);
    }

    #[test]
    fn a_model_that_is_being_read_stays_as_it_is() {
        let root = tempfile::tempdir().expect("there is room");
        let first = listing(&[("a/f", "1"), ("b/f", "1")]);
        let shown = show(root.path(), &Listing::default(), first.clone(), |_| false, target).expect("writable");
        let next = listing(&[("a/f", "2"), ("b/f", "2"), ("c/f", "2")]);
        let shown = show(root.path(), &shown, next.clone(), |name| name != "b", target).expect("writable");
        assert_eq!(seen(root.path()), ["a", "a/f -> /1", "b", "b/f -> /2"]);
        // What was left out is made good at the next look.
        let shown = show(root.path(), &shown, next.clone(), |_| false, target).expect("writable");
        assert_eq!((shown, seen(root.path()).len()), (next, 6));
    }

    #[test]
    fn a_repository_below_another_has_a_tree_beside_it() {
        let directory = tempfile::tempdir().expect("there is room");
        let trees = Trees::open(&Cache::open(directory.path(), 1).expect("writable")).expect("writable");
        let root = |text: &str| trees.root(&Place::parse(text).and_then(Result::ok).expect(text)).expect("writable");
        assert!(!root("s3://b/models").starts_with(root("s3://b")));
    }

    #[test]
    fn trees_of_processes_that_are_gone_are_removed_and_others_not() {
        let directory = tempfile::tempdir().expect("there is room");
        let cache = Cache::open(directory.path(), 1).expect("writable");
        let trees = directory.path().join("trees");
        let living = Trees::open(&cache).expect("writable");
        make(&trees.join("1-abc/s3/b")).expect("writable");
        fs::write(trees.join("1-abc.lock"), "").expect("writable");
        // As if its process removed it between two looks.
        symlink("gone", trees.join("2-abc.lock")).expect("writable");
        let other = Trees::open(&cache).expect("writable");
        fs::remove_file(trees.join("2-abc.lock")).expect("writable");
        assert_eq!(fs::read_dir(&trees).expect("a directory").count(), 4);
        assert!(living.directory.is_dir());
        drop((living, other));
        assert_eq!(fs::read_dir(&trees).expect("a directory").count(), 0);
    }
}
