//! The batches that an instance runs before it serves: those of the configuration, and automatic ones.
//!
//! Automatic warm-up runs every power of two of rows with zeros, so that the first request is not the slow one and the
//! batcher knows the run times from the start; of a padded model for each bucket, and of one with optional inputs with
//! and without them. A batch of so many rows has as many members of one row, as requests of one row make it.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::model::{
    ModelConfig, Scheduling, SequenceControlKind, SequenceState, Signature, TensorSpec, WarmupData, WarmupInput,
    WarmupSample,
};
use crate::scheduler::Warmup;
use crate::tensor::{Batch, Buckets, DataType, Forms, Member, NamedTensor, Shape, Tensor, strings};

/// A free dimension's size in automatic warm-up.
const FREE_DIM: i64 = 16;
/// The most bytes of one generated tensor; larger ones are not warmed up.
const TENSOR_BYTES_MAX: usize = 256 << 20;
/// The most bytes that all automatic batches of a model together ask the instance to gather.
const AUTOMATIC_BYTES_MAX: usize = 256 << 20;
/// The most rows of an automatic batch.
const AUTOMATIC_ROWS_MAX: usize = 1024;
/// The most buckets that are warmed up.
const BUCKETS_MAX: usize = 16;

/// The batches to run before serving: the configuration's samples, which must succeed, then, if `automatic`, zeros.
///
/// # Errors
/// If a sample does not fit the model or its file cannot be read.
pub(super) fn batches(config: &ModelConfig, automatic: bool) -> Result<Vec<Warmup>> {
    let forms = config.forms();
    let mut batches = Vec::new();
    for sample in &config.warmup {
        let batch = named_batch(config, sample, forms.as_ref())?;
        let once = Warmup { batch, sample: Some(sample.name.as_str().into()), measured: false };
        batches.extend(std::iter::repeat_n(once, sample.runs));
    }
    if automatic {
        let mut left = AUTOMATIC_BYTES_MAX;
        for member in automatic_members(config) {
            for rows in automatic_rows(config) {
                let Ok(batch) = Batch::formed(vec![member.clone(); rows], forms.as_ref()) else { break };
                let Some(rest) = left.checked_sub(batch.bytes()) else { break };
                left = rest;
                let run = |measured| Warmup { batch: batch.clone(), sample: None, measured };
                // The first execution of a size is not typical: TorchScript specialises on it.
                batches.extend([run(false), run(true), run(true)]);
            }
        }
    }
    Ok(batches)
}

/// Batches that show how a model computes: the configuration's samples, else one row of random numbers in each shape that
/// automatic warm-up has.
///
/// # Errors
/// As [`batches`].
pub(super) fn samples(config: &ModelConfig) -> Result<Vec<Batch>> {
    let forms = config.forms();
    if !config.warmup.is_empty() {
        return config.warmup.iter().map(|sample| named_batch(config, sample, forms.as_ref())).collect();
    }
    let members = automatic_members(config).into_iter().map(|mut member| {
        for tensor in member.inputs.iter_mut().take(config.inputs.len()) {
            if !tensor.is_absent() && tensor.dtype != DataType::Bytes {
                tensor.data = random_data(tensor.dtype, tensor.data.len());
            }
        }
        Batch::formed(vec![member], forms.as_ref())
    });
    members.collect()
}

fn named_batch(config: &ModelConfig, sample: &WarmupSample, forms: Option<&Arc<Forms>>) -> Result<Batch> {
    let named = |error: Error| error.context(format_args!("failed to run warmup sample '{}'", sample.name));
    sample_batch(config, sample, forms).map_err(named)
}

fn automatic_rows(config: &ModelConfig) -> Vec<usize> {
    let rows_max = match config.scheduling {
        Scheduling::Single(_) | Scheduling::Ensemble(_) => 1,
        Scheduling::Dynamic(_) | Scheduling::Sequence(_) => config.max_batch_rows.clamp(1, AUTOMATIC_ROWS_MAX),
    };
    let mut rows: Vec<usize> =
        std::iter::successors(Some(1), |rows| Some(rows * 2)).take_while(|&r| r < rows_max).collect();
    rows.push(rows_max);
    rows
}

/// Requests of zeros (empty strings), one for each shape that is worth a warm-up; none if a type or shape is not known.
fn automatic_members(config: &ModelConfig) -> Vec<Member> {
    let lengths: Vec<i64> = match config.padding.as_ref().map(|padding| &padding.buckets) {
        None => vec![FREE_DIM],
        Some(Buckets::Lengths(lengths)) => lengths.iter().copied().take(BUCKETS_MAX).collect(),
        Some(multiple @ Buckets::Multiple(_)) => vec![multiple.of(FREE_DIM)],
    };
    let optional = config.inputs.iter().any(|spec| spec.optional);
    let completeness: &[bool] = if optional { &[true, false] } else { &[true] };
    let each = lengths.iter().flat_map(|length| completeness.iter().map(|complete| (*length, *complete)));
    each.filter_map(|(length, complete)| zeros(config, length, complete)).collect()
}

/// One row of zeros; padded inputs have `length`, optional ones are left out unless `complete`.
fn zeros(config: &ModelConfig, length: i64, complete: bool) -> Option<Member> {
    let padding = config.padding.as_ref();
    let made = padding.and_then(|padding| padding.mask).map(|mask| mask.tensor);
    let mut left = TENSOR_BYTES_MAX;
    let mut input = |(index, spec): (usize, &TensorSpec)| {
        if made == Some(index) || spec.optional && !complete {
            return Some(Tensor::absent());
        }
        let padded = padding.is_some_and(|padding| padding.inputs.iter().any(|(input, _)| *input == index));
        let free = if padded { length } else { FREE_DIM };
        let dims: Vec<i64> = spec.model_dims()?.iter().map(|&dim| if dim == -1 { free } else { dim }).collect();
        let shape = with_rows(config, &dims);
        let data = zero_data(spec.dtype?, &shape, left)?;
        left -= data.len();
        Some(Tensor::new(spec.dtype?, shape, data))
    };
    let mut inputs = config.inputs.iter().enumerate().map(&mut input).collect::<Option<Vec<_>>>()?;
    inputs.extend(made_for_sequences(config, &[]).ok()?);
    Some(Member::new(1, inputs))
}

/// Dimensions of one row.
fn with_rows(config: &ModelConfig, dims: &[i64]) -> Shape {
    let shape = Shape::new(dims);
    if config.max_batch_rows > 0 { shape.with_rows(1) } else { shape }
}

fn zero_data(dtype: DataType, shape: &Shape, bytes_max: usize) -> Option<Bytes> {
    let elements = shape.elements()?;
    let size = dtype.size().unwrap_or(4);
    let bytes = elements.checked_mul(size).filter(|&bytes| bytes <= bytes_max)?;
    Some(vec![0; bytes].into())
}

/// A sample's rows, each a request of its own, checked as requests are.
fn sample_batch(config: &ModelConfig, sample: &WarmupSample, forms: Option<&Arc<Forms>>) -> Result<Batch> {
    let signature = Signature::new(config);
    let of_callers = |input: &&WarmupInput| config.inputs.iter().any(|spec| *spec.name == *input.name);
    let mut members = Vec::with_capacity(sample.rows);
    let inputs = |row: usize| {
        let named = sample.inputs.iter().filter(of_callers).map(|input| {
            let tensor = sample_tensor(config, input, (row, sample.rows))?;
            Ok(NamedTensor { name: input.name.clone(), tensor })
        });
        named.collect::<Result<Vec<_>>>()
    };
    for row in 0..sample.rows.max(1) {
        let checked = signature.check(inputs(row)?, std::iter::empty())?;
        let mut inputs = checked.inputs;
        inputs.extend(made_for_sequences(config, &sample.inputs)?);
        members.push(Member::new(1, inputs));
    }
    Batch::formed(members, forms)
}

/// The inputs of the model file that tell it about a sequence: those of the sample, else those of the first request of a
/// sequence.
fn made_for_sequences(config: &ModelConfig, sample: &[WarmupInput]) -> Result<Vec<Tensor>> {
    let Scheduling::Sequence(batching) = &config.scheduling else { return Ok(Vec::new()) };
    let given = |name: &str| sample.iter().find(|input| input.name == *name);
    let mut inputs = Vec::new();
    for control in &batching.controls {
        if let Some(input) = given(&control.name) {
            inputs.push(sample_tensor(config, input, (0, 1))?);
            continue;
        }
        let data = match &control.kind {
            SequenceControlKind::Start(flag) | SequenceControlKind::Ready(flag) => flag.yes.clone(),
            SequenceControlKind::End(flag) => flag.no.clone(),
            SequenceControlKind::CorrelationId(dtype) => match dtype.encode(1.0) {
                Some(one) => Bytes::copy_from_slice(&one),
                None => strings::encode([b"1".as_slice()]),
            },
        };
        inputs.push(Tensor::new(control.kind.dtype(), with_rows(config, &[1]), data));
    }
    for state in &batching.states {
        inputs.push(match given(&state.input) {
            Some(input) => sample_tensor(config, input, (0, 1))?,
            None => initial_state(config, state)?,
        });
    }
    Ok(inputs)
}

fn initial_state(config: &ModelConfig, state: &SequenceState) -> Result<Tensor> {
    let first: Shape = match &state.initial {
        Some(initial) => initial.dims.clone(),
        None => state.dims.iter().map(|&dim| dim.max(1)).collect::<Vec<_>>().into(),
    };
    let shape = with_rows(config, &first);
    let given = state.initial.as_ref().and_then(|initial| initial.data.clone());
    let data = given.or_else(|| zero_data(state.dtype, &shape, TENSOR_BYTES_MAX));
    let data = data.ok_or_else(|| Error::invalid(format!("state '{}' is too large to warm up with", state.input)))?;
    Ok(Tensor::new(state.dtype, shape, data))
}

/// One row of a sample's input; `(row, rows)` says which of how many.
fn sample_tensor(config: &ModelConfig, input: &WarmupInput, (row, rows): (usize, usize)) -> Result<Tensor> {
    let name = &input.name;
    let shape = with_rows(config, &input.dims);
    let zeros = zero_data(input.dtype, &shape, TENSOR_BYTES_MAX)
        .ok_or_else(|| Error::invalid(format!("input '{name}' of shape {shape} is too large to warm up with")))?;
    let data = match &input.data {
        WarmupData::Zero => zeros,
        WarmupData::Random if input.dtype == DataType::Bytes => zeros,
        WarmupData::Random => random_data(input.dtype, zeros.len()),
        WarmupData::File(path) => {
            let unreadable = |error| Error::invalid(format!("cannot read '{}': {error}", path.display()));
            let data = Bytes::from(std::fs::read(path).map_err(unreadable)?);
            if input.dtype == DataType::Bytes {
                data
            } else {
                let misfit = || format!("'{}' does not hold a {} tensor of shape {shape}", path.display(), input.dtype);
                row_of(&data, zeros.len(), (row, rows)).ok_or_else(|| Error::new(Kind::InvalidArgument, misfit()))?
            }
        }
    };
    Ok(Tensor::new(input.dtype, shape, data))
}

/// The bytes of one row in a file that holds one for all, or one for each of `rows`; what is beyond the first is ignored
/// otherwise, as the reference server does.
fn row_of(data: &Bytes, length: usize, (row, rows): (usize, usize)) -> Option<Bytes> {
    let start = if data.len() == length.checked_mul(rows)? { row * length } else { 0 };
    (data.len() >= start + length).then(|| data.slice(start..start + length))
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
    use crate::model::{DynamicBatching, Padded, Priorities, QueuePolicy, ServerPadding, TimeoutAction};

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

    fn spec(name: &str, dims: &[i64]) -> TensorSpec {
        TensorSpec::new(name, Some(DataType::Int32), Some(Shape::new(dims)))
    }

    #[test]
    fn each_bucket_is_warmed_up_with_the_mask_that_the_server_makes() {
        let padding = ServerPadding {
            buckets: Buckets::Lengths(vec![4, 8]),
            inputs: vec![(0, 0.0)],
            mask: Some(Padded { tensor: 1, source: 0 }),
            outputs: Vec::new(),
        };
        let inputs = vec![spec("ids", &[-1]), spec("mask", &[-1])];
        let config = ModelConfig { inputs, padding: Some(padding), ..batching(2, 1) };
        let batches = batches(&config, true).expect("there is no sample");
        let mut shapes: Vec<_> = batches.iter().map(|warmup| [warmup.batch.shape(0), warmup.batch.shape(1)]).collect();
        shapes.dedup();
        let of = |rows, length| [Shape::new(&[rows, length]), Shape::new(&[rows, length])];
        assert_eq!(shapes, [of(1, 4), of(2, 4), of(1, 8), of(2, 8)]);
        assert_eq!(batches[0].batch.gathered(1).data, [[1, 0, 0, 0]; 4].concat());
    }

    #[test]
    fn a_model_with_optional_inputs_is_warmed_up_with_and_without_them() {
        let inputs = vec![spec("x", &[2]), TensorSpec { optional: true, ..spec("y", &[2]) }];
        let config = ModelConfig { inputs, ..batching(1, 1) };
        let batches = batches(&config, true).expect("there is no sample");
        let mut absent: Vec<bool> = batches.iter().map(|warmup| warmup.batch.is_absent(1)).collect();
        absent.dedup();
        assert_eq!(absent, [false, true]);
    }

    #[test]
    fn a_sample_of_some_rows_is_as_many_requests_and_each_has_its_row_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("rows");
        std::fs::write(&path, [1, 0, 0, 0, 2, 0, 0, 0]).expect("it can be written");
        let input = |file: &std::path::Path, dims: &[i64]| WarmupInput {
            name: "x".to_owned(),
            dtype: DataType::Int32,
            dims: Shape::new(dims),
            data: WarmupData::File(file.to_owned()),
        };
        let sample =
            |dims: &[i64]| WarmupSample { name: "s".to_owned(), rows: 2, inputs: vec![input(&path, dims)], runs: 3 };
        let config =
            |dims: &[i64]| ModelConfig { inputs: vec![spec("x", &[-1])], warmup: vec![sample(dims)], ..batching(4, 1) };
        let made = batches(&config(&[1]), false).expect("the sample fits");
        assert_eq!(made.len(), 3);
        let tensor = made[0].batch.gathered(0);
        assert_eq!((&*tensor.shape, &tensor.data[..]), ([2, 1].as_slice(), [1, 0, 0, 0, 2, 0, 0, 0].as_slice()));
        let same = batches(&config(&[2]), false).expect("the file holds one row for all");
        assert_eq!(&*same[0].batch.shape(0), &[2, 2]);
        assert_eq!(same[0].batch.members[0].inputs, same[0].batch.members[1].inputs);
        let error = batches(&config(&[3]), false).expect_err("the file is too short");
        assert!(error.message().starts_with("failed to run warmup sample 's': '"), "{error}");
    }

    #[test]
    fn a_sample_that_does_not_fit_the_model_is_refused_as_a_request_is() {
        let input = WarmupInput {
            name: "x".to_owned(),
            dtype: DataType::Int32,
            dims: Shape::new(&[3]),
            data: WarmupData::Random,
        };
        let sample = WarmupSample { name: "s".to_owned(), rows: 1, inputs: vec![input], runs: 1 };
        let config = ModelConfig { inputs: vec![spec("x", &[2])], warmup: vec![sample], ..batching(4, 1) };
        let error = batches(&config, false).expect_err("the shape is wrong");
        let expected = "failed to run warmup sample 's': unexpected shape for input 'x' for model 'm'. Expected [-1,2], got [1,3].";
        assert!(error.message().starts_with(expected), "{error}");
    }
}
