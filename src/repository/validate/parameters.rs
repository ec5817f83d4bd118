//! `parameters{}`: known keys, their values, and keys that look like a misspelt known one.

use super::super::facts::{
    CACHE_TTL, DONE_OUTPUT, ENSEMBLE_REQUESTS_MAX, EXECUTION_TIMEOUT, LATENCY_BUDGET, PRIORITY_AGEING,
    PRIORITY_WEIGHTS, RESIDENCY, STEPS_MAX,
};
use super::super::suggest::{misspelt, nearest};
use super::super::tree::shorten;
use super::super::{padding, shares};
use super::Check;
use crate::model::Residency;
use crate::model::schema::model_config::SchedulingChoice;

/// A longer budget is a mistake in the unit: one hour.
const BUDGET_MICROSECONDS_MAX: u64 = 3_600_000_000;

/// No execution takes longer: a day.
const EXECUTION_MICROSECONDS_MAX: u64 = 24 * 3_600_000_000;

/// Where ONNX Runtime has names of its own, of which this server knows a few.
const SPACE_OF_ONNX: &str = "session";

pub(super) fn check(check: &mut Check<'_>) {
    keys(check);
    budget(check);
    for wrong in padding::read(check.config).1 {
        check.mistake_near(&format!("parameters[{}]", wrong.key), wrong.message, || wrong.suggestion);
    }
    execution_timeout(check);
    residency(check);
    priorities(check);
    super::sequence::parameters(check);
    ensemble_requests(check);
    let Some(backend) = check.facts.backend(&check.config.backend) else { return };
    let mut wrong = (backend.check_parameters)(check.config);
    wrong.sort();
    for (key, message) in wrong {
        check.mistake(format!("parameters[{key}]"), message);
    }
}

fn keys(check: &mut Check<'_>) {
    let facts = check.facts;
    let backend = facts.backend(&check.config.backend);
    let of_backend = backend.map_or([].as_slice(), |backend| backend.parameter_keys.as_slice());
    let of_server = [LATENCY_BUDGET, EXECUTION_TIMEOUT, CACHE_TTL, PRIORITY_WEIGHTS, PRIORITY_AGEING];
    let of_server = of_server.into_iter().chain([RESIDENCY, DONE_OUTPUT, STEPS_MAX, ENSEMBLE_REQUESTS_MAX]);
    let of_server = of_server.chain(padding::KEYS).chain(facts.parameter_keys.iter().map(String::as_str));
    let known: Vec<&str> = of_backend.iter().map(String::as_str).chain(of_server).collect();
    let mut keys: Vec<&String> = check.config.parameters.keys().collect();
    keys.sort();
    for key in keys {
        if known.contains(&key.as_str()) {
            continue;
        }
        let path = format!("parameters[{key}]");
        match misspelt(key, known.iter().copied()) {
            // Users may have keys of their own, but not where all names are this server's.
            Some(meant) if is_ours(key, &known) => {
                check.mistake_near(&path, format!("unknown parameter '{}'", shorten(key)), || Some(meant.to_owned()));
            }
            meant => {
                let message = format!("parameter '{}' is not known to this server, and is ignored", shorten(key));
                check.warn_near(&path, message, || meant.map(str::to_owned));
            }
        }
    }
}

/// Whether a key begins as one of those that are `known` does, up to its first dot.
fn is_ours(key: &str, known: &[&str]) -> bool {
    let Some((own, _)) = key.split_once('.') else { return false };
    own != SPACE_OF_ONNX && known.iter().any(|known| known.split_once('.').is_some_and(|(space, _)| space == own))
}

fn budget(check: &mut Check<'_>) {
    let Some(written) = check.config.parameters.get(LATENCY_BUDGET) else { return };
    let key = format!("parameters[{LATENCY_BUDGET}]");
    let text = &written.string_value;
    let micros = text.parse::<u64>().ok().filter(|micros| (1..=BUDGET_MICROSECONDS_MAX).contains(micros));
    let Some(micros) = micros else {
        let message = format!(
            "'{LATENCY_BUDGET}' must be a positive integer of microseconds, at most an hour, got '{}'",
            shorten(text)
        );
        check.mistake(key, message);
        return;
    };
    if matches!(check.config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_))) {
        check.mistake(&key, "an ensemble has no latency budget of its own: its members have theirs");
    }
    if check.config.model_transaction_policy.is_some_and(|policy| policy.decoupled) {
        check.mistake(&key, "a decoupled model has no latency budget: how long a request takes, its responses decide");
    }
    if let Some(SchedulingChoice::DynamicBatching(batching)) = &check.config.scheduling_choice
        && batching.max_queue_delay_microseconds >= micros
    {
        let message = format!(
            "the queue delay of {} microseconds uses up the whole latency budget of {micros}",
            batching.max_queue_delay_microseconds
        );
        check.warn("dynamic_batching.max_queue_delay_microseconds", message);
    }
}

fn execution_timeout(check: &mut Check<'_>) {
    let Some(written) = check.config.parameters.get(EXECUTION_TIMEOUT) else { return };
    let text = &written.string_value;
    if text.parse::<u64>().is_ok_and(|micros| micros <= EXECUTION_MICROSECONDS_MAX) {
        return;
    }
    let message = format!(
        "'{EXECUTION_TIMEOUT}' must be an integer of microseconds, at most a day, 0 for any time, got '{}'",
        shorten(text)
    );
    check.mistake(format!("parameters[{EXECUTION_TIMEOUT}]"), message);
}

fn residency(check: &mut Check<'_>) {
    let Some(written) = check.config.parameters.get(RESIDENCY) else { return };
    let word = &written.string_value;
    if Residency::parse(word).is_some() {
        return;
    }
    let words = Residency::WORDS.map(|(word, _)| word);
    let message = format!("'{RESIDENCY}' must be one of {}, got '{}'", words.join(", "), shorten(word));
    check.mistake_near(&format!("parameters[{RESIDENCY}]"), message, || nearest(word, words));
}

fn priorities(check: &mut Check<'_>) {
    let levels = match &check.config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching)) => batching.priority_levels,
        _ => 0,
    };
    for key in [PRIORITY_WEIGHTS, PRIORITY_AGEING] {
        let Some(written) = check.config.parameters.get(key) else { continue };
        let text = &written.string_value;
        let wrong = match key {
            _ if levels < 2 => format!("'{key}' has no meaning without several 'priority_levels'"),
            PRIORITY_WEIGHTS => match shares::weights(text) {
                Some(weights) if weights.len() as u64 == levels => continue,
                Some(weights) => {
                    format!("'{key}' must have a weight for each of {levels} levels, got {}", weights.len())
                }
                None => format!(
                    "'{key}' must be positive integers with commas between them, each at most {}, got '{}'",
                    shares::WEIGHT_MAX,
                    shorten(text)
                ),
            },
            _ if shares::ageing(text).is_some() => continue,
            _ => {
                format!("'{key}' must be a positive integer of microseconds, at most an hour, got '{}'", shorten(text))
            }
        };
        check.mistake(format!("parameters[{key}]"), wrong);
    }
}

fn ensemble_requests(check: &mut Check<'_>) {
    let Some(written) = check.config.parameters.get(ENSEMBLE_REQUESTS_MAX) else { return };
    let key = format!("parameters[{ENSEMBLE_REQUESTS_MAX}]");
    if !matches!(check.config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_))) {
        check.mistake(key, format!("'{ENSEMBLE_REQUESTS_MAX}' is for ensembles only"));
    } else if written.string_value.parse::<u32>().ok().is_none_or(|max| max == 0) {
        let got = shorten(&written.string_value);
        check.mistake(key, format!("'{ENSEMBLE_REQUESTS_MAX}' must be a positive integer, got '{got}'"));
    }
}
