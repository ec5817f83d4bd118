//! Model files, metric tags and histograms.

use super::super::files::is_inside;
use super::super::suggest::nearest;
use super::super::tree::shorten;
use super::Check;
use crate::model::schema::model_metrics::metric_control::MetricOptions;

/// More buckets of one histogram than this are a mistake.
const BUCKETS_MAX: usize = 200;

pub(super) fn check(check: &mut Check<'_>) {
    model_files(check);
    metrics(check);
}

fn model_files(check: &mut Check<'_>) {
    let config = check.config;
    let mut files = Vec::new();
    // As the server shows a configuration, what is not set is an empty text.
    if !config.default_model_filename.is_empty() {
        files.push(("default_model_filename".to_owned(), &config.default_model_filename));
    }
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
    let controls = config.model_metrics.as_ref().map_or([].as_slice(), |metrics| metrics.metric_control.as_slice());
    for (index, control) in controls.iter().enumerate() {
        let key = format!("model_metrics.metric_control[{index}]");
        match control.metric_identifier.as_ref().map_or("", |identifier| identifier.family.as_str()) {
            "" => check.mistake(format!("{key}.metric_identifier"), "metric control must specify 'family'"),
            family if check.facts.histograms.contains(&family) => {}
            family => {
                let suggestion = || nearest(family, check.facts.histograms.iter().copied());
                let message = format!("'{}' is no histogram of a model, and is ignored", shorten(family));
                check.warn_near(&format!("{key}.metric_identifier.family"), message, suggestion);
            }
        }
        let buckets = match &control.metric_options {
            Some(MetricOptions::HistogramOptions(options)) => options.buckets.as_slice(),
            None => &[],
        };
        if buckets.is_empty() {
            check.mistake(format!("{key}.histogram_options"), "metric control must specify 'buckets'");
        } else if buckets.len() > BUCKETS_MAX {
            let message = format!("more than {BUCKETS_MAX} 'buckets', each of which is a series");
            check.mistake(format!("{key}.histogram_options.buckets"), message);
        } else if !buckets.is_sorted_by(|a, b| a < b) || buckets.iter().any(|bucket| !bucket.is_finite()) {
            check.mistake(format!("{key}.histogram_options.buckets"), "'buckets' must be finite and ascending");
        }
    }
}
