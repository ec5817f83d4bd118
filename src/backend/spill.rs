//! A directory for weights that are not used for now, on a machine whose memory they would be in otherwise.
//!
//! Each model's weights are one file without a name, so that nothing is left behind however the process ends. All files
//! together are bounded. What is read back soon comes from the system's page cache.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Where weights are written to.
#[derive(Debug)]
pub struct Spill {
    directory: PathBuf,
    bytes_max: u64,
    /// The bytes that files have or will have. Locked for an addition.
    used: Mutex<u64>,
}

/// Some model's weights; dropping it gives their room back.
#[derive(Debug)]
pub struct SpillFile {
    spill: Arc<Spill>,
    file: File,
    bytes: u64,
}

impl Spill {
    /// Files in this directory, of so many bytes together at most. The directory is looked at when the first is made.
    pub fn new(directory: PathBuf, bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { directory, bytes_max, used: Mutex::new(0) })
    }

    /// The bytes of all files.
    pub fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// Whether so many more bytes have room, if nothing else is written.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.used().checked_add(bytes).is_some_and(|sum| sum <= self.bytes_max)
    }

    /// Whether so many bytes have room when there is nothing else.
    pub fn could_hold(&self, bytes: u64) -> bool {
        bytes <= self.bytes_max
    }

    /// An empty file that will have so many bytes.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unavailable`] if there is no room, or the directory cannot be written to.
    pub fn file(self: &Arc<Self>, bytes: u64) -> Result<SpillFile> {
        let file = tempfile::tempfile_in(&self.directory).map_err(|error| self.failed(&error))?;
        let mut used = self.used.lock();
        if used.checked_add(bytes).is_none_or(|sum| sum > self.bytes_max) {
            let message = format!("{bytes} bytes have no room: {} of {} are used", *used, self.bytes_max);
            return Err(Error::unavailable(message));
        }
        *used += bytes;
        drop(used);
        Ok(SpillFile { spill: self.clone(), file, bytes })
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::unavailable(format!("cannot use '{}' for weights: {error}", self.directory.display()))
    }
}

impl SpillFile {
    /// Begins at its first byte.
    ///
    /// # Errors
    /// If the file cannot be used any more.
    pub fn rewind(&mut self) -> Result<()> {
        self.file.rewind().map_err(|error| self.spill.failed(&error))
    }
}

impl Read for SpillFile {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.file.read(room)
    }
}

impl Write for SpillFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        *self.spill.used.lock() -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_share_the_room_and_give_it_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let spill = Spill::new(directory.path().to_owned(), 10);
        let mut first = spill.file(6).expect("there is room");
        assert!(spill.has_room(4) && !spill.has_room(5) && !spill.has_room(u64::MAX));
        let full = spill.file(5).expect_err("it does not fit");
        assert_eq!(full.message(), "5 bytes have no room: 6 of 10 are used");
        first.write_all(b"weight").expect("there is a disk");
        first.rewind().expect("it is open");
        let mut back = Vec::new();
        first.read_to_end(&mut back).expect("it is open");
        assert_eq!(back, b"weight");
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0, "they have no names");
        drop(first);
        assert_eq!(spill.used(), 0);
    }

    #[test]
    fn a_directory_that_is_not_there_is_said_by_name() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let absent = directory.path().join("absent");
        let error = Spill::new(absent.clone(), 10).file(1).expect_err("it is not there");
        assert!(error.message().starts_with(&format!("cannot use '{}' for weights: ", absent.display())), "{error}");
    }
}
