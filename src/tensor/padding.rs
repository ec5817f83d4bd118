//! Padding of inputs of varying length to a bucket's length, and cutting the padding off outputs again.
//!
//! Pure: which length a length is padded to, and which runs of elements make up a padded tensor. Nothing is copied here;
//! a batch copies each run once, to where the model reads it.

use std::ops::Range;

use smallvec::SmallVec;

use super::dtype::Number;
use super::{DataType, Shape, Tensor};

/// The lengths that inputs are padded to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Buckets {
    /// The next multiple of this; at least 1.
    Multiple(i64),
    /// The next of these, ascending; what is longer than the last stays as it is.
    Lengths(Vec<i64>),
}

impl Buckets {
    /// The length that `length` is padded to.
    pub fn of(&self, length: i64) -> i64 {
        match self {
            Buckets::Multiple(step) => {
                let steps = (length.max(1) - 1) / step.max(&1) + 1;
                // No multiple that can be counted is as good as none.
                steps.checked_mul(*step).unwrap_or(length)
            }
            Buckets::Lengths(lengths) => lengths.iter().copied().find(|each| *each >= length).unwrap_or(length),
        }
    }
}

/// How one input is padded.
#[derive(Clone, Debug, PartialEq)]
pub struct Padding {
    /// The positions of the dimensions that vary, the batch dimension counted.
    pub free: SmallVec<[usize; 2]>,
    /// What they are padded to.
    pub buckets: Buckets,
    /// The input's element type; one of numbers.
    pub dtype: DataType,
    /// The element that fills.
    pub value: Number,
    /// For an input that the server makes where the request has none: ones where its source has elements.
    pub mask: Option<Mask>,
}

/// An input that tells real elements from padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// The position of the input that it is about.
    pub source: usize,
    /// Where the source varies, the batch dimension counted; as many as the mask's own.
    pub source_free: SmallVec<[usize; 2]>,
    /// Its shape with the batch dimension, where it does not vary.
    pub shape: Shape,
    /// What stands for a real element.
    pub one: Number,
}

impl Padding {
    /// The shape after padding.
    pub fn padded(&self, shape: &Shape) -> Shape {
        let mut dims = shape.to_vec();
        for &at in &self.free {
            if let Some(dim) = dims.get_mut(at) {
                *dim = self.buckets.of(*dim);
            }
        }
        dims.into()
    }
}

impl Mask {
    /// The mask's shape for a source of this shape; `free` is where the mask varies.
    pub fn shape(&self, free: &[usize], source: &Shape, batching: bool) -> Shape {
        let mut dims = self.shape.to_vec();
        if batching && let (Some(own), Some(rows)) = (dims.first_mut(), source.first()) {
            *own = *rows;
        }
        for (&at, &from) in free.iter().zip(&self.source_free) {
            if let (Some(own), Some(length)) = (dims.get_mut(at), source.get(from)) {
                *own = *length;
            }
        }
        dims.into()
    }
}

/// What stands next in a padded tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// These elements of the tensor.
    Real(Range<usize>),
    /// So many elements of padding.
    Padding(usize),
}

/// The runs of a tensor of shape `from` in one of shape `to`, whose dimensions are as many and none smaller.
pub fn runs(from: &[i64], to: &[i64], each: &mut impl FnMut(Run)) {
    fill(from, to, 0, each);
}

/// The runs of the block that begins at element `start`; gives where the next one begins.
fn fill(from: &[i64], to: &[i64], start: usize, each: &mut impl FnMut(Run)) -> usize {
    let mut at = start;
    if from.get(1..) == to.get(1..) {
        at += elements(from);
        if at > start {
            each(Run::Real(start..at));
        }
    } else {
        for _ in 0..from[0] {
            at = fill(&from[1..], &to[1..], at, each);
        }
    }
    let [own, ..] = from else { return at };
    let missing = usize::try_from(to[0] - own).unwrap_or(0) * elements(&to[1..]);
    if missing > 0 {
        each(Run::Padding(missing));
    }
    at
}

fn elements(dims: &[i64]) -> usize {
    dims.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).product()
}

/// The part of `tensor` that has shape `own`, the rest of which is padding; a view where the part lies in front.
///
/// `None` if a dimension is larger than the tensor's, or if its elements have no size.
pub fn cut(tensor: &Tensor, own: Shape) -> Option<Tensor> {
    if own == tensor.shape {
        return Some(tensor.clone());
    }
    let size = tensor.dtype.size()?;
    let fits = own.len() == tensor.shape.len() && own.iter().zip(tensor.shape.iter()).all(|(own, dim)| own <= dim);
    if !fits || tensor.shape.elements()?.checked_mul(size)? != tensor.data.len() {
        return None;
    }
    let mut kept: SmallVec<[Range<usize>; 8]> = SmallVec::new();
    let mut at = 0;
    runs(&own, &tensor.shape, &mut |run| match run {
        Run::Real(range) => {
            kept.push(at..at + range.len() * size);
            at += range.len() * size;
        }
        Run::Padding(count) => at += count * size,
    });
    let data = match kept.as_slice() {
        [] => tensor.data.slice(..0),
        [only] => tensor.data.slice(only.clone()),
        several => {
            let mut data = Vec::with_capacity(several.iter().map(|range| range.len()).sum());
            several.iter().for_each(|range| data.extend_from_slice(&tensor.data[range.clone()]));
            data.into()
        }
    };
    Some(Tensor::new(tensor.dtype, own, data))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `data` of shape `from` as a tensor of shape `to`, filled up with `value`.
    fn padded(data: &[u8], from: &[i64], to: &[i64], value: u8) -> Vec<u8> {
        let mut filled = Vec::new();
        runs(from, to, &mut |run| match run {
            Run::Real(range) => filled.extend_from_slice(&data[range]),
            Run::Padding(count) => filled.extend(std::iter::repeat_n(value, count)),
        });
        filled
    }

    #[test]
    fn a_length_goes_into_the_next_bucket() {
        let multiple = Buckets::Multiple(8);
        assert_eq!([0, 1, 8, 9].map(|length| multiple.of(length)), [8, 8, 8, 16]);
        assert_eq!(multiple.of(i64::MAX), i64::MAX);
        let lengths = Buckets::Lengths(vec![4, 16]);
        assert_eq!([0, 4, 5, 16, 17].map(|length| lengths.of(length)), [4, 4, 16, 16, 17]);
    }

    #[test]
    fn rows_are_filled_up_at_their_ends_and_the_tensor_at_its_end() {
        assert_eq!(padded(b"abcd", &[2, 2], &[2, 3], b'-'), b"ab-cd-");
        assert_eq!(padded(b"abcd", &[2, 2], &[3, 3], b'-'), b"ab-cd----");
        assert_eq!(padded(b"", &[2, 0], &[2, 2], b'-'), b"----");
        assert_eq!(padded(b"ab", &[2], &[2], b'-'), b"ab");
    }

    #[test]
    fn a_part_in_front_is_cut_off_without_a_copy() {
        let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1, 4]), b"ab--".as_slice().into());
        let own = cut(&tensor, Shape::new(&[1, 2])).expect("it fits");
        assert_eq!((own.data.as_ptr(), &own.data[..]), (tensor.data.as_ptr(), &b"ab"[..]));
        assert_eq!(cut(&tensor, Shape::new(&[1, 5])), None);
        assert_eq!(cut(&tensor, Shape::new(&[4])), None);
    }

    proptest! {
        #[test]
        fn what_is_padded_is_cut_back_to_itself(
            dims in prop::collection::vec((0i64..5, 0i64..4), 1..4),
            width in prop::sample::select(vec![DataType::Uint8, DataType::Int32, DataType::Fp64]),
        ) {
            let from: Vec<i64> = dims.iter().map(|(own, _)| *own).collect();
            let to: Vec<i64> = dims.iter().map(|(own, more)| own + more).collect();
            let size = width.size().expect("not strings");
            let data: Vec<u8> = (0..elements(&from) * size).map(|index| index as u8 | 1).collect();
            let mut filled = Vec::new();
            runs(&from, &to, &mut |run| match run {
                Run::Real(range) => filled.extend_from_slice(&data[range.start * size..range.end * size]),
                Run::Padding(count) => filled.extend(std::iter::repeat_n(0u8, count * size)),
            });
            prop_assert_eq!(filled.len(), elements(&to) * size);
            let tensor = Tensor::new(width, Shape::new(&to), filled.into());
            let own = cut(&tensor, Shape::new(&from)).expect("no dimension is larger");
            prop_assert_eq!(&own.data[..], &data[..]);
        }

        #[test]
        fn a_bucket_is_never_shorter_and_holds_its_own_length(
            length in 0i64..10_000,
            step in 1i64..600,
            mut lengths in prop::collection::vec(1i64..10_000, 1..6),
        ) {
            lengths.sort_unstable();
            for buckets in [Buckets::Multiple(step), Buckets::Lengths(lengths)] {
                let bucket = buckets.of(length);
                prop_assert!(bucket >= length);
                prop_assert_eq!(buckets.of(bucket), bucket);
            }
        }
    }
}
