//! Watches the repositories in poll mode: what changed is loaded again, what is gone is unloaded, what failed is tried
//! again.
//!
//! [`Watched`] decides, by what each look finds; [`watch`] looks, and commands what was decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::catalog::Catalog;
use super::manager::Event;
use super::order::{Because, Unload, What};
use super::overrides::Overrides;
use super::repositories::{Look, Repositories};
use super::{Key, loader};
use crate::error::Result;
use crate::infer::Instant;
use crate::repository::Stamp;

/// The longest that a model which failed to load, and has not changed since, is left alone.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(600);

/// The end of a load.
pub(super) type End = oneshot::Receiver<Result<()>>;

/// How a look finds a model.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// With these files.
    There(Stamp),
    /// In more than one repository, which cannot be.
    Twice(String),
    /// With something that cannot be read. Only what was never read is taken so.
    Unreadable,
    /// Not at all.
    Gone,
}

/// A model that failed to load.
#[derive(Clone, Copy, Debug)]
struct Failure {
    times: u32,
    retry: Instant,
}

/// What is known of the repositories.
#[derive(Debug)]
pub struct Watched {
    interval: Duration,
    /// As it was when a model was last loaded or unloaded.
    taken: BTreeMap<Key, Seen>,
    /// What looked different at the last look.
    unsettled: BTreeMap<Key, Seen>,
    loading: BTreeSet<Key>,
    failed: BTreeMap<Key, Failure>,
}

impl Watched {
    /// Everything in `look` is being loaded.
    pub fn new(interval: Duration, look: &Look) -> Self {
        let taken: BTreeMap<Key, Seen> = look.keys().map(|key| (key.clone(), seen(look, key))).collect();
        let loading = taken.keys().cloned().collect();
        Self { interval, taken, unsettled: BTreeMap::new(), loading, failed: BTreeMap::new() }
    }

    /// What is to be done after another look.
    ///
    /// Whatever differs is left alone until it is the same in two looks: files that are still being copied, a directory
    /// that is being replaced, a repository that is away for a moment.
    pub fn look(&mut self, look: &Look, now: Instant) -> Vec<(Key, What)> {
        let keys: BTreeSet<Key> = look.keys().chain(self.taken.keys()).cloned().collect();
        let mut asked = Vec::new();
        for key in keys.into_iter().filter(|key| !look.unreadable.contains_key(key)) {
            let seen = seen(look, &key);
            if self.taken.get(&key) == Some(&seen) {
                self.unsettled.remove(&key);
                if self.should_retry(&key, now) && matches!(seen, Seen::There(_)) {
                    self.loading.insert(key.clone());
                    asked.push((key, What::Load(Overrides::default())));
                }
                continue;
            }
            // What is gone while it loads need not be loaded; what has changed is loaded again when that has ended.
            let waits = matches!(seen, Seen::There(_)) && self.loading.contains(&key);
            if waits || self.unsettled.get(&key) != Some(&seen) {
                self.unsettled.insert(key, seen);
                continue;
            }
            self.unsettled.remove(&key);
            self.failed.remove(&key);
            asked.push((key.clone(), self.take(key, seen)));
        }
        asked
    }

    /// Takes a model as it is seen now.
    fn take(&mut self, key: Key, seen: Seen) -> What {
        match &seen {
            Seen::There(_) => {
                self.loading.insert(key.clone());
                self.taken.insert(key, seen);
                What::Load(Overrides::default())
            }
            Seen::Twice(reason) => {
                let because = Some(Because::Unservable(reason.clone()));
                self.taken.insert(key, seen);
                What::Unload(Unload { dependents: false, because })
            }
            Seen::Gone | Seen::Unreadable => {
                self.taken.remove(&key);
                What::Unload(Unload::default())
            }
        }
    }

    fn should_retry(&self, key: &Key, now: Instant) -> bool {
        let is_due = self.failed.get(key).is_some_and(|failure| failure.retry <= now);
        is_due && !self.loading.contains(key)
    }

    /// A load has ended.
    pub fn ended(&mut self, key: Key, loaded: bool, now: Instant) {
        self.loading.remove(&key);
        if loaded || !self.taken.contains_key(&key) {
            self.failed.remove(&key);
            return;
        }
        let times = self.failed.get(&key).map_or(1, |failure| failure.times.saturating_add(1));
        let delay = self.interval.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
        self.failed.insert(key, Failure { times, retry: now + delay.min(RETRY_DELAY_MAX) });
    }
}

fn seen(look: &Look, key: &Key) -> Seen {
    match (look.models.get(key), look.duplicates.get(key)) {
        (Some(stamp), _) => Seen::There(stamp.clone()),
        (None, Some(reason)) => Seen::Twice(reason.clone()),
        // Nothing is known of it; it will differ from this when it can be read, and when it is gone.
        (None, None) if look.unreadable.contains_key(key) => Seen::Unreadable,
        (None, None) => Seen::Gone,
    }
}

/// Looks at the repositories in the interval of `watched`, and commands what the difference asks for; ends with the
/// manager. `loads` are those that go on already; the catalog hears when all repositories have been read.
pub(super) async fn watch(
    repositories: Arc<Repositories>,
    mut watched: Watched,
    loads: Vec<(Key, End)>,
    (events, catalog): (mpsc::Sender<Event>, Arc<Catalog>),
) {
    let mut ticks = tokio::time::interval(watched.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let end = |(key, end): (Key, End)| async move { (key, matches!(end.await, Ok(Ok(())))) };
    let mut ends: FuturesUnordered<_> = loads.into_iter().map(end).collect();
    loop {
        tokio::select! {
            () = events.closed() => return,
            Some((key, loaded)) = ends.next() => {
                watched.ended(key, loaded, Instant::now());
                continue;
            }
            _ = ticks.tick() => {}
        }
        let looking = repositories.clone();
        let look = match loader::on_thread("nereid-scan", move || looking.scan(Duration::ZERO)).await {
            Ok(Ok(look)) => look,
            // Who looked has said why no repository can be read; the models stay as they are.
            Ok(Err(_)) => continue,
            Err(error) => {
                tracing::warn!(%error, "the repositories cannot be looked at, their models stay as they are");
                continue;
            }
        };
        let asked = watched.look(&look, Instant::now());
        // What was asked for after the look before is known by now.
        if look.failed.is_empty() && asked.is_empty() && watched.unsettled.is_empty() {
            catalog.repositories_read(true);
        }
        for (key, what) in asked {
            let (caller, wait) = oneshot::channel();
            if matches!(what, What::Load(_)) {
                ends.push(end((key.clone(), wait)));
            }
            if events.send(Event::Ask { key, what, callers: vec![caller] }).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A repository of real files and what is watched of it, step by step.
    struct Bench {
        root: tempfile::TempDir,
        watched: Watched,
        now: Instant,
    }

    impl Bench {
        fn new(models: &[&str]) -> Self {
            let root = tempfile::tempdir().expect("there is room");
            for model in models {
                put(root.path(), model, "first");
            }
            let watched = Watched::new(SECOND, &look(root.path()));
            Self { root, watched, now: Instant::now() }
        }

        fn put(&self, name: &str, text: &str) {
            put(self.root.path(), name, text);
        }

        fn remove(&self, name: &str) {
            fs::remove_dir_all(self.root.path().join(name)).expect("it is there");
        }

        fn ended(&mut self, name: &str, loaded: bool) {
            self.watched.ended(Key::of(name), loaded, self.now);
        }

        /// What another look a second later asks for: names, with a + for a load and a - for an unload.
        fn look(&mut self) -> Vec<String> {
            self.now += SECOND;
            let asked = self.watched.look(&look(self.root.path()), self.now);
            let sign = |what: &What| if matches!(what, What::Load(_)) { '+' } else { '-' };
            asked.iter().map(|(key, what)| format!("{}{key}", sign(what))).collect()
        }
    }

    fn look(root: &Path) -> Look {
        Repositories::new(&vec![root.to_owned()].into(), false).scan(Duration::ZERO).expect("the root is there")
    }

    fn put(root: &Path, name: &str, text: &str) {
        let directory = root.join(name).join("1");
        fs::create_dir_all(&directory).expect("there is room");
        fs::write(directory.join("model.pt"), text).expect("there is room");
    }

    #[test]
    fn what_is_still_being_copied_is_left_alone() {
        let mut bench = Bench::new(&["a"]);
        bench.ended("a", true);
        assert!(bench.look().is_empty());
        for size in 1..5 {
            bench.put("b", &"x".repeat(size));
            assert!(bench.look().is_empty());
        }
        assert_eq!(bench.look(), ["+b"]);
        assert!(bench.look().is_empty());
    }

    #[test]
    fn a_directory_that_is_replaced_is_not_unloaded_in_between() {
        let mut bench = Bench::new(&["a"]);
        bench.ended("a", true);
        bench.remove("a");
        assert!(bench.look().is_empty());
        bench.put("a", "second");
        assert!(bench.look().is_empty());
        assert_eq!(bench.look(), ["+a"]);
        bench.remove("a");
        assert!(bench.look().is_empty());
        assert_eq!(bench.look(), ["-a"], "gone for good");
        assert!(bench.look().is_empty());
    }

    #[test]
    fn a_failure_is_tried_again_when_files_change_and_at_longer_and_longer_times() {
        let mut bench = Bench::new(&["a"]);
        bench.ended("a", false);
        let looks_until_retry = |bench: &mut Bench| {
            let looks = (1..).find(|_| bench.look() == ["+a"]).expect("it is tried again");
            bench.ended("a", false);
            looks
        };
        assert_eq!([(); 4].map(|()| looks_until_retry(&mut bench)), [2, 4, 8, 16]);
        bench.put("a", "mended");
        assert!(bench.look().is_empty());
        assert_eq!(bench.look(), ["+a"]);
        bench.ended("a", true);
        assert!((0..100).all(|_| bench.look().is_empty()));
    }

    #[test]
    fn a_change_during_a_load_is_taken_after_it_and_a_removal_at_once() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.put("a", "second");
        bench.remove("b");
        assert!(bench.look().is_empty());
        assert_eq!(bench.look(), ["-b"]);
        assert!(bench.look().is_empty());
        bench.ended("a", true);
        bench.ended("b", false);
        assert_eq!(bench.look(), ["+a"]);
        assert!(bench.look().is_empty());
    }

    #[test]
    fn what_cannot_be_read_now_stays_as_it_is() {
        let mut bench = Bench::new(&["a"]);
        bench.ended("a", true);
        let unreadable = Look { unreadable: [(Key::of("a"), "no".to_owned())].into(), ..Look::default() };
        for _ in 0..3 {
            assert!(bench.watched.look(&unreadable, bench.now).is_empty());
        }
        assert!(bench.look().is_empty());
    }

    #[test]
    fn what_could_not_be_read_from_the_start_is_loaded_once_it_can_be_and_unloaded_once_it_is_gone() {
        let mut bench = Bench::new(&[]);
        let reason = |name| (Key::of(name), "no".to_owned());
        let unreadable = Look { unreadable: ["a", "b"].map(reason).into(), ..Look::default() };
        bench.watched = Watched::new(SECOND, &unreadable);
        ["a", "b"].iter().for_each(|name| bench.ended(name, false));
        assert!(bench.watched.look(&unreadable, bench.now).is_empty());
        bench.put("b", "readable");
        assert!(bench.look().is_empty());
        assert_eq!(bench.look(), ["-a", "+b"]);
        assert!(bench.look().is_empty());
    }

    #[test]
    fn models_of_a_repository_that_is_away_stay_and_others_are_watched_on() {
        let away = tempfile::tempdir().expect("there is room");
        let bench = Bench::new(&["a"]);
        put(away.path(), "b", "first");
        let roots = vec![bench.root.path().to_owned(), away.path().to_owned()];
        let repositories = Repositories::new(&roots.into(), false);
        let look = || repositories.scan(Duration::ZERO).expect("one can be read");
        let (mut watched, now) = (Watched::new(SECOND, &look()), bench.now);
        ["a", "b"].into_iter().for_each(|name| watched.ended(Key::of(name), true, now));
        drop(away);
        bench.remove("a");
        assert!(watched.look(&look(), now).is_empty());
        assert_eq!(watched.look(&look(), now), [(Key::of("a"), What::Unload(Unload::default()))]);
        assert!(watched.look(&look(), now).is_empty());
    }

    #[test]
    fn a_model_in_two_repositories_is_served_from_neither_until_it_is_in_one() {
        let mut bench = Bench::new(&["a"]);
        bench.ended("a", true);
        let twice = Look { duplicates: [(Key::of("a"), "twice".to_owned())].into(), ..Look::default() };
        assert!(bench.watched.look(&twice, bench.now).is_empty());
        let asked = bench.watched.look(&twice, bench.now);
        let because = Some(Because::Unservable("twice".to_owned()));
        assert_eq!(asked, [(Key::of("a"), What::Unload(Unload { dependents: false, because }))]);
        assert!(bench.watched.look(&twice, bench.now).is_empty());
        assert!(bench.look().is_empty());
        assert_eq!(bench.look(), ["+a"]);
    }
}
