//! Implicit state: what the server keeps of a sequence between two executions.
//!
//! A state is an output of one execution that is an input of the next of the same sequence. A backend that can leaves it
//! where it computed it ([`Keep`]), in memory that is the sequence's alone. Else it is kept as the view of host memory that
//! the backend gave; nothing is copied but the small rows of a shared batch, which would hold on to all of it.
//! In no case is memory written in place: `use_same_buffer_for_input_output` changes nothing that a model could see, and a
//! state of free dimensions may grow, with `use_growable_memory` or without.
//! Callers get a state only if its output is also one of the model's outputs.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::model::{ModelConfig, SequenceState};
use crate::telemetry::metrics::Held;
use crate::telemetry::stats::ModelStats;
use crate::tensor::{DataType, Keep, Shape, Tensor, strings};

/// A row of a shared batch of at most so many bytes is copied to be kept; a larger one is kept as a view, which keeps the
/// batch's other rows, too, until the sequence's next execution.
const COPIED_MAX: usize = 64 << 10;

/// The most bytes of an initial state of zeros; more is a mistake in its dimensions.
const INITIAL_BYTES_MAX: usize = 1 << 30;

/// The states of one model.
#[derive(Clone, Debug)]
pub(super) struct States {
    model: Arc<str>,
    states: Vec<State>,
    /// How many outputs callers get; the others behind them are states.
    outputs: usize,
    batches: bool,
    /// Whether the states of two sequences may differ in shape.
    vary: bool,
}

/// The states of one sequence after an execution; they count as kept until this is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    tensors: Vec<Tensor>,
    _held: Held,
}

impl Kept {
    pub(super) fn new(tensors: Vec<Tensor>, stats: &ModelStats) -> Self {
        let _held = stats.states_kept(tensors.iter().map(Tensor::bytes).sum());
        Self { tensors, _held }
    }
}

impl Deref for Kept {
    type Target = [Tensor];

    fn deref(&self) -> &[Tensor] {
        &self.tensors
    }
}

#[derive(Clone, Debug)]
struct State {
    config: SequenceState,
    /// Its position among the outputs of the model file.
    output: usize,
    /// What it is before the first execution.
    initial: Tensor,
}

impl States {
    /// The states of a model.
    ///
    /// # Errors
    /// If an initial state does not hold what its dimensions say.
    pub(super) fn new(config: &ModelConfig, states: &[SequenceState]) -> Result<Self> {
        let of_file = config.of_file();
        let batches = config.max_batch_rows > 0;
        let state = |state: &SequenceState| {
            let output = of_file.outputs.iter().position(|output| output.name == state.output);
            let missing = || Error::internal(format!("state output '{}' is missing", state.output));
            let initial = initial(state, batches)
                .map_err(|error| error.context(format!("state '{}' of model '{}'", state.input, config.name)))?;
            Ok(State { config: state.clone(), output: output.ok_or_else(missing)?, initial })
        };
        Ok(Self {
            model: config.name.clone(),
            states: states.iter().map(state).collect::<Result<_>>()?,
            outputs: config.outputs.len(),
            batches,
            vary: states.iter().any(|state| state.dims.contains(&-1)),
        })
    }

    /// The states among the outputs of the model file.
    pub(super) fn keep(&self) -> Keep {
        self.states.iter().fold(Keep::default(), |keep, state| keep.lasting(state.output, state.output < self.outputs))
    }

    /// Appends a member's states to its inputs: those that were kept, or those before a first execution.
    pub(super) fn append(&self, kept: Option<&[Tensor]>, inputs: &mut Vec<Tensor>) {
        match kept {
            Some(kept) => inputs.extend_from_slice(kept),
            None => inputs.extend(self.states.iter().map(|state| state.initial.clone())),
        }
    }

    /// Whether two members may share a batch as far as their states go.
    pub(super) fn alike(&self, one: Option<&[Tensor]>, other: Option<&[Tensor]>) -> bool {
        let shape = |kept: Option<&[Tensor]>, index: usize| {
            kept.and_then(|kept| kept.get(index)).map_or(&self.states[index].initial, |kept| kept).shape.clone()
        };
        !self.vary || (0..self.states.len()).all(|index| shape(one, index) == shape(other, index))
    }

    /// Takes a member's new states out of its outputs, and leaves what is the caller's; `shared` if others were executed
    /// with it.
    ///
    /// # Errors
    /// If one is missing or is not of the configured type and shape.
    pub(super) fn take(&self, outputs: &mut Vec<Tensor>, shared: bool) -> Result<Vec<Tensor>> {
        let mut kept = Vec::with_capacity(self.states.len());
        for state in &self.states {
            let output = outputs.get(state.output).ok_or_else(|| self.wrong(state, "it is missing"))?;
            self.check(state, output)?;
            let mut output = output.clone();
            if output.resident.is_some() {
                // What is also the caller's was brought to the host for him.
                output.data = Bytes::new();
            } else if shared && output.data.len() <= COPIED_MAX {
                output.data = Bytes::copy_from_slice(&output.data);
            }
            kept.push(output);
        }
        outputs.truncate(self.outputs);
        Ok(kept)
    }

    fn check(&self, state: &State, output: &Tensor) -> Result<()> {
        let SequenceState { dtype, dims, .. } = &state.config;
        if output.dtype != *dtype {
            return Err(self.wrong(state, &format!("its type is {}, {dtype} is configured", output.dtype)));
        }
        let batching = usize::from(self.batches);
        let fits = output.shape.len() == dims.len() + batching
            && (!self.batches || output.shape[0] == 1)
            && dims.iter().zip(&output.shape[batching..]).all(|(&want, &got)| want == -1 || want == got);
        if fits {
            return Ok(());
        }
        let expected = if self.batches { dims.with_rows(1) } else { dims.clone() };
        Err(self.wrong(state, &format!("its shape is {}, {expected} is configured", output.shape)))
    }

    fn wrong(&self, state: &State, what: &str) -> Error {
        let message =
            format!("state output '{}' of model '{}' cannot be kept: {what}", state.config.output, self.model);
        Error::new(Kind::Backend, message)
    }
}

fn initial(state: &SequenceState, batches: bool) -> Result<Tensor> {
    let dims = match &state.initial {
        Some(initial) => initial.dims.clone(),
        None => Shape::from(state.dims.iter().map(|&dim| dim.max(1)).collect::<Vec<_>>()),
    };
    let shape = if batches { dims.with_rows(1) } else { dims };
    let data = state.initial.as_ref().and_then(|initial| initial.data.clone());
    let data = match data {
        None => zeros(state.dtype, &shape, INITIAL_BYTES_MAX)
            .ok_or_else(|| Error::invalid(format!("initial_state of shape {shape} is too large")))?,
        Some(data) => fitting(state.dtype, &shape, data)?,
    };
    Ok(Tensor::new(state.dtype, shape, data))
}

/// The part of a file that a tensor of this shape needs.
fn fitting(dtype: DataType, shape: &Shape, data: Bytes) -> Result<Bytes> {
    let elements = shape.elements().unwrap_or(usize::MAX);
    let Some(size) = dtype.size() else {
        let misfit = |_| Error::invalid(format!("initial_state expects {elements} strings, the data file has others"));
        return strings::check(&data, elements).map_err(misfit).map(|()| data);
    };
    let expected = elements.saturating_mul(size);
    if data.len() < expected {
        return Err(Error::invalid(format!(
            "initial_state setting expects {expected} bytes, but the data file only has {} bytes",
            data.len()
        )));
    }
    Ok(data.slice(..expected))
}

/// Zeros, or empty strings; `None` if they have more than `bytes_max` bytes.
pub(super) fn zeros(dtype: DataType, shape: &Shape, bytes_max: usize) -> Option<Bytes> {
    static SOME: [u8; 4096] = [0; 4096];
    // An empty string is a length of four zero bytes.
    let bytes = shape.elements()?.checked_mul(dtype.size().unwrap_or(4)).filter(|&bytes| bytes <= bytes_max)?;
    Some(if bytes <= SOME.len() { Bytes::from_static(&SOME[..bytes]) } else { vec![0; bytes].into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InitialState, TensorSpec};

    fn state(output: &str, dims: &[i64], initial: Option<InitialState>) -> SequenceState {
        SequenceState {
            input: format!("{output}_IN").as_str().into(),
            output: output.into(),
            dtype: DataType::Uint8,
            dims: Shape::new(dims),
            initial,
            same_buffer: false,
            growable: false,
        }
    }

    fn states(states: &[SequenceState]) -> Result<States> {
        let queue = match ModelConfig::new("m", "b").scheduling {
            crate::model::Scheduling::Single(queue) => queue,
            _ => unreachable!("a new configuration batches nothing"),
        };
        let batching = crate::model::SequenceBatching {
            strategy: crate::model::SequenceStrategy::Direct {
                queue_delay_max: std::time::Duration::ZERO,
                slot_utilization_min: 0.0,
            },
            idle_max: std::time::Duration::from_secs(1),
            controls: Vec::new(),
            states: states.to_vec(),
            iterative: None,
            queue,
        };
        let config = ModelConfig {
            max_batch_rows: 4,
            outputs: vec![TensorSpec::new("OUT", Some(DataType::Uint8), Some(Shape::new(&[1])))],
            scheduling: crate::model::Scheduling::Sequence(batching),
            ..ModelConfig::new("m", "b")
        };
        States::new(&config, states)
    }

    fn bytes(shape: &[i64], data: &[u8]) -> Tensor {
        Tensor::new(DataType::Uint8, Shape::new(shape), Bytes::copy_from_slice(data))
    }

    #[test]
    fn states_begin_as_configured_and_free_dimensions_as_one() {
        let from_file = InitialState { dims: Shape::new(&[2]), data: Some(Bytes::from_static(b"abc")) };
        let states = states(&[state("A", &[-1, 2], None), state("B", &[-1], Some(from_file))]).expect("fits");
        let mut inputs = Vec::new();
        states.append(None, &mut inputs);
        assert_eq!(inputs, [bytes(&[1, 1, 2], &[0, 0]), bytes(&[1, 2], b"ab")]);
    }

    #[test]
    fn a_file_that_is_too_short_is_no_initial_state() {
        let short = InitialState { dims: Shape::new(&[4]), data: Some(Bytes::from_static(b"abc")) };
        let error = states(&[state("A", &[4], Some(short))]).expect_err("too short");
        assert!(error.message().contains("expects 4 bytes, but the data file only has 3 bytes"), "{error:?}");
        let error = states(&[state("A", &[1 << 40], None)]).expect_err("no machine has so much");
        assert_eq!(error.message(), "state 'A_IN' of model 'm': initial_state of shape [1,1099511627776] is too large");
    }

    #[test]
    fn callers_get_no_state_but_one_that_is_also_an_output() {
        let states = states(&[state("A", &[-1], None), state("OUT", &[1], None)]).expect("fits");
        let mut outputs = vec![bytes(&[1, 1], b"o"), bytes(&[1, 3], b"abc")];
        let kept = states.take(&mut outputs, true).expect("fits");
        assert_eq!(outputs, [bytes(&[1, 1], b"o")]);
        assert_eq!(kept, [bytes(&[1, 3], b"abc"), bytes(&[1, 1], b"o")]);
        let mut inputs = Vec::new();
        states.append(Some(&kept), &mut inputs);
        assert_eq!(inputs, kept);
        assert!(!states.alike(None, Some(&kept)) && states.alike(None, None));
    }

    #[test]
    fn a_state_of_another_type_or_shape_is_not_kept() {
        let states = states(&[state("A", &[2], None)]).expect("fits");
        let message = |output| {
            let mut outputs = vec![bytes(&[1, 1], b"o"), output];
            states.take(&mut outputs, false).expect_err("does not fit").message().to_owned()
        };
        let shape = message(bytes(&[1, 3], b"abc"));
        assert_eq!(shape, "state output 'A' of model 'm' cannot be kept: its shape is [1,3], [1,2] is configured");
        let dtype = message(Tensor { dtype: DataType::Int8, ..bytes(&[1, 2], b"ab") });
        assert_eq!(dtype, "state output 'A' of model 'm' cannot be kept: its type is INT8, UINT8 is configured");
    }
}
