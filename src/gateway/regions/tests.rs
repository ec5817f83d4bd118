//! Regions over real shared memory objects, with clients that do what they should not.

mod cuda;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use super::{Mapping, Memory, ObjectStatus, Regions, Registration, Window};
use crate::error::{Kind, Result};
use crate::telemetry::metrics::Metrics;

const PAGE: u64 = 4096;

/// A client's shared memory object; on Linux they are the files of one directory.
struct Object {
    key: String,
    path: PathBuf,
    file: File,
}

impl Object {
    fn new(bytes: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let key = format!("/nereid_unit_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(format!("/dev/shm{key}"));
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("a new object");
        file.set_len(bytes).expect("its size can be set");
        Self { key, path, file }
    }

    fn write(&self, at: u64, data: &[u8]) {
        self.file.write_all_at(data, at).expect("written");
    }

    fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.file.read_exact_at(&mut data, at).expect("read");
        data
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn regions() -> Regions {
    Regions::new(Some(4), &Metrics::off())
}

fn register(regions: &Regions, name: &str, key: &str, range: (u64, u64)) -> Result<()> {
    regions.register(Registration { name, key, offset: range.0, byte_size: range.1 })
}

/// The mapping that a window looks into.
fn mapping(window: &Window) -> &Arc<Mapping> {
    match &window.region.memory {
        Memory::Object(object) => &object.mapping,
        Memory::Device(_) => panic!("no memory of the host"),
    }
}

/// The kind and message of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
    let error = result.expect_err("a refusal");
    (error.kind(), error.message().to_owned())
}

#[test]
fn a_region_is_listed_until_it_is_unregistered() {
    let (regions, object) = (regions(), Object::new(PAGE));
    register(&regions, "a", &object.key, (0, 64)).expect("registered");
    register(&regions, "b", object.key.trim_start_matches('/'), (100, 8)).expect("with or without a slash");
    let listed = |name| regions.list(name).map(|found| found.iter().map(|each| each.name.clone()).collect::<Vec<_>>());
    assert_eq!(listed(""), Ok(vec!["a".to_owned(), "b".to_owned()]));
    let b: ObjectStatus = regions.list("b").expect("registered").remove(0);
    assert_eq!((b.key.as_str(), b.offset, b.byte_size), (&object.key[1..], 100, 8));
    regions.unregister("a");
    regions.unregister("a");
    assert_eq!(
        refusal(regions.list("a")),
        (Kind::NotFound, "Unable to find system shared memory region: 'a'".to_owned())
    );
    regions.unregister("");
    assert_eq!(listed(""), Ok(Vec::new()));
}

#[test]
fn names_are_taken_once_and_bounded_in_number() {
    let (regions, object) = (regions(), Object::new(PAGE));
    for name in ["a", "b", "c", "d"] {
        register(&regions, name, &object.key, (0, 8)).expect("registered");
    }
    let twice = refusal(register(&regions, "a", &object.key, (0, 8)));
    assert_eq!(twice, (Kind::AlreadyExists, "shared memory region 'a' already in manager".to_owned()));
    let (kind, message) = refusal(register(&regions, "e", &object.key, (0, 8)));
    assert_eq!(
        (kind, message.as_str()),
        (Kind::Unavailable, "4 shared memory regions are registered, which is the limit")
    );
    for name in [String::new(), "x".repeat(1025)] {
        assert_eq!(refusal(register(&regions, &name, &object.key, (0, 8))).0, Kind::InvalidArgument);
    }
}

#[test]
fn a_part_that_the_object_does_not_have_is_refused() {
    let (regions, object) = (regions(), Object::new(PAGE));
    for range in [(0, PAGE + 1), (PAGE, 1), (1, PAGE), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX), (0, 0)] {
        let expected = "failed to register shared memory region 'a': invalid args".to_owned();
        let refused = refusal(register(&regions, "a", &object.key, range));
        assert_eq!(refused, (Kind::InvalidArgument, expected), "{range:?}");
    }
    register(&regions, "a", &object.key, (PAGE - 1, 1)).expect("the last byte is there");
}

#[test]
fn a_key_names_an_object_and_nothing_else() {
    let regions = regions();
    let outside = tempfile::NamedTempFile::new().expect("a file");
    outside.as_file().set_len(PAGE).expect("its size can be set");
    let link = Object::new(PAGE);
    fs::remove_file(&link.path).expect("removed");
    std::os::unix::fs::symlink(outside.path(), &link.path).expect("a link in its place");
    let long = "x".repeat(300);
    for key in
        ["", "/", ".", "..", "/..", "../tmp/x", "/a/b", "a\0b", "//double", "/nereid_no_such_object", &long, &link.key]
    {
        let (kind, message) = refusal(register(&regions, "a", key, (0, 8)));
        assert_eq!(kind, Kind::InvalidArgument, "{key:?}: {message}");
    }
    let (_, message) = refusal(register(&regions, "a", "/nereid_no_such_object", (0, 8)));
    assert!(message.starts_with("Unable to open shared memory region: '/nereid_no_such_object'"), "{message}");
    for key in ["triton_python_backend_shm_region_1", "/triton_python_backend_shm_region_1"] {
        let (kind, message) = refusal(register(&regions, "a", key, (0, 8)));
        assert_eq!(kind, Kind::InvalidArgument);
        assert!(message.contains("contains the reserved prefix 'triton_python_backend_shm_region_'"), "{message}");
    }
}

#[test]
fn a_window_stays_inside_its_region() {
    let (regions, object) = (regions(), Object::new(3 * PAGE));
    object.write(PAGE + 10, b"0123456789");
    register(&regions, "a", &object.key, (PAGE + 10, 10)).expect("registered, on no page's border");
    assert_eq!(regions.window("a", 0, 10).expect("all of it").view().expect("in place"), "0123456789");
    assert_eq!(regions.window("a", 4, 3).expect("inside").copy().expect("there"), "456");
    for offset in [-1, 10, 11, i64::MAX, i64::MIN] {
        let expected = (Kind::InvalidArgument, "Invalid offset for shared memory region: 'a'".to_owned());
        assert_eq!(refusal(regions.window("a", offset, 1)), expected, "{offset}");
    }
    for (offset, bytes) in [(0, 11), (9, 2), (0, -1), (9, i64::MAX), (0, i64::MIN)] {
        let expected = (Kind::InvalidArgument, "Invalid offset + byte size for shared memory region: 'a'".to_owned());
        assert_eq!(refusal(regions.window("a", offset, bytes)), expected, "{offset} {bytes}");
    }
    let unknown = (Kind::NotFound, "Unable to find shared memory region: 'b'".to_owned());
    assert_eq!(refusal(regions.window("b", 0, 1)), unknown);
}

#[test]
fn outputs_are_written_to_their_place_and_nowhere_else() {
    let (regions, object) = (regions(), Object::new(PAGE));
    object.write(0, b"abcdefgh");
    register(&regions, "a", &object.key, (2, 4)).expect("registered");
    let window = regions.window("a", 1, 3).expect("inside");
    window.place(&Bytes::from_static(b"XY")).expect("placed");
    assert_eq!(object.read(0, 8), b"abcXYfgh");
    let (from, to) = (regions.window("a", 0, 3).expect("inside"), regions.window("a", 1, 3).expect("inside"));
    to.place(&from.view().expect("in place")).expect("the two may overlap");
    assert_eq!(object.read(0, 8), b"abccXYgh");
}

#[test]
fn a_view_sees_what_the_client_writes_and_a_copy_does_not() {
    let (regions, object) = (regions(), Object::new(PAGE));
    object.write(0, b"before");
    register(&regions, "a", &object.key, (0, 6)).expect("registered");
    let window = regions.window("a", 0, 6).expect("inside");
    let (view, copy) = (window.view().expect("in place"), window.copy().expect("there"));
    object.write(0, b"behind");
    assert_eq!((&view[..], &copy[..]), (&b"behind"[..], &b"before"[..]));
    assert_eq!(view.as_ptr() as usize, regions.list("a").expect("registered")[0].address);
}

#[test]
fn an_unregistered_region_stays_until_its_last_user_is_gone() {
    let (regions, object) = (regions(), Object::new(PAGE));
    object.write(0, b"data");
    register(&regions, "a", &object.key, (0, 4)).expect("registered");
    let mapping = Arc::downgrade(mapping(&regions.window("a", 0, 4).expect("inside")));
    let view = regions.window("a", 0, 4).expect("inside").view().expect("in place");
    let output = regions.window("a", 0, 4).expect("inside");
    regions.unregister("a");
    drop(fs::remove_file(&object.path));
    assert_eq!(view, "data");
    drop(view);
    output.place(&Bytes::from_static(b"DATA")).expect("still mapped");
    assert_eq!(object.read(0, 4), b"DATA");
    assert!(mapping.upgrade().is_some());
    drop(output);
    assert!(mapping.upgrade().is_none(), "unmapped with the last user");
}

#[test]
fn a_truncated_object_is_refused_before_it_is_used() {
    let (regions, object) = (regions(), Object::new(2 * PAGE));
    register(&regions, "a", &object.key, (0, 2 * PAGE)).expect("registered");
    let output = regions.window("a", 0, 8).expect("inside");
    object.file.set_len(2 * PAGE - 1).expect("truncated");
    let gone = "the memory of shared memory region 'a' is gone: its object was truncated, or there is no room for it";
    assert_eq!(refusal(regions.window("a", 0, 8)), (Kind::InvalidArgument, gone.to_owned()));
    assert_eq!(refusal(output.place(&Bytes::from_static(b"x"))), (Kind::InvalidArgument, gone.to_owned()));
    object.file.set_len(2 * PAGE).expect("long again");
    regions.window("a", 0, 8).expect("nothing was lost while nobody looked");
}

#[test]
fn memory_that_goes_away_under_a_reader_reads_as_zeros_and_is_told() {
    let (regions, object, other) = (regions(), Object::new(2 * PAGE), Object::new(PAGE));
    object.write(PAGE, &[7; 16]);
    other.write(0, b"other");
    register(&regions, "a", &object.key, (0, 2 * PAGE)).expect("registered");
    register(&regions, "b", &other.key, (0, PAGE)).expect("registered");
    let window = regions.window("a", PAGE as i64, 16).expect("inside");
    let view = window.view().expect("in place");
    object.file.set_len(0).expect("truncated");
    assert_eq!(view[..], [0; 16], "read without an end to the process");
    assert!(window.check().is_err());
    object.file.set_len(2 * PAGE).expect("long again");
    assert!(window.check().is_err(), "what was torn stays torn");
    assert!(regions.window("a", 0, 1).is_err());
    assert_eq!(regions.window("b", 0, 5).expect("untouched").view().expect("in place"), "other");
    drop((view, window));
    regions.unregister("a");
    register(&regions, "a", &object.key, (0, PAGE)).expect("registered again");
    regions.window("a", 0, 1).expect("a new mapping is whole");
}

#[test]
fn memory_that_goes_away_under_a_writer_is_told() {
    let (regions, object) = (regions(), Object::new(PAGE));
    register(&regions, "a", &object.key, (0, PAGE)).expect("registered");
    let window = regions.window("a", 0, 8).expect("inside");
    object.file.set_len(0).expect("truncated");
    // Between the check and the writing, as if the client had been quicker.
    mapping(&window).copy_in(0, &Bytes::from_static(b"late"));
    assert!(!mapping(&window).is_whole());
    assert_eq!(mapping(&window).copy_out(0, 4), "late", "it went into memory of our own");
}

#[test]
fn a_bus_error_of_anybody_else_ends_the_process_as_before() {
    let (regions, object) = (regions(), Object::new(PAGE));
    register(&regions, "a", &object.key, (0, PAGE)).expect("registered, so the handler is set");
    let foreign = tempfile::tempfile().expect("a file");
    let memory = memmap2::MmapOptions::new().len(PAGE as usize).map_raw(&foreign).expect("mapped beyond its end");
    // SAFETY: the child does nothing but set an alarm and read memory that is mapped, until a signal ends it.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::alarm(20);
            std::ptr::read_volatile(memory.as_ptr());
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status
    };
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:#x}");
}

#[test]
fn without_leave_nothing_can_be_registered_or_used() {
    let (regions, object) = (Regions::off(), Object::new(PAGE));
    let text = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.";
    let expected = (Kind::Unimplemented, text.to_owned());
    assert_eq!(refusal(register(&regions, "a", &object.key, (0, 8))), expected);
    assert_eq!(refusal(regions.window("a", 0, 8)), expected);
    regions.unregister("");
    assert!(regions.list("").expect("nothing to list").is_empty());
}
