//! The model repositories of one server: directories, and object stores that are shown as directories.
//!
//! One that cannot be read takes no other with it: what was there is unreadable, not gone, and it is said once why.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::remote::{Files, Opener, Part, Place, Progress, Reading, Remote, RemoteSettings};
use super::scan::{self, ModelDir, Scan};
use crate::error::{Error, Kind, Result};
use crate::model::Version;

/// One repository as it is named in the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A directory on this machine.
    Directory(PathBuf),
    /// A path in an object store.
    Remote(Place),
}

/// All repositories; a clone is the same ones.
#[derive(Clone, Debug)]
pub struct Roots {
    repositories: Arc<[Arc<Repository>]>,
}

/// One repository.
#[derive(Debug)]
struct Repository {
    /// Where it is, or is shown.
    path: PathBuf,
    /// How it is named in the settings.
    name: String,
    remote: Option<Arc<Remote>>,
    /// Behind a lock because polls and loads look at the same time.
    state: Mutex<State>,
}

/// What is remembered of a repository from one look to the next.
#[derive(Debug, Default)]
struct State {
    /// The models that were there when it was read last.
    models: BTreeSet<String>,
    /// What was said last of its trouble; `None` while there is none.
    told: Option<String>,
}

impl From<Vec<PathBuf>> for Roots {
    /// Directories only.
    fn from(paths: Vec<PathBuf>) -> Self {
        let one = |path: PathBuf| Repository::new(path.display().to_string(), path, None);
        Self { repositories: paths.into_iter().map(one).collect() }
    }
}

/// A model that was found, and stays as it is on the way to its files until this is dropped.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub dir: ModelDir,
    reading: Option<Reading>,
}

impl From<ModelDir> for Found {
    /// A directory of which all files are there.
    fn from(dir: ModelDir) -> Self {
        Self { dir, reading: None }
    }
}

impl Roots {
    /// Prepares all repositories; nothing is looked at yet. `runtime` makes the connections.
    ///
    /// # Errors
    /// If a cache cannot be written, or credentials cannot be read.
    pub fn open(roots: &[Root], settings: &RemoteSettings, runtime: &Handle) -> Result<Self> {
        let mut opener = Opener::default();
        let open = |root: &Root| match root {
            Root::Directory(path) => Ok(Repository::new(path.display().to_string(), path.clone(), None)),
            Root::Remote(place) => {
                let remote = Arc::new(opener.open(place, settings, runtime.clone())?);
                Ok(Repository::new(place.to_string(), remote.root.clone(), Some(remote)))
            }
        };
        Ok(Self { repositories: roots.iter().map(open).collect::<Result<_>>()? })
    }

    /// Each repository by itself, with its name.
    pub fn each(&self) -> Vec<(String, Self)> {
        let one = |repository: &Arc<Repository>| {
            (repository.name.clone(), Self { repositories: Arc::new([repository.clone()]) })
        };
        self.repositories.iter().map(one).collect()
    }

    /// How each of them is named in the settings.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.repositories.iter().map(|repository| repository.name.as_str())
    }

    /// Looks at everything; what stores said not longer than `age_max` ago is not asked for again. Models of a repository
    /// that cannot be read now are unreadable. Blocking.
    pub fn scan(&self, age_max: Duration) -> Scan {
        let ask = |repository: &Arc<Repository>| match &repository.remote {
            Some(remote) if remote.is_fresh(age_max) => Ok(()),
            _ => repository.ask(None),
        };
        let asked = at_once(&self.repositories, ask);
        let mut found = scan::scan_readable(&self.paths());
        let read = std::mem::take(&mut found.roots);
        for ((repository, asked), read) in self.repositories.iter().zip(asked).zip(read) {
            let read = repository.take(asked.and(read), &mut found);
            found.roots.push(read);
        }
        found.warnings.extend(self.remotes().flat_map(|remote| remote.warnings()));
        found
    }

    /// Looks for one model. Blocking.
    ///
    /// # Errors
    /// As [`scan::find`]; why it cannot be read, if it was in a repository that cannot be now, or if nothing is known of what
    /// a store has.
    pub fn find(&self, name: &str, warnings: &mut Vec<String>) -> Result<Found> {
        scan::check_name(name)?;
        // One in trouble is asked only if no other has the model, so that what lies elsewhere does not wait for it.
        let (troubled, well): (Vec<_>, Vec<_>) =
            self.repositories.iter().partition(|repository| repository.trouble().is_some());
        let ask = |repositories: &[&Arc<Repository>]| {
            let asked = at_once(repositories, |repository| repository.ask(Some(name)));
            asked.into_iter().filter_map(Result::err).collect::<Vec<Error>>()
        };
        let mut failed = ask(&well);
        if !well.iter().any(|repository| repository.path.join(name).is_dir()) {
            failed.extend(ask(&troubled));
        }
        // From here on, so that nothing changes between the look and the reading.
        let mut reading: Vec<Reading> = self.remotes().map(|remote| remote.reading(name)).collect();
        let dir = scan::find(&self.paths(), name, warnings).map_err(|error| match error.kind() {
            Kind::NotFound => self.missing(name, failed),
            _ => error,
        })?;
        reading.retain(|reading| dir.path.starts_with(&reading.remote.root));
        Ok(Found { dir, reading: reading.pop() })
    }

    /// Why a model was not found; `failed` says why stores could not be asked.
    fn missing(&self, name: &str, failed: Vec<Error>) -> Error {
        let was_in = self.repositories.iter().find(|repository| repository.state.lock().models.contains(name));
        let known = was_in.and_then(|repository| repository.trouble());
        known.or(failed.into_iter().next()).unwrap_or_else(|| {
            // Most likely it is a name that somebody mistyped, and no model that should be there.
            match self.repositories.iter().find_map(|repository| repository.trouble()) {
                Some(trouble) => Error::not_found(format!("{}: {trouble}", nowhere(name))),
                None => nowhere(name),
            }
        })
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.repositories.iter().map(|repository| repository.path.clone()).collect()
    }

    fn remotes(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.repositories.iter().filter_map(|repository| repository.remote.as_ref())
    }

    /// Ends everything that waits for an object store; for the end of the server.
    pub fn stop(&self) {
        self.remotes().for_each(|remote| remote.stop());
    }

    /// How far the fetching of a model's files is; `None` if none are being fetched.
    pub fn progress(&self, name: &str) -> Option<Progress> {
        self.remotes().find_map(|remote| remote.progress(name))
    }
}

impl Repository {
    fn new(name: String, path: PathBuf, remote: Option<Arc<Remote>>) -> Arc<Self> {
        Arc::new(Self { path, name, remote, state: Mutex::default() })
    }

    /// Asks its store, if it has one, what there is in all or of one model.
    ///
    /// # Errors
    /// If nothing is known of what there is.
    fn ask(&self, model: Option<&str>) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        remote.refresh(model)?;
        match remote.trouble() {
            Some(error) => self.tell("cannot be listed: what is known of it and in the cache is used", &error),
            None => self.tell_over(),
        }
        Ok(())
    }

    /// Why it cannot be read as it is now.
    fn trouble(&self) -> Option<Error> {
        match &self.remote {
            Some(remote) => remote.trouble(),
            None => scan::entries(&self.path).err(),
        }
    }

    /// Remembers the models that were read here. If that could not be, those that were there are unreadable in `scan`.
    fn take(&self, read: Result<BTreeSet<String>>, scan: &mut Scan) -> Result<BTreeSet<String>> {
        match &read {
            Ok(models) => {
                self.state.lock().models.clone_from(models);
                if self.remote.is_none() {
                    self.tell_over();
                }
            }
            Err(error) => {
                self.tell("cannot be read: its models stay as they are", error);
                for model in &self.state.lock().models {
                    scan.models.remove(model);
                    scan.duplicates.remove(model);
                    scan.unreadable.insert(model.clone(), error.to_string());
                }
            }
        }
        read
    }

    /// Says what its trouble means, once for each reason.
    fn tell(&self, what: &str, error: &Error) {
        let reason = Some(lasting(error));
        let mut state = self.state.lock();
        if state.told != reason {
            state.told = reason;
            tracing::warn!(%error, "the repository '{}' {what}", self.name);
        }
    }

    fn tell_over(&self) {
        if self.state.lock().told.take().is_some() {
            tracing::info!("the repository '{}' can be read again", self.name);
        }
    }
}

/// That a model is in no repository, in the reference server's words.
pub fn nowhere(name: &str) -> Error {
    Error::not_found(format!("failed to load '{name}', failed to poll from model repository"))
}

/// Asks all of these at the same time, so that one that does not answer delays no other; the answers in their order.
fn at_once<T: Sync>(asked: &[T], ask: impl Fn(&T) -> Result<()> + Sync) -> Vec<Result<()>> {
    let Some((last, others)) = asked.split_last() else { return Vec::new() };
    thread::scope(|scope| {
        let start = |one| {
            let ask = &ask;
            let thread = thread::Builder::new().name("nereid-scan".to_owned());
            thread.spawn_scoped(scope, move || ask(one)).map_err(|_| one)
        };
        let started: Vec<_> = others.iter().map(start).collect();
        let last = ask(last);
        let died = |_| Err(Error::internal("a look at a repository panicked"));
        let end = |thread: std::result::Result<ScopedJoinHandle<'_, Result<()>>, &T>| match thread {
            Ok(thread) => thread.join().unwrap_or_else(died),
            // The system gives no thread.
            Err(one) => ask(one),
        };
        started.into_iter().map(end).chain([last]).collect()
    })
}

/// What an error says, without how long things took.
fn lasting(error: &Error) -> String {
    let is_time =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.trim_end_matches(',').ends_with('s');
    error.message().split_whitespace().filter(|word| !is_time(word)).collect::<Vec<_>>().join(" ")
}

impl Found {
    /// Fetches what belongs to no version, if anything must be fetched: configurations, labels, data. Blocking.
    ///
    /// # Errors
    /// If a file cannot be fetched.
    pub fn fetch_shared(&self) -> Result<Files> {
        self.fetch(Part::Shared)
    }

    /// Fetches the files of these versions, if anything must be fetched. Blocking.
    ///
    /// # Errors
    /// If a file cannot be fetched.
    pub fn fetch_versions(&self, versions: &[Version]) -> Result<Files> {
        self.fetch(Part::Versions(versions))
    }

    /// Fetches files by their names, if anything must be fetched, but for those of versions that are there already. Blocking.
    ///
    /// # Errors
    /// If a file cannot be fetched.
    pub fn fetch_files(&self, names: &[&str], there: &[Version]) -> Result<Files> {
        match names.is_empty() {
            true => Ok(Files::default()),
            false => self.fetch(Part::Files { names, there }),
        }
    }

    fn fetch(&self, part: Part<'_>) -> Result<Files> {
        match &self.reading {
            Some(reading) => reading.remote.fetch(&self.dir.name, part),
            None => Ok(Files::default()),
        }
    }
}

/// Whether a file is there, or will be once it is fetched.
pub(super) fn is_listed(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use parking_lot::Condvar;

    use super::*;

    /// Two directories, of which the first has models `a` and `both`, the second `b` and `both`.
    fn two() -> (tempfile::TempDir, Roots) {
        let top = tempfile::tempdir().expect("there is room");
        for path in ["one/a/1", "one/both/1", "two/b/1", "two/both/1"] {
            fs::create_dir_all(top.path().join(path)).expect("writable");
        }
        let roots = vec![top.path().join("one"), top.path().join("two")].into();
        (top, roots)
    }

    #[test]
    fn all_are_asked_at_the_same_time() {
        let (begun, both) = (Mutex::new(0), Condvar::new());
        let asked = at_once(&[0, 1], |&which| {
            let mut begun = begun.lock();
            *begun += 1;
            both.notify_all();
            match (both.wait_while_for(&mut begun, |begun| *begun < 2, Duration::from_secs(60)).timed_out(), which) {
                (true, _) => Err(Error::internal("the other one is not asked")),
                (false, 0) => Ok(()),
                (false, _) => Err(Error::not_found("the second")),
            }
        });
        assert!(asked[0].is_ok() && asked[1].as_ref().is_err_and(|error| error.message() == "the second"), "{asked:?}");
        assert!(at_once(&[], |_: &()| Ok(())).is_empty());
    }

    fn move_away(top: &tempfile::TempDir) {
        fs::rename(top.path().join("two"), top.path().join("away")).expect("writable");
    }

    #[test]
    fn models_of_a_repository_that_is_away_are_unreadable_and_not_gone() {
        let (top, roots) = two();
        let scan = roots.scan(Duration::ZERO);
        assert_eq!(scan.models.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(scan.duplicates.len(), 1);
        move_away(&top);
        fs::create_dir(top.path().join("one/added")).expect("writable");
        let scan = roots.scan(Duration::ZERO);
        assert_eq!(scan.models.keys().collect::<Vec<_>>(), ["a", "added"]);
        assert_eq!(scan.unreadable.keys().collect::<Vec<_>>(), ["b", "both"]);
        assert!(scan.duplicates.is_empty());
        let error = scan.roots[1].as_ref().expect_err("it is away");
        assert!(scan.roots[0].is_ok() && error.message().starts_with("cannot read model repository"), "{error}");
    }

    #[test]
    fn a_model_is_found_beside_a_repository_that_is_away() {
        let (top, roots) = two();
        roots.scan(Duration::ZERO);
        move_away(&top);
        let find = |name: &str| roots.find(name, &mut Vec::new());
        assert_eq!(find("a").expect("it is there").dir.versions, [1]);
        let error = find("b").expect_err("it is away");
        assert!(error.message().starts_with("cannot read model repository"), "{error}");
        let error = find("mistyped").expect_err("it was never there");
        let told = "failed to load 'mistyped', failed to poll from model repository: cannot read model repository";
        assert!(error.kind() == Kind::NotFound && error.message().starts_with(told), "{error}");
        fs::rename(top.path().join("away"), top.path().join("two")).expect("writable");
        assert_eq!(find("nowhere").map(|_| ()).map_err(|error| error.kind()), Err(Kind::NotFound));
    }

    #[test]
    fn trouble_is_told_once_for_each_reason() {
        let (_top, roots) = two();
        let repository = &roots.repositories[0];
        let told = |text: &'static str| {
            let before = repository.state.lock().told.clone();
            repository.tell("", &Error::unavailable(text));
            before != repository.state.lock().told
        };
        assert!(told("cannot list 's3://b': GET in 1.5s, after 2 retries: refused"));
        assert!(!told("cannot list 's3://b': GET in 23.1ms, after 2 retries: refused"));
        assert!(told("cannot list 's3://b': status 403"));
        roots.scan(Duration::ZERO);
        assert!(told("cannot list 's3://b': status 403"), "it was well in between");
    }
}
