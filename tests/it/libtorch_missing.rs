//! Without its libtorch, the executable starts, and what needs libtorch fails with one clear line.

use std::path::Path;
use std::process::{Command, Output};

/// Runs `nereid inspect` from a folder that holds no libtorch in any of the places where one is looked for.
fn inspect(libraries: Option<&Path>) -> Output {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the test");
    // So deep that this checkout is in none of the places where the executable looks.
    let deep = folder.path().join("some/where");
    std::fs::create_dir_all(&deep).expect("there is room");
    let executable = deep.join("nereid");
    // A copy that another thread's child still has open for writing could not be started.
    std::fs::hard_link(env!("CARGO_BIN_EXE_nereid"), &executable).expect("the executable can be linked");
    let mut command = Command::new(executable);
    command.args(["inspect", "model.pt"]).env_remove("LD_LIBRARY_PATH");
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command.output().expect("the executable starts")
}

fn only_line(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr.clone()).expect("the message is text");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_libtorch_that_is_missing_is_one_clear_line() {
    let line = only_line(&inspect(None));
    assert!(line.starts_with("nereid: libtorch 2.11 cannot be used: libtorch_cpu.so: cannot open"), "{line}");
    assert!(line.contains("make setup"), "{line}");
}

#[test]
fn a_libtorch_of_another_version_is_one_clear_line() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let source = folder.path().join("stub.c");
    std::fs::write(&source, "unsigned long long aoti_torch_abi_version(void) { return 2ull << 56 | 9ull << 48; }\n")
        .expect("the folder is writable");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(folder.path().join("libtorch_cpu.so"))
        .arg(&source)
        .status()
        .expect("a C compiler, which building needs too");
    assert!(built.success());
    let line = only_line(&inspect(Some(folder.path())));
    assert_eq!(line, "nereid: libtorch 2.11 cannot be used: the one found is 2.9\n");
}
