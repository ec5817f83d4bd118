//! What the model file is told about a sequence: one element for each control input and member of a batch.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::infer::CorrelationId;
use crate::model::{Flag, SequenceControl, SequenceControlKind};
use crate::tensor::{DataType, Shape, Tensor};

/// What there is to tell about one member of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    pub(super) start: bool,
    pub(super) end: bool,
    pub(super) id: &'a CorrelationId,
}

/// The control inputs of one model.
#[derive(Clone, Debug)]
pub(super) struct Controls {
    model: std::sync::Arc<str>,
    controls: Vec<SequenceControl>,
    shape: Shape,
}

impl Controls {
    /// The controls of a model; with a batch dimension if it `batches`.
    pub(super) fn new(model: std::sync::Arc<str>, controls: Vec<SequenceControl>, batches: bool) -> Self {
        let shape = if batches { Shape::new(&[1, 1]) } else { Shape::new(&[1]) };
        Self { model, controls, shape }
    }

    /// Checks that the model can be told this id.
    ///
    /// # Errors
    /// If it is a text for a number, a number for a text, or too large for the control's type.
    pub(super) fn check(&self, id: &CorrelationId) -> Result<()> {
        for control in &self.controls {
            let SequenceControlKind::CorrelationId(dtype) = control.kind else { continue };
            let got = match (id, dtype) {
                (CorrelationId::Text(_), DataType::Bytes) => continue,
                (CorrelationId::Text(_), _) => DataType::Bytes,
                (CorrelationId::Number(_), DataType::Bytes) => DataType::Uint64,
                (CorrelationId::Number(number), _) if fits(*number, dtype) => continue,
                (CorrelationId::Number(number), _) => {
                    return Err(Error::invalid(format!(
                        "correlation ID {number} does not fit into sequence batching control '{}' of model '{}', whose \
                         data-type is '{dtype}'",
                        control.name, self.model
                    )));
                }
            };
            return Err(Error::invalid(format!(
                "sequence batching control '{}' data-type is '{got}', but model '{}' expects '{dtype}'",
                control.name, self.model
            )));
        }
        Ok(())
    }

    /// Appends the control inputs of one member; those of a place without a request for `None`.
    pub(super) fn append(&self, told: Option<Told<'_>>, inputs: &mut Vec<Tensor>) {
        for control in &self.controls {
            let flag = |flag: &Flag, yes: bool| if yes { flag.yes.clone() } else { flag.no.clone() };
            let data = match &control.kind {
                SequenceControlKind::Start(values) => flag(values, told.is_some_and(|told| told.start)),
                SequenceControlKind::Ready(values) => flag(values, told.is_some()),
                SequenceControlKind::End(values) => flag(values, told.is_some_and(|told| told.end)),
                SequenceControlKind::CorrelationId(dtype) => correlation_id(told.map(|told| told.id), *dtype),
            };
            inputs.push(Tensor::new(control.kind.dtype(), self.shape.clone(), data));
        }
    }
}

/// Whether a number can be written as this type. One that came as a signed number may be negative.
fn fits(number: u64, dtype: DataType) -> bool {
    match dtype {
        DataType::Int32 => i32::try_from(number.cast_signed()).is_ok(),
        DataType::Uint32 => u32::try_from(number).is_ok(),
        _ => true,
    }
}

fn correlation_id(id: Option<&CorrelationId>, dtype: DataType) -> Bytes {
    let mut data = BytesMut::with_capacity(8);
    let mut put_text = |text: &str| {
        data.put_u32_le(u32::try_from(text.len()).unwrap_or(0));
        data.put_slice(text.as_bytes());
    };
    match (id, dtype) {
        (Some(CorrelationId::Text(text)), _) => put_text(text),
        // One that the server gave.
        (Some(CorrelationId::Number(number)), DataType::Bytes) => put_text(&number.to_string()),
        (None, DataType::Bytes) => data.put_u32_le(0),
        (id, dtype) => {
            let number = if let Some(CorrelationId::Number(number)) = id { *number } else { 0 };
            data.put_slice(&number.to_le_bytes()[..dtype.size().unwrap_or(8).min(8)]);
        }
    }
    data.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(name: &str, kind: SequenceControlKind) -> SequenceControl {
        SequenceControl { name: name.into(), kind }
    }

    fn flag(dtype: DataType, no: &[u8], yes: &[u8]) -> Flag {
        Flag { dtype, no: Bytes::copy_from_slice(no), yes: Bytes::copy_from_slice(yes) }
    }

    fn controls(id: DataType) -> Controls {
        let all = vec![
            control("START", SequenceControlKind::Start(flag(DataType::Int32, &[0; 4], &1i32.to_le_bytes()))),
            control("END", SequenceControlKind::End(flag(DataType::Bool, &[0], &[1]))),
            control(
                "READY",
                SequenceControlKind::Ready(flag(DataType::Fp32, &0f32.to_le_bytes(), &1f32.to_le_bytes())),
            ),
            control("CORRID", SequenceControlKind::CorrelationId(id)),
        ];
        Controls::new("m".into(), all, true)
    }

    fn told(controls: &Controls, told: Option<Told<'_>>) -> Vec<Bytes> {
        let mut inputs = Vec::new();
        controls.append(told, &mut inputs);
        assert!(inputs.iter().all(|input| *input.shape == [1, 1]));
        inputs.into_iter().map(|input| input.data).collect()
    }

    #[test]
    fn a_member_is_told_where_its_sequence_is() {
        let id = CorrelationId::Number(258);
        let data = told(&controls(DataType::Int32), Some(Told { start: true, end: false, id: &id }));
        assert_eq!(data, [vec![1, 0, 0, 0], vec![0], 1f32.to_le_bytes().to_vec(), vec![2, 1, 0, 0]]);
        let data = told(&controls(DataType::Uint64), Some(Told { start: false, end: true, id: &id }));
        assert_eq!(data, [vec![0; 4], vec![1], 1f32.to_le_bytes().to_vec(), 258u64.to_le_bytes().to_vec()]);
        let data = told(&controls(DataType::Bytes), Some(Told { start: true, end: false, id: &id }));
        assert_eq!(data[3], vec![3, 0, 0, 0, b'2', b'5', b'8']);
        let id = CorrelationId::Text("ab".into());
        let data = told(&controls(DataType::Bytes), Some(Told { start: false, end: false, id: &id }));
        assert_eq!(data[3], vec![2, 0, 0, 0, b'a', b'b']);
    }

    #[test]
    fn a_place_without_a_request_is_not_ready() {
        assert_eq!(told(&controls(DataType::Int64), None), [vec![0; 4], vec![0], vec![0; 4], vec![0; 8]]);
        assert_eq!(told(&controls(DataType::Bytes), None)[3], vec![0; 4]);
    }

    #[test]
    fn an_id_must_fit_to_its_control() {
        let (number, text) = (CorrelationId::Number(5), CorrelationId::Text("5".into()));
        let message = |id: &CorrelationId, dtype| controls(dtype).check(id).map_err(|error| error.message().to_owned());
        assert_eq!(
            message(&text, DataType::Uint64),
            Err("sequence batching control 'CORRID' data-type is 'BYTES', but model 'm' expects 'UINT64'".to_owned())
        );
        assert_eq!(
            message(&number, DataType::Bytes),
            Err("sequence batching control 'CORRID' data-type is 'UINT64', but model 'm' expects 'BYTES'".to_owned())
        );
        assert_eq!(message(&number, DataType::Int32), Ok(()));
        assert_eq!(message(&CorrelationId::Number((-1i64).cast_unsigned()), DataType::Int32), Ok(()));
        let large = message(&CorrelationId::Number(1 << 32), DataType::Uint32).expect_err("too large");
        assert!(large.starts_with("correlation ID 4294967296 does not fit"), "{large}");
    }
}
