//! The house rules that no compiler checks, each with its reason. `STYLE.md` explains them; here they hold.
//!
//! Reads the sources as text and imports nothing of the server, so that it builds in a second. A rule that is in the
//! way is changed here, with its reason, and not worked around. Begin with [`ROOMS`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in reading order, and what each may import beyond the vocabulary. One package has no compiler that stops
/// import cycles, and servers grow them unless a test does.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("tensor", &["error"]),
    ("model", &["error", "tensor"]),
    ("infer", &["error", "tensor", "model"]),
    ("telemetry", VOCABULARY),
    ("backend", VOCABULARY),
    ("repository", VOCABULARY),
    ("scheduler", &["error", "tensor", "model", "infer", "telemetry", "backend"]),
    ("engine", &["error", "tensor", "model", "infer", "telemetry", "backend", "repository", "scheduler"]),
    ("gateway", &["error", "tensor", "model", "infer", "telemetry", "engine"]),
    ("protocol", &["error", "tensor", "model", "infer", "telemetry", "gateway"]),
    ("config", &["error", "telemetry", "protocol", "engine"]),
    (
        "server",
        &[
            "error",
            "tensor",
            "model",
            "infer",
            "telemetry",
            "backend",
            "repository",
            "scheduler",
            "engine",
            "gateway",
            "protocol",
            "config",
        ],
    ),
    ("cli", &["error", "tensor", "model", "infer", "backend", "repository", "engine", "protocol", "config", "server"]),
];
const VOCABULARY: &[&str] = &["error", "tensor", "model", "infer"];

/// Files that may hold `unsafe`: the border to C++, memory that clients share, and the start of the process.
const UNSAFE_FILES: &[&str] = &[
    "src/backend/libtorch/",
    "src/backend/onnx/session.rs",
    "src/backend/onnx/value.rs",
    "src/gateway/regions/cuda.rs",
    "src/gateway/regions/fault.rs",
    "src/gateway/regions/mapping.rs",
    "src/main.rs",
];

/// Files outside `src/protocol/` that may name the libraries of wire types.
const WIRE_FILES: &[&str] = &["src/protocol/", "src/model/schema.rs"];

const PRODUCTION_LINES_MAX: usize = 500;
const ARCHITECTURE_LINES_MAX: usize = 250;

/// One source file, with its tests cut off.
struct Source {
    /// Relative to the package, with slashes.
    path: String,
    text: String,
    /// Without the unit tests at its end, comments emptied; as many lines as the file has up to there.
    production: String,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("sources are readable text");
        let relative =
            path.strip_prefix(root).expect("the walk began at the root").to_string_lossy().replace('\\', "/");
        let production = if is_test_file(&relative) { String::new() } else { without_comments(before_tests(&text)) };
        Self { path: relative, text, production }
    }

    fn is(&self, allowed: &[&str]) -> bool {
        allowed.iter().any(|prefix| self.path.starts_with(prefix))
    }

    /// The line numbers and lines of production code that contain one of the words.
    fn lines_with<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = String> + 'a {
        let numbered = self.production.lines().enumerate();
        let found = numbered.filter(|(_, line)| words.iter().any(|word| contains_word(line, word)));
        found.map(|(at, line)| format!("{}:{}: {}", self.path, at + 1, line.trim()))
    }
}

/// Test support inside `src/`: a file of its own that only tests compile.
fn is_test_file(path: &str) -> bool {
    let ends = ["/tests.rs", "_tests.rs", "/puppet.rs"];
    path.starts_with("src/") && (ends.iter().any(|end| path.ends_with(end)) || path.contains("/tests/"))
}

fn before_tests(text: &str) -> &str {
    match text.find("\n#[cfg(test)]\nmod ") {
        Some(at) => &text[..at],
        None => text,
    }
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| match line.find("//") {
        // A `//` inside a string, such as a URL, has a colon before it.
        Some(at) if !line[..at].ends_with(':') => line[..at].to_owned() + "\n",
        _ => line.to_owned() + "\n",
    };
    text.lines().map(code).collect()
}

/// Whether `word` is in the line and not the end of a longer identifier.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let starts_identifier = word.starts_with(|c: char| c.is_alphanumeric());
        !starts_identifier || !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files with one of the extensions below the folders, in order.
fn files(folders: &[&str], extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| package().join(folder)).collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("folders are readable").flatten().map(|entry| entry.path());
            left.extend(entries.filter(|entry| !entry.ends_with("target") && !entry.ends_with("__pycache__")));
        } else if path.extension().is_some_and(|own| extensions.iter().any(|each| own == *each)) {
            found.insert(path);
        }
    }
    found.into_iter().collect()
}

fn sources(folders: &[&str]) -> Vec<Source> {
    files(folders, &["rs"]).iter().map(|path| Source::read(&package(), path)).collect()
}

/// Fails with the rule's reason and every place that breaks it.
fn hold(reason: &str, broken: impl IntoIterator<Item = String>) {
    let mut list = String::new();
    for place in broken {
        let _ = writeln!(list, "  {place}");
    }
    assert!(list.is_empty(), "\n{reason}\n{list}");
}

/// The rooms that a file's production code names by `crate::` or by as many `super::` as lead to the crate.
fn imports(source: &Source) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let code = &source.production;
    let mut roots = vec!["crate::".to_owned()];
    let folders = source.path.trim_start_matches("src/").trim_end_matches("/mod.rs").matches('/').count() + 1;
    roots.push("super::".repeat(folders));
    for root in roots {
        for (at, _) in code.match_indices(&root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            collect_heads(&code[at + root.len()..], &mut rooms);
        }
    }
    rooms
}

/// The first names of a path, or of each path of a braced list.
fn collect_heads(rest: &str, heads: &mut BTreeSet<String>) {
    let Some(list) = rest.strip_prefix('{') else {
        heads.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        return;
    };
    let (mut depth, mut at_head) = (0usize, true);
    for (at, c) in list.char_indices() {
        match c {
            '}' if depth == 0 => return,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            _ if at_head && !c.is_whitespace() => {
                at_head = false;
                collect_heads(&list[at..], heads);
            }
            _ => {}
        }
    }
}

fn room_of(path: &str) -> &str {
    let inside = path.trim_start_matches("src/");
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

#[test]
fn imports_go_down_only() {
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let room = room_of(&source.path);
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else { continue };
        for import in imports(&source) {
            let is_room = ROOMS.iter().any(|(name, _)| *name == import);
            if is_room && import != room && !allowed.contains(&import.as_str()) {
                broken.push(format!("{}: {room} must not see {import}", source.path));
            }
        }
    }
    hold(
        "imports go down the table in tests/tidy.rs only; siblings do not see each other, and protocol reaches the engine through the gateway only, so that no endpoint passes by limits and accounting",
        broken,
    );
}

#[test]
fn every_room_is_in_the_table() {
    let known = |room: &str| ["lib", "main", "bin"].contains(&room) || ROOMS.iter().any(|(name, _)| *name == room);
    let broken = sources(&["src"]).into_iter().filter(|source| !known(room_of(&source.path))).map(|source| source.path);
    hold("a new room needs a place in the table of imports, and a line in ARCHITECTURE.md", broken);
}

#[test]
fn no_file_is_long() {
    let lines = |source: &Source| source.production.lines().filter(|line| !line.trim().is_empty()).count();
    let long = sources(&["src", "tests", "benches", "examples"]).into_iter().filter_map(|source| {
        let count = lines(&source);
        (count > PRODUCTION_LINES_MAX).then(|| format!("{}: {count} lines", source.path))
    });
    hold("a file of more than 500 lines of production code has more than one subject; split it by noun", long);
}

#[test]
fn every_file_says_what_it_is() {
    let silent = sources(&["src", "tests", "benches", "examples"]).into_iter();
    let silent = silent.filter(|source| !source.text.starts_with("//!")).map(|source| source.path);
    hold("each file begins with //! and says what it is, what it does not know, and where to begin", silent);
}

#[test]
fn file_names_are_nouns() {
    let vague = ["util", "utils", "common", "helper", "helpers", "misc"];
    let is_vague = |path: &PathBuf| path.file_stem().is_some_and(|stem| vague.iter().any(|name| stem == *name));
    let broken = files(&["src", "tests", "benches", "examples"], &["rs", "py"]).into_iter().filter(is_vague);
    hold("a file's name says what is in it", broken.map(|path| path.display().to_string()));
}

#[test]
fn production_code_does_not_give_up() {
    let words = [".unwrap()", "todo!(", "unimplemented!(", "dbg!("];
    let broken = sources(&["src"]);
    let broken = broken.iter().flat_map(|source| source.lines_with(&words));
    hold("a server answers with an error instead of ending; expect(\"why it cannot happen\") is for proofs", broken);
}

#[test]
fn unsafe_stays_at_the_border() {
    let all = sources(&["src", "tests", "benches", "examples"]);
    let elsewhere = all.iter().filter(|source| !source.is(UNSAFE_FILES) && source.path != "tests/tidy.rs");
    let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
    let broken = elsewhere.flat_map(|source| source.lines_with(&words));
    hold(
        "unsafe is needed at the border to C++ and to clients' memory only; what is behind it is checked by the compiler",
        broken,
    );
}

#[test]
fn metric_names_stand_in_one_file() {
    let all = sources(&["src"]);
    let elsewhere = all.iter().filter(|source| source.path != "src/telemetry/metrics.rs");
    let quoted = elsewhere.flat_map(|source| source.lines_with(&["\"nv_", "\"nereid_"]));
    // A byte string is a symbol of a library.
    let broken = quoted.filter(|line| !line.contains("b\"nereid_"));
    hold("dashboards depend on the names of metrics; they all stand in src/telemetry/metrics.rs", broken);
}

#[test]
fn wire_types_stay_in_protocol() {
    let all = sources(&["src"]);
    let elsewhere = all.iter().filter(|source| !source.is(WIRE_FILES));
    let broken = elsewhere.flat_map(|source| source.lines_with(&["prost::", "tonic::", "wire::"]));
    hold("inner rooms do not know the wire, so that a second protocol costs a decoder and an encoder only", broken);
}

#[test]
fn tests_do_not_sleep_and_are_not_ignored() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests"]).iter().filter(|source| source.path != "tests/tidy.rs") {
        let in_src = source.path.starts_with("src/");
        let virtual_time = source.text.contains("start_paused");
        let tests_begin = if in_src { source.production.lines().count() } else { 0 };
        for (at, line) in source.text.lines().enumerate().skip(tests_begin) {
            let sleeps = line.contains("thread::sleep(") || (line.contains("time::sleep(") && !virtual_time);
            if sleeps || line.trim_start().starts_with("#[ignore") {
                broken.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    hold(
        "a sleeping test is slow and fails on a busy machine, an ignored one is none; wait for what is awaited",
        broken,
    );
}

#[test]
fn no_path_of_somebodys_machine_is_written_down() {
    let machines = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let folders = ["src", "tests", "benches", "examples", "scripts", "proto", "model_repository", "Makefile"];
    let mut paths = files(&folders, &["rs", "py", "sh", "proto", "pbtxt", "toml"]);
    paths.extend(files(&["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "STYLE.md", "CHANGELOG.md"], &["md"]));
    let mut broken = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let found = text.lines().enumerate().filter(|(_, line)| machines.iter().any(|machine| line.contains(machine)));
        broken.extend(found.map(|(at, line)| format!("{}:{}: {}", path.display(), at + 1, line.trim())));
    }
    hold("the project works from any folder of any machine", broken);
}

#[test]
fn the_architecture_page_is_short_and_true() {
    let Ok(text) = fs::read_to_string(package().join("ARCHITECTURE.md")) else { return };
    let mut broken = Vec::new();
    if text.lines().count() > ARCHITECTURE_LINES_MAX {
        broken.push(format!("{} lines", text.lines().count()));
    }
    let roots = ["src/", "tests/", "proto/", "scripts/", "benches/", "examples/", "fuzz/", "model_repository/"];
    for named in text.split('`').skip(1).step_by(2) {
        let path = named.split_whitespace().next().unwrap_or_default();
        if roots.iter().any(|root| path.starts_with(root)) && !package().join(path).exists() {
            broken.push(format!("{path} does not exist"));
        }
    }
    hold("ARCHITECTURE.md is a map: at most 250 lines, and every path on it exists", broken);
}

#[test]
fn the_import_reader_sees_every_form() {
    let code = "use crate::error::Kind;\nuse crate::{tensor::{Shape, x}, model};\nlet a = crate::infer::only;\nuse super::super::engine::Engine;\nuse super::own;\nuse mycrate::other;\n";
    let source = Source { path: "src/scheduler/queue.rs".into(), text: String::new(), production: code.into() };
    let expected = ["engine", "error", "infer", "model", "tensor"];
    assert_eq!(imports(&source).into_iter().collect::<Vec<_>>(), expected);
}
