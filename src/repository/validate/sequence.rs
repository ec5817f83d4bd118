//! Sequence batching: strategies, control inputs, states.

use super::scheduling::{delay, preferred};
use super::{Check, tensors};
use crate::model::schema::DataType;
use crate::model::schema::ModelSequenceBatching;
use crate::model::schema::model_sequence_batching::control::Kind;
use crate::model::schema::model_sequence_batching::{Control, ControlInput, StrategyChoice};

const KEY: &str = "sequence_batching";

pub(super) fn check(check: &mut Check<'_>, batching: &ModelSequenceBatching) {
    match &batching.strategy_choice {
        Some(StrategyChoice::Direct(direct)) => {
            let key = format!("{KEY}.direct");
            delay(check, &key, direct.max_queue_delay_microseconds);
            let utilization = direct.minimum_slot_utilization;
            if !(0.0..=1.0).contains(&utilization) {
                let message = format!(
                    "sequence batching minimum slot utilization must be in range (0.0, 1.0], got {utilization}"
                );
                check.mistake(format!("{key}.minimum_slot_utilization"), message);
            }
        }
        Some(StrategyChoice::Oldest(oldest)) => {
            let key = format!("{KEY}.oldest");
            preferred(check, &key, &oldest.preferred_batch_size);
            delay(check, &key, oldest.max_queue_delay_microseconds);
            if oldest.max_candidate_sequences < 0 {
                let message =
                    format!("'max_candidate_sequences' must not be negative, got {}", oldest.max_candidate_sequences);
                check.mistake(format!("{key}.max_candidate_sequences"), message);
            }
        }
        None => {}
    }
    controls(check, &batching.control_input);
    for (index, state) in batching.state.iter().enumerate() {
        let key = format!("{KEY}.state[{index}]");
        let named = [("input_name", &state.input_name), ("output_name", &state.output_name)];
        for (name, _) in named.into_iter().filter(|(_, value)| value.is_empty()) {
            check.mistake(format!("{key}.{name}"), format!("sequence state must specify '{name}'"));
        }
        if state.data_type() == DataType::TypeInvalid {
            check.mistake(format!("{key}.data_type"), "sequence state must specify 'data_type'");
        }
        if state.dims.is_empty() {
            check.mistake(format!("{key}.dims"), "sequence state must specify 'dims'");
        }
        tensors::dims(check, &format!("{key}.dims"), &state.dims, "");
    }
}

fn controls(check: &mut Check<'_>, inputs: &[ControlInput]) {
    let mut seen: Vec<Kind> = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        let key = format!("{KEY}.control_input[{index}]");
        if input.name.is_empty() {
            check.mistake(format!("{key}.name"), "sequence batching control tensor must specify 'name'");
        }
        if input.control.is_empty() {
            check.mistake(&key, format!("must specify one or more 'control' for control tensor '{}'", input.name));
        }
        for (index, control) in input.control.iter().enumerate() {
            let key = format!("{key}.control[{index}]");
            let kind = control.kind();
            if seen.contains(&kind) {
                let message = format!("sequence batching specifies multiple {} tensors", kind.as_str_name());
                check.mistake(format!("{key}.kind"), message);
            }
            seen.push(kind);
            if kind == Kind::ControlSequenceCorrid {
                correlation(check, &key, control);
            } else {
                flags(check, &key, control);
            }
        }
    }
}

fn correlation(check: &mut Check<'_>, key: &str, control: &Control) {
    let types =
        [DataType::TypeUint64, DataType::TypeInt64, DataType::TypeUint32, DataType::TypeInt32, DataType::TypeString];
    if !types.contains(&control.data_type()) {
        let message = format!(
            "the correlation ID must have type TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 or TYPE_STRING, got {}",
            control.data_type().as_str_name()
        );
        check.mistake(format!("{key}.data_type"), message);
    }
    let values = control.int32_false_true.len() + control.fp32_false_true.len() + control.bool_false_true.len();
    if values > 0 {
        check.mistake(key, "a correlation ID must not specify false and true values");
    }
}

fn flags(check: &mut Check<'_>, key: &str, control: &Control) {
    let lists = [
        ("int32_false_true", control.int32_false_true.len()),
        ("fp32_false_true", control.fp32_false_true.len()),
        ("bool_false_true", control.bool_false_true.len()),
    ];
    let kind = control.kind().as_str_name();
    let given: Vec<_> = lists.into_iter().filter(|(_, values)| *values > 0).collect();
    match given.as_slice() {
        [(name, values)] => {
            if *values != 2 {
                check.mistake(
                    format!("{key}.{name}"),
                    format!("'{name}' must have exactly 2 entries for {kind}, got {values}"),
                );
            }
        }
        _ => {
            let message = format!(
                "must specify exactly one of 'int32_false_true', 'fp32_false_true', 'bool_false_true' for {kind}"
            );
            check.mistake(key, message);
        }
    }
}
