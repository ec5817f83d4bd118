//! A directory for weights that are not used for now, on a machine whose memory they would be in otherwise.
//!
//! Each model's weights are one file without a name, so that nothing is left behind however the process ends. All files
//! together are bounded. What is read back soon comes from the system's page cache. A file whose weights are in memory
//! again is kept as long as nothing else needs its room: then they leave the next time without being written.

use std::collections::VecDeque;
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
    /// Locked for a few moves.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The bytes that files have or will have.
    used: u64,
    /// Files that nobody needs, with their bytes; the one that became spare first comes first.
    spare: VecDeque<(u64, File, u64)>,
    next_number: u64,
}

/// Some model's weights; dropping it gives their room back.
#[derive(Debug)]
pub struct SpillFile {
    spill: Arc<Spill>,
    /// `None` once it is spare.
    file: Option<File>,
    bytes: u64,
}

/// A file that is kept as long as its room is not needed; dropping it gives its room back.
#[derive(Debug)]
pub struct SpareFile {
    spill: Arc<Spill>,
    number: u64,
}

impl State {
    /// The bytes of files that somebody needs.
    fn needed(&self) -> u64 {
        self.used - self.spare.iter().map(|(_, _, bytes)| bytes).sum::<u64>()
    }

    fn remove_spare(&mut self, number: u64) -> Option<(File, u64)> {
        let at = self.spare.iter().position(|(other, ..)| *other == number)?;
        self.spare.remove(at).map(|(_, file, bytes)| (file, bytes))
    }
}

impl Spill {
    /// Files in this directory, of so many bytes together at most. The directory is looked at when the first is made.
    pub fn new(directory: PathBuf, bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { directory, bytes_max, state: Mutex::default() })
    }

    /// The bytes of all files.
    pub fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Whether so many more bytes have room, if nothing else is written.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.state.lock().needed().checked_add(bytes).is_some_and(|sum| sum <= self.bytes_max)
    }

    /// Whether so many bytes have room when there is nothing else.
    pub fn could_hold(&self, bytes: u64) -> bool {
        bytes <= self.bytes_max
    }

    /// An empty file that will have so many bytes; spare ones go for it.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unavailable`] if there is no room, or the directory cannot be written to.
    pub fn file(self: &Arc<Self>, bytes: u64) -> Result<SpillFile> {
        let file = tempfile::tempfile_in(&self.directory).map_err(|error| self.failed(&error))?;
        let mut dropped = Vec::new();
        let mut state = self.state.lock();
        while state.used.checked_add(bytes).is_none_or(|sum| sum > self.bytes_max) {
            let Some((_, spare, size)) = state.spare.pop_front() else {
                let message = format!("{bytes} bytes have no room: {} of {} are used", state.used, self.bytes_max);
                return Err(Error::unavailable(message));
            };
            state.used -= size;
            dropped.push(spare);
        }
        state.used += bytes;
        // To close a large file takes a while.
        drop(state);
        drop(dropped);
        Ok(SpillFile { spill: self.clone(), file: Some(file), bytes })
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
        let spill = self.spill.clone();
        self.open().and_then(|file| file.rewind()).map_err(|error| spill.failed(&error))
    }

    /// Nobody needs it for now: it goes if its room is needed, else it can be had again.
    pub fn spare(mut self) -> SpareFile {
        let spill = self.spill.clone();
        let mut state = spill.state.lock();
        let number = state.next_number;
        state.next_number += 1;
        if let Some(file) = self.file.take() {
            state.spare.push_back((number, file, self.bytes));
        }
        drop(state);
        SpareFile { spill, number }
    }

    fn open(&mut self) -> io::Result<&mut File> {
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SpareFile {
    /// The file as it was, if it is still there.
    pub fn take(self) -> Option<SpillFile> {
        let (file, bytes) = self.spill.state.lock().remove_spare(self.number)?;
        Some(SpillFile { spill: self.spill.clone(), file: Some(file), bytes })
    }
}

impl Drop for SpareFile {
    fn drop(&mut self) {
        let mut state = self.spill.state.lock();
        let removed = state.remove_spare(self.number);
        state.used -= removed.as_ref().map_or(0, |(_, bytes)| *bytes);
        drop(state);
        drop(removed);
    }
}

impl Read for SpillFile {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.open()?.read(room)
    }
}

impl Write for SpillFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open()?.flush()
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            self.spill.state.lock().used -= self.bytes;
        }
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
    fn a_spare_file_is_there_again_until_its_room_is_needed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let spill = Spill::new(directory.path().to_owned(), 10);
        let written = |text: &[u8]| {
            let mut file = spill.file(text.len() as u64).expect("there is room");
            file.write_all(text).expect("there is a disk");
            file.spare()
        };
        let (first, second) = (written(b"one"), written(b"four"));
        assert!(spill.used() == 7 && spill.has_room(10), "they are in nobody's way");
        let mut back = second.take().expect("nobody needed its room");
        back.rewind().expect("it is open");
        let mut text = String::new();
        back.read_to_string(&mut text).expect("it is open");
        assert_eq!((text.as_str(), spill.used()), ("four", 7));
        let third = spill.file(6).expect("the spare one goes");
        assert!(first.take().is_none());
        spill.file(1).expect_err("what is needed stays");
        let spare = third.spare();
        drop(back);
        assert_eq!(spill.used(), 6);
        drop(spare);
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
