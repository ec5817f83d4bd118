//! Sequence batching: strategies, control inputs, states.

use super::super::facts::{DONE_OUTPUT, STEPS_MAX};
use super::super::tree::shorten;
use super::data_file::{self, Tensor};
use super::scheduling::{delay, preferred};
use super::{Check, tensors};
use crate::model::schema::DataType;
use crate::model::schema::ModelSequenceBatching;
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::schema::model_sequence_batching::control::Kind;
use crate::model::schema::model_sequence_batching::initial_state::StateData;
use crate::model::schema::model_sequence_batching::{Control, ControlInput, State, StrategyChoice};

const KEY: &str = "sequence_batching";

/// The most slots of one instance, each of which takes memory whether it is used or not.
const SLOTS_MAX: i32 = 1 << 20;

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
            if !(0..=SLOTS_MAX).contains(&oldest.max_candidate_sequences) {
                let message = format!(
                    "'max_candidate_sequences' must be in range [0, {SLOTS_MAX}], got {}",
                    oldest.max_candidate_sequences
                );
                check.mistake(format!("{key}.max_candidate_sequences"), message);
            }
        }
        None => {}
    }
    names(check, batching);
    if check.config.max_batch_size > SLOTS_MAX {
        let message = format!("with sequence batching 'max_batch_size' must be at most {SLOTS_MAX}");
        check.mistake("max_batch_size", message);
    }
    controls(check, &batching.control_input);
    decoupled(check, batching);
    for (index, state) in batching.state.iter().enumerate() {
        let key = format!("{KEY}.state[{index}]");
        initial(check, &key, state);
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

/// The parameters of iterative models.
pub(super) fn parameters(check: &mut Check<'_>) {
    let config = check.config;
    let value = |key: &str| config.parameters.get(key).map(|value| value.string_value.as_str());
    let batching = match &config.scheduling_choice {
        Some(SchedulingChoice::SequenceBatching(batching)) if batching.iterative_sequence => Some(batching),
        _ => None,
    };
    for key in [DONE_OUTPUT, STEPS_MAX].into_iter().filter(|key| value(key).is_some() && batching.is_none()) {
        check.warn(format!("parameters[{key}]"), format!("'{key}' has no effect without 'iterative_sequence'"));
    }
    let Some(batching) = batching else { return };
    match value(DONE_OUTPUT) {
        None => {
            let message = format!("without the parameter '{DONE_OUTPUT}' each request is executed once");
            check.warn(format!("{KEY}.iterative_sequence"), message);
        }
        Some(name) => {
            let is_output = config.output.iter().any(|output| output.name == name);
            if !is_output && !batching.state.iter().any(|state| state.output_name == name) {
                let message = format!("'{name}' is no output of the model, nor of one of its states");
                check.mistake(format!("parameters[{DONE_OUTPUT}]"), message);
            }
        }
    }
    if let Some(steps) = value(STEPS_MAX)
        && steps.parse::<u32>().ok().filter(|steps| *steps > 0).is_none()
    {
        let message = format!("'{STEPS_MAX}' must be a positive integer, got '{}'", shorten(steps));
        check.mistake(format!("parameters[{STEPS_MAX}]"), message);
    }
}

/// What a model that sends responses while it runs cannot do.
fn decoupled(check: &mut Check<'_>, batching: &ModelSequenceBatching) {
    let decoupled = check.config.model_transaction_policy.is_some_and(|policy| policy.decoupled);
    if !decoupled || batching.iterative_sequence {
        return;
    }
    if !batching.state.is_empty() {
        let message = "a decoupled model keeps states only from one execution to the next: use 'iterative_sequence'";
        check.mistake(format!("{KEY}.state"), message);
    }
    if check.config.max_batch_size > 1 {
        // One caller that takes its responses slowly would hold back all others of its batch.
        let message =
            "sequences of a decoupled model share no batch: use max_batch_size 1 or 0, or 'iterative_sequence'";
        check.mistake(KEY, message);
    }
}

/// What a state is at first.
fn initial(check: &mut Check<'_>, key: &str, state: &State) {
    let key = format!("{key}.initial_state");
    let name = &state.input_name;
    if state.initial_state.len() > 1 {
        let message = format!(
            "initial_state field for state input '{name}' must contain exactly one or zero element. Found '{}' elements.",
            state.initial_state.len()
        );
        check.mistake(&key, message);
    }
    let Some(initial) = state.initial_state.first() else { return };
    let mut wrong = |part: &str, message: String| check.mistake(format!("{key}[0].{part}"), message);
    if initial.data_type != state.data_type {
        let message =
            format!("the data type of 'initial_state' of state '{name}' does not match the state's data type");
        wrong("data_type", message);
    }
    if initial.name.is_empty() {
        wrong("name", format!("Field 'name' must be set when using initial_state for state input '{name}'."));
    }
    let same = initial.dims.len() == state.dims.len()
        && initial
            .dims
            .iter()
            .zip(&state.dims)
            .all(|(initial, state)| *initial > 0 && (*state == -1 || initial == state));
    if !same {
        let message = format!(
            "'initial_state' of state '{name}' has dims {:?}, which must be those of the state, {:?}, with a size for \
             each -1",
            initial.dims, state.dims
        );
        wrong("dims", message);
    }
    match &initial.state_data {
        Some(StateData::DataFile(file)) => {
            let tensor = Tensor { dtype: initial.data_type(), dims: &initial.dims, rows: 1 };
            data_file::check(check, format!("{key}[0].data_file"), "initial_state", file, &tensor);
        }
        Some(StateData::ZeroData(_)) => {}
        None => wrong("zero_data", format!("initial_state of state '{name}' must specify 'zero_data' or 'data_file'")),
    }
}

/// The inputs of the model file are told apart by their names: the callers', the controls, and the states'.
fn names(check: &mut Check<'_>, batching: &ModelSequenceBatching) {
    let mut taken: Vec<&str> = check.config.input.iter().map(|input| input.name.as_str()).collect();
    let controls = batching.control_input.iter().map(|input| ("control_input", "name", input.name.as_str()));
    let states = batching.state.iter().map(|state| ("state", "input_name", state.input_name.as_str()));
    for ((list, field, name), index) in controls.zip(0..).chain(states.zip(0..)) {
        if !name.is_empty() && taken.contains(&name) {
            let message = format!("input '{}' is given more than once", shorten(name));
            check.mistake(format!("{KEY}.{list}[{index}].{field}"), message);
        }
        taken.push(name);
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
            check.mistake(&key, format!("must specify one 'control' for control tensor '{}'", input.name));
        } else if input.control.len() > 1 {
            let message = format!(
                "sequence batching control tensor '{}' is specified for multiple control kinds",
                shorten(&input.name)
            );
            check.mistake(format!("{key}.control"), message);
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
