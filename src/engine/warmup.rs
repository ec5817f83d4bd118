//! The batches that an instance runs before it serves: those of the configuration, and automatic ones.
//!
//! Automatic warm-up runs every power of two of rows with zeros, so that the first request is not the slow one and the
//! batcher knows the run times from the start.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::model::{ModelConfig, Scheduling, WarmupData, WarmupInput, WarmupSample};
use crate::scheduler::Warmup;
use crate::tensor::{Batch, DataType, Member, Shape, Tensor, strings};

/// A free dimension's size in automatic warm-up.
const FREE_DIM: i64 = 16;
/// The most bytes of one generated tensor; larger ones are not warmed up.
const TENSOR_BYTES_MAX: usize = 256 << 20;
/// The most bytes of all automatic batches of a model together, which exist at the same time.
const AUTOMATIC_BYTES_MAX: usize = 256 << 20;
/// The most rows of an automatic batch.
const AUTOMATIC_ROWS_MAX: usize = 1024;

/// The batches to run before serving: the configuration's samples, which must succeed, then, if `automatic`, zeros.
///
/// # Errors
/// If a sample does not fit the model or its file cannot be read.
pub(super) fn batches(config: &ModelConfig, automatic: bool) -> Result<Vec<Warmup>> {
    let mut batches = Vec::new();
    for sample in &config.warmup {
        let named = |error: Error| error.context(format!("failed to run warmup sample '{}'", sample.name));
        let once = Warmup { batch: sample_batch(config, sample).map_err(named)?, required: true, measured: false };
        batches.extend(std::iter::repeat_n(once, sample.runs));
    }
    if automatic {
        let mut left = AUTOMATIC_BYTES_MAX;
        for rows in automatic_rows(config) {
            let Some(batch) = zeros(config, rows, left) else { break };
            left -= batch.members.iter().flat_map(|member| &member.inputs).map(|input| input.data.len()).sum::<usize>();
            let run = |measured| Warmup { batch: batch.clone(), required: false, measured };
            // The first execution of a size is not typical: TorchScript specialises on it.
            batches.extend([run(false), run(true), run(true)]);
        }
    }
    Ok(batches)
}

fn automatic_rows(config: &ModelConfig) -> Vec<usize> {
    let rows_max = match config.scheduling {
        Scheduling::Single(_) | Scheduling::Sequence(_) | Scheduling::Ensemble(_) => 1,
        Scheduling::Dynamic(_) => config.max_batch_rows.clamp(1, AUTOMATIC_ROWS_MAX),
    };
    let mut rows: Vec<usize> =
        std::iter::successors(Some(1), |rows| Some(rows * 2)).take_while(|&r| r < rows_max).collect();
    rows.push(rows_max);
    rows
}

/// A batch of zeros (empty strings) in at most `bytes`; `None` if a type or shape is not known or it would be too large.
fn zeros(config: &ModelConfig, rows: usize, bytes: usize) -> Option<Batch> {
    let mut left = bytes;
    let inputs = config.inputs.iter().map(|spec| {
        let dims: Vec<i64> =
            spec.reshape.as_ref().or(spec.dims.as_ref())?.iter().map(|&d| if d == -1 { FREE_DIM } else { d }).collect();
        let shape = with_rows(config, &dims, rows);
        let data = zero_data(spec.dtype?, &shape, left)?;
        left -= data.len();
        Some(Tensor { dtype: spec.dtype?, data, shape })
    });
    Some(Batch::new(vec![Member { rows, inputs: inputs.collect::<Option<_>>()? }]))
}

fn with_rows(config: &ModelConfig, dims: &[i64], rows: usize) -> Shape {
    let shape = Shape::new(dims);
    if config.max_batch_rows > 0 { shape.with_rows(rows as i64) } else { shape }
}

fn zero_data(dtype: DataType, shape: &Shape, bytes_max: usize) -> Option<Bytes> {
    let elements = shape.elements()?;
    let size = dtype.size().unwrap_or(4);
    let bytes = elements.checked_mul(size).filter(|&bytes| bytes <= bytes_max)?;
    Some(vec![0; bytes].into())
}

fn sample_batch(config: &ModelConfig, sample: &WarmupSample) -> Result<Batch> {
    let inputs = config.inputs.iter().map(|spec| {
        let input = sample
            .inputs
            .iter()
            .find(|input| input.name == *spec.name)
            .ok_or_else(|| Error::invalid(format!("the sample has no input '{}'", spec.name)))?;
        let shape = with_rows(config, &input.dims, sample.rows);
        let data = sample_data(input, &shape)?;
        Ok(Tensor { dtype: input.dtype, shape, data })
    });
    Ok(Batch::new(vec![Member { rows: sample.rows, inputs: inputs.collect::<Result<_>>()? }]))
}

fn sample_data(input: &WarmupInput, shape: &Shape) -> Result<Bytes> {
    let name = &input.name;
    let zeros = zero_data(input.dtype, shape, TENSOR_BYTES_MAX)
        .ok_or_else(|| Error::invalid(format!("input '{name}' of shape {shape} is too large to warm up with")))?;
    match &input.data {
        WarmupData::Zero => Ok(zeros),
        WarmupData::Random if input.dtype == DataType::Bytes => Ok(zeros),
        WarmupData::Random => Ok(random_data(input.dtype, zeros.len())),
        WarmupData::File(path) => {
            let unreadable = |error| Error::invalid(format!("cannot read '{}': {error}", path.display()));
            let data = Bytes::from(std::fs::read(path).map_err(unreadable)?);
            let fits = match input.dtype {
                DataType::Bytes => strings::check(&data, shape.elements().unwrap_or(0)).is_ok(),
                _ => data.len() == zeros.len(),
            };
            let misfit = || format!("'{}' does not hold a {} tensor of shape {shape}", path.display(), input.dtype);
            if fits { Ok(data) } else { Err(Error::invalid(misfit())) }
        }
    }
}

/// Small non-negative numbers of every type, the same at each load: enough to take a model through its usual paths.
fn random_data(dtype: DataType, bytes: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let size = dtype.size().unwrap_or(1);
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        let fraction = (next() >> 40) as f32 / (1u32 << 24) as f32;
        match dtype {
            DataType::Fp64 => data.extend_from_slice(&f64::from(fraction).to_le_bytes()),
            DataType::Fp32 => data.extend_from_slice(&fraction.to_le_bytes()),
            DataType::Fp16 => data.extend_from_slice(&half::f16::from_f32(fraction).to_le_bytes()),
            DataType::Bf16 => data.extend_from_slice(&half::bf16::from_f32(fraction).to_le_bytes()),
            _ => data.extend_from_slice(&(next() % 2).to_le_bytes()[..size]),
        }
    }
    data.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{DynamicBatching, Priorities, QueuePolicy, TensorSpec, TimeoutAction};

    /// A model of one input of this many floats a row, with dynamic batching.
    fn batching(rows: usize, floats: i64) -> ModelConfig {
        let queue = QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: None,
            allow_timeout_override: false,
            requests_max: 1,
        };
        let preferred_rows = Vec::new();
        let batching = DynamicBatching {
            preferred_rows,
            queue_delay_max: Duration::ZERO,
            preserve_ordering: false,
            queue,
            priorities: Priorities::default(),
        };
        ModelConfig {
            max_batch_rows: rows,
            inputs: vec![TensorSpec::new("x", Some(DataType::Fp32), Some(Shape::new(&[floats])))],
            scheduling: Scheduling::Dynamic(batching),
            ..ModelConfig::new("m", "identity")
        }
    }

    fn rows_of(config: &ModelConfig) -> Vec<usize> {
        let batches = batches(config, true).expect("there is no sample");
        let mut rows: Vec<usize> = batches.iter().map(|warmup| warmup.batch.rows()).collect();
        rows.dedup();
        rows
    }

    #[test]
    fn automatic_batches_end_at_the_most_rows() {
        assert_eq!(rows_of(&batching(6, 4)), [1, 2, 4, 6]);
        assert_eq!(rows_of(&batching(i32::MAX as usize, 4)).last(), Some(&AUTOMATIC_ROWS_MAX));
    }

    #[test]
    fn automatic_batches_fit_into_their_bytes_together() {
        let mebibytes = |rows: &[usize]| rows.iter().sum::<usize>();
        let rows = rows_of(&batching(1024, 1 << 18));
        assert_eq!(rows, [1, 2, 4, 8, 16, 32, 64, 128]);
        assert!(mebibytes(&rows) <= AUTOMATIC_BYTES_MAX >> 20);
    }

    #[test]
    fn random_data_fills_every_type_exactly() {
        for dtype in DataType::ALL.into_iter().filter(|dtype| dtype.size().is_some()) {
            let bytes = 7 * dtype.size().expect("filtered");
            assert_eq!(random_data(dtype, bytes).len(), bytes, "{dtype}");
        }
    }
}
