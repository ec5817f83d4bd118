//! Configurations as people write them, each with what is said about it: `tests/golden/config/<case>/`.
//!
//! After a change of a text, run these tests with `NEREID_BLESS=1` and read the difference.

#![allow(clippy::disallowed_methods, reason = "a test run is told by its environment to write what it should compare")]

use std::fs;
use std::path::{Path, PathBuf};

use super::tests::facts;
use super::{CudaDevices, Facts, ModelDir, Source, look, read};
use crate::model::{Amount, Device};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let entries = fs::read_dir(root).expect("the cases are part of the package");
    let mut cases: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    cases.sort();
    cases
}

fn facts_with_gpus() -> Facts {
    let amount = |name: &str, count, device| Amount { name: name.to_owned(), count, device };
    let rate_limits =
        vec![amount("memory", 8, None), amount("MEMORY", 4, Some(Device::Cuda(1))), amount("bus", 2, None)];
    Facts { cuda_devices: CudaDevices::new(|| vec![0, 1]), rate_limits: Some(rate_limits), ..facts() }
}

/// What is said about a case that can be loaded as it is.
const NOTHING: &str = "nothing\n";

/// All that is said about a case, with `<case>/` for its directory.
fn said(case: &Path) -> String {
    let name = case.file_name().expect("a case has a name").to_string_lossy().into_owned();
    let model: ModelDir = look(&name, case, &mut Vec::new()).expect("the case is a directory");
    let facts = facts_with_gpus();
    let finished = read(&model, Source::File, &facts).and_then(|written| written.finish(&facts));
    let said = match finished {
        Ok(finished) if finished.warnings.is_empty() => NOTHING.to_owned(),
        Ok(finished) => finished.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect(),
        Err(mistakes) => format!("{mistakes}\n"),
    };
    let directory = case.parent().expect("the cases have a directory").display().to_string();
    said.replace(&format!("{directory}/"), "")
}

#[test]
fn each_case_is_told_as_expected() {
    let bless = std::env::var_os("NEREID_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let (said, expected) = (said(&case), case.join("expected.txt"));
        if bless {
            fs::write(&expected, &said).expect("the package can be written");
        } else if fs::read_to_string(&expected).unwrap_or_default() != said {
            wrong.push(said);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_mistake_names_the_file_the_line_and_the_key() {
    let cases = cases();
    assert!(cases.len() >= 30, "{} cases", cases.len());
    for case in cases {
        let text = fs::read_to_string(case.join("config.pbtxt")).expect("a case has a configuration");
        for line in said(&case).lines().filter(|line| *line != NOTHING.trim_end()) {
            let name = case.file_name().expect("a case has a name").to_string_lossy();
            let rest = line.strip_prefix("warning: ").unwrap_or(line);
            let rest = rest.strip_prefix(&format!("{name}/config.pbtxt:")).unwrap_or_else(|| panic!("{line}"));
            let number: usize =
                rest.split(':').next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{line}"));
            assert!((1..=text.lines().count() + 1).contains(&number), "{line}");
        }
    }
}

#[test]
fn the_example_models_are_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("model_repository");
    let scan = super::scan(&[root]).expect("the examples are part of the package");
    assert!(
        !scan.models.is_empty() && scan.warnings.is_empty() && scan.unreadable.is_empty() && scan.duplicates.is_empty(),
        "{scan:?}"
    );
    for model in scan.models.values() {
        let finished = read(model, Source::File, &facts()).and_then(|written| written.finish(&facts()));
        let warnings = finished.unwrap_or_else(|mistakes| panic!("{mistakes}")).warnings;
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}
