//! Scheduling as meant: queues and their policies, dynamic batching, ensembles.

use std::path::Path;
use std::time::Duration;

use super::sequence;
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::schema::model_queue_policy::TimeoutAction as WrittenAction;
use crate::model::schema::{self, ModelDynamicBatching, ModelEnsembling, ModelQueuePolicy, model_ensembling};
use crate::model::{
    DynamicBatching, Ensemble, EnsembleStep, Priorities, QueuePolicy, Scheduling, TimeoutAction, Version,
};
use crate::repository::facts::{ENSEMBLE_REQUESTS_MAX, PRIORITY_AGEING, PRIORITY_WEIGHTS};
use crate::repository::{Facts, shares};

/// How requests become executions; an error is a key and what is wrong with it.
pub(super) fn scheduling(
    schema: &schema::ModelConfig,
    directory: &Path,
    facts: &Facts,
) -> Result<Scheduling, (String, String)> {
    Ok(match &schema.scheduling_choice {
        None => Scheduling::Single(queue_policy(None, facts)),
        Some(SchedulingChoice::DynamicBatching(batching)) => Scheduling::Dynamic(dynamic(schema, batching, facts)),
        Some(SchedulingChoice::SequenceBatching(batching)) => {
            Scheduling::Sequence(sequence::batching(schema, batching, directory, queue_policy(None, facts))?)
        }
        Some(SchedulingChoice::EnsembleScheduling(written)) => Scheduling::Ensemble(ensemble(schema, written, facts)),
    })
}

fn dynamic(schema: &schema::ModelConfig, batching: &ModelDynamicBatching, facts: &Facts) -> DynamicBatching {
    let parameter = |key: &str| schema.parameters.get(key).map(|written| written.string_value.as_str());
    let levels = batching.priority_levels.max(1);
    let policies = batching.priority_queue_policy.iter();
    DynamicBatching {
        preferred_rows: preferred_rows(&batching.preferred_batch_size),
        queue_delay_max: Duration::from_micros(batching.max_queue_delay_microseconds),
        preserve_ordering: batching.preserve_ordering,
        queue: queue_policy(queue_of(batching), facts),
        priorities: Priorities {
            levels,
            default_level: batching.default_priority_level.clamp(1, levels),
            policies: policies.map(|(level, policy)| (*level, queue_policy(Some(policy), facts))).collect(),
            weights: parameter(PRIORITY_WEIGHTS).and_then(shares::weights).unwrap_or_default(),
            ageing: parameter(PRIORITY_AGEING).and_then(shares::ageing),
        },
    }
}

/// Row counts to prefer, ascending, each once.
pub(super) fn preferred_rows(written: &[i32]) -> Vec<usize> {
    let mut rows: Vec<usize> = written.iter().filter_map(|rows| usize::try_from(*rows).ok()).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// The policy of the only priority level that there is, or of all that have none of their own.
fn queue_of(batching: &ModelDynamicBatching) -> Option<&ModelQueuePolicy> {
    let of_level = batching.priority_queue_policy.get(&1).filter(|_| batching.priority_levels == 1);
    of_level.or(batching.default_queue_policy.as_ref())
}

fn queue_policy(written: Option<&ModelQueuePolicy>, facts: &Facts) -> QueuePolicy {
    let written = written.copied().unwrap_or_default();
    let timeout = written.default_timeout_microseconds;
    QueuePolicy {
        timeout_action: match written.timeout_action() {
            WrittenAction::Reject => TimeoutAction::Reject,
            WrittenAction::Delay => TimeoutAction::Delay,
        },
        timeout: (timeout > 0).then(|| Duration::from_micros(timeout)),
        allow_timeout_override: written.allow_timeout_override,
        requests_max: match written.max_queue_size {
            0 => facts.queue_requests_max,
            size => usize::try_from(size).unwrap_or(usize::MAX),
        },
    }
}

fn ensemble(schema: &schema::ModelConfig, written: &ModelEnsembling, facts: &Facts) -> Ensemble {
    let requests_max = schema.parameters.get(ENSEMBLE_REQUESTS_MAX).and_then(|max| max.string_value.parse().ok());
    let queue = queue_policy(None, facts);
    Ensemble {
        steps: written.step.iter().map(step).collect(),
        step_requests_max: usize::try_from(written.max_inflight_requests).ok().filter(|&max| max > 0),
        queue: QueuePolicy { requests_max: requests_max.unwrap_or(queue.requests_max), ..queue },
    }
}

fn step(written: &model_ensembling::Step) -> EnsembleStep {
    let pairs = |map: &std::collections::HashMap<String, String>| {
        map.iter().map(|(of_model, of_graph)| (of_model.clone(), of_graph.clone())).collect()
    };
    EnsembleStep {
        model: written.model_name.clone(),
        version: Version::try_from(written.model_version).ok().filter(|&version| version > 0),
        namespace: written.model_namespace.clone(),
        inputs: pairs(&written.input_map),
        outputs: pairs(&written.output_map),
    }
}
