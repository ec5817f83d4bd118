//! The rules of a configuration: everything that is wrong, each at its place, all at once.
//!
//! The texts keep the fragments of the reference server's, because people search for them. What the reference server
//! does and this one does not is refused in `unsupported`.

mod agents;
mod cache;
mod data_file;
mod ensemble;
mod extras;
mod instances;
mod parameters;
mod ragged;
mod scheduling;
mod sequence;
mod tensors;
mod unsupported;
mod warmup;

use std::path::Path;

use super::Facts;
use super::mistakes::{Findings, Positions};
use crate::model::schema::ModelConfig;
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::schema::model_version_policy::PolicyChoice;

/// Checks the configuration of a model in `directory`.
pub(in crate::repository) fn validate(
    config: &ModelConfig,
    positions: &Positions,
    directory: &Path,
    facts: &Facts,
) -> Findings {
    let mut check = Check { config, positions, directory, facts, found: Findings::default() };
    general(&mut check);
    tensors::check(&mut check);
    ragged::check(&mut check);
    instances::check(&mut check);
    match &config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching)) => scheduling::check(&mut check, batching),
        Some(SchedulingChoice::SequenceBatching(batching)) => sequence::check(&mut check, batching),
        Some(SchedulingChoice::EnsembleScheduling(ensemble)) => ensemble::check(&mut check, ensemble),
        None => {}
    }
    parameters::check(&mut check);
    warmup::check(&mut check);
    cache::check(&mut check);
    extras::check(&mut check);
    agents::check(&mut check);
    unsupported::check(&mut check);
    check.found
}

/// A configuration under examination.
struct Check<'a> {
    config: &'a ModelConfig,
    positions: &'a Positions,
    directory: &'a Path,
    facts: &'a Facts,
    found: Findings,
}

impl Check<'_> {
    fn mistake(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.found.mistakes.push(self.positions.mistake(key, message));
    }

    fn mistake_near(&mut self, key: &str, message: String, suggestion: impl FnOnce() -> Option<String>) {
        self.found.mistakes.push_near(self.positions.mistake(key, message), suggestion);
    }

    fn warn(&mut self, key: impl Into<String>, message: impl Into<String>) {
        let warning = self.positions.mistake(key, message);
        self.found.warnings.push(warning);
    }

    fn warn_near(&mut self, key: &str, message: String, suggestion: impl FnOnce() -> Option<String>) {
        self.found.warnings.push_near(self.positions.mistake(key, message), suggestion);
    }

    /// Whether the model has a first dimension for the batch.
    fn batches(&self) -> bool {
        self.config.max_batch_size > 0
    }
}

fn general(check: &mut Check<'_>) {
    let config = check.config;
    if config.max_batch_size < 0 {
        check.mistake(
            "max_batch_size",
            format!("'max_batch_size' must be non-negative (0 for no batching), got {}", config.max_batch_size),
        );
    }
    match config.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref()) {
        Some(PolicyChoice::Latest(latest)) if latest.num_versions == 0 => {
            check.mistake("version_policy.latest.num_versions", "'num_versions' must be at least 1");
        }
        Some(PolicyChoice::Specific(specific)) => {
            if specific.versions.is_empty() {
                check.mistake("version_policy.specific", "must specify one or more 'versions'");
            }
            for (index, version) in specific.versions.iter().enumerate() {
                let key = format!("version_policy.specific.versions[{index}]");
                if *version < 1 {
                    check.mistake(key, format!("a version must be an integer >= 1, got {version}"));
                } else if specific.versions[..index].contains(version) {
                    check.warn(key, format!("version {version} is listed twice"));
                }
            }
        }
        _ => {}
    }
}
