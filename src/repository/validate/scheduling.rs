//! Dynamic batching and its queues.

use super::Check;
use crate::model::schema::model_queue_policy::TimeoutAction;
use crate::model::schema::{ModelDynamicBatching, ModelQueuePolicy};

/// A longer wait for a batch is a mistake in the unit: one hour.
const DELAY_MICROSECONDS_MAX: u64 = 3_600_000_000;

/// A longer wait for a batch is unusual: one second.
const DELAY_MICROSECONDS_USUAL: u64 = 1_000_000;

const KEY: &str = "dynamic_batching";

pub(super) fn check(check: &mut Check<'_>, batching: &ModelDynamicBatching) {
    preferred(check, KEY, &batching.preferred_batch_size);
    delay(check, KEY, batching.max_queue_delay_microseconds);
    if check.config.max_batch_size == 0 {
        check.warn(KEY, "'dynamic_batching' combines nothing, because 'max_batch_size' is 0");
    }
    priorities(check, batching);
    if let Some(policy) = &batching.default_queue_policy {
        queue(check, &format!("{KEY}.default_queue_policy"), policy, batching.preserve_ordering);
    }
    let mut levels: Vec<_> = batching.priority_queue_policy.iter().collect();
    levels.sort_by_key(|(level, _)| **level);
    for (level, policy) in levels {
        let key = format!("{KEY}.priority_queue_policy[{level}]");
        if batching.priority_levels == 0 {
            check.warn(&key, "'priority_queue_policy' has no effect without 'priority_levels'");
            continue;
        }
        if *level < 1 || *level > batching.priority_levels {
            check.mistake(
                &key,
                format!(
                    "priority queue policy must have priority level in range [1, {}], got {level}",
                    batching.priority_levels
                ),
            );
        }
        queue(check, &key, policy, batching.preserve_ordering);
    }
}

/// Preferred sizes, for sequences too.
pub(super) fn preferred(check: &mut Check<'_>, key: &str, sizes: &[i32]) {
    let (max, name) = (check.config.max_batch_size, check.config.name.clone());
    for (index, size) in sizes.iter().enumerate() {
        let key = format!("{key}.preferred_batch_size[{index}]");
        if *size < 1 {
            let message = format!("dynamic batching preferred size must be positive for {name}, got {size}");
            check.mistake(key, message);
        } else if *size > max && max >= 0 {
            let message = format!(
                "dynamic batching preferred size must be <= max batch size for {name}, got {size} with max_batch_size {max}"
            );
            check.mistake(key, message);
        }
    }
}

/// The wait for a batch, for sequences too.
pub(super) fn delay(check: &mut Check<'_>, key: &str, micros: u64) {
    let key = format!("{key}.max_queue_delay_microseconds");
    if micros > DELAY_MICROSECONDS_MAX {
        let message = format!("a queue delay of {micros} microseconds is longer than an hour: is the unit right?");
        check.mistake(key, message);
    } else if micros > DELAY_MICROSECONDS_USUAL {
        let message = format!("a queue delay of {micros} microseconds holds requests back for more than a second");
        check.warn(key, message);
    }
}

fn priorities(check: &mut Check<'_>, batching: &ModelDynamicBatching) {
    let (levels, default) = (batching.priority_levels, batching.default_priority_level);
    let name = check.config.name.clone();
    if levels == 0 && default != 0 {
        let message = "'default_priority_level' has no effect without 'priority_levels'";
        check.warn(format!("{KEY}.default_priority_level"), message);
    } else if levels > 0 && (default < 1 || default > levels) {
        let message = format!("default priority level must be in range [1, {levels}] for {name}, got {default}");
        check.mistake(format!("{KEY}.default_priority_level"), message);
    }
    if levels > 1 && batching.preserve_ordering {
        let message = "Only one priority level is allowed when 'preserve_ordering' is true";
        check.mistake(format!("{KEY}.priority_levels"), message);
    }
}

fn queue(check: &mut Check<'_>, key: &str, policy: &ModelQueuePolicy, preserve_ordering: bool) {
    let delays = policy.timeout_action() == TimeoutAction::Delay && policy.default_timeout_microseconds > 0;
    if preserve_ordering && delays {
        let message = "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true";
        check.mistake(format!("{key}.timeout_action"), message);
    }
    let max_batch = u32::try_from(check.config.max_batch_size).unwrap_or(0);
    if policy.max_queue_size != 0 && policy.max_queue_size < max_batch {
        let message = format!(
            "a queue of {} requests cannot fill a batch of {max_batch} unless requests bring several rows",
            policy.max_queue_size
        );
        check.warn(format!("{key}.max_queue_size"), message);
    }
}
