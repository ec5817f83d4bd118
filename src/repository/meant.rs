//! Turns a checked, normalised configuration into the server's own types.

mod ragged;
mod scheduling;
mod sequence;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::facts::{CACHE_TTL, EXECUTION_TIMEOUT, LATENCY_BUDGET, RESIDENCY};
use super::{Facts, files, padding};
use crate::model::schema::model_instance_group::Kind;
use crate::model::schema::model_metrics::metric_control::MetricOptions;
use crate::model::schema::model_warmup::input::InputDataType;
use crate::model::schema::{self, ModelRateLimiter, ModelTensorReshape, model_rate_limiter};
use crate::model::{Device, data_type};
use crate::model::{
    Instances, LatencyBudget, ModelConfig, RateLimit, Residency, Resource, TensorSpec, WarmupData, WarmupInput,
    WarmupSample,
};
use crate::tensor::{DataType, Shape};

/// The configuration as meant; an error is a key and what is wrong with it.
pub(super) fn config(
    schema: &schema::ModelConfig,
    directory: &Path,
    facts: &Facts,
) -> Result<ModelConfig, (String, String)> {
    let inputs = schema.input.iter().map(|input| TensorSpec {
        name: input.name.as_str().into(),
        dtype: data_type(input.data_type()),
        dims: dims(&input.dims),
        reshape: reshape(input.reshape.as_ref()),
        optional: input.optional,
        ragged: input.allow_ragged_batch,
        labels: Arc::new([]),
    });
    Ok(ModelConfig {
        name: schema.name.as_str().into(),
        backend: schema.backend.clone(),
        max_batch_rows: usize::try_from(schema.max_batch_size).unwrap_or(0),
        inputs: inputs.collect(),
        outputs: outputs(schema, directory)?,
        batch_inputs: ragged::batch_inputs(schema),
        batch_outputs: ragged::batch_outputs(schema),
        padding: padding::read(schema).0,
        instances: instances(schema),
        scheduling: scheduling::scheduling(schema, directory, facts)?,
        budget: budget(schema),
        execution_time_max: execution_time_max(schema),
        residency: residency(schema),
        decoupled: schema.model_transaction_policy.is_some_and(|policy| policy.decoupled),
        parameters: schema.parameters.iter().map(|(key, value)| (key.clone(), value.string_value.clone())).collect(),
        metric_tags: schema.metric_tags.iter().map(|(key, value)| (format!("_{key}"), value.clone())).collect(),
        histogram_buckets: histogram_buckets(schema),
        response_cache: schema.response_cache.is_some_and(|cache| cache.enable),
        response_cache_ttl: cache_ttl(schema),
        warmup: warmup(schema, directory),
        schema: Arc::new(schema.clone()),
    })
}

fn dims(written: &[i64]) -> Option<Shape> {
    (!written.is_empty()).then(|| Shape::new(written))
}

fn reshape(written: Option<&ModelTensorReshape>) -> Option<Shape> {
    written.map(|reshape| Shape::new(&reshape.shape))
}

fn outputs(schema: &schema::ModelConfig, directory: &Path) -> Result<Vec<TensorSpec>, (String, String)> {
    let each = schema.output.iter().enumerate().map(|(index, output)| {
        let labels = match output.label_filename.as_str() {
            "" => Vec::new(),
            name => {
                let labels = files::labels(directory, name);
                labels.map_err(|why| (format!("output[{index}].label_filename"), why))?.lines
            }
        };
        Ok(TensorSpec {
            name: output.name.as_str().into(),
            dtype: data_type(output.data_type()),
            dims: dims(&output.dims),
            reshape: reshape(output.reshape.as_ref()),
            optional: false,
            ragged: false,
            labels: labels.into(),
        })
    });
    each.collect()
}

fn instances(schema: &schema::ModelConfig) -> Vec<Instances> {
    let active = schema.instance_group.iter().filter(|group| !group.passive);
    let each = active.flat_map(|group| {
        let count = usize::try_from(group.count).unwrap_or(1).max(1);
        let devices: Vec<Device> = match group.kind() {
            Kind::Gpu => group.gpus.iter().filter_map(|gpu| u32::try_from(*gpu).ok()).map(Device::Cuda).collect(),
            Kind::Auto | Kind::Cpu | Kind::Model => vec![Device::Cpu],
        };
        devices.into_iter().map(move |device| Instances {
            group: group.name.clone(),
            device,
            count,
            rate_limit: rate_limit(group.rate_limiter.as_ref()),
            host_policy: group.host_policy.clone(),
        })
    });
    each.collect()
}

fn rate_limit(written: Option<&ModelRateLimiter>) -> RateLimit {
    let Some(written) = written else { return RateLimit::default() };
    let resource = |resource: &model_rate_limiter::Resource| Resource {
        name: resource.name.clone(),
        global: resource.global,
        count: resource.count,
    };
    let resources = written.resources.iter().filter(|resource| resource.count > 0).map(resource).collect();
    RateLimit { resources, priority: written.priority }
}

fn histogram_buckets(schema: &schema::ModelConfig) -> BTreeMap<String, Vec<f64>> {
    let controls = schema.model_metrics.iter().flat_map(|metrics| &metrics.metric_control);
    let buckets = controls.filter_map(|control| {
        let MetricOptions::HistogramOptions(options) = control.metric_options.as_ref()?;
        Some((control.metric_identifier.as_ref()?.family.clone(), options.buckets.clone()))
    });
    buckets.collect()
}

fn cache_ttl(schema: &schema::ModelConfig) -> Option<Duration> {
    let millis = schema.parameters.get(CACHE_TTL)?.string_value.parse().ok()?;
    Some(Duration::from_millis(millis))
}

fn budget(schema: &schema::ModelConfig) -> Option<LatencyBudget> {
    let micros = schema.parameters.get(LATENCY_BUDGET)?.string_value.parse().ok()?;
    Some(LatencyBudget { total: Duration::from_micros(micros) })
}

fn execution_time_max(schema: &schema::ModelConfig) -> Option<Duration> {
    let micros = schema.parameters.get(EXECUTION_TIMEOUT)?.string_value.parse().ok()?;
    Some(Duration::from_micros(micros))
}

/// How firmly the model is in memory.
pub(super) fn residency(schema: &schema::ModelConfig) -> Residency {
    let written = schema.parameters.get(RESIDENCY);
    written.and_then(|written| Residency::parse(&written.string_value)).unwrap_or_default()
}

fn warmup(schema: &schema::ModelConfig, directory: &Path) -> Vec<WarmupSample> {
    // A sample without rows has nothing to run in a model with a batch dimension.
    let runs = schema.model_warmup.iter().filter(|sample| schema.max_batch_size == 0 || sample.batch_size > 0);
    let each = runs.map(|sample| {
        let inputs = sample.inputs.iter().map(|(name, input)| WarmupInput {
            name: name.clone(),
            dtype: data_type(input.data_type()).unwrap_or(DataType::Fp32),
            dims: Shape::new(&input.dims),
            data: match &input.input_data_type {
                None | Some(InputDataType::ZeroData(_)) => WarmupData::Zero,
                Some(InputDataType::RandomData(_)) => WarmupData::Random,
                Some(InputDataType::InputDataFile(file)) => WarmupData::File(directory.join("warmup").join(file)),
            },
        });
        let mut inputs: Vec<_> = inputs.collect();
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        WarmupSample {
            name: sample.name.clone(),
            rows: if schema.max_batch_size == 0 { 1 } else { usize::try_from(sample.batch_size).unwrap_or(1) },
            inputs,
            runs: usize::try_from(sample.count).unwrap_or(1).max(1),
        }
    });
    each.collect()
}
