//! Ensembles: what each step says, and the flow of tensors through all of them, as far as the configuration tells.
//!
//! Whether the members fit is found out when they are there, by `engine`.

use std::collections::{BTreeMap, BTreeSet};

use super::super::suggest::nearest;
use super::super::tree::shorten;
use super::Check;
use crate::model::schema::ModelEnsembling;
use crate::model::schema::model_ensembling::Step;

const KEY: &str = "ensemble_scheduling";

/// More steps than this are a mistake.
const STEPS_MAX: usize = 1024;

pub(super) fn check(check: &mut Check<'_>, ensemble: &ModelEnsembling) {
    let config = check.config;
    if !config.backend.is_empty() {
        check.mistake("backend", "an ensemble must not specify 'backend'");
    }
    if !config.platform.is_empty() && config.platform != "ensemble" {
        check.mistake("platform", format!("an ensemble must have platform 'ensemble', got '{}'", config.platform));
    }
    let not_allowed = [
        ("instance_group", !config.instance_group.is_empty()),
        ("optimization", config.optimization.is_some()),
        ("model_warmup", !config.model_warmup.is_empty()),
    ];
    for (name, _) in not_allowed.into_iter().filter(|(_, given)| *given) {
        check.mistake(name, format!("an ensemble must not specify '{name}'"));
    }
    if ensemble.step.is_empty() {
        check.mistake(KEY, "must specify one or more 'step'");
    } else if ensemble.step.len() > STEPS_MAX {
        return check.mistake(KEY, format!("more than {STEPS_MAX} steps"));
    }
    for (index, each) in ensemble.step.iter().enumerate() {
        step(check, index, each);
    }
    flow(check, ensemble);
}

fn step(check: &mut Check<'_>, index: usize, step: &Step) {
    let key = format!("{KEY}.step[{index}]");
    if step.model_name.is_empty() {
        check.mistake(format!("{key}.model_name"), "a step must specify 'model_name'");
    } else if step.model_name == check.config.name {
        let name = &check.config.name;
        let message = format!("circular dependency between ensembles: {name} -> {name}");
        check.mistake(format!("{key}.model_name"), message);
    }
    if step.model_version < -1 || step.model_version == 0 && check.positions.wrote(&format!("{key}.model_version")) {
        let message =
            format!("'model_version' must be a version >= 1, or -1 for the latest, got {}", step.model_version);
        check.mistake(format!("{key}.model_version"), message);
    }
    let maps = [("input_map", step.input_map.is_empty()), ("output_map", step.output_map.is_empty())];
    for (name, _) in maps.into_iter().filter(|(_, empty)| *empty) {
        check.mistake(format!("{key}.{name}"), format!("a step must specify '{name}'"));
    }
}

/// The entries of all steps' maps: the step, the model's name for a tensor, and the tensor.
fn entries(
    ensemble: &ModelEnsembling,
    map: impl Fn(&Step) -> &std::collections::HashMap<String, String>,
) -> Vec<(usize, &str, &str)> {
    let mut entries = Vec::new();
    for (index, step) in ensemble.step.iter().enumerate() {
        // The same order each time, for the same messages each time.
        let sorted: BTreeMap<&String, &String> = map(step).iter().collect();
        entries.extend(sorted.into_iter().map(|(name, tensor)| (index, name.as_str(), tensor.as_str())));
    }
    entries
}

/// Each tensor is written once and read, and each step's inputs come in the end.
fn flow(check: &mut Check<'_>, ensemble: &ModelEnsembling) {
    // Without inputs and outputs in the configuration nothing can be told.
    let config = check.config;
    let name = &config.name;
    let read = entries(ensemble, |step| &step.input_map);
    let written = entries(ensemble, |step| &step.output_map);
    let taken: BTreeSet<&str> = read.iter().map(|(_, _, tensor)| *tensor).collect();
    let inputs: BTreeSet<&str> = config.input.iter().map(|input| input.name.as_str()).collect();
    let outputs: BTreeSet<&str> = config.output.iter().map(|output| output.name.as_str()).collect();
    let readable: BTreeSet<&str> = inputs.iter().copied().chain(written.iter().map(|(_, _, tensor)| *tensor)).collect();

    let mut writers: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, of_model, tensor) in &written {
        let key = format!("{KEY}.step[{index}].output_map[{of_model}]");
        let shown = shorten(tensor);
        if inputs.contains(tensor) {
            let message = format!("ensemble tensor '{shown}' is an input of ensemble '{name}', no step can write it");
            check.mistake(key, message);
        } else if writers.insert(tensor, *index).is_some() {
            let message = format!(
                "ensemble tensor '{shown}' can appear in an output map only once for ensemble '{name}' step {index}"
            );
            check.mistake(key, message);
        } else if !outputs.contains(tensor) && !taken.contains(tensor) {
            check.mistake(key, format!("ensemble tensor '{shown}' is unused in ensemble '{name}'"));
        }
    }
    for (index, of_model, tensor) in read.iter().filter(|(_, _, tensor)| !readable.contains(tensor)) {
        let message = format!(
            "ensemble tensor '{}' is not connected: no step writes it and it is no input of ensemble '{name}'",
            shorten(tensor)
        );
        let suggestion = || nearest(tensor, readable.iter().copied());
        check.mistake_near(&format!("{KEY}.step[{index}].input_map[{of_model}]"), message, suggestion);
    }
    for (index, input) in config.input.iter().enumerate() {
        if !input.name.is_empty() && !taken.contains(input.name.as_str()) {
            let message = format!("ensemble input '{}' for ensemble '{name}' is not used", shorten(&input.name));
            check.mistake(format!("input[{index}]"), message);
        }
    }
    for (index, output) in config.output.iter().enumerate() {
        if !output.name.is_empty() && !readable.contains(output.name.as_str()) {
            let message = format!("output '{}' for ensemble '{name}' is not written", shorten(&output.name));
            let suggestion = || nearest(&output.name, writers.keys().copied());
            check.mistake_near(&format!("output[{index}]"), message, suggestion);
        }
    }
    if let Some(cycle) = cycle(ensemble, &writers) {
        let models: Vec<&str> = cycle.iter().map(|&index| ensemble.step[index].model_name.as_str()).collect();
        let message = format!("the steps of ensemble '{name}' wait for each other: {}", models.join(" -> "));
        check.mistake(format!("{KEY}.step[{}]", cycle[0]), message);
    }
}

/// Steps of which each waits for a tensor of the next, the last being the first; `None` if there are none.
fn cycle(ensemble: &ModelEnsembling, writers: &BTreeMap<&str, usize>) -> Option<Vec<usize>> {
    let writer = |tensor: &String| writers.get(tensor.as_str()).copied();
    let steps = ensemble.step.iter();
    let waits_for: Vec<BTreeSet<usize>> =
        steps.map(|step| step.input_map.values().filter_map(writer).collect()).collect();
    let mut left: BTreeSet<usize> = (0..ensemble.step.len()).collect();
    loop {
        let ready: Vec<usize> = left.iter().copied().filter(|&index| waits_for[index].is_disjoint(&left)).collect();
        if ready.is_empty() {
            break;
        }
        left.retain(|index| !ready.contains(index));
    }
    // Each that is left waits for another one that is left, so that going on this way comes back somewhere.
    let mut way = vec![*left.first()?];
    loop {
        let next = waits_for[*way.last()?].iter().copied().find(|index| left.contains(index))?;
        if let Some(begin) = way.iter().position(|&index| index == next) {
            let mut cycle = way.split_off(begin);
            cycle.push(next);
            return Some(cycle);
        }
        way.push(next);
    }
}
