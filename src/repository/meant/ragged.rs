//! Ragged batches as meant.

use crate::model::data_type;
use crate::model::schema::{self, batch_input};
use crate::model::{BatchInput, BatchOutput};
use crate::tensor::{BatchInputKind, DataType};

/// The further inputs of the model file; what has no source among the inputs is a mistake found before.
pub(super) fn batch_inputs(schema: &schema::ModelConfig) -> Vec<BatchInput> {
    let each = schema.batch_input.iter().filter_map(|written| {
        Some(BatchInput {
            kind: kind(written.kind()),
            targets: written.target_name.iter().map(|name| name.as_str().into()).collect(),
            dtype: data_type(written.data_type()).unwrap_or(DataType::Fp32),
            source: source(schema, &written.source_input)?,
        })
    });
    each.collect()
}

/// The outputs that are split by the shape of an input.
pub(super) fn batch_outputs(schema: &schema::ModelConfig) -> Vec<BatchOutput> {
    let each = schema.batch_output.iter().filter_map(|written| {
        let targets = written.target_name.iter().map(|name| name.as_str().into()).collect();
        Some(BatchOutput { targets, source: source(schema, &written.source_input)? })
    });
    each.collect()
}

fn kind(written: batch_input::Kind) -> BatchInputKind {
    match written {
        batch_input::Kind::BatchElementCount => BatchInputKind::ElementCount,
        batch_input::Kind::BatchAccumulatedElementCount => BatchInputKind::AccumulatedElementCount,
        batch_input::Kind::BatchAccumulatedElementCountWithZero => BatchInputKind::AccumulatedElementCountWithZero,
        batch_input::Kind::BatchMaxElementCountAsShape => BatchInputKind::MaxElementCountAsShape,
        batch_input::Kind::BatchItemShape => BatchInputKind::ItemShape,
        batch_input::Kind::BatchItemShapeFlatten => BatchInputKind::ItemShapeFlatten,
    }
}

fn source(schema: &schema::ModelConfig, names: &[String]) -> Option<usize> {
    schema.input.iter().position(|input| Some(&input.name) == names.first())
}
