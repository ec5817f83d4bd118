//! What the server and its models are: readiness, metadata, configuration, statistics.

use super::decode;
use super::wire::model_metadata_response::TensorMetadata;
use super::wire::{
    InferBatchStatistics, InferResponseStatistics, InferStatistics, MemoryUsage, ModelConfigRequest,
    ModelConfigResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStatistics, ModelStatisticsRequest, ModelStatisticsResponse, ServerMetadataResponse, StatisticDuration,
};
use crate::error::Result;
use crate::gateway::{Gateway, Handle};
use crate::model::{Device, Footprint, ModelConfig, TensorSpec, Version};
use crate::telemetry::stats::Total;

/// The extensions of the protocol, in the reference server's order. Clients look for some of them; it lists all even
/// where one is switched off.
const EXTENSIONS: [&str; 13] = [
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
];

/// The server's name, version and extensions.
pub fn server(id: &str) -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: id.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// Whether a model answers requests: false for a model that is known and has no version that does.
///
/// # Errors
/// Those of [`Gateway::find`] for an unknown model, and for a version that does not answer.
pub fn model_ready(gateway: &Gateway, request: &ModelReadyRequest) -> Result<ModelReadyResponse> {
    let version = decode::version(&request.version)?;
    match gateway.find(&request.name, version) {
        Ok(_) => Ok(ModelReadyResponse { ready: true }),
        // Clients ask this after an unload, and expect an answer.
        Err(_) if version.is_none() && gateway.knows(&request.name) => Ok(ModelReadyResponse { ready: false }),
        Err(error) => Err(error),
    }
}

/// What a model takes and gives.
///
/// # Errors
/// Those of [`Gateway::find`].
pub fn model(gateway: &Gateway, request: &ModelMetadataRequest) -> Result<ModelMetadataResponse> {
    let version = decode::version(&request.version)?;
    let handle = gateway.find(&request.name, version)?;
    let versions = version.map_or_else(|| gateway.versions_ready(&request.name), |version| vec![version]);
    let config = &handle.config;
    let tensors = |specs: &[TensorSpec]| specs.iter().map(|spec| tensor(spec, config)).collect();
    let platform = &config.schema.platform;
    Ok(ModelMetadataResponse {
        name: config.name.to_string(),
        versions: versions.iter().map(Version::to_string).collect(),
        platform: if platform.is_empty() { config.backend.clone() } else { platform.clone() },
        inputs: tensors(&config.inputs),
        outputs: tensors(&config.outputs),
    })
}

fn tensor(spec: &TensorSpec, config: &ModelConfig) -> TensorMetadata {
    let dims = spec.dims.clone().unwrap_or_default();
    let shape = if config.max_batch_rows > 0 { dims.with_rows(-1) } else { dims };
    TensorMetadata { name: spec.name.to_string(), datatype: spec.dtype_name().to_owned(), shape: shape.to_vec() }
}

/// The configuration that the server works with: normalised, and completed from the model file.
///
/// # Errors
/// Those of [`Gateway::find`].
pub fn config(gateway: &Gateway, request: &ModelConfigRequest) -> Result<ModelConfigResponse> {
    let handle = gateway.find(&request.name, decode::version(&request.version)?)?;
    Ok(ModelConfigResponse { config: Some((*handle.config.schema).clone()) })
}

/// The statistics of one version, of a model's versions, or of all.
///
/// # Errors
/// Those of [`Gateway::statistics`].
pub fn statistics(gateway: &Gateway, request: &ModelStatisticsRequest) -> Result<ModelStatisticsResponse> {
    let handles = gateway.statistics(&request.name, decode::version(&request.version)?)?;
    Ok(ModelStatisticsResponse { model_stats: handles.iter().map(|each| version_statistics(each)).collect() })
}

fn version_statistics(handle: &Handle) -> ModelStatistics {
    let totals = handle.stats.snapshot();
    let inference = InferStatistics {
        success: duration(totals.success),
        fail: duration(totals.fail),
        queue: duration(totals.queue),
        compute_input: duration(totals.compute_input),
        compute_infer: duration(totals.compute_infer),
        compute_output: duration(totals.compute_output),
        cache_hit: duration(totals.cache_hit),
        cache_miss: duration(totals.cache_miss),
    };
    let batches = totals.batches.iter().map(|(&rows, batch)| InferBatchStatistics {
        batch_size: rows as u64,
        compute_input: duration(batch.compute_input),
        compute_infer: duration(batch.compute_infer),
        compute_output: duration(batch.compute_output),
    });
    let responses = totals.responses.iter().map(|(index, at)| {
        let at = InferResponseStatistics {
            compute_infer: duration(at.compute_infer),
            compute_output: duration(at.compute_output),
            success: duration(at.success),
            fail: duration(at.fail),
            empty_response: duration(at.empty_response),
            cancel: duration(at.cancel),
        };
        (index.to_string(), at)
    });
    ModelStatistics {
        name: handle.config.name.to_string(),
        version: handle.version.to_string(),
        last_inference: totals.last_inference_ms,
        inference_count: totals.inference_count,
        execution_count: totals.execution_count,
        inference_stats: Some(inference),
        batch_stats: batches.collect(),
        memory_usage: memory_usage(&handle.footprint()),
        response_stats: responses.collect(),
    }
}

/// The memory that a version holds, by device.
fn memory_usage(held: &Footprint) -> Vec<MemoryUsage> {
    let usage = held.bytes.iter().map(|(device, &byte_size)| {
        let (kind, id) = match device {
            Device::Cpu => ("CPU", 0),
            Device::Cuda(index) => ("GPU", i64::from(*index)),
        };
        MemoryUsage { r#type: kind.to_owned(), id, byte_size }
    });
    usage.collect()
}

fn duration(total: Total) -> Option<StatisticDuration> {
    Some(StatisticDuration { count: total.count, ns: total.ns })
}
