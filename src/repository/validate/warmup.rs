//! Warm-up samples.

use super::super::suggest::nearest;
use super::super::tree::shorten;
use super::Check;
use super::data_file::{self, Tensor};
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::schema::model_warmup::Input;
use crate::model::schema::model_warmup::input::InputDataType;
use crate::model::schema::{DataType, ModelInput, ModelWarmup};

/// More executions of one sample than this are a mistake.
const COUNT_MAX: u32 = 10_000;

pub(super) fn check(check: &mut Check<'_>) {
    for (index, sample) in check.config.model_warmup.iter().enumerate() {
        let key = format!("model_warmup[{index}]");
        if sample.name.is_empty() {
            check.mistake(format!("{key}.name"), "model warmup must specify 'name'");
        }
        let max = u32::try_from(check.config.max_batch_size).unwrap_or(0);
        if sample.batch_size > max.max(1) {
            let message = format!("warmup batch size {} is larger than max_batch_size {max}", sample.batch_size);
            check.mistake(format!("{key}.batch_size"), message);
        } else if sample.batch_size == 0 && max > 0 {
            check.warn(&key, "the sample is skipped: it has no 'batch_size', and the model batches");
        }
        if sample.count > COUNT_MAX {
            check.mistake(format!("{key}.count"), format!("'count' must be at most {COUNT_MAX}"));
        }
        inputs(check, &key, sample);
    }
}

fn inputs(check: &mut Check<'_>, key: &str, sample: &ModelWarmup) {
    let config = check.config;
    if sample.inputs.is_empty() {
        check.mistake(key, format!("must specify one or more 'inputs' for warmup sample '{}'", sample.name));
        return;
    }
    let mask =
        config.parameters.get("padding.mask_input").map(|mask| mask.string_value.split('=').next().unwrap_or(""));
    let needed = |input: &&ModelInput| !input.optional && mask.map(str::trim) != Some(&*input.name);
    for missing in config.input.iter().filter(needed).filter(|input| !sample.inputs.contains_key(&input.name)) {
        check.mistake(key, format!("warmup sample '{}' has no input '{}'", sample.name, missing.name));
    }
    let mut inputs: Vec<_> = sample.inputs.iter().collect();
    inputs.sort_by_key(|(name, _)| name.as_str());
    for (name, input) in inputs {
        let key = format!("{key}.inputs[{name}]");
        let of_model = config.input.iter().find(|each| each.name == *name);
        let made = made_for_sequences(check);
        if of_model.is_none() && !config.input.is_empty() && !made.contains(&name.as_str()) {
            let suggestion = || nearest(name, config.input.iter().map(|each| each.name.as_str()));
            check.mistake_near(&key, format!("warmup input '{}' is no input of the model", shorten(name)), suggestion);
        }
        data_type(check, &key, (name, input), of_model);
        for (index, dim) in input.dims.iter().enumerate().filter(|(_, dim)| **dim < 1) {
            check.mistake(
                format!("{key}.dims[{index}]"),
                format!("warmup input '{name}' must have dims >= 1, got {dim}"),
            );
        }
        match &input.input_data_type {
            Some(InputDataType::InputDataFile(name)) => {
                let tensor = Tensor { dtype: input.data_type(), dims: &input.dims, rows: sample.batch_size };
                data_file::check(check, format!("{key}.input_data_file"), "warmup", name, &tensor);
            }
            Some(_) => {}
            None => {
                let message = "must specify one of 'zero_data', 'random_data', 'input_data_file'";
                check.mistake(&key, format!("warmup input '{name}' {message}"));
            }
        }
    }
}

/// The inputs of the model file that callers do not send and samples may give all the same.
fn made_for_sequences<'a>(check: &Check<'a>) -> Vec<&'a str> {
    let Some(SchedulingChoice::SequenceBatching(batching)) = &check.config.scheduling_choice else { return Vec::new() };
    let controls = batching.control_input.iter().map(|control| control.name.as_str());
    controls.chain(batching.state.iter().map(|state| state.input_name.as_str())).collect()
}

fn data_type(check: &mut Check<'_>, key: &str, (name, input): (&str, &Input), of_model: Option<&ModelInput>) {
    let key = format!("{key}.data_type");
    if input.data_type() == DataType::TypeInvalid {
        check.mistake(key, format!("warmup input '{name}' must specify 'data_type'"));
    } else if let Some(expected) = of_model.map(ModelInput::data_type)
        && expected != DataType::TypeInvalid
        && expected != input.data_type()
    {
        let (got, expected) = (input.data_type().as_str_name(), expected.as_str_name());
        check.mistake(key, format!("warmup input '{name}' is {got}, but the model's is {expected}"));
    }
}
