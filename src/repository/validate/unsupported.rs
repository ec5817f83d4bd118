//! The one list of what a configuration may ask for and this server does not do.

use super::Check;
use crate::model::schema::model_config::SchedulingChoice;

pub(super) fn check(check: &mut Check<'_>) {
    let config = check.config;
    let decoupled = config.model_transaction_policy.is_some_and(|policy| policy.decoupled);
    if let Some(SchedulingChoice::DynamicBatching(batching)) = &config.scheduling_choice
        && decoupled
    {
        // Which response is a request's last, only its instance knows.
        if batching.preserve_ordering {
            refuse(check, "dynamic_batching.preserve_ordering", "keeping a decoupled model's responses in order");
        }
    }
    if config.model_operations.as_ref().is_some_and(|operations| !operations.op_library_filename.is_empty()) {
        refuse(check, "model_operations", "a custom operation library");
    }
}

fn refuse(check: &mut Check<'_>, key: &str, what: &str) {
    check.mistake(key, format!("{what} is not supported by this server version"));
}
