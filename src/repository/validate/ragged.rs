//! Ragged batching: inputs that are made for a batch, outputs that are split by the shape of an input.

use std::collections::HashSet;

use super::super::suggest::nearest;
use super::super::tree::shorten;
use super::Check;
use crate::model::schema::{DataType, ModelInput};

pub(super) fn check(check: &mut Check<'_>) {
    inputs(check);
    outputs(check);
}

fn inputs(check: &mut Check<'_>) {
    let config = check.config;
    let mut targets: HashSet<&str> = config.input.iter().map(|input| input.name.as_str()).collect();
    for (index, input) in config.batch_input.iter().enumerate() {
        let key = format!("batch_input[{index}]");
        if !matches!(input.data_type(), DataType::TypeInt32 | DataType::TypeFp32) {
            let got = input.data_type().as_str_name();
            check
                .mistake(format!("{key}.data_type"), format!("batch input must be TYPE_INT32 or TYPE_FP32, got {got}"));
        }
        if input.target_name.is_empty() {
            check.mistake(format!("{key}.target_name"), "batch input must specify 'target_name'");
        }
        source(check, &key, &format!("batch input of kind {}", input.kind().as_str_name()), &input.source_input);
        for target in &input.target_name {
            if !targets.insert(target) {
                let message = format!("input '{}' is given more than once", shorten(target));
                check.mistake(format!("{key}.target_name"), message);
            }
        }
    }
}

fn outputs(check: &mut Check<'_>) {
    let config = check.config;
    let mut targets: HashSet<&str> = HashSet::new();
    for (index, output) in config.batch_output.iter().enumerate() {
        let key = format!("batch_output[{index}]");
        if output.target_name.is_empty() {
            check.mistake(format!("{key}.target_name"), "batch output must specify 'target_name'");
        }
        let source = source(check, &key, "batch output", &output.source_input);
        for target in &output.target_name {
            let at = format!("{key}.target_name");
            let Some(of_model) = config.output.iter().find(|each| each.name == *target) else {
                let message = format!("batch output target '{}' is no output of the model", shorten(target));
                let suggestion = || nearest(target, config.output.iter().map(|each| each.name.as_str()));
                check.mistake_near(&at, message, suggestion);
                continue;
            };
            if !targets.insert(target) {
                check.mistake(&at, format!("output '{}' is given more than once", shorten(target)));
            }
            let dims = of_model.reshape.as_ref().map_or(&of_model.dims, |reshape| &reshape.shape);
            if let Some(last) = dims.iter().rposition(|dim| *dim == -1)
                && let Some(source) = source
                && !source.dims.is_empty()
                && last >= rank(source)
            {
                let message = format!(
                    "dimension {last} of output '{target}' is -1, but its source input '{}' has only {} dimensions",
                    source.name,
                    rank(source)
                );
                check.mistake(&at, message);
            }
        }
    }
}

/// How many dimensions the model file sees.
fn rank(input: &ModelInput) -> usize {
    input.reshape.as_ref().map_or(input.dims.len(), |reshape| reshape.shape.len())
}

/// The one input that `names` must name.
fn source<'a>(check: &mut Check<'a>, key: &str, what: &str, names: &[String]) -> Option<&'a ModelInput> {
    let config = check.config;
    let key = format!("{key}.source_input");
    let [name] = names else {
        check.mistake(key, format!("{what} expects 1 source input, got {}", names.len()));
        return None;
    };
    let Some(input) = config.input.iter().find(|input| input.name == *name) else {
        let suggestion = || nearest(name, config.input.iter().map(|input| input.name.as_str()));
        check.mistake_near(&key, format!("unknown source input name '{}'", shorten(name)), suggestion);
        return None;
    };
    let made = config
        .parameters
        .get("padding.mask_input")
        .is_some_and(|mask| mask.string_value.split('=').next().is_some_and(|masked| masked.trim() == *name));
    if input.optional || made {
        check.mistake(
            key,
            format!("source input '{name}' may be left out of a request, so that nothing is known of it"),
        );
    }
    Some(input)
}
