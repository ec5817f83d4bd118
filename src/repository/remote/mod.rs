//! Repositories in object stores: shown as directories, with the files fetched when a load needs them.
//!
//! A [`Remote`] is one such repository. [`Remote::refresh`] asks the store what there is and makes a tree of links show
//! it; [`Remote::fetch`] brings the files that some links lead to into the cache, or finds them there. If the store cannot
//! be reached or refuses, what it said last holds, also across restarts. Everything here blocks, on the threads of loaders
//! and scans.

mod bucket;
mod cache;
mod checksum;
mod connector;
mod credentials;
mod listing;
mod page;
mod place;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::bucket::{Bucket, Patience};
use self::cache::{Cache, Held, Turn};
use self::checksum::Verdict;
use self::listing::{Key, Listing, Model, Object};
use self::tree::Trees;
use crate::error::{Error, Kind, Result};
use crate::infer::Instant;
use crate::model::Version;

pub use self::credentials::Cloud;
pub use self::place::{Place, Store};

/// How often an object is fetched anew whose contents are not what the store says.
const FETCHES_MAX: u32 = 3;
/// How long a store that could not be listed is not asked again while there is something to go on with.
const REST: Duration = Duration::from_secs(5);

/// How repositories in object stores are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSettings {
    /// What the environment says about stores.
    pub cloud: Cloud,
    /// Where fetched files are kept, unless the environment says otherwise for a store.
    pub cache: PathBuf,
    /// The most bytes that a cache holds.
    pub cache_bytes_max: u64,
    /// How often a request to a store is tried again.
    pub retries: u32,
    /// The longest that a store may say nothing.
    pub silence_max: Duration,
}

/// How far the fetching of a model's files is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have arrived.
    pub bytes: u64,
    /// Bytes that will have, at the end.
    pub bytes_total: u64,
}

/// Which of a model's files are needed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    /// Everything that belongs to no version: configurations, labels, data.
    Shared,
    /// Everything of these versions.
    Versions(&'a [Version]),
    /// Files of versions other than those that are there, by their names.
    Files { names: &'a [&'a str], there: &'a [Version] },
}

/// Fetched files, which stay in the cache as long as this is there.
#[derive(Debug, Default)]
pub struct Files {
    held: Vec<Held>,
}

impl Files {
    /// Adds the files of `other`.
    pub fn extend(&mut self, other: Files) {
        self.held.extend(other.held);
    }
}

/// One repository in an object store.
#[derive(Debug)]
pub(super) struct Remote {
    bucket: Bucket,
    cache: Arc<Cache>,
    /// Where its tree is.
    pub(super) root: PathBuf,
    /// The name of the file in the cache with what the store said last.
    saved: String,
    runtime: Handle,
    /// Ends what is under way.
    stop: CancellationToken,
    state: Mutex<State>,
    _trees: Arc<Trees>,
}

#[derive(Debug, Default)]
struct State {
    /// What the tree shows; `None` before the store was ever asked.
    shown: Option<Listing>,
    /// Whether it could not be saved.
    unsaved: bool,
    /// When all of it was known last.
    listed: Option<Instant>,
    /// Why the store could not be listed when it was asked last.
    failed: Option<Failure>,
    /// Models whose files are being read, by how many loads.
    reading: BTreeMap<String, usize>,
    fetching: BTreeMap<String, Arc<Fetching>>,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    at: Instant,
    /// How long it took to fail.
    took: Duration,
}

#[derive(Debug)]
struct Fetching {
    bytes: AtomicU64,
    bytes_total: u64,
}

/// Keeps a model's files as they are while they are read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) remote: Arc<Remote>,
    model: String,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.remote.state.lock();
        if let Some(count) = state.reading.get_mut(&self.model) {
            *count -= 1;
            if *count == 0 {
                state.reading.remove(&self.model);
            }
        }
    }
}

/// The caches and trees of all repositories of one process.
#[derive(Default)]
pub(super) struct Opener {
    caches: BTreeMap<PathBuf, (Arc<Cache>, Arc<Trees>)>,
}

impl Opener {
    /// Prepares a repository; makes no connection yet.
    pub(super) fn open(&mut self, place: &Place, settings: &RemoteSettings, runtime: Handle) -> Result<Remote> {
        let patience = Patience { retries: settings.retries, silence_max: settings.silence_max };
        let bucket = Bucket::open(place.clone(), &settings.cloud, patience)?;
        let directory = settings.cloud.mount_directory(place.store).unwrap_or_else(|| settings.cache.clone());
        let (cache, trees) = match self.caches.get(&directory) {
            Some(opened) => opened.clone(),
            None => {
                let cache = Arc::new(Cache::open(&directory, settings.cache_bytes_max)?);
                let trees = Arc::new(Trees::open(&cache)?);
                self.caches.entry(directory).or_insert((cache, trees)).clone()
            }
        };
        Remote::new(bucket, cache, trees, runtime)
    }
}

impl Remote {
    fn new(bucket: Bucket, cache: Arc<Cache>, trees: Arc<Trees>, runtime: Handle) -> Result<Self> {
        let root = trees.root(&bucket.place).map_err(|error| {
            Error::internal(format!("cannot write in the cache '{}': {error}", cache.directory().display()))
        })?;
        let identity = ring::digest::digest(&ring::digest::SHA256, bucket.place.to_string().as_bytes());
        let saved = checksum::hex(&identity.as_ref()[..16]);
        let state = Mutex::default();
        Ok(Self { bucket, cache, root, saved, runtime, stop: CancellationToken::new(), state, _trees: trees })
    }

    /// Asks the store what there is, in all or of one model, and shows it. If the store cannot be reached or refuses,
    /// what it said last is shown.
    ///
    /// # Errors
    /// If the store cannot be reached or refuses, and nothing is known of it.
    pub(super) fn refresh(&self, model: Option<&str>) -> Result<()> {
        if let Some(known) = self.rest() {
            return known;
        }
        let began = Instant::now();
        // What is known of one model is kept with what is known of all.
        let model = model.filter(|_| self.state.lock().shown.is_some());
        match self.wait(self.bucket.list(model)) {
            Ok(found) => {
                let mut state = self.state.lock();
                state.failed = None;
                let next = match (model, &state.shown) {
                    (Some(name), Some(shown)) => with_model(shown.clone(), name, found),
                    (_, _) => found,
                };
                if model.is_none() {
                    state.listed = Some(Instant::now());
                    if next.models.is_empty() {
                        tracing::warn!("there is no model in '{}'", self.bucket.place);
                    }
                }
                self.show(&mut state, next, true)
            }
            // After a refusal too: credentials expire, and what was fetched is still there.
            Err(error) => self.go_on_with_known(error, began.elapsed()),
        }
    }

    /// Waits for the network, but not for longer than the server lives.
    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let stopped = || Err(Error::unavailable("the server is stopping"));
        self.runtime.block_on(async { self.stop.run_until_cancelled(work).await.unwrap_or_else(stopped) })
    }

    /// What there is to go on with while a store that has just failed is not asked again.
    fn rest(&self) -> Option<Result<()>> {
        let state = self.state.lock();
        let Failure { error, at, took } = state.failed.as_ref()?;
        match state.shown {
            Some(_) => (at.elapsed() < REST.max(*took)).then_some(Ok(())),
            // One that fails at once may be asked at once, but not all of the time is spent on one that is slow to fail.
            None => (at.elapsed() < *took).then(|| Err(error.clone())),
        }
    }

    /// Why the store could not be listed when it was asked last; `None` if it could.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.state.lock().failed.as_ref().map(|failure| failure.error.clone())
    }

    fn go_on_with_known(&self, error: Error, took: Duration) -> Result<()> {
        let mut state = self.state.lock();
        state.failed = Some(Failure { error: error.clone(), at: Instant::now(), took });
        if state.shown.is_none() {
            let saved = self.cache.saved(&self.saved);
            let Some(saved) = saved.and_then(|text| serde_json::from_slice::<Listing>(&text).ok()) else {
                return Err(error);
            };
            self.show(&mut state, saved, false)?;
        }
        Ok(())
    }

    fn show(&self, state: &mut State, next: Listing, save: bool) -> Result<()> {
        let before = state.shown.take().unwrap_or_default();
        let reading = &state.reading;
        let link = |object: &Object| self.cache.path(&object.key(&self.bucket.place));
        let shown = tree::show(&self.root, &before, next, |name| reading.contains_key(name), link);
        let shown = shown.map_err(|error| {
            // Half of a change: the next look begins anew.
            state.listed = None;
            let _ = fs::remove_dir_all(&self.root).and_then(|()| cache::make(&self.root));
            Error::internal(format!("cannot write '{}': {error}", self.root.display()))
        })?;
        let is_new = shown != before || state.unsaved;
        let shown = state.shown.insert(shown);
        if save && (is_new || self.cache.saved(&self.saved).is_none()) {
            let text = serde_json::to_vec(shown).map_err(|error| Error::internal(format!("a listing: {error}")))?;
            let saved = self.cache.save(&self.saved, &text);
            state.unsaved = saved.is_err();
            if let Err(error) = saved {
                // Only a restart without the store would need it.
                tracing::warn!(%error, "what the repository says is not kept");
            }
        }
        Ok(())
    }

    /// Whether what is shown is not older than `age_max`.
    pub(super) fn is_fresh(&self, age_max: Duration) -> bool {
        self.state.lock().listed.is_some_and(|when| when.elapsed() < age_max)
    }

    /// Ends what is under way, and refuses what comes later.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// What lies beside the models, one sentence each.
    pub(super) fn warnings(&self) -> Vec<String> {
        let state = self.state.lock();
        let strays = state.shown.iter().flat_map(|listing| &listing.strays);
        strays
            .map(|name| {
                format!("'{}/{name}' is ignored: a model repository holds one directory per model", self.bucket.place)
            })
            .collect()
    }

    /// Keeps the files of `model` as they are from now on.
    pub(super) fn reading(self: &Arc<Self>, model: &str) -> Reading {
        *self.state.lock().reading.entry(model.to_owned()).or_default() += 1;
        Reading { remote: self.clone(), model: model.to_owned() }
    }

    /// Brings files of a model into the cache, where its links lead; those that are there already are verified.
    ///
    /// # Errors
    /// If one cannot be fetched, or what arrives is not what the store says it is.
    pub(super) fn fetch(&self, model: &str, part: Part<'_>) -> Result<Files> {
        let objects: Vec<Object> = {
            let state = self.state.lock();
            let known = state.shown.as_ref().and_then(|listing| listing.models.get(model));
            known
                .into_iter()
                .flat_map(|model| &model.files)
                .filter(|(path, _)| part.has(path))
                .map(|(_, object)| object.clone())
                .collect()
        };
        let fetching = Arc::new(Fetching {
            bytes: AtomicU64::new(0),
            bytes_total: objects.iter().map(|object| object.bytes).sum(),
        });
        self.state.lock().fetching.insert(model.to_owned(), fetching.clone());
        let files: Result<Vec<Held>> = objects.iter().map(|object| self.obtain(object, &fetching.bytes)).collect();
        self.state.lock().fetching.remove(model);
        Ok(Files { held: files? })
    }

    /// How far the fetching of a model's files is; `None` if none are being fetched.
    pub(super) fn progress(&self, model: &str) -> Option<Progress> {
        let state = self.state.lock();
        let fetching = state.fetching.get(model)?;
        Some(Progress { bytes: fetching.bytes.load(Ordering::Relaxed), bytes_total: fetching.bytes_total })
    }

    /// One object's file, out of the cache or fetched into it.
    fn obtain(&self, object: &Object, counted: &AtomicU64) -> Result<Held> {
        let key = object.key(&self.bucket.place);
        let cached = |turn: Option<&Turn>| -> Result<Option<Held>> {
            let held = self.cache.hold(&key, object.bytes, turn)?;
            if held.is_some() {
                counted.fetch_add(object.bytes, Ordering::Relaxed);
            }
            Ok(held)
        };
        // What is there needs no turn, in which somebody may fetch another file for long.
        if let Some(held) = cached(None)? {
            return Ok(held);
        }
        let turn = self.cache.turn(&key)?;
        for _ in 0..FETCHES_MAX {
            if let Some(held) = cached(Some(&turn))? {
                return Ok(held);
            }
            self.bring(object, &key, counted)?;
            // Verified once more when it is held, now that it is on the disk.
            counted.fetch_sub(object.bytes, Ordering::Relaxed);
        }
        let url = self.bucket.url(&object.path);
        Err(Error::internal(format!(
            "'{url}' does not stay in the cache as it was fetched: is the disk broken or full?"
        )))
    }

    fn bring(&self, object: &Object, key: &Key, counted: &AtomicU64) -> Result<()> {
        let began = Instant::now();
        let mut arriving = self.cache.reserve(key, object.bytes)?;
        let url = self.bucket.url(&object.path);
        let mut before: Option<String> = None;
        for attempt in 1.. {
            let start = counted.load(Ordering::Relaxed);
            let fetched = self.wait(self.bucket.fetch(object, &mut arriving.file, counted));
            let error = match fetched {
                Ok((sha256, Verdict::Agrees)) => {
                    self.cache.keep(arriving, key, &sha256, &url)?;
                    tracing::info!(bytes = object.bytes, seconds = began.elapsed().as_secs_f64(), "fetched '{url}'");
                    return Ok(());
                }
                // The same contents twice: they arrived well, and the ETag is no MD5.
                Ok((sha256, Verdict::EtagDisagrees)) if before.as_ref() == Some(&sha256) => {
                    self.cache.keep(arriving, key, &sha256, &url)?;
                    return Ok(());
                }
                Ok((sha256, Verdict::EtagDisagrees)) => {
                    before = Some(sha256);
                    Error::unavailable(format!("what arrived of '{url}' does not have the MD5 that its ETag says"))
                }
                Ok((_, Verdict::Disagrees(sum))) => {
                    Error::unavailable(format!("what arrived of '{url}' does not have the {sum} that the store says"))
                }
                Err(error) if error.kind() == Kind::Unavailable => error,
                Err(error) => return Err(error),
            };
            counted.store(start, Ordering::Relaxed);
            if attempt == FETCHES_MAX || self.stop.is_cancelled() {
                return Err(error);
            }
            tracing::warn!(%error, attempt, "fetching again");
        }
        Ok(())
    }
}

impl Part<'_> {
    fn has(self, path: &str) -> bool {
        let is_one = |versions: &[Version], version: &str| versions.iter().any(|wanted| wanted.to_string() == version);
        match (self, Model::version_of(path)) {
            (Part::Shared, version) => version.is_none(),
            (Part::Versions(versions), Some(version)) => is_one(versions, version),
            (Part::Files { names, there }, Some(version)) => {
                // People write `./` and `//`.
                let is_it = |name: &&str| Path::new(name.trim_start_matches("./")) == Path::new(path);
                !is_one(there, version) && names.iter().any(is_it)
            }
            (Part::Versions(_) | Part::Files { .. }, None) => false,
        }
    }
}

/// `listing` with what was found of one model.
fn with_model(mut listing: Listing, name: &str, mut found: Listing) -> Listing {
    match found.models.remove(name) {
        Some(model) => listing.models.insert(name.to_owned(), model),
        None => listing.models.remove(name),
    };
    listing
}

/// What identifies the object that a link leads to; `None` for a link that is none of this cache's.
pub(super) fn key_of_link(link: &Path) -> Option<(u64, u64)> {
    let target = fs::read_link(link).ok()?;
    let key = Key::of_name(target.file_name()?.to_str()?)?;
    let is_ours = target.parent()?.parent()?.file_name()? == cache::OBJECTS;
    let digits = |at: usize| u64::from_str_radix(&key.as_str()[at..at + 16], 16).ok();
    is_ours.then_some((digits(0)?, digits(16)?))
}
