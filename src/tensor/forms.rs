//! How a model's tensors differ from its callers': ragged and padded inputs, inputs that are made for a whole batch,
//! outputs that are cut or reshaped.
//!
//! A model of which nothing of this is true has no [`Forms`], and its batches take the short way.
//! Knows positions, not names; `model` makes it from a configuration.

use super::padding::{Padding, cut, runs};
use super::ragged::{MadeInput, scattered};
use super::{DataType, Member, Shape, Sink, Tensor, padding};

/// The forms of a model's tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forms {
    /// Whether every tensor has a batch dimension in front.
    pub batching: bool,
    /// One for each input of a member; those behind the last are as they are.
    pub inputs: Vec<InputForm>,
    /// The inputs that are made for each batch; they follow the members'.
    pub made: Vec<MadeInput>,
    /// One for each output; those behind the last are as they are.
    pub outputs: Vec<OutputForm>,
}

/// The form of one input.
#[derive(Clone, Debug, PartialEq)]
pub enum InputForm {
    /// Members have equal shapes and follow each other in the batch dimension.
    Plain,
    /// Members may have any shapes; all their elements follow each other in one dimension.
    Ragged,
    /// Members are padded to equal shapes.
    Padded(Padding),
}

/// The form of one output.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputForm {
    /// Which part of it is a member's.
    pub cut: Cut,
    /// The dimensions that callers see instead of the model's.
    pub reshape: Option<Reshape>,
}

/// Which part of an output is a member's.
#[derive(Clone, Debug, PartialEq)]
pub enum Cut {
    /// Its rows.
    Rows,
    /// As many elements as these dimensions have, each -1 of which is that of the source input.
    Scatter {
        /// The position of the input.
        source: usize,
        /// The dimensions, the batch dimension (-1) included.
        dims: Shape,
    },
    /// Its rows, without what is there because of the source input's padding.
    Unpadded {
        /// The position of the padded input.
        source: usize,
        /// The dimensions that were padded, the batch dimension counted; as many as the input's.
        free: Vec<usize>,
    },
}

/// A shape with two spellings; each -1 of one is that of the same rank of the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// What the model file sees, without the batch dimension.
    pub model: Shape,
    /// What callers see, without the batch dimension.
    pub caller: Shape,
}

impl Reshape {
    /// The model's shape for a caller's.
    pub fn to_model(&self, shape: &Shape, batching: bool) -> Shape {
        respelt(&self.caller, &self.model, shape, batching)
    }

    /// The caller's shape for a model's; the model's own if no spelling of the caller's has as many elements.
    pub fn to_caller(&self, shape: &Shape, batching: bool) -> Shape {
        let rank = usize::from(batching) + self.model.len();
        let fits = shape.len() == rank
            && self.model.iter().zip(&shape[usize::from(batching)..]).all(|(&want, &got)| want == -1 || want == got);
        if fits {
            return respelt(&self.model, &self.caller, shape, batching);
        }
        let wanted = match shape.first() {
            Some(rows) if batching => self.caller.with_rows(*rows),
            _ => self.caller.clone(),
        };
        shape.elements().and_then(|elements| wanted.resolved(elements)).unwrap_or_else(|| shape.clone())
    }
}

/// `to` with the sizes that `shape` has where `from` is -1.
fn respelt(from: &Shape, to: &Shape, shape: &Shape, batching: bool) -> Shape {
    let inner = shape.get(usize::from(batching)..).unwrap_or_default();
    let mut free = from.iter().zip(inner).filter(|(want, _)| **want == -1).map(|(_, got)| *got);
    let dims: Vec<i64> = to.iter().map(|&dim| if dim == -1 { free.next().unwrap_or(1) } else { dim }).collect();
    let dims = Shape::from(dims);
    match shape.first() {
        Some(rows) if batching => dims.with_rows(*rows),
        _ => dims,
    }
}

impl Forms {
    /// The form of a member's input.
    pub(super) fn input(&self, index: usize) -> &InputForm {
        self.inputs.get(index).unwrap_or(&InputForm::Plain)
    }

    /// The inputs of a member that the model file does not see as they are.
    pub(super) fn changed<'a>(&'a self, inputs: &'a mut [Tensor]) -> impl Iterator<Item = &'a mut Tensor> {
        let changed = self.inputs.iter().zip(inputs).filter(|(form, _)| !matches!(form, InputForm::Plain));
        changed.map(|(_, input)| input)
    }

    /// Whether a member's part of output `index` is other than its rows.
    pub(super) fn cuts(&self, index: usize) -> bool {
        self.outputs.get(index).is_some_and(|form| !matches!(form.cut, Cut::Rows))
    }

    /// What members of one batch have in common, appended to `key`: types and shapes but for the rows, and which inputs
    /// they left out.
    pub fn key(forms: Option<&Self>, member: &Member, key: &mut impl Extend<i64>) {
        for (index, tensor) in member.inputs.iter().enumerate() {
            let form = forms.map_or(&InputForm::Plain, |forms| forms.input(index));
            match form {
                // Made where it is missing, and as long as its source.
                InputForm::Padded(Padding { mask: Some(_), .. }) => {}
                InputForm::Ragged if !tensor.is_absent() => {
                    key.extend([tensor.dtype as i64, tensor.shape.len() as i64]);
                }
                InputForm::Padded(padding) if !tensor.is_absent() => {
                    push_shape(key, tensor.dtype, &padding.padded(&tensor.shape));
                }
                InputForm::Plain | InputForm::Ragged | InputForm::Padded(_) => {
                    push_shape(key, tensor.dtype, &tensor.shape);
                }
            }
        }
    }

    /// The bytes of a member's inputs as the model reads them.
    pub fn bytes(&self, member: &Member) -> usize {
        (0..member.inputs.len()).map(|index| self.input_bytes(member, index)).sum()
    }

    /// The bytes of one input of a member as the model reads it.
    pub(super) fn input_bytes(&self, member: &Member, index: usize) -> usize {
        let tensor = &member.inputs[index];
        let InputForm::Padded(padding) = self.input(index) else { return tensor.bytes() };
        let Some(own) = self.own_shape(&member.inputs, index, padding) else { return 0 };
        let elements = padding.padded(&own).elements().unwrap_or(0);
        elements.saturating_mul(padding.value.len())
    }

    /// The shape of a padded input before padding; `None` if it was left out.
    pub(super) fn own_shape(&self, inputs: &[Tensor], index: usize, padding: &Padding) -> Option<Shape> {
        let tensor = &inputs[index];
        match &padding.mask {
            Some(mask) if tensor.is_absent() => {
                let source = &inputs.get(mask.source)?.shape;
                Some(mask.shape(&padding.free, source, self.batching))
            }
            _ => (!tensor.is_absent()).then(|| tensor.shape.clone()),
        }
    }

    /// The first input that padding would make larger than `bytes_max`.
    pub fn oversized(&self, inputs: &[Tensor], bytes_max: usize) -> Option<usize> {
        (0..inputs.len()).find(|&index| {
            let InputForm::Padded(padding) = self.input(index) else { return false };
            // A mask that is made may be larger than its source.
            self.own_shape(inputs, index, padding).is_some_and(|own| {
                let bytes = padding.padded(&own).elements().and_then(|n| n.checked_mul(padding.value.len()));
                bytes.is_none_or(|bytes| bytes > bytes_max)
            })
        })
    }

    /// The first mask that a request brought and that is not of its source's length, with the shape that it should have.
    pub fn misfit(&self, inputs: &[Tensor]) -> Option<(usize, Shape)> {
        self.inputs.iter().zip(inputs).enumerate().find_map(|(index, (form, tensor))| {
            let InputForm::Padded(Padding { mask: Some(mask), free, .. }) = form else { return None };
            let wanted = mask.shape(free, &inputs.get(mask.source)?.shape, self.batching);
            (!tensor.is_absent() && tensor.shape != wanted).then_some((index, wanted))
        })
    }

    /// Writes one padded input of a member.
    pub(super) fn fill(&self, member: &Member, index: usize, padding: &Padding, sink: &mut impl Sink) {
        let tensor = &member.inputs[index];
        let Some(own) = self.own_shape(&member.inputs, index, padding) else { return };
        let size = padding.value.len();
        runs(&own, &padding.padded(&own), &mut |run| match (run, &padding.mask) {
            (padding::Run::Padding(count), _) => sink.repeat(&padding.value, count),
            (padding::Run::Real(range), Some(mask)) if tensor.is_absent() => sink.repeat(&mask.one, range.len()),
            (padding::Run::Real(range), _) => sink.bytes(&tensor.data[range.start * size..range.end * size]),
        });
    }

    /// What a member's caller gets of its own part of output `index`.
    ///
    /// # Errors
    /// What does not fit, in words for the model's author.
    pub(super) fn finish(&self, index: usize, member: &Member, part: Tensor) -> Result<Tensor, String> {
        let Some(form) = self.outputs.get(index) else { return Ok(part) };
        let part = match &form.cut {
            Cut::Rows | Cut::Scatter { .. } => part,
            Cut::Unpadded { source, free } => self.unpadded(index, member, (*source, free), part)?,
        };
        Ok(match &form.reshape {
            Some(reshape) => Tensor { shape: reshape.to_caller(&part.shape, self.batching), ..part },
            None => part,
        })
    }

    fn unpadded(
        &self,
        index: usize,
        member: &Member,
        (source, free): (usize, &[usize]),
        part: Tensor,
    ) -> Result<Tensor, String> {
        let InputForm::Padded(padding) = self.input(source) else { return Ok(part) };
        let Some(own) = self.own_shape(&member.inputs, source, padding) else { return Ok(part) };
        let padded = padding.padded(&own);
        let mut wanted = part.shape.to_vec();
        for (&at, &from) in free.iter().zip(&padding.free) {
            if wanted.get(at) != padded.get(from) {
                return Err(format!(
                    "output {index} of shape {} does not have the length {} of the padded input in dimension {at}",
                    part.shape, padded[from]
                ));
            }
            wanted[at] = own[from];
        }
        cut(&part, wanted.into()).ok_or_else(|| format!("output {index} of type {} cannot be cut", part.dtype))
    }

    /// The shape of a member's part of an output that is scattered; `None` for other outputs.
    ///
    /// # Errors
    /// If the source input has fewer dimensions than the output.
    pub(super) fn scattered(&self, index: usize, member: &Member) -> Option<Result<Shape, String>> {
        let Cut::Scatter { source, dims } = &self.outputs.get(index)?.cut else { return None };
        let shape = &member.inputs[*source].shape;
        let misfit = || format!("output {index} of dims {dims} has more dimensions than its source of shape {shape}");
        Some(scattered(dims, shape).ok_or_else(misfit))
    }
}

fn push_shape(key: &mut impl Extend<i64>, dtype: DataType, shape: &Shape) {
    key.extend([dtype as i64, shape.len() as i64]);
    key.extend(shape.get(1..).unwrap_or_default().iter().copied());
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::tensor::{Buckets, Mask};

    fn tensor(shape: &[i64]) -> Tensor {
        let shape = Shape::new(shape);
        let data = Bytes::from(vec![0; shape.elements().expect("small")]);
        Tensor::new(DataType::Uint8, shape, data)
    }

    fn key(forms: &Forms, inputs: &[Tensor]) -> Vec<i64> {
        let mut key = Vec::new();
        Forms::key(Some(forms), &Member::new(1, inputs.to_vec()), &mut key);
        key
    }

    fn padding(mask: Option<Mask>) -> InputForm {
        let (free, value) = (smallvec::smallvec![1], smallvec::smallvec![0]);
        InputForm::Padded(Padding { free, buckets: Buckets::Lengths(vec![4, 8]), dtype: DataType::Uint8, value, mask })
    }

    #[test]
    fn members_share_a_batch_if_they_fit_after_padding_and_leave_out_the_same() {
        let inputs = vec![InputForm::Plain, InputForm::Ragged, padding(None)];
        let forms = Forms { batching: true, inputs, ..Forms::default() };
        let first = key(&forms, &[tensor(&[1, 2]), tensor(&[1, 3]), tensor(&[1, 3])]);
        assert_eq!(key(&forms, &[tensor(&[2, 2]), tensor(&[2, 7]), tensor(&[2, 4])]), first);
        let others = [
            [tensor(&[1, 3]), tensor(&[1, 3]), tensor(&[1, 3])],
            [tensor(&[1, 2]), tensor(&[1, 3, 1]), tensor(&[1, 3])],
            [tensor(&[1, 2]), tensor(&[1, 3]), tensor(&[1, 5])],
            [Tensor::absent(), tensor(&[1, 3]), tensor(&[1, 3])],
            [tensor(&[1, 2]), Tensor::absent(), tensor(&[1, 3])],
            [tensor(&[1, 2]), tensor(&[1, 3]), Tensor::absent()],
        ];
        let mut keys: Vec<_> = others.iter().map(|inputs| key(&forms, inputs)).collect();
        keys.push(first);
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), others.len() + 1, "all differ");
    }

    #[test]
    fn a_mask_may_be_given_or_made_in_the_same_batch_but_not_of_another_length() {
        let mask = Mask {
            source: 0,
            source_free: smallvec::smallvec![1],
            shape: Shape::new(&[1, 1]),
            one: smallvec::smallvec![1],
        };
        let forms = Forms { batching: true, inputs: vec![padding(None), padding(Some(mask))], ..Forms::default() };
        let (given, made) = ([tensor(&[1, 3]), tensor(&[1, 3])], [tensor(&[1, 2]), Tensor::absent()]);
        assert_eq!(key(&forms, &given), key(&forms, &made));
        assert_eq!((forms.misfit(&given), forms.misfit(&made)), (None, None));
        let wrong = [tensor(&[2, 3]), tensor(&[2, 2])];
        assert_eq!(forms.misfit(&wrong), Some((1, Shape::new(&[2, 3]))));
        assert_eq!(forms.oversized(&given, 4), None);
        assert_eq!(forms.oversized(&given, 3), Some(0));
        let InputForm::Padded(mut wide) = forms.inputs[1].clone() else { unreachable!("made above") };
        wide.value = smallvec::smallvec![0; 8];
        let forms = Forms { inputs: vec![padding(None), InputForm::Padded(wide)], ..forms };
        assert_eq!((forms.oversized(&made, 32), forms.oversized(&made, 31)), (None, Some(1)), "the mask that is made");
    }

    #[test]
    fn a_reshape_leads_there_and_back() {
        let reshape = |caller: &[i64], model: &[i64]| Reshape { model: Shape::new(model), caller: Shape::new(caller) };
        let both = |reshape: &Reshape, caller: &[i64], model: &[i64]| {
            assert_eq!(&*reshape.to_model(&Shape::new(caller), true), model);
            assert_eq!(&*reshape.to_caller(&Shape::new(model), true), caller);
        };
        both(&reshape(&[4, -1, 6], &[2, 2, -1, 6]), &[3, 4, 9, 6], &[3, 2, 2, 9, 6]);
        both(&reshape(&[-1, 6, -1], &[-1, 2, 3, -1]), &[1, 5, 6, 7], &[1, 5, 2, 3, 7]);
        both(&reshape(&[1], &[]), &[3, 1], &[3]);
        let other = reshape(&[-1, 2], &[2, -1]);
        assert_eq!(&*other.to_caller(&Shape::new(&[1, 8]), true), &[1, 4, 2], "a model's own form of as many elements");
        assert_eq!(&*other.to_caller(&Shape::new(&[1, 3]), true), &[1, 3]);
    }
}
