//! How far a load is: for how long it goes on, and how much of the model's files was read.
//!
//! What a loader thread has read is counted by the kernel (`/proc/thread-self/io`), so that it costs the load nothing;
//! where the kernel does not count, only the time is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::infer::Instant;
use crate::repository::Roots;

/// One load, from the moment it was asked for; its job writes it, readers of the index describe it.
#[derive(Debug)]
pub struct Progress {
    asked: Instant,
    stage: Mutex<Stage>,
    /// Cancelled when a newer operation makes this load pointless.
    pub overtaken: CancellationToken,
}

#[derive(Debug)]
enum Stage {
    /// Waits until fewer others load, or until it is time to try again.
    Waiting,
    /// Runs, since then.
    Begun(Instant),
    /// Fetches this model's files from these repositories, if it must.
    Fetching(Instant, Roots, String),
    /// Reads these files.
    Reading(Instant, Files),
}

/// Files that are being read.
#[derive(Debug)]
struct Files {
    bytes: u64,
    counter: Option<Counter>,
}

/// What the kernel counts for one thread.
#[derive(Debug)]
struct Counter {
    path: PathBuf,
    before: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// A load that nobody has begun.
    pub fn new() -> Self {
        let stage = Mutex::new(Stage::Waiting);
        Self { asked: Instant::now(), stage, overtaken: CancellationToken::new() }
    }

    /// The load waits for its turn.
    pub fn wait(&self) {
        *self.stage.lock() = Stage::Waiting;
    }

    /// The load begins, or goes on with something of which nothing else is known.
    pub fn begin(&self) {
        let mut stage = self.stage.lock();
        *stage = Stage::Begun(stage.began());
    }

    /// Files of the model `name` are fetched from repositories that are elsewhere.
    pub fn fetch(&self, roots: &Roots, name: &str) {
        let mut stage = self.stage.lock();
        *stage = Stage::Fetching(stage.began(), roots.clone(), name.to_owned());
    }

    /// Whether anything of the model may have been looked at.
    pub fn has_begun(&self) -> bool {
        !matches!(*self.stage.lock(), Stage::Waiting)
    }

    /// The calling thread is going to read files of so many bytes.
    pub fn read_here(&self, bytes: u64) {
        let mut stage = self.stage.lock();
        *stage = Stage::Reading(stage.began(), Files { bytes, counter: Counter::here() });
    }

    /// What people read about it.
    pub fn describe(&self) -> String {
        let now = Instant::now();
        match &*self.stage.lock() {
            Stage::Waiting => format!("waiting to load: {:.1} s", (now - self.asked).as_secs_f64()),
            Stage::Begun(began) => describe("loading", now - *began, None, 0),
            Stage::Fetching(began, roots, name) => match roots.progress(name) {
                Some(far) => describe("fetching", now - *began, Some(far.bytes), far.bytes_total),
                None => describe("loading", now - *began, None, 0),
            },
            Stage::Reading(began, files) => describe("loading", now - *began, files.read(), files.bytes),
        }
    }
}

impl Stage {
    /// Since when it goes on.
    fn began(&self) -> Instant {
        match self {
            Stage::Waiting => Instant::now(),
            Stage::Begun(began) | Stage::Fetching(began, ..) | Stage::Reading(began, _) => *began,
        }
    }
}

impl Files {
    /// How much of them was read, if that is known; opening them may read more than they hold, or map a part.
    fn read(&self) -> Option<u64> {
        let counter = self.counter.as_ref()?;
        Some(counted(&counter.path)?.saturating_sub(counter.before).min(self.bytes))
    }
}

impl Counter {
    fn here() -> Option<Self> {
        let path = Path::new("/proc").join(fs::read_link("/proc/thread-self").ok()?).join("io");
        let before = counted(&path)?;
        Some(Self { path, before })
    }
}

/// The bytes that a thread has read so far; `None` once it has ended.
fn counted(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
}

/// In megabytes, for people.
fn describe(what: &str, since: Duration, read: Option<u64>, bytes: u64) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let seconds = since.as_secs_f64();
    match read {
        _ if bytes == 0 => format!("{what}: {seconds:.1} s"),
        None => format!("{what}: {seconds:.1} s, {} MB", megabytes(bytes)),
        Some(read) => format!("{what}: {seconds:.1} s, {} of {} MB", read / 1_000_000, megabytes(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_as_far_as_it_is_known() {
        let since = Duration::from_millis(3210);
        assert_eq!(describe("loading", since, None, 0), "loading: 3.2 s");
        assert_eq!(describe("loading", since, None, 90_000_000), "loading: 3.2 s, 90 MB");
        assert_eq!(describe("loading", since, Some(41_999_999), 89_000_001), "loading: 3.2 s, 41 of 90 MB");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_waiting_is_not_that_of_loading() {
        let progress = Progress::new();
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(progress.describe(), "waiting to load: 7.0 s");
        assert!(!progress.has_begun());
        progress.begin();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(progress.describe(), "loading: 2.0 s");
        progress.read_here(0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(progress.describe(), "loading: 3.0 s");
    }

    #[test]
    fn what_this_thread_reads_is_counted() {
        let Some(counter) = Counter::here() else { return };
        let files = Files { bytes: 1_000_000, counter: Some(counter) };
        let file = tempfile::NamedTempFile::new().expect("there is room");
        fs::write(file.path(), vec![0; 300_000]).expect("there is room");
        fs::read(file.path()).expect("it is there");
        let read = files.read().expect("the thread lives");
        assert!((300_000..400_000).contains(&read), "{read}");
    }
}
