//! The files that were fetched, kept on this machine: by state, verified, bounded, and shared by all servers of a user.
//!
//! `objects/ab/KEY` holds a file, `KEY.sum` beside it its SHA-256 and where it came from; `arriving/` what is not complete.
//! A file appears under its name by a rename, after its sum and both synced, so that whoever dies at any moment leaves
//! either a complete file or one that nobody looks at. Locks are those of the system, which ends them with a process: a
//! shared one on a file that is in use, an exclusive one on a file that arrives, on a directory of keys while one of them
//! is fetched, and on `lock` while room is made.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::checksum;
use super::listing::Key;
use crate::error::{Error, Result};

/// The name of the directory of complete files; [`super::key_of_link`] knows links into the cache by it.
pub(super) const OBJECTS: &str = "nereid-objects";

/// A directory of fetched files.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
    bytes_max: u64,
}

/// A file of the cache that is not removed as long as this is there.
#[derive(Debug)]
pub(super) struct Held {
    _file: File,
}

/// The right to fetch the files of some keys, of which the asked one is one.
pub(super) struct Turn {
    _directory: File,
}

/// A file that is being fetched.
pub(super) struct Arriving {
    pub(super) file: File,
    path: PathBuf,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// What room there is.
struct Room {
    bytes: u64,
    /// Complete files by the time of their last use.
    files: Vec<(SystemTime, u64, Key)>,
}

impl Cache {
    /// Uses `directory`, which is made if it is missing; no file may be added that would make it hold more than
    /// `bytes_max`.
    pub(super) fn open(directory: &Path, bytes_max: u64) -> Result<Self> {
        let cache = Self { directory: directory.to_owned(), bytes_max };
        let made = ["arriving", "listings", "trees", OBJECTS].iter().try_for_each(|name| make(&directory.join(name)));
        made.map_err(|error| cache.failed("make", &error))?;
        Ok(cache)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the file of `key` is, once it is there.
    pub(super) fn path(&self, key: &Key) -> PathBuf {
        self.shard(key).join(key.as_str())
    }

    fn shard(&self, key: &Key) -> PathBuf {
        self.directory.join(OBJECTS).join(&key.as_str()[..2])
    }

    fn sum_path(&self, key: &Key) -> PathBuf {
        self.shard(key).join(format!("{}.sum", key.as_str()))
    }

    fn failed(&self, what: &str, error: &io::Error) -> Error {
        Error::internal(format!("cannot {what} in the cache '{}': {error}", self.directory.display()))
    }

    /// Waits until no other server or thread fetches this file.
    pub(super) fn turn(&self, key: &Key) -> Result<Turn> {
        let wait = || -> io::Result<Turn> {
            make(&self.shard(key))?;
            let directory = File::open(self.shard(key))?;
            directory.lock()?;
            Ok(Turn { _directory: directory })
        };
        wait().map_err(|error| self.failed("wait", &error))
    }

    /// The file of `key` if it is there and is what was fetched. What is not is removed if there is a turn: without one,
    /// somebody may have put the right one in its place meanwhile.
    pub(super) fn hold(&self, key: &Key, bytes: u64, turn: Option<&Turn>) -> Result<Option<Held>> {
        self.try_hold(key, bytes, turn).map_err(|error| self.failed("read", &error))
    }

    fn try_hold(&self, key: &Key, bytes: u64, turn: Option<&Turn>) -> io::Result<Option<Held>> {
        let path = self.path(key);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        file.lock_shared()?;
        let metadata = file.metadata()?;
        // Removed between the opening and the lock.
        if metadata.nlink() == 0 {
            return Ok(None);
        }
        let sum = fs::read_to_string(self.sum_path(key)).unwrap_or_default();
        let right = metadata.len() == bytes && sum.get(..64) == Some(checksum::sha256(&file)?.as_str());
        if !right && turn.is_none() {
            return Ok(None);
        }
        if !right {
            tracing::warn!(file = %path.display(), "a file in the cache is not what was fetched, and is fetched again");
            remove(&path)?;
            return Ok(None);
        }
        // The time of the last use; another user's file has its own.
        let _ = File::open(self.sum_path(key)).and_then(|sum| sum.set_modified(SystemTime::now()));
        Ok(Some(Held { _file: file }))
    }

    /// A place for a file of `bytes`, for which files are removed that were not used for longest.
    ///
    /// # Errors
    /// If what is in use leaves no room, or the system gives none.
    pub(super) fn reserve(&self, key: &Key, bytes: u64) -> Result<Arriving> {
        self.reserve_by(key, bytes, allocate)
    }

    /// As [`Cache::reserve`], with what makes a file so many bytes long.
    fn reserve_by(&self, key: &Key, bytes: u64, allocate: impl Fn(&File, u64) -> io::Result<()>) -> Result<Arriving> {
        let failed = |error: io::Error| self.failed("write", &error);
        let lock = self.lock_all().map_err(failed)?;
        let mut room = self.room().map_err(failed)?;
        room.files.sort();
        let mut oldest = room.files.into_iter();
        while room.bytes.saturating_add(bytes) > self.bytes_max
            && let Some((_, freed, key)) = oldest.next()
        {
            if self.evict(&key).map_err(failed)? {
                room.bytes -= freed;
            }
        }
        if room.bytes.saturating_add(bytes) > self.bytes_max {
            return Err(Error::unavailable(format!(
                "the cache '{}' may hold {} bytes (--repository-cache-bytes): {bytes} more are needed, and {} are in use",
                self.directory.display(),
                self.bytes_max,
                room.bytes
            )));
        }
        let arriving = loop {
            let full = match self.arrive(key, |file| allocate(file, bytes)) {
                Err(error) if is_full(&error) => error,
                arrived => break arrived.map_err(failed),
            };
            // The disk has less room than the cache may take.
            if !self.could_hold(bytes, oldest.as_slice().iter().map(|(_, freed, _)| freed).sum()) {
                break Err(failed(full));
            }
            loop {
                let Some((_, _, key)) = oldest.next() else { return Err(failed(full)) };
                if self.evict(&key).map_err(failed)? {
                    break;
                }
            }
        };
        drop(lock);
        arriving
    }

    /// Whether the disk could hold so many bytes more without files of `freed` bytes. Where it does not tell, it could.
    fn could_hold(&self, bytes: u64, freed: u64) -> bool {
        let Ok(disk) = rustix::fs::statvfs(&self.directory) else { return true };
        disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(freed) >= bytes
    }

    fn arrive(&self, key: &Key, allocate: impl Fn(&File) -> io::Result<()>) -> io::Result<Arriving> {
        let named =
            tempfile::Builder::new().prefix(&key.as_str()[..16]).tempfile_in(self.directory.join("arriving"))?;
        named.as_file().lock()?;
        // Its length counts from now on, also for other servers.
        allocate(named.as_file())?;
        let (file, path) = named.keep().map_err(|error| error.error)?;
        Ok(Arriving { file, path })
    }

    /// Makes what arrived the file of `key`; `sha256` is that of its contents, `origin` for people.
    pub(super) fn keep(&self, arriving: Arriving, key: &Key, sha256: &str, origin: &str) -> Result<()> {
        let keep = || -> io::Result<()> {
            arriving.file.sync_all()?;
            replace(&self.sum_path(key), format!("{sha256}  {origin}\n").as_bytes())?;
            fs::rename(&arriving.path, self.path(key))?;
            File::open(self.shard(key))?.sync_all()
        };
        keep().map_err(|error| self.failed("write", &error))
    }

    /// The lock under which room is made and directories of processes come and go.
    pub(super) fn lock_all(&self) -> io::Result<File> {
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(self.directory.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Counts what there is, and removes what was left behind by processes that are gone.
    fn room(&self) -> io::Result<Room> {
        let mut room = Room { bytes: 0, files: Vec::new() };
        for entry in fs::read_dir(self.directory.join("arriving"))? {
            let path = entry?.path();
            match unused(&path)? {
                Some(_) => remove(&path)?,
                None => room.bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len()),
            }
        }
        for shard in fs::read_dir(self.directory.join(OBJECTS))? {
            let shard = shard?.path();
            for entry in fs::read_dir(&shard)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let Some(key) = Key::of_name(&name) else {
                    remove_orphan(&shard, &name)?;
                    continue;
                };
                let Ok(metadata) = entry.metadata() else { continue };
                let used = fs::metadata(self.sum_path(&key)).and_then(|sum| sum.modified());
                room.bytes += metadata.len();
                room.files.push((used.unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), key));
            }
        }
        Ok(room)
    }

    /// Removes a file unless somebody uses it.
    fn evict(&self, key: &Key) -> io::Result<bool> {
        let path = self.path(key);
        let Some(_lock) = unused(&path)? else { return Ok(!path.exists()) };
        remove(&path)?;
        let _ = fs::remove_file(self.sum_path(key));
        tracing::info!(file = %path.display(), "removed from the cache to make room");
        Ok(true)
    }

    /// What was said last by the store of a repository, if it was kept.
    pub(super) fn saved(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.listing_path(name)).ok()
    }

    /// Keeps what the store of a repository says, all at once.
    pub(super) fn save(&self, name: &str, contents: &[u8]) -> Result<()> {
        let save = || -> io::Result<()> {
            let _all = self.lock_all()?;
            replace(&self.listing_path(name), contents)?;
            // What somebody left who died in the line above.
            for entry in fs::read_dir(self.directory.join("listings"))?.flatten() {
                if entry.file_name().to_string_lossy().starts_with('.') {
                    let _ = fs::remove_file(entry.path());
                }
            }
            Ok(())
        };
        save().map_err(|error| self.failed("write", &error))
    }

    fn listing_path(&self, name: &str) -> PathBuf {
        self.directory.join("listings").join(format!("{name}.json"))
    }
}

/// The file with an exclusive lock if nobody has one; `None` if somebody has, or it is gone.
fn unused(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes a file, unless another server or thread was faster.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes an empty file `bytes` long, on the disk where the file system can say at once whether there is room.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    if bytes > 0 {
        let allocated = rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes));
        match allocated {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            allocated => return Ok(allocated?),
        }
    }
    file.set_len(bytes)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Removes a sum without its file, unless somebody is about to bring the file.
fn remove_orphan(shard: &Path, name: &str) -> io::Result<()> {
    let is_sum = name.strip_suffix(".sum").is_some_and(|key| !shard.join(key).exists());
    if (is_sum || name.starts_with('.'))
        && let Some(_turn) = unused(shard)?
    {
        // Without its file still, now that nobody can bring it.
        if name.strip_suffix(".sum").is_none_or(|key| !shard.join(key).exists()) {
            let _ = fs::remove_file(shard.join(name));
        }
    }
    Ok(())
}

/// Makes a directory, and those above it, for this user only.
pub(super) fn make(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file beside its place, syncs it and moves it there.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".").tempfile_in(parent)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(digit: char) -> Key {
        Key::of_name(&digit.to_string().repeat(64)).expect("64 digits")
    }

    fn put(cache: &Cache, key: &Key, contents: &str) {
        let mut arriving = cache.reserve(key, contents.len() as u64).expect("there is room");
        arriving.file.write_all(contents.as_bytes()).expect("it is open");
        let sum = checksum::sha256(contents.as_bytes()).expect("memory can be read");
        let _turn = cache.turn(key).expect("nobody else fetches");
        cache.keep(arriving, key, &sum, "s3://b/x").expect("writable");
    }

    /// When a file was used last, counted from long ago.
    fn used(cache: &Cache, key: &Key, seconds: u64) {
        let sum = File::open(cache.sum_path(key)).expect("it was kept");
        sum.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).expect("it is ours");
    }

    fn cache(bytes_max: u64) -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().expect("there is room");
        let cache = Cache::open(directory.path(), bytes_max).expect("writable");
        (directory, cache)
    }

    #[test]
    fn what_was_kept_is_found_again_and_only_as_it_was() {
        let (directory, cache) = cache(100);
        put(&cache, &key('a'), "hello");
        let again = Cache::open(directory.path(), 100).expect("writable");
        assert!(again.hold(&key('a'), 5, None).expect("readable").is_some());
        assert!(again.hold(&key('b'), 5, None).expect("readable").is_none());
        for broken in ["hellO", "hell", "", "hello and more"] {
            fs::write(cache.path(&key('a')), broken).expect("it is ours");
            let turn = cache.turn(&key('a')).expect("nobody else has it");
            assert!(cache.hold(&key('a'), 5, None).expect("readable").is_none(), "{broken}");
            assert!(cache.path(&key('a')).exists(), "another may have brought it meanwhile");
            assert!(cache.hold(&key('a'), 5, Some(&turn)).expect("readable").is_none(), "{broken}");
            assert!(!cache.path(&key('a')).exists(), "{broken}");
            drop(turn);
            put(&cache, &key('a'), "hello");
        }
        fs::remove_file(cache.sum_path(&key('a'))).expect("it is there");
        assert!(cache.hold(&key('a'), 5, None).expect("readable").is_none());
    }

    #[test]
    fn room_is_made_by_removing_what_was_not_used_for_longest_and_is_not_in_use() {
        let (_directory, cache) = cache(12);
        for (at, digit) in ['a', 'b', 'c'].into_iter().enumerate() {
            put(&cache, &key(digit), "1234");
            used(&cache, &key(digit), at as u64);
        }
        let held = cache.hold(&key('a'), 4, None).expect("readable").expect("it is there");
        used(&cache, &key('a'), 0);
        put(&cache, &key('d'), "1234");
        let there = |digit| cache.path(&key(digit)).exists();
        assert_eq!([there('a'), there('b'), there('c'), there('d')], [true, false, true, true]);
        let error = cache.reserve(&key('e'), 9).err().expect("4 bytes are in use");
        assert!(error.message().ends_with("9 more are needed, and 4 are in use"), "{error}");
        drop(held);
        put(&cache, &key('e'), "123456789");
        assert!(!there('a'));
    }

    #[test]
    fn a_disk_that_is_full_is_given_what_nobody_uses() {
        let (_directory, cache) = cache(100);
        for (at, digit) in ['a', 'b', 'c'].into_iter().enumerate() {
            put(&cache, &key(digit), "1234");
            used(&cache, &key(digit), at as u64);
        }
        let _held = cache.hold(&key('a'), 4, None).expect("readable").expect("it is there");
        used(&cache, &key('a'), 0);
        let there = |digit| cache.path(&key(digit)).exists();
        // A disk with room for one file beside those that `is_left` says.
        let on_disk = |is_left: &dyn Fn() -> bool| {
            let full = || Err(io::Error::from(io::ErrorKind::StorageFull));
            cache.reserve_by(&key('d'), 4, |file, bytes| if is_left() { full() } else { allocate(file, bytes) })
        };
        let arriving = on_disk(&|| there('b')).expect("room can be made");
        assert_eq!([there('a'), there('b'), there('c')], [true, false, true]);
        drop(arriving);
        let error = on_disk(&|| there('a')).err().expect("it is in use");
        assert!(error.message().starts_with("cannot write in the cache '"), "{error}");
        assert_eq!([there('a'), there('c')], [true, false]);
        assert_eq!(fs::read_dir(cache.directory().join("arriving")).expect("a directory").count(), 0);
    }

    #[test]
    fn what_arrives_has_its_room_on_the_disk() {
        let (_directory, cache) = cache(1 << 20);
        let metadata = |digit, bytes| {
            let arriving = cache.reserve(&key(digit), bytes).expect("there is room");
            arriving.file.metadata().expect("it is open")
        };
        let large = metadata('a', 1 << 20);
        assert!(large.len() == 1 << 20 && large.blocks() * 512 >= 1 << 20, "{} blocks", large.blocks());
        assert_eq!(metadata('b', 0).len(), 0);
    }

    #[test]
    fn what_others_finish_meanwhile_is_no_error() {
        let (_directory, cache) = cache(1000);
        std::thread::scope(|scope| {
            for digit in ['a', 'b', 'c', 'd'] {
                let cache = &cache;
                scope.spawn(move || {
                    for _ in 0..500 {
                        drop(cache.reserve(&key(digit), 1).expect("there is room"));
                    }
                });
            }
        });
    }

    #[test]
    fn what_arrives_counts_until_its_process_is_gone() {
        let (directory, cache) = cache(10);
        let arriving = cache.reserve(&key('a'), 8).expect("there is room");
        let other = Cache::open(directory.path(), 10).expect("writable");
        assert!(other.reserve(&key('b'), 3).is_err());
        // As after kill -9: the file stays, the lock does not.
        fs::write(directory.path().join("arriving/half"), "1234567").expect("writable");
        assert!(other.reserve(&key('b'), 2).is_ok());
        assert!(!directory.path().join("arriving/half").exists());
        drop(arriving);
        assert!(other.reserve(&key('b'), 10).is_ok());
    }

    #[test]
    fn a_sum_without_its_file_is_removed_unless_the_file_is_being_fetched() {
        let (_directory, cache) = cache(10);
        put(&cache, &key('a'), "1234");
        fs::remove_file(cache.path(&key('a'))).expect("it is there");
        let turn = cache.turn(&key('a')).expect("nobody else fetches");
        drop(cache.reserve(&key('b'), 1).expect("there is room"));
        assert!(cache.sum_path(&key('a')).exists());
        drop(turn);
        drop(cache.reserve(&key('b'), 1).expect("there is room"));
        assert!(!cache.sum_path(&key('a')).exists());
    }
}
