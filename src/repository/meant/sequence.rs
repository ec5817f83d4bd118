//! Sequence batching as meant.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::scheduling::preferred_rows;
use crate::model::data_type;
use crate::model::schema::model_sequence_batching::control::Kind;
use crate::model::schema::model_sequence_batching::initial_state::StateData;
use crate::model::schema::model_sequence_batching::{Control, State, StrategyChoice};
use crate::model::schema::{self, ModelSequenceBatching};
use crate::model::{
    Flag, InitialState, Iterative, QueuePolicy, SequenceBatching, SequenceControl, SequenceControlKind, SequenceState,
    SequenceStrategy,
};
use crate::repository::facts::{DONE_OUTPUT, STEPS_MAX};
use crate::tensor::{DataType, Shape};

/// The most executions of one request where the configuration does not say.
const STEPS_MAX_DEFAULT: u32 = 65_536;

/// Sequence batching; an error is a key and what is wrong with it.
pub(super) fn batching(
    schema: &schema::ModelConfig,
    written: &ModelSequenceBatching,
    directory: &Path,
    queue: QueuePolicy,
) -> Result<SequenceBatching, (String, String)> {
    let controls = written.control_input.iter().flat_map(|input| {
        let name = input.name.as_str().into();
        input.control.first().map(|control| SequenceControl { name, kind: control_kind(control) })
    });
    let states = written.state.iter().enumerate().map(|(index, written)| {
        state(written, directory)
            .map_err(|message| (format!("sequence_batching.state[{index}].initial_state"), message))
    });
    Ok(SequenceBatching {
        strategy: strategy(written.strategy_choice.as_ref()),
        idle_max: Duration::from_micros(written.max_sequence_idle_microseconds),
        controls: controls.collect(),
        states: states.collect::<Result<_, _>>()?,
        iterative: written.iterative_sequence.then(|| iterative(schema)),
        queue,
    })
}

fn iterative(schema: &schema::ModelConfig) -> Iterative {
    let value = |key: &str| schema.parameters.get(key).map(|value| value.string_value.as_str());
    Iterative {
        done_output: value(DONE_OUTPUT).map(Into::into),
        steps_max: value(STEPS_MAX).and_then(|steps| steps.parse().ok()).unwrap_or(STEPS_MAX_DEFAULT),
    }
}

fn strategy(written: Option<&StrategyChoice>) -> SequenceStrategy {
    match written {
        None => SequenceStrategy::Direct { queue_delay_max: Duration::ZERO, slot_utilization_min: 0.0 },
        Some(StrategyChoice::Direct(direct)) => SequenceStrategy::Direct {
            queue_delay_max: Duration::from_micros(direct.max_queue_delay_microseconds),
            slot_utilization_min: direct.minimum_slot_utilization,
        },
        Some(StrategyChoice::Oldest(oldest)) => SequenceStrategy::Oldest {
            candidates_max: usize::try_from(oldest.max_candidate_sequences).unwrap_or(0),
            preferred_rows: preferred_rows(&oldest.preferred_batch_size),
            queue_delay_max: Duration::from_micros(oldest.max_queue_delay_microseconds),
            preserve_ordering: oldest.preserve_ordering,
        },
    }
}

fn control_kind(written: &Control) -> SequenceControlKind {
    match written.kind() {
        Kind::ControlSequenceStart => SequenceControlKind::Start(flag(written)),
        Kind::ControlSequenceReady => SequenceControlKind::Ready(flag(written)),
        Kind::ControlSequenceEnd => SequenceControlKind::End(flag(written)),
        Kind::ControlSequenceCorrid => {
            SequenceControlKind::CorrelationId(data_type(written.data_type()).unwrap_or(DataType::Uint64))
        }
    }
}

fn flag(written: &Control) -> Flag {
    let of =
        |dtype, no: &[u8], yes: &[u8]| Flag { dtype, no: Bytes::copy_from_slice(no), yes: Bytes::copy_from_slice(yes) };
    match (&*written.int32_false_true, &*written.fp32_false_true, &*written.bool_false_true) {
        ([no, yes], _, _) => of(DataType::Int32, &no.to_le_bytes(), &yes.to_le_bytes()),
        (_, [no, yes], _) => of(DataType::Fp32, &no.to_le_bytes(), &yes.to_le_bytes()),
        (_, _, [no, yes]) => of(DataType::Bool, &[u8::from(*no)], &[u8::from(*yes)]),
        _ => of(DataType::Bool, &[0], &[1]),
    }
}

fn state(written: &State, directory: &Path) -> Result<SequenceState, String> {
    let initial = written.initial_state.first().map(|initial| {
        let data = match &initial.state_data {
            None | Some(StateData::ZeroData(_)) => None,
            Some(StateData::DataFile(name)) => Some(read(directory, name)?),
        };
        Ok::<_, String>(InitialState { dims: Shape::new(&initial.dims), data })
    });
    Ok(SequenceState {
        input: written.input_name.as_str().into(),
        output: written.output_name.as_str().into(),
        dtype: data_type(written.data_type()).unwrap_or(DataType::Fp32),
        dims: Shape::new(&written.dims),
        initial: initial.transpose()?,
        same_buffer: written.use_same_buffer_for_input_output,
        growable: written.use_growable_memory,
    })
}

fn read(directory: &Path, name: &str) -> Result<Bytes, String> {
    let path = directory.join("initial_state").join(name);
    fs::read(&path).map(Bytes::from).map_err(|error| format!("cannot read '{}': {error}", path.display()))
}
