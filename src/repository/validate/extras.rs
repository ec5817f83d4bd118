//! Model files, warm-up samples, metric tags and histograms.

use super::super::files::is_inside;
use super::super::tree::shorten;
use super::Check;
use crate::model::schema::model_metrics::metric_control::MetricOptions;
use crate::model::schema::model_warmup::input::InputDataType;
use crate::model::schema::{DataType, ModelWarmup};

/// More executions of one sample than this are a mistake.
const WARMUP_COUNT_MAX: u32 = 10_000;

pub(super) fn check(check: &mut Check<'_>) {
    model_files(check);
    warmup(check);
    metrics(check);
}

fn model_files(check: &mut Check<'_>) {
    let config = check.config;
    let mut files = vec![("default_model_filename".to_owned(), &config.default_model_filename)];
    files.extend(config.cc_model_filenames.iter().map(|(key, name)| (format!("cc_model_filenames[{key}]"), name)));
    files.sort();
    for (key, name) in files {
        let written = check.positions.wrote(&key);
        if written && !is_inside(name) {
            check.mistake(key, format!("file '{}' must stay inside the version directory", shorten(name)));
        }
    }
    if !config.runtime.is_empty() {
        let message = format!("runtime '{}' has no effect: backends are part of this server", shorten(&config.runtime));
        check.warn("runtime", message);
    }
    if let Some(accelerators) = config.optimization.as_ref().and_then(|each| each.execution_accelerators.as_ref())
        && accelerators.gpu_execution_accelerator.len() + accelerators.cpu_execution_accelerator.len() > 0
    {
        let message = "'execution_accelerators' have no effect in this server version";
        check.warn("optimization.execution_accelerators", message);
    }
}

fn warmup(check: &mut Check<'_>) {
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
        if sample.count > WARMUP_COUNT_MAX {
            check.mistake(format!("{key}.count"), format!("'count' must be at most {WARMUP_COUNT_MAX}"));
        }
        warmup_inputs(check, &key, sample);
    }
}

fn warmup_inputs(check: &mut Check<'_>, key: &str, sample: &ModelWarmup) {
    if sample.inputs.is_empty() {
        check.mistake(key, format!("must specify one or more 'inputs' for warmup sample '{}'", sample.name));
    }
    let mut inputs: Vec<_> = sample.inputs.iter().collect();
    inputs.sort_by_key(|(name, _)| name.as_str());
    for (name, input) in inputs {
        let key = format!("{key}.inputs[{name}]");
        let of_model = check.config.input.iter().find(|each| each.name == *name);
        if of_model.is_none() && !check.config.input.is_empty() {
            let names = check.config.input.iter().map(|each| each.name.as_str());
            let suggestion = super::super::suggest::nearest(name, names);
            check.mistake_near(&key, format!("warmup input '{}' is no input of the model", shorten(name)), suggestion);
        }
        if input.data_type() == DataType::TypeInvalid {
            check.mistake(format!("{key}.data_type"), format!("warmup input '{name}' must specify 'data_type'"));
        } else if let Some(expected) = of_model.map(|each| each.data_type())
            && expected != DataType::TypeInvalid
            && expected != input.data_type()
        {
            let (got, expected) = (input.data_type().as_str_name(), expected.as_str_name());
            check.mistake(
                format!("{key}.data_type"),
                format!("warmup input '{name}' is {got}, but the model's is {expected}"),
            );
        }
        for (index, dim) in input.dims.iter().enumerate().filter(|(_, dim)| **dim < 1) {
            check.mistake(
                format!("{key}.dims[{index}]"),
                format!("warmup input '{name}' must have dims >= 1, got {dim}"),
            );
        }
        match &input.input_data_type {
            Some(InputDataType::InputDataFile(file)) => warmup_file(check, &format!("{key}.input_data_file"), file),
            Some(_) => {}
            None => {
                let message = "must specify one of 'zero_data', 'random_data', 'input_data_file'";
                check.mistake(&key, format!("warmup input '{name}' {message}"));
            }
        }
    }
}

fn warmup_file(check: &mut Check<'_>, key: &str, file: &str) {
    if !is_inside(file) {
        check.mistake(key, format!("warmup file '{}' must stay inside 'warmup/'", shorten(file)));
    } else if !check.directory.join("warmup").join(file).is_file() {
        check.mistake(key, format!("warmup file '{}' does not exist in 'warmup/'", shorten(file)));
    }
}

fn metrics(check: &mut Check<'_>) {
    let config = check.config;
    let mut tags: Vec<_> = config.metric_tags.keys().collect();
    tags.sort();
    for tag in tags {
        if tag.is_empty() || !tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            let message = format!("metric tag '{}' must consist of letters, digits and underscores", shorten(tag));
            check.mistake(format!("metric_tags[{tag}]"), message);
        }
    }
    if config.model_metrics.is_some() {
        check.warn("model_metrics", "'model_metrics' has no effect in this server version");
    }
    let controls = config.model_metrics.as_ref().map_or([].as_slice(), |metrics| metrics.metric_control.as_slice());
    for (index, control) in controls.iter().enumerate() {
        let key = format!("model_metrics.metric_control[{index}]");
        if control.metric_identifier.as_ref().is_none_or(|identifier| identifier.family.is_empty()) {
            check.mistake(format!("{key}.metric_identifier"), "metric control must specify 'family'");
        }
        let buckets = match &control.metric_options {
            Some(MetricOptions::HistogramOptions(options)) => options.buckets.as_slice(),
            None => &[],
        };
        if buckets.is_empty() {
            check.mistake(format!("{key}.histogram_options"), "metric control must specify 'buckets'");
        } else if !buckets.is_sorted_by(|a, b| a < b) || buckets.iter().any(|bucket| !bucket.is_finite()) {
            check.mistake(format!("{key}.histogram_options.buckets"), "'buckets' must be finite and ascending");
        }
    }
}
