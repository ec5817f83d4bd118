//! Chooses between a module as it was saved and an optimised form of it, by running both on sample inputs.
//!
//! libtorch's optimisations and weights laid out for the processor help some models (convolutions by half or more), do
//! nothing for others, and fail for a few. `torch.optimize: auto` keeps the optimised form only if it gives the same
//! numbers and is measurably faster.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::device;
use super::instance::TorchInstance;
use super::module::{Module, OutputValue};
use super::options::Optimize;
use super::staging::Staging;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::model::{Device, TensorSpec};
use crate::tensor::{Batch, DataType, Member, Shape, Tensor};

/// The size of a free dimension in sample inputs.
const SAMPLE_DIM: i64 = 64;
/// The most rows in sample inputs that show how fast a model is: with one alone much goes unseen.
const SAMPLE_ROWS_MAX: usize = 2;
/// The most bytes of all sample inputs together.
const SAMPLE_BYTES_MAX: usize = 64 << 20;
/// The longest that both forms are timed, if they are run twice in it, where one is far faster than the other.
const TIMING_MAX: Duration = Duration::from_millis(150);
/// The same where they are close.
const TIMING_MAX_CLOSE: Duration = Duration::from_millis(400);
/// A form is far faster if it needs less than this part of the other's time.
const FAR: f64 = 0.85;
const ROUNDS_MAX: usize = 9;
/// A model whose first two executions take longer than this is left as it is, for the sake of the load time.
const RUN_MAX: Duration = Duration::from_secs(2);
/// The optimised form must need less than this part of the plain form's time: a gain within the noise would let the choice
/// differ from load to load. What linear layers gain where MKL uses all of the processor is a tenth.
const WORTH_IT: f64 = 0.98;

/// The form of `plain`'s module to serve with; `None` for the plain one, loaded anew: what was tried stays in memory as
/// long as the module on which it was tried.
///
/// # Errors
/// Only where the configuration asks for an optimisation that fails; `auto` falls back to the plain module.
pub fn best(plain: TorchInstance) -> Result<Option<Arc<Module>>> {
    let model = Arc::clone(&plain.config);
    match plain.options.optimize {
        Optimize::Off => Ok(Some(plain.module)),
        Optimize::Freeze => plain.module.frozen().map(Arc::new).map(Some).map_err(|error| failed(&model.name, error)),
        Optimize::Full => plain
            .module
            .optimized()
            .map(|(module, _)| Some(Arc::new(module)))
            .map_err(|error| failed(&model.name, error)),
        // On devices it is not known to help, and with state of its own a module must stay as it is.
        Optimize::Auto if plain.device != Device::Cpu || plain.effects.state => Ok(Some(plain.module)),
        Optimize::Auto => Ok(faster(plain).unwrap_or_else(|error| {
            tracing::debug!(model = &*model.name, %error, "not optimized");
            None
        })),
    }
}

fn failed(model: &str, error: Error) -> Error {
    error.context(format_args!("cannot optimize model '{model}'"))
}

/// The optimised module, if it is faster and equal on sample inputs.
fn faster(plain: TorchInstance) -> Result<Option<Arc<Module>>> {
    let batching = plain.config.max_batch_rows > 0;
    let rows = batching.then(|| plain.config.max_batch_rows.min(SAMPLE_ROWS_MAX));
    let Some(sample) = sample(&plain.config.inputs, rows) else { return Ok(None) };
    // With one thread, and by its processor time: on a busy machine, such as one that loads other models, waiting would be
    // all that is measured.
    device::begin_thread(plain.device, 1)?;
    let before = Instant::now();
    let expected = outputs(&plain, &sample)?;
    if before.elapsed() > RUN_MAX {
        return Ok(None);
    }
    let (module, layers) = plain.module.optimized()?;
    let optimized = TorchInstance { module: Arc::new(module), ..plain.clone() };
    let same = equal(&expected, &outputs(&optimized, &sample)?);
    let (mut before, mut after) = (Duration::MAX, Duration::MAX);
    let start = Instant::now();
    for round in 0..ROUNDS_MAX {
        // In turns, so that other load on the machine meets both.
        before = before.min(time(&plain, &sample)?);
        after = after.min(time(&optimized, &sample)?);
        let is_close = (FAR..1.0 / FAR).contains(&after.div_duration_f64(before));
        // The first may be slow for once, such as by memory that is new.
        if round > 0 && start.elapsed() > if is_close { TIMING_MAX_CLOSE } else { TIMING_MAX } {
            break;
        }
    }
    let kept = same && after.div_duration_f64(before) < WORTH_IT;
    let (before_us, after_us) = (before.as_micros(), after.as_micros());
    tracing::debug!(model = &*plain.config.name, layers, before_us, after_us, same, kept, "tried to optimize");
    Ok(kept.then_some(optimized.module))
}

/// The tensors among the outputs, after two executions of which the first compiles the graph.
fn outputs(instance: &TorchInstance, sample: &Batch) -> Result<Vec<Option<Tensor>>> {
    time(instance, sample)?;
    let inputs = instance.gather(sample, &mut Staging::new(instance.device))?;
    let stream = Stream::of_thread(instance.device)?;
    let returned = instance.module.run(&instance.how(), &inputs)?;
    let tensors = returned.outputs()?.into_iter().map(|output| match output.value {
        OutputValue::Tensor(handle) => Ok(stream.arrived(vec![handle.into_host(true)?])?.pop()),
        _ => Ok(None),
    });
    tensors.collect()
}

/// The processor time of this thread in one execution.
fn time(instance: &TorchInstance, sample: &Batch) -> Result<Duration> {
    let inputs = instance.gather(sample, &mut Staging::new(instance.device))?;
    let stream = Stream::of_thread(instance.device)?;
    let start = processor_time();
    instance.module.run(&instance.how(), &inputs)?;
    stream.wait()?;
    Ok(processor_time().saturating_sub(start))
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// One request's inputs, of ones, with so many rows if the model batches; `None` if a type or rank is unknown, or for
/// strings.
pub(super) fn sample(inputs: &[TensorSpec], rows: Option<usize>) -> Option<Batch> {
    let mut member = Member::new(rows.unwrap_or(1), Vec::with_capacity(inputs.len()));
    let mut bytes_left = SAMPLE_BYTES_MAX;
    for spec in inputs {
        let dtype = spec.dtype?;
        let dims = spec.reshape.as_ref().or(spec.dims.as_ref())?;
        let dims: Vec<i64> = dims.iter().map(|&dim| if dim < 0 { SAMPLE_DIM } else { dim }).collect();
        let shape = Shape::from(dims);
        let shape = match rows {
            Some(rows) => shape.with_rows(i64::try_from(rows).ok()?),
            None => shape,
        };
        let bytes = shape.elements()?.checked_mul(dtype.size()?)?;
        bytes_left = bytes_left.checked_sub(bytes)?;
        member.inputs.push(Tensor::new(dtype, shape, ones(dtype, bytes)?));
    }
    Some(Batch::new(vec![member]))
}

fn ones(dtype: DataType, bytes: usize) -> Option<Bytes> {
    let one: &[u8] = match dtype {
        DataType::Bool | DataType::Uint8 | DataType::Int8 => &[1],
        DataType::Uint16 | DataType::Int16 => &[1, 0],
        DataType::Uint32 | DataType::Int32 => &[1, 0, 0, 0],
        DataType::Uint64 | DataType::Int64 => &[1, 0, 0, 0, 0, 0, 0, 0],
        DataType::Fp16 => &[0, 0x3c],
        DataType::Bf16 => &[0x80, 0x3f],
        DataType::Fp32 => &[0, 0, 0x80, 0x3f],
        DataType::Fp64 => &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
        DataType::Bytes => return None,
    };
    Some(one.repeat(bytes / one.len()).into())
}

fn equal(left: &[Option<Tensor>], right: &[Option<Tensor>]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|pair| match pair {
            (Some(left), Some(right)) => {
                left.dtype == right.dtype && left.shape == right.shape && close(left.dtype, &left.data, &right.data)
            }
            (None, None) => true,
            _ => false,
        })
}

/// Floating point within what another order of the same operations explains; all else to the bit.
fn close(dtype: DataType, left: &[u8], right: &[u8]) -> bool {
    let near = |tolerance: f64| {
        move |(left, right): (f64, f64)| {
            left == right
                || (left - right).abs() <= tolerance * (1.0 + left.abs().max(right.abs()))
                || left.is_nan() && right.is_nan()
        }
    };
    match dtype {
        DataType::Fp32 => floats(left, f32::from_le_bytes).zip(floats(right, f32::from_le_bytes)).all(near(1e-5)),
        DataType::Fp64 => floats(left, f64::from_le_bytes).zip(floats(right, f64::from_le_bytes)).all(near(1e-9)),
        DataType::Fp16 => {
            floats(left, half::f16::from_le_bytes).zip(floats(right, half::f16::from_le_bytes)).all(near(2e-3))
        }
        DataType::Bf16 => {
            floats(left, half::bf16::from_le_bytes).zip(floats(right, half::bf16::from_le_bytes)).all(near(2e-2))
        }
        _ => left == right,
    }
}

fn floats<const SIZE: usize, T: Into<f64>>(data: &[u8], read: fn([u8; SIZE]) -> T) -> impl Iterator<Item = f64> {
    data.as_chunks::<SIZE>().0.iter().map(move |each| read(*each).into())
}
