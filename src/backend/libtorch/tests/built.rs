//! The package that tests serve: built once for a checkout, by what users build theirs with.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package of `tests/aoti/linear.py`, for batches of at most 16 rows. Takes a minute where it is not there yet.
pub fn linear() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (builder, source) = (root.join("scripts/torch-aoti"), root.join("tests/aoti/linear.py"));
    let folder = root.join("target/aoti");
    fs::create_dir_all(&folder).expect("target is writable");
    let lock = File::create(folder.join("lock")).expect("target is writable");
    lock.lock().expect("whoever builds it comes to an end");
    let mut hasher = DefaultHasher::new();
    for file in [&builder, &source] {
        fs::read(file).expect("it is part of the checkout").hash(&mut hasher);
    }
    let package = folder.join(format!("linear-{:016x}.pt2", hasher.finish()));
    if !package.is_file() {
        let python = root.join("third_party/aoti/python");
        let mut command = Command::new(&python);
        command.arg(builder).args([&source, &package]).args(["--max-batch", "16"]);
        let built = command.output().unwrap_or_else(|error| {
            panic!("{}: {error}: run `python3 scripts/setup-aoti`", python.display());
        });
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    }
    package
}
