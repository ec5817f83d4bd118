//! A repository in an object store in memory, as loads and scans see it.

use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};

use super::*;
use crate::repository::scan;

/// A store, and a remote repository in it; used from a thread outside the runtime, as by loaders.
struct Lab {
    runtime: tokio::runtime::Runtime,
    store: Arc<InMemory>,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("there are threads");
        let directory = tempfile::tempdir().expect("there is room");
        Self { runtime, store: Arc::new(InMemory::new()), directory }
    }

    fn put(&self, path: &str, contents: &str) {
        let payload = PutPayload::from(contents.to_owned());
        self.runtime.block_on(self.store.put(&ObjectPath::from(path), payload)).expect("memory is writable");
    }

    fn remote(&self) -> Arc<Remote> {
        let place = Place::parse("s3://b/models").and_then(Result::ok).expect("a URL");
        let cache = Arc::new(Cache::open(self.directory.path(), 1000).expect("writable"));
        let trees = Arc::new(Trees::open(&cache).expect("writable"));
        let store: Arc<dyn ObjectStore> = self.store.clone();
        let bucket = Bucket::of_store(place, store);
        Arc::new(Remote::new(bucket, cache, trees, self.runtime.handle().clone()).expect("writable"))
    }

    fn cached(&self) -> usize {
        let shards = fs::read_dir(self.directory.path().join(cache::OBJECTS)).expect("a directory").flatten();
        let files = shards.flat_map(|shard| fs::read_dir(shard.path()).expect("a directory").flatten());
        files.filter(|file| !file.file_name().to_string_lossy().ends_with(".sum")).count()
    }
}

fn stamp(remote: &Remote, model: &str) -> scan::ModelDir {
    scan::look(model, &remote.root.join(model), &mut Vec::new()).expect("it is shown")
}

#[test]
fn a_scan_fetches_nothing_and_a_load_what_it_needs() {
    let lab = Lab::new();
    for (path, contents) in [("a/config.pbtxt", "c"), ("a/1/model.pt", "one"), ("a/2/model.pt", "two"), ("b/1/x", "")] {
        lab.put(&format!("models/{path}"), contents);
    }
    let remote = lab.remote();
    remote.refresh(None).expect("memory can be read");
    let before = stamp(&remote, "a");
    assert_eq!((before.versions.as_slice(), lab.cached()), (&[1, 2][..], 0));
    let _shared = remote.fetch("a", Part::Shared).expect("it is there");
    assert_eq!(fs::read_to_string(before.path.join("config.pbtxt")).ok().as_deref(), Some("c"));
    let _versions = remote.fetch("a", Part::Versions(&[2])).expect("it is there");
    assert_eq!(fs::read_to_string(before.path.join("2/model.pt")).ok().as_deref(), Some("two"));
    assert!(fs::read(before.path.join("1/model.pt")).is_err());
    assert_eq!(lab.cached(), 2);
    assert_eq!(stamp(&remote, "a"), before, "fetching is no change");
    assert_eq!(remote.progress("a"), None);
}

#[test]
fn files_of_other_versions_are_fetched_by_their_names() {
    let lab = Lab::new();
    for path in ["config.pbtxt", "1/model.pt", "1/other", "2/model.pt", "3/model.pt"] {
        lab.put(&format!("models/a/{path}"), path);
    }
    let remote = lab.remote();
    remote.refresh(None).expect("memory can be read");
    let names = ["./1/model.pt", "2//model.pt", "3/model.pt", "config.pbtxt", "4/none"];
    let _files = remote.fetch("a", Part::Files { names: &names, there: &[3] }).expect("they are there");
    let directory = stamp(&remote, "a").path;
    let is_there = |path: &str| fs::read(directory.join(path)).is_ok();
    assert!(is_there("1/model.pt") && is_there("2/model.pt"));
    assert_eq!(lab.cached(), 2, "the others are there already, or nobody named them");
}

#[test]
fn a_change_is_seen_but_not_while_the_model_is_read() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    let remote = lab.remote();
    remote.refresh(None).expect("memory can be read");
    let before = stamp(&remote, "a");
    let reading = remote.reading("a");
    lab.put("models/a/1/model.pt", "two");
    remote.refresh(None).expect("memory can be read");
    assert_eq!(stamp(&remote, "a"), before);
    drop(reading);
    remote.refresh(Some("a")).expect("memory can be read");
    assert_ne!(stamp(&remote, "a"), before);
    remote.fetch("a", Part::Versions(&[1])).expect("it is there");
    assert_eq!(fs::read_to_string(before.path.join("1/model.pt")).ok().as_deref(), Some("two"));
}

#[test]
fn what_the_store_said_last_holds_when_it_cannot_be_reached() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    let gone = || Error::unavailable("gone");
    let remote = lab.remote();
    assert_eq!(remote.go_on_with_known(gone(), Duration::ZERO), Err(gone()), "nothing is known yet");
    remote.refresh(None).expect("memory can be read");
    drop(remote.fetch("a", Part::Versions(&[1])).expect("it is there"));
    let before = stamp(&remote, "a");
    drop(remote);
    // Another process, later.
    let remote = lab.remote();
    remote.go_on_with_known(gone(), Duration::ZERO).expect("it was saved");
    assert_eq!(remote.trouble(), Some(gone()));
    let after = stamp(&remote, "a");
    assert_eq!(after.stamp, before.stamp);
    remote.fetch("a", Part::Versions(&[1])).expect("it is in the cache");
    assert_eq!(fs::read_to_string(after.path.join("1/model.pt")).ok().as_deref(), Some("one"));
}

#[test]
fn a_look_for_one_model_forgets_no_other() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    lab.put("models/b/1/model.pt", "one");
    let remote = lab.remote();
    remote.refresh(Some("a")).expect("memory can be read");
    assert_eq!(stamp(&remote, "b").versions, [1]);
    lab.put("models/a/2/model.pt", "two");
    remote.refresh(Some("a")).expect("memory can be read");
    assert_eq!((stamp(&remote, "a").versions, stamp(&remote, "b").versions), (vec![1, 2], vec![1]));
}

#[test]
fn a_tree_that_cannot_be_written_is_made_anew_at_the_next_look() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    let remote = lab.remote();
    remote.refresh(None).expect("memory can be read");
    lab.put("models/b/1/model.pt", "one");
    fs::write(remote.root.join("b"), "in the way").expect("writable");
    assert_eq!(remote.refresh(None).map_err(|error| error.kind()), Err(Kind::Internal));
    assert!(!remote.is_fresh(Duration::from_secs(3600)));
    remote.refresh(Some("b")).expect("memory can be read");
    assert_eq!((stamp(&remote, "a").versions, stamp(&remote, "b").versions), (vec![1], vec![1]));
}

#[test]
fn a_listing_that_cannot_be_saved_is_shown_and_saved_later() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    let remote = lab.remote();
    let listings = lab.directory.path().join("listings");
    fs::remove_dir_all(&listings).expect("it is ours");
    fs::write(&listings, "in the way").expect("writable");
    remote.refresh(None).expect("memory can be read");
    let before = stamp(&remote, "a");
    let _reading = remote.reading("a");
    remote.refresh(None).expect("nothing has changed");
    assert_eq!(stamp(&remote, "a"), before);
    fs::remove_file(&listings).expect("it is ours");
    cache::make(&listings).expect("writable");
    remote.refresh(None).expect("memory can be read");
    assert!(remote.cache.saved(&remote.saved).is_some());
}

#[test]
fn a_file_that_is_cached_does_not_wait_for_another_s_download() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    let remote = lab.remote();
    remote.refresh(None).expect("memory can be read");
    drop(remote.fetch("a", Part::Versions(&[1])).expect("it is there"));
    let key = remote.state.lock().shown.as_ref().expect("it was listed").models["a"].files["1/model.pt"]
        .key(&remote.bucket.place);
    let _turn = remote.cache.turn(&key).expect("nobody else fetches");
    let (fetched, waiting) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let files = remote.fetch("a", Part::Versions(&[1]));
        let _ = fetched.send(files.is_ok());
    });
    assert_eq!(waiting.recv_timeout(Duration::from_secs(10)), Ok(true));
}

#[test]
fn an_object_that_is_gone_is_an_error_that_names_it() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    let remote = lab.remote();
    remote.refresh(None).expect("memory can be read");
    lab.runtime.block_on(lab.store.delete(&ObjectPath::from("models/a/1/model.pt"))).expect("it is there");
    let error = remote.fetch("a", Part::Versions(&[1])).expect_err("it is gone");
    assert!(error.message().starts_with("cannot read 's3://b/models/a/1/model.pt': "), "{error}");
    assert!(error.message().ends_with("(credentials: a test's)"), "{error}");
}

#[test]
fn two_processes_share_what_is_fetched() {
    let lab = Lab::new();
    lab.put("models/a/1/model.pt", "one");
    let remotes = [lab.remote(), lab.remote()];
    std::thread::scope(|scope| {
        for remote in &remotes {
            scope.spawn(|| {
                remote.refresh(None).expect("memory can be read");
                remote.fetch("a", Part::Versions(&[1])).expect("it is there");
            });
        }
    });
    assert_eq!(lab.cached(), 1);
    assert_ne!(remotes[0].root, remotes[1].root);
}
