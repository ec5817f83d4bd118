//! The forms of a model's tensors, by its configuration.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{ModelConfig, Padded, TensorSpec};
use crate::tensor::{Cut, DataType, Forms, InputForm, MadeInput, Mask, Number, OutputForm, Padding, Reshape, Shape};

impl ModelConfig {
    /// How the model file sees its tensors otherwise than callers do; `None` if it does not.
    pub fn forms(&self) -> Option<Arc<Forms>> {
        let inputs: Vec<InputForm> = (0..self.inputs.len()).map(|index| self.input_form(index)).collect();
        let outputs: Vec<OutputForm> = (0..self.outputs.len()).map(|index| self.output_form(index)).collect();
        let made = self.batch_inputs.iter().flat_map(|input| {
            let made = MadeInput { kind: input.kind, dtype: input.dtype, source: input.source };
            std::iter::repeat_n(made, input.targets.len())
        });
        let forms = Forms { batching: self.max_batch_rows > 0, inputs, made: made.collect(), outputs };
        let plain = forms.made.is_empty()
            && forms.inputs.iter().all(|form| *form == InputForm::Plain)
            && forms.outputs.iter().all(|form| form.cut == Cut::Rows && form.reshape.is_none());
        (!plain).then(|| Arc::new(forms))
    }

    fn input_form(&self, index: usize) -> InputForm {
        let spec = &self.inputs[index];
        if spec.ragged {
            return InputForm::Ragged;
        }
        let Some(padding) = &self.padding else { return InputForm::Plain };
        let mask = padding.mask.filter(|mask| mask.tensor == index);
        let value = match padding.inputs.iter().find(|(input, _)| *input == index) {
            _ if mask.is_some() => 0.0,
            Some((_, value)) => *value,
            None => return InputForm::Plain,
        };
        let Some((dtype, value)) = element(spec, value) else { return InputForm::Plain };
        let free = self.free(spec);
        let mask = mask.and_then(|mask| self.mask(spec, mask));
        InputForm::Padded(Padding { free, buckets: padding.buckets.clone(), dtype, value, mask })
    }

    fn mask(&self, spec: &TensorSpec, mask: Padded) -> Option<Mask> {
        let source_free = self.free(self.inputs.get(mask.source)?);
        let (_, one) = element(spec, 1.0)?;
        let dims = spec.model_dims()?;
        let shape = if self.max_batch_rows > 0 { dims.with_rows(1) } else { dims.clone() };
        Some(Mask { source: mask.source, source_free, shape, one })
    }

    fn output_form(&self, index: usize) -> OutputForm {
        let spec = &self.outputs[index];
        let reshape = spec.reshape.clone().zip(spec.dims.clone()).map(|(model, caller)| Reshape { model, caller });
        OutputForm { cut: self.cut(index, spec).unwrap_or(Cut::Rows), reshape }
    }

    fn cut(&self, index: usize, spec: &TensorSpec) -> Option<Cut> {
        if let Some(scattered) = self.batch_outputs.iter().find(|output| output.targets.contains(&spec.name)) {
            let dims = spec.model_dims()?;
            let dims = if self.max_batch_rows > 0 { dims.with_rows(-1) } else { dims.clone() };
            return Some(Cut::Scatter { source: scattered.source, dims });
        }
        let padded = self.padding.as_ref()?.outputs.iter().find(|output| output.tensor == index)?;
        Some(Cut::Unpadded { source: padded.source, free: self.free(spec).into_vec() })
    }

    /// Where a tensor varies, the batch dimension counted.
    fn free(&self, spec: &TensorSpec) -> SmallVec<[usize; 2]> {
        let dims: &[i64] = spec.model_dims().map_or(&[], |dims| dims);
        let varies = dims.iter().enumerate().filter(|(_, dim)| **dim == -1);
        varies.map(|(at, _)| at + usize::from(self.max_batch_rows > 0)).collect()
    }
}

impl TensorSpec {
    /// The dimensions that the model file sees, without the batch dimension.
    pub fn model_dims(&self) -> Option<&Shape> {
        self.reshape.as_ref().or(self.dims.as_ref())
    }
}

fn element(spec: &TensorSpec, number: f64) -> Option<(DataType, Number)> {
    let dtype = spec.dtype?;
    Some((dtype, dtype.encode(number)?))
}
