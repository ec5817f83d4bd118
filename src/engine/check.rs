//! Validates model repositories without serving them: what `nereid check` says.
//!
//! Every model is looked at as a load would, up to opening it; nothing stops at the first mistake.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::ensemble::connect;
use super::ensemble::graph::Member;
use crate::backend::Backend;
use crate::error::Result;
use crate::model::{EnsembleStep, Scheduling, Version};
use crate::repository::{self, Facts, Finished, ModelDir, Source, Written};

/// What was found in some repositories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The models by name.
    pub models: BTreeMap<String, ModelReport>,
    /// What is ignored in the repositories and may be a mistake.
    pub warnings: Vec<String>,
}

/// What was found in one model's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelReport {
    /// The versions that would be served, ascending.
    pub versions: Vec<Version>,
    /// Why it cannot be loaded, one line each.
    pub mistakes: Vec<String>,
    /// What is suspicious, one line each.
    pub warnings: Vec<String>,
}

/// Checks every model in `roots`, by its configuration `config_name` where it has that. Blocking: reads all
/// configurations, and model files where one leaves something out.
///
/// # Errors
/// If a root cannot be read.
pub fn check(
    roots: &[PathBuf],
    config_name: Option<&str>,
    backends: &[Arc<dyn Backend>],
    facts: &Facts,
) -> Result<CheckReport> {
    let source = config_name.map_or(Source::File, Source::Named);
    let scan = repository::scan(roots)?;
    let mut report = CheckReport { warnings: scan.warnings, ..CheckReport::default() };
    for (name, reason) in scan.unreadable.into_iter().chain(scan.duplicates) {
        report.models.insert(name, ModelReport { mistakes: vec![reason], ..ModelReport::default() });
    }
    let mut right = BTreeMap::new();
    for (name, model) in scan.models {
        let (of_model, finished) = check_model(&model, source, backends, facts);
        report.models.insert(name.clone(), of_model);
        right.extend(finished.map(|finished| (name, finished)));
    }
    ensembles(&mut report, right);
    Ok(report)
}

/// Fits the ensembles to their members, each after those of them that are ensembles.
fn ensembles(report: &mut CheckReport, right: BTreeMap<String, Finished>) {
    let is_ensemble = |finished: &Finished| matches!(finished.config.scheduling, Scheduling::Ensemble(_));
    let (mut left, members): (BTreeMap<_, _>, BTreeMap<_, _>) =
        right.into_iter().partition(|(_, finished)| is_ensemble(finished));
    let member = |config, depth| Member { config: Arc::new(config), depth, keeps_outputs: false };
    let mut members: BTreeMap<String, Member> =
        members.into_iter().map(|(name, finished)| (name, member(finished.config, 0))).collect();
    // In each round those whose members are settled; at last, those that wait for what is wrong, or for each other.
    while !left.is_empty() {
        let waits = |finished: &Finished| match &finished.config.scheduling {
            Scheduling::Ensemble(ensemble) => ensemble.steps.iter().any(|step| left.contains_key(&step.model)),
            Scheduling::Single(_) | Scheduling::Dynamic(_) | Scheduling::Sequence(_) => false,
        };
        let mut ready: Vec<String> =
            left.iter().filter(|(_, finished)| !waits(finished)).map(|(name, _)| name.clone()).collect();
        if ready.is_empty() {
            ready = left.keys().cloned().collect();
        }
        for name in ready {
            let Some(Finished { mut config, positions, .. }) = left.remove(&name) else { continue };
            let Scheduling::Ensemble(ensemble) = config.scheduling.clone() else { continue };
            let find = |step: &EnsembleStep| members.get(&step.model).cloned();
            match connect(&mut config, &ensemble, &positions, find) {
                Ok(plan) => {
                    members.insert(name, member(config, plan.depth));
                }
                Err(error) => {
                    let lines = error.message().lines().map(str::to_owned);
                    report.models.entry(name).or_default().mistakes.extend(lines);
                }
            }
        }
    }
}

impl CheckReport {
    /// How many mistakes there are in all models.
    pub fn mistakes(&self) -> usize {
        self.models.values().map(|model| model.mistakes.len()).sum()
    }
}

impl fmt::Display for CheckReport {
    /// Every mistake and warning on a line of its own, and a summary as the last line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for model in self.models.values() {
            for mistake in &model.mistakes {
                writeln!(f, "{mistake}")?;
            }
            for warning in &model.warnings {
                writeln!(f, "warning: {warning}")?;
            }
        }
        let good = self.models.values().filter(|model| model.mistakes.is_empty()).count();
        let (all, mistakes) = (self.models.len(), self.mistakes());
        let warnings = self.warnings.len() + self.models.values().map(|model| model.warnings.len()).sum::<usize>();
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        write!(f, "{good} of {all} model{} can be loaded, ", plural(all))?;
        write!(f, "{mistakes} mistake{}, {warnings} warning{}", plural(mistakes), plural(warnings))
    }
}

fn check_model(
    model: &ModelDir,
    source: Source<'_>,
    backends: &[Arc<dyn Backend>],
    facts: &Facts,
) -> (ModelReport, Option<Finished>) {
    let mut report = ModelReport::default();
    let written = match repository::read(model, source, facts) {
        Ok(written) => written,
        Err(mistakes) => {
            report.mistakes.extend(mistakes.iter().map(ToString::to_string));
            // Versions are there or not, whatever the configuration says.
            if model.versions.is_empty() {
                report.mistakes.push(format!("{}: there is no version directory", model.path.display()));
            }
            return (report, None);
        }
    };
    let written = complete(model, written, backends, facts, &mut report);
    let finished = match written.finish(facts) {
        Ok(finished) => {
            report.warnings.extend(finished.warnings.iter().map(ToString::to_string));
            Some(finished)
        }
        Err(mistakes) => {
            report.mistakes.extend(mistakes.iter().map(ToString::to_string));
            None
        }
    };
    let right = report.mistakes.is_empty();
    (report, finished.filter(|_| right))
}

/// Chooses the versions, looks for their files, and lets the backend fill in what is left out.
fn complete(
    model: &ModelDir,
    mut written: Written,
    backends: &[Arc<dyn Backend>],
    facts: &Facts,
    report: &mut ModelReport,
) -> Written {
    let place = model.path.display();
    let selected = match written.versions(&model.versions) {
        Ok(selected) => selected,
        Err(error) => {
            report.mistakes.push(format!("{place}: {error}"));
            return written;
        }
    };
    for version in selected.missing {
        report.warnings.push(format!("{place}: version {version} of the version policy does not exist"));
    }
    let mut files_exist = true;
    for version in &selected.versions {
        // A name that leads out of the directory is among the mistakes of the configuration.
        let files = written.files(*version, facts).ok();
        files_exist &= files.is_some();
        if let Some(file) = files.and_then(|files| files.model_file).filter(|file| !file.is_file()) {
            report.mistakes.push(format!("{}: the model file of version {version} does not exist", file.display()));
            files_exist = false;
        }
    }
    let backend = backends.iter().find(|backend| backend.name() == written.schema.backend);
    if let (Some(backend), Some(latest), true) = (backend, selected.versions.last(), files_exist)
        && let Ok(latest) = written.files(*latest, facts)
        && let Err(error) = backend.complete(&latest, &mut written.schema)
    {
        report.mistakes.push(format!("{place}: {error}"));
    }
    report.versions = selected.versions;
    written
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::backend::identity::Identity;
    use crate::repository::BackendFacts;

    fn facts() -> Facts {
        let backend = BackendFacts {
            name: "identity".to_owned(),
            default_model_filename: None,
            uses_cuda: false,
            parameter_keys: vec![],
            check_parameters: Arc::new(|_| Vec::new()),
        };
        let file = BackendFacts {
            name: "pytorch".to_owned(),
            default_model_filename: Some("model.pt".to_owned()),
            ..backend.clone()
        };
        Facts { backends: vec![backend, file], queue_requests_max: 10, ..Facts::default() }
    }

    fn put(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("the directory is writable");
        fs::write(path, text).expect("the directory is writable");
    }

    fn said(root: &Path) -> String {
        let report = check(&[root.to_owned()], None, &[Arc::new(Identity)], &facts()).expect("the root exists");
        report.to_string().replace(&format!("{}/", root.display()), "")
    }

    #[test]
    fn every_model_is_checked_whatever_is_wrong_with_others() {
        let root = tempfile::tempdir().expect("there is room");
        put(root.path(), "a/config.pbtxt", "backend: \"identity\"\nmax_batchsize: 1\nmax_batch_size: -1\n");
        put(
            root.path(),
            "b/config.pbtxt",
            "backend: \"identity\"\nversion_policy { specific { versions: [ 1, 3 ] } }\n",
        );
        put(root.path(), "b/1/.keep", "");
        put(root.path(), "b/02/.keep", "");
        put(root.path(), "c/config.pbtxt", "backend: \"identity\"\n");
        put(root.path(), "d/config.pbtxt", "backend: \"pytorch\"\n");
        put(root.path(), "d/1/other.pt", "");
        put(root.path(), "stray.txt", "");
        put(root.path(), ".git/config", "");
        assert_eq!(
            said(root.path()),
            "warning: 'stray.txt' is ignored: a model repository holds one directory per model\n\
             warning: 'b/02' is ignored: a version directory is a positive integer without leading zero\n\
             a/config.pbtxt:2:1: unknown field 'max_batchsize', did you mean 'max_batch_size'?\n\
             a/config.pbtxt:3:1: 'max_batch_size' must be non-negative (0 for no batching), got -1\n\
             a: there is no version directory\n\
             warning: b: version 3 of the version policy does not exist\n\
             c: at least one version must be available under the version policy of model 'c'\n\
             d/1/model.pt: the model file of version 1 does not exist\n\
             1 of 4 models can be loaded, 5 mistakes, 3 warnings"
        );
    }

    #[test]
    fn ensembles_are_held_against_their_members() {
        let root = tempfile::tempdir().expect("there is room");
        let tensors = "input [ { name: \"IN\" data_type: TYPE_FP32 dims: [ 4 ] } ]\n\
                       output [ { name: \"OUT\" data_type: TYPE_FP32 dims: [ 4 ] } ]\n";
        let over = |member: &str, input: &str| {
            format!(
                "platform: \"ensemble\"\n{tensors}ensemble_scheduling {{ step [ {{ model_name: \"{member}\" model_version: -1\n\
                 input_map {{ key: \"{input}\" value: \"IN\" }}\n\
                 output_map {{ key: \"OUT\" value: \"OUT\" }} }} ] }}\n"
            )
        };
        put(root.path(), "a/config.pbtxt", &format!("backend: \"identity\"\n{tensors}"));
        put(root.path(), "good/config.pbtxt", &over("a", "IN"));
        put(root.path(), "outer/config.pbtxt", &over("good", "IN"));
        put(root.path(), "misspelt/config.pbtxt", &over("good", "INN"));
        put(root.path(), "around/config.pbtxt", &over("misspelt", "IN"));
        put(root.path(), "ring/config.pbtxt", &over("ring_too", "IN"));
        put(root.path(), "ring_too/config.pbtxt", &over("ring", "IN"));
        for name in ["a", "good", "outer", "misspelt", "around", "ring", "ring_too"] {
            put(root.path(), &format!("{name}/1/.keep"), "");
        }
        assert_eq!(
            said(root.path()),
            "around/config.pbtxt:4:32: ensemble_scheduling.step[0].model_name: ensemble 'around' contains models that are not available or ambiguous: misspelt\n\
             misspelt/config.pbtxt:5:1: ensemble_scheduling.step[0].input_map: in ensemble 'misspelt', input 'IN' in model \
             'good' is not mapped to any ensemble tensors\n\
             misspelt/config.pbtxt:5:18: ensemble_scheduling.step[0].input_map[INN]: in ensemble 'misspelt', ensemble \
             tensor 'IN' is mapping to non-existing input 'INN' in model 'good', did you mean 'IN'?\n\
             ring/config.pbtxt:4:32: ensemble_scheduling.step[0].model_name: ensemble 'ring' contains models that are not available or ambiguous: ring_too\n\
             ring_too/config.pbtxt:4:32: ensemble_scheduling.step[0].model_name: ensemble 'ring_too' contains models that are not available or ambiguous: ring\n\
             3 of 7 models can be loaded, 5 mistakes, 0 warnings"
        );
    }

    #[test]
    fn a_named_configuration_is_the_one_that_is_checked() {
        let root = tempfile::tempdir().expect("there is room");
        put(root.path(), "m/config.pbtxt", "backend: \"identity\"");
        put(root.path(), "m/configs/gpu.pbtxt", "backend: \"identity\"\nmax_batch_size: -1");
        put(root.path(), "m/1/.keep", "");
        let mistakes = |name| {
            let report = check(&[root.path().to_owned()], name, &[Arc::new(Identity)], &facts());
            report.expect("the root exists").models["m"].mistakes.clone()
        };
        assert_eq!((mistakes(None).len(), mistakes(Some("cpu")).len()), (0, 0));
        assert!(mistakes(Some("gpu"))[0].contains("configs/gpu.pbtxt:2:1: "), "{:?}", mistakes(Some("gpu")));
    }

    #[test]
    fn a_model_in_two_roots_cannot_be_loaded() {
        let (one, two) = (tempfile::tempdir().expect("there is room"), tempfile::tempdir().expect("there is room"));
        for root in [&one, &two] {
            put(root.path(), "m/config.pbtxt", "backend: \"identity\"");
        }
        let roots = [one.path().to_owned(), two.path().to_owned()];
        let report = check(&roots, None, &[], &facts()).expect("the roots exist");
        assert!(report.models["m"].mistakes[0].starts_with("model 'm' is in more than one repository: "), "{report}");
    }

    #[test]
    fn a_missing_root_is_an_error() {
        let error =
            check(&[PathBuf::from("/nonexistent")], None, &[], &facts()).expect_err("there is no such directory");
        assert!(error.message().starts_with("cannot read model repository '/nonexistent': "), "{error}");
    }
}
