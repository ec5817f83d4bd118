//! A package as a file: an archive that holds a library, what that needs, and metadata. Runs nothing of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::error::{Error, Result};

/// Where in the archive the model's files are, below a folder that has the archive's name.
const FOLDER: &str = "data/aotinductor/model";
/// The most bytes of metadata.
const METADATA_BYTES_MAX: u64 = 1 << 20;

/// An open package.
pub struct Archive {
    zip: ZipArchive<File>,
}

impl Archive {
    /// Opens the package at `path`.
    ///
    /// # Errors
    /// If it cannot be read, or is no archive, or not a whole one.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| broken(&ZipError::Io(error)))?;
        Ok(Self { zip: ZipArchive::new(file).map_err(|error| broken(&error))? })
    }

    /// What the builder wrote about the model.
    ///
    /// # Errors
    /// If it is missing, or is not text by text.
    pub fn metadata(&mut self) -> Result<BTreeMap<String, String>> {
        let name = self.named("wrapper_metadata.json")?;
        let file = self.zip.by_name(&name).map_err(|error| broken(&error))?;
        if file.size() > METADATA_BYTES_MAX {
            return Err(Error::invalid(format!("the package has {} bytes of metadata", file.size())));
        }
        let mut text = Vec::new();
        file.take(METADATA_BYTES_MAX).read_to_end(&mut text).map_err(|error| broken(&ZipError::Io(error)))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::invalid(format!("the package's metadata are wrong: {error}")))
    }

    /// Writes the model's library into `folder`, with what it looks for beside itself; its path there.
    ///
    /// # Errors
    /// If the archive has not exactly one library, is not whole, or the folder cannot hold it.
    pub fn unpack(&mut self, folder: &Path) -> Result<PathBuf> {
        let library = self.named(".so")?;
        let library = folder.join(base(&library).unwrap_or_default());
        for index in 0..self.zip.len() {
            let mut file = self.zip.by_index(index).map_err(|error| broken(&error))?;
            let Some(name) = of_model(file.name()).filter(|name| !name.ends_with(".cpp")) else { continue };
            let written = File::create(folder.join(name)).and_then(|mut to| io::copy(&mut file, &mut to));
            written.map_err(|error| broken(&ZipError::Io(error)))?;
        }
        Ok(library)
    }

    /// The one file of the model's whose name ends so.
    fn named(&self, end: &str) -> Result<String> {
        let mut names = self.zip.file_names().filter(|name| of_model(name).is_some_and(|name| name.ends_with(end)));
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name.to_owned()),
            (found, _) => {
                let count = if found.is_none() { "no" } else { "more than one" };
                Err(Error::invalid(format!("this is no package of AOTInductor: it has {count} {FOLDER}/*{end}")))
            }
        }
    }
}

/// The plain name of a file of the model's, by its path in the archive.
fn of_model(path: &str) -> Option<&str> {
    let (folder, name) = path.rsplit_once('/')?;
    let (_, inside) = folder.split_once('/')?;
    (inside == FOLDER && !name.is_empty() && name != "..").then_some(name)
}

fn base(path: &str) -> Option<&str> {
    path.rsplit('/').next()
}

fn broken(error: &ZipError) -> Error {
    Error::invalid(format!("the package cannot be read: {error}"))
}

#[cfg(test)]
pub mod tests {
    use std::io::Write as _;

    use zip::ZipWriter;
    use zip::write::FileOptions;

    use super::*;

    /// Writes an archive of these files.
    pub fn write(path: &Path, files: &[(&str, &[u8])]) {
        let mut zip = ZipWriter::new(File::create(path).expect("the folder is writable"));
        for (name, bytes) in files {
            zip.start_file(*name, FileOptions::default().compression_method(zip::CompressionMethod::Stored))
                .and_then(|()| Ok(zip.write_all(bytes)?))
                .expect("it is written");
        }
        zip.finish().expect("it is written");
    }

    const LIBRARY: &str = "m/data/aotinductor/model/a.wrapper.so";
    const METADATA: &str = "m/data/aotinductor/model/a.wrapper_metadata.json";

    fn refused(files: &[(&str, &[u8])], read: impl FnOnce(&mut Archive, &Path) -> Result<()>) -> String {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("model.pt2");
        write(&path, files);
        let mut archive = Archive::open(&path).expect("it is an archive");
        let target = folder.path().join("target");
        std::fs::create_dir(&target).expect("the folder is writable");
        let error = read(&mut archive, &target).expect_err("it is wrong");
        error.message().to_owned()
    }

    #[test]
    fn only_the_models_own_files_are_unpacked_and_only_into_the_folder() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("model.pt2");
        let inside = "m/data/aotinductor/model";
        let (json, source) = (format!("{inside}/a.wrapper.json"), format!("{inside}/a.wrapper.cpp"));
        let outside =
            ["m/data/aotinductor/model/../escaped", "/etc/escaped", "m/data/aotinductor/other/b.so", "../c.so"];
        let mut files: Vec<(&str, &[u8])> = outside.iter().map(|name| (*name, &b"x"[..])).collect();
        files.extend([(LIBRARY, &b"library"[..]), (METADATA, br#"{"a": "b"}"#), (&json, b"nodes"), (&source, b"code")]);
        write(&path, &files);
        let target = folder.path().join("target");
        std::fs::create_dir(&target).expect("the folder is writable");
        let mut archive = Archive::open(&path).expect("it is an archive");
        assert_eq!(archive.metadata().expect("there are some"), BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        let library = archive.unpack(&target).expect("it has a library");
        assert_eq!(std::fs::read(library).expect("it is there"), b"library");
        let names = |folder: &Path| {
            let entries = std::fs::read_dir(folder).expect("it is there").flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&target), ["a.wrapper.json", "a.wrapper.so", "a.wrapper_metadata.json"]);
        assert_eq!(names(folder.path()), ["model.pt2", "target"]);
    }

    #[test]
    fn what_is_no_package_is_an_error() {
        let metadata = |archive: &mut Archive, _: &Path| archive.metadata().map(|_| ());
        let unpack = |archive: &mut Archive, target: &Path| archive.unpack(target).map(|_| ());
        assert!(
            refused(&[("m/data.pkl", b"")], metadata).contains("it has no data/aotinductor/model/*wrapper_metadata")
        );
        assert!(refused(&[(METADATA, b"[]")], metadata).starts_with("the package's metadata are wrong"));
        assert!(refused(&[(METADATA, br#"{"a": 1}"#)], metadata).starts_with("the package's metadata are wrong"));
        assert!(refused(&[(METADATA, b"{}")], unpack).contains("it has no data/aotinductor/model/*.so"));
        let second = "m/data/aotinductor/model/b.so";
        assert!(refused(&[(LIBRARY, b""), (second, b"")], unpack).contains("more than one"));
        let long = vec![b' '; 2 << 20];
        assert_eq!(refused(&[(METADATA, &long)], metadata), "the package has 2097152 bytes of metadata");
    }

    #[test]
    fn an_archive_that_was_cut_or_spoiled_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let (whole, path) = (folder.path().join("whole"), folder.path().join("model.pt2"));
        write(&whole, &[(LIBRARY, &[7; 500]), (METADATA, b"{}")]);
        let whole = std::fs::read(whole).expect("it was written");
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("the folder is writable");
            assert!(Archive::open(&path).is_err(), "{length} of {} bytes", whole.len());
        }
        let mut spoiled = whole;
        spoiled[300] ^= 1;
        std::fs::write(&path, &spoiled).expect("the folder is writable");
        let error = Archive::open(&path).expect("the index is whole").unpack(folder.path()).expect_err("spoiled");
        assert!(error.message().contains("checksum"), "{error}");
    }
}
