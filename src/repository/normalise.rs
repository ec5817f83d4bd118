//! Fills in what a configuration leaves out: names before the backend completes it, the other defaults after.

use super::mistakes::{Mistake, Mistakes, Positions};
use super::roots::is_listed;
use super::suggest::nearest;
use super::{BackendFacts, Facts, ModelDir};
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::schema::model_instance_group::Kind;
use crate::model::schema::model_optimization_policy::PinnedMemoryBuffer;
use crate::model::schema::model_sequence_batching::StrategyChoice;
use crate::model::schema::model_version_policy::{Latest, PolicyChoice};
use crate::model::schema::{ModelConfig, ModelInstanceGroup, ModelVersionPolicy};

/// Packages of AOTInductor: the platform, and here a backend, too.
const AOTI: &str = "torch_aoti";

/// The platforms and the backends that serve them, the platform that a backend is given first.
const PLATFORMS: &[(&str, &str)] = &[
    ("pytorch_libtorch", "pytorch"),
    ("libtorch", "pytorch"),
    (AOTI, AOTI),
    ("onnxruntime_onnx", "onnxruntime"),
    ("tensorrt_plan", "tensorrt"),
    ("openvino", "openvino"),
    ("ensemble", ""),
];

/// How long a silent sequence lives.
const SEQUENCE_IDLE_MICROSECONDS: u64 = 1_000_000;

/// Settles name, platform and backend; what contradicts itself or this server is a mistake.
pub(super) fn names(config: &mut ModelConfig, model: &ModelDir, positions: &Positions, facts: &Facts) -> Mistakes {
    let mut mistakes = Mistakes::default();
    if config.name.is_empty() {
        config.name.clone_from(&model.name);
    } else if config.name != model.name {
        mistakes.push(positions.mistake(
            "name",
            format!(
                "unexpected directory name '{}' for model '{}', directory name must equal model name",
                model.name, config.name
            ),
        ));
    }
    if let Err(mistake) = backend(config, model, positions, facts) {
        mistakes.push(*mistake);
    }
    mistakes
}

fn is_ensemble(config: &ModelConfig) -> bool {
    matches!(config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_)))
}

fn backend(
    config: &mut ModelConfig,
    model: &ModelDir,
    positions: &Positions,
    facts: &Facts,
) -> Result<(), Box<Mistake>> {
    if is_ensemble(config) {
        // Its own rules are checked with everything else.
        if config.platform.is_empty() {
            "ensemble".clone_into(&mut config.platform);
        }
        return Ok(());
    }
    if config.platform == "ensemble" {
        let message = "platform 'ensemble' must have 'ensemble_scheduling'".to_owned();
        return Err(Box::new(positions.mistake("platform", message)));
    }
    let (platform, backend) = (config.platform.as_str(), config.backend.as_str());
    let mistake = |key, message: String| Box::new(positions.mistake(key, message));
    let wanted = match (platform, backend) {
        ("", "") => guess(model, facts).ok_or_else(|| mistake("backend", cannot_guess(facts)))?,
        (_, "") => match PLATFORMS.iter().find(|(known, _)| *known == platform) {
            Some((_, backend)) => (*backend).to_owned(),
            None => {
                let unknown = mistake("platform", format!("unknown platform '{platform}'"));
                let suggestion = nearest(platform, PLATFORMS.iter().map(|(known, _)| *known));
                return Err(Box::new(Mistake { suggestion, ..*unknown }));
            }
        },
        ("", backend) => backend.to_owned(),
        (platform, backend) => {
            let known = PLATFORMS.iter().find(|(known, _)| *known == platform).map(|(_, serves)| *serves);
            // The reference server runs them by its backend for TorchScript.
            let fits = |serves: &&str| *serves == backend || (*serves == AOTI && backend == "pytorch");
            known.filter(fits).map(str::to_owned).ok_or_else(|| {
                mistake("platform", format!("unexpected 'platform' and 'backend' pair, got:{platform}, {backend}"))
            })?
        }
    };
    let Some(known) = facts.backend(&wanted) else {
        let key = if backend.is_empty() { "platform" } else { "backend" };
        let names = facts.backend_names();
        let unknown = mistake(key, format!("backend '{wanted}' is not part of this server, which has: {names}"));
        let suggestion = nearest(&wanted, facts.backends.iter().map(|backend| backend.name.as_str()));
        return Err(Box::new(Mistake { suggestion, ..*unknown }));
    };
    if platform.is_empty() || platform == "libtorch" {
        let first = PLATFORMS.iter().find(|(_, serves)| *serves == known.name);
        config.platform = first.map_or_else(String::new, |(platform, _)| (*platform).to_owned());
    }
    config.backend.clone_from(&known.name);
    if config.default_model_filename.is_empty()
        && let Some(file) = &known.default_model_filename
    {
        config.default_model_filename.clone_from(file);
    }
    Ok(())
}

/// The backend by the files that are there, else by a model name such as `embed.pytorch`.
fn guess(model: &ModelDir, facts: &Facts) -> Option<String> {
    let has_file = |backend: &&BackendFacts| {
        backend.default_model_filename.as_ref().is_some_and(|file| {
            model.versions.iter().any(|version| is_listed(&model.path.join(version.to_string()).join(file)))
        })
    };
    let by_file = facts.backends.iter().find(has_file);
    let by_name = || facts.backend(model.name.rsplit_once('.')?.1);
    by_file.or_else(by_name).map(|backend| backend.name.clone())
}

fn cannot_guess(facts: &Facts) -> String {
    let files: Vec<_> = facts.backends.iter().filter_map(|backend| backend.default_model_filename.as_deref()).collect();
    format!(
        "must specify 'backend' (one of {}): no version directory holds a file to guess it from ({})",
        facts.backend_names(),
        files.join(", ")
    )
}

/// The defaults of everything else, in a configuration that was checked.
pub(super) fn defaults(config: &mut ModelConfig, facts: &Facts) {
    config
        .version_policy
        .get_or_insert(ModelVersionPolicy { policy_choice: Some(PolicyChoice::Latest(Latest { num_versions: 1 })) });
    if is_ensemble(config) {
        // It runs nothing itself.
        return;
    }
    let optimization = config.optimization.get_or_insert_default();
    optimization.input_pinned_memory.get_or_insert(PinnedMemoryBuffer { enable: true });
    optimization.output_pinned_memory.get_or_insert(PinnedMemoryBuffer { enable: true });
    scheduling(config);
    instance_groups(config, facts);
    for sample in &mut config.model_warmup {
        sample.count = sample.count.max(1);
    }
}

fn scheduling(config: &mut ModelConfig) {
    let preferred = match &mut config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching)) => Some(&mut batching.preferred_batch_size),
        Some(SchedulingChoice::SequenceBatching(batching)) => {
            if batching.max_sequence_idle_microseconds == 0 {
                batching.max_sequence_idle_microseconds = SEQUENCE_IDLE_MICROSECONDS;
            }
            match &mut batching.strategy_choice {
                Some(StrategyChoice::Oldest(oldest)) => Some(&mut oldest.preferred_batch_size),
                Some(StrategyChoice::Direct(_)) | None => None,
            }
        }
        Some(SchedulingChoice::EnsembleScheduling(_)) | None => None,
    };
    if let Some(preferred) = preferred.filter(|preferred| preferred.is_empty() && config.max_batch_size > 0) {
        preferred.push(config.max_batch_size);
    }
}

fn instance_groups(config: &mut ModelConfig, facts: &Facts) {
    if config.instance_group.is_empty() {
        config.instance_group.push(ModelInstanceGroup::default());
    }
    let uses_cuda = facts.backend(&config.backend).is_some_and(|backend| backend.uses_cuda);
    let several = config.instance_group.len() > 1;
    for (index, group) in config.instance_group.iter_mut().enumerate() {
        if group.name.is_empty() {
            group.name = if several { format!("{}_{index}", config.name) } else { config.name.clone() };
        }
        if group.count < 1 {
            group.count = 1;
        }
        devices(group, uses_cuda, facts);
    }
}

/// Settles on which devices the instances of a group run.
pub(super) fn devices(group: &mut ModelInstanceGroup, uses_cuda: bool, facts: &Facts) {
    if group.kind() == Kind::Auto {
        let gpu = !group.gpus.is_empty() || uses_cuda && !facts.cuda_devices.indices().is_empty();
        group.set_kind(if gpu { Kind::Gpu } else { Kind::Cpu });
    }
    if group.kind() == Kind::Gpu && group.gpus.is_empty() {
        group.gpus = facts.cuda_devices.indices().iter().filter_map(|device| i32::try_from(*device).ok()).collect();
    }
}
