//! The one list of what a configuration may ask for and this server version does not do.

use super::Check;
use crate::model::schema::model_config::SchedulingChoice;

pub(super) fn check(check: &mut Check<'_>) {
    let config = check.config;
    let mut asked: Vec<(String, &str)> = Vec::new();
    let decoupled = config.model_transaction_policy.is_some_and(|policy| policy.decoupled);
    match &config.scheduling_choice {
        // Which response is a request's last, only its instance knows.
        Some(SchedulingChoice::DynamicBatching(batching)) if decoupled && batching.preserve_ordering => {
            asked.push(("dynamic_batching.preserve_ordering".into(), "keeping a decoupled model's responses in order"));
        }
        _ => {}
    }
    let whole = [
        // One caller that takes its responses slowly would hold back all others of its batch.
        (
            "dynamic_batching",
            "dynamic batching of a decoupled model",
            decoupled
                && check.batches()
                && matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_))),
        ),
        (
            "model_operations",
            "a custom operation library",
            config.model_operations.as_ref().is_some_and(|operations| !operations.op_library_filename.is_empty()),
        ),
    ];
    asked.extend(whole.into_iter().filter(|(_, _, given)| *given).map(|(key, what, _)| (key.to_owned(), what)));
    for (key, what) in asked {
        check.mistake(key, format!("{what} is not supported by this server version"));
    }
}
