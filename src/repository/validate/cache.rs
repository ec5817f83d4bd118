//! The response cache: which models cannot use it, and how long its answers may live.

use super::super::facts::CACHE_TTL;
use super::super::tree::shorten;
use super::Check;
use crate::model::schema::model_config::SchedulingChoice;

/// A longer life is a mistake in the unit: a year.
const TTL_MILLISECONDS_MAX: u64 = 366 * 24 * 3_600_000;

pub(super) fn check(check: &mut Check<'_>) {
    const KEY: &str = "response_cache";
    let config = check.config;
    let enabled = config.response_cache.is_some_and(|cache| cache.enable);
    if enabled && matches!(config.scheduling_choice, Some(SchedulingChoice::SequenceBatching(_))) {
        check.mistake(
            KEY,
            "a model with sequence batching cannot use the response cache: its answers depend on what came before",
        );
    }
    if enabled && config.model_transaction_policy.is_some_and(|policy| policy.decoupled) {
        check.mistake(KEY, "a decoupled model cannot use the response cache: it may give any number of responses");
    }
    let Some(written) = config.parameters.get(CACHE_TTL) else { return };
    let key = format!("parameters[{CACHE_TTL}]");
    let text = &written.string_value;
    if !text.parse::<u64>().is_ok_and(|millis| (1..=TTL_MILLISECONDS_MAX).contains(&millis)) {
        let message = format!(
            "'{CACHE_TTL}' must be a positive integer of milliseconds, at most a year, got '{}'",
            shorten(text)
        );
        check.mistake(key, message);
    } else if !enabled {
        check.warn(key, format!("'{CACHE_TTL}' has no effect without 'response_cache {{ enable: true }}'"));
    }
}
