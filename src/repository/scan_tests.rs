//! What a look at a repository finds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::scan::{check_name, find, look, scan};
use crate::error::Kind;

fn put(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("below the root")).expect("the directory is writable");
    fs::write(path, text).expect("the directory is writable");
}

#[test]
fn versions_are_the_positive_integers_in_their_order() {
    let root = tempfile::tempdir().expect("there is room");
    for name in
        ["10/f", "2/f", "1/f", "0/f", "03/f", "-1/f", "v4/f", "99999999999999999999/f", ".5/f", "warmup/f", "configs/f"]
    {
        put(root.path(), name, "");
    }
    put(root.path(), "7", "a file is no version");
    let mut warnings = Vec::new();
    let model = look("m", root.path(), &mut warnings).expect("it is a directory");
    assert_eq!(model.versions, [1, 2, 10]);
    assert_eq!(warnings.len(), 5, "{warnings:?}");
}

#[test]
fn a_stamp_changes_with_files_and_only_then() {
    let root = tempfile::tempdir().expect("there is room");
    let at = root.path();
    put(at, "same/config.pbtxt", "backend: \"identity\"");
    put(at, "edited/config.pbtxt", "backend: \"identity\"");
    put(at, "grown/1/f", "");
    let stamps = |scan: &super::Scan| -> BTreeMap<_, _> {
        scan.models.iter().map(|(name, model)| (name.clone(), model.stamp.clone())).collect()
    };
    let look_again = || stamps(&scan(&[at.to_owned()]).expect("the root exists"));
    let before = look_again();
    assert_eq!(look_again(), before);
    put(at, "edited/config.pbtxt", "backend: \"other\"");
    fs::create_dir(at.join("grown/2")).expect("the directory is writable");
    let after = look_again();
    let changed: Vec<&String> = before.keys().filter(|name| before[*name] != after[*name]).collect();
    assert_eq!(changed, ["edited", "grown"]);
    let (before, after) = (&before["grown"], &after["grown"]);
    assert!(before.same_common_files(after) && before.same_version(after, 1) && !before.same_version(after, 2));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["", ".", "..", "../m", "a/b", "/etc", "a\\b", ".git", "m\0"] {
        assert_eq!(check_name(name).map_err(|error| error.kind()), Err(Kind::InvalidArgument), "{name:?}");
    }
    assert_eq!(check_name("name-1.v2_x"), Ok(()));
}

#[test]
fn a_model_is_found_in_exactly_one_root() {
    let (one, two) = (tempfile::tempdir().expect("there is room"), tempfile::tempdir().expect("there is room"));
    put(one.path(), "a/1/f", "");
    put(two.path(), "b/1/f", "");
    put(one.path(), "both/1/f", "");
    put(two.path(), "both/1/f", "");
    let roots = [one.path().to_owned(), two.path().to_owned()];
    let find = |name| find(&roots, name, &mut Vec::new());
    assert_eq!(find("b").map(|model| model.versions), Ok(vec![1]));
    assert_eq!(find("both").map_err(|error| error.kind()).map(|_| ()), Err(Kind::InvalidArgument));
    assert_eq!(find("c").map_err(|error| error.kind()).map(|_| ()), Err(Kind::NotFound));
}
