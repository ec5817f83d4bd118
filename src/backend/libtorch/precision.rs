//! Models that compute with less than their files say: what is converted at the load, and back in outputs.
//!
//! A graph may insist on a type that it no longer gets: it makes a tensor of 32 bits in between, or multiplies what it
//! has just converted. So a sample goes through once before the model is served.

use std::path::Path;
use std::sync::Arc;

use super::handle::Handle;
use super::instance::{TorchInstance, load_failure};
use super::model::weight_bytes;
use super::module::Module;
use super::optimize::sample;
use super::options::Precision;
use super::staging::Staging;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::model::{Device, ModelConfig};
use crate::tensor::DataType;

/// The module in this precision, and the bytes of its weights.
///
/// # Errors
/// If it cannot be had: 8 bits on a device, or without anything that they are for.
pub fn converted(
    mut module: Module,
    precision: Precision,
    device: Device,
    config: &ModelConfig,
) -> Result<(Module, u64)> {
    if let Some(dtype) = precision.float_type() {
        module.convert(dtype).map_err(|error| load_failure(config, &error))?;
    }
    if precision != Precision::Int8 {
        let bytes = weight_bytes(&module)?;
        return Ok((module, bytes));
    }
    let name = &config.name;
    if device != Device::Cpu {
        return Err(Error::invalid(format!("model '{name}' cannot be int8 on device {device}, only on the CPU")));
    }
    let (quantized, layers, bytes) = module.quantized().map_err(|error| load_failure(config, &error))?;
    if layers == 0 {
        let why = "forward has no linear layer with fp32 weights of its own";
        return Err(Error::invalid(format!("model '{name}' cannot be int8: {why}")));
    }
    tracing::debug!(model = %name, layers, bytes, "linear layers are int8");
    Ok((quantized, bytes))
}

/// Lets a sample go through a converted model.
///
/// # Errors
/// If it fails, but not in the precision of the file at `path`.
pub fn check(converted: &TorchInstance, path: &Path) -> Result<()> {
    let (config, precision) = (&converted.config, converted.options.precision);
    if precision == Precision::AsSaved {
        return Ok(());
    }
    let Some(batch) = sample(&config.inputs, (config.max_batch_rows > 0).then_some(1)) else { return Ok(()) };
    let run = |instance: &TorchInstance| {
        let inputs = instance.gather(&batch, &mut Staging::new(instance.device))?;
        instance.module.run(&instance.how(), &inputs)?;
        Stream::of_thread(instance.device)?.wait()
    };
    let mut tried = converted.clone();
    if converted.effects.state {
        tried.module = Arc::new(converted.module.copy()?);
    }
    let Err(error) = run(&tried) else { return Ok(()) };
    let mut plain = converted.clone();
    plain.module = Arc::new(Module::load(path, converted.device).map_err(|error| load_failure(config, &error))?);
    plain.options.precision = Precision::AsSaved;
    match run(&plain) {
        Ok(()) => Err(error.context(format_args!("model '{}' cannot be {}", config.name, precision.word()))),
        // The sample does not suit the model.
        Err(_) => Ok(()),
    }
}

/// An output in its configured type, or in 32 bits if that is not known, where the precision has made it another one.
pub fn as_declared(output: Handle, precision: Precision, declared: Option<DataType>) -> Result<Handle> {
    let wanted = declared.unwrap_or(DataType::Fp32);
    match precision.float_type() {
        Some(own) if own != wanted && is_float(wanted) && output.dtype()? == Some(own) => output.cast(wanted),
        _ => Ok(output),
    }
}

fn is_float(dtype: DataType) -> bool {
    matches!(dtype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}
