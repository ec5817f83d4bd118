//! The errors of one output against another that counts as right.
//!
//! The relative error of an element is its absolute one, divided by the right value; where that is zero there is none.

use std::fmt;

use crate::tensor::{DataType, Tensor};

/// The errors of all elements so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Difference {
    absolute: Errors,
    relative: Errors,
    /// Elements that cannot be told apart by a number: strings, and tensors of other shapes or types.
    unlike: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Errors {
    max: f64,
    sum: f64,
    count: usize,
}

impl Errors {
    fn add(&mut self, error: f64) {
        // What is not a number is as wrong as can be.
        let error = if error.is_nan() { f64::INFINITY } else { error };
        self.max = self.max.max(error);
        self.sum += error;
        self.count += 1;
    }

    fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }
}

impl Difference {
    /// Takes the elements of one more output into account.
    pub(super) fn add(&mut self, right: &Tensor, found: &Tensor) {
        let same_kind = right.dtype == found.dtype && right.shape == found.shape;
        match (numbers(right), numbers(found)) {
            (Some(right), Some(found)) if same_kind => right.into_iter().zip(found).for_each(|pair| self.pair(pair)),
            _ if right == found => {}
            _ => self.unlike += 1,
        }
    }

    fn pair(&mut self, (right, found): (f64, f64)) {
        let equal = right == found || right.is_nan() && found.is_nan();
        let error = if equal { 0.0 } else { (right - found).abs() };
        self.absolute.add(error);
        if right != 0.0 {
            self.relative.add(if equal { 0.0 } else { error / right.abs() });
        }
    }

    /// The greatest relative error of an element.
    #[cfg(test)]
    pub(super) fn relative_max(&self) -> f64 {
        self.relative.max
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { absolute, relative, unlike } = self;
        let each = [absolute.max, absolute.mean(), relative.max, relative.mean()];
        write!(f, "{:>12.3e}  {:>12.3e}  {:>12.3e}  {:>12.3e}", each[0], each[1], each[2], each[3])?;
        if *unlike > 0 { write!(f, "  and {unlike} of other type, shape or text") } else { Ok(()) }
    }
}

fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    fn read<const SIZE: usize>(data: &[u8], number: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
        data.as_chunks::<SIZE>().0.iter().map(|each| number(*each)).collect()
    }
    let data: &[u8] = &tensor.data;
    Some(match tensor.dtype {
        DataType::Bytes => return None,
        DataType::Bool | DataType::Uint8 => read(data, |each: [u8; 1]| f64::from(each[0])),
        DataType::Int8 => read(data, |each| f64::from(i8::from_le_bytes(each))),
        DataType::Uint16 => read(data, |each| f64::from(u16::from_le_bytes(each))),
        DataType::Int16 => read(data, |each| f64::from(i16::from_le_bytes(each))),
        DataType::Uint32 => read(data, |each| f64::from(u32::from_le_bytes(each))),
        DataType::Int32 => read(data, |each| f64::from(i32::from_le_bytes(each))),
        DataType::Uint64 => read(data, |each| u64::from_le_bytes(each) as f64),
        DataType::Int64 => read(data, |each| i64::from_le_bytes(each) as f64),
        DataType::Fp16 => read(data, |each| half::f16::from_le_bytes(each).into()),
        DataType::Bf16 => read(data, |each| half::bf16::from_le_bytes(each).into()),
        DataType::Fp32 => read(data, |each| f64::from(f32::from_le_bytes(each))),
        DataType::Fp64 => read(data, f64::from_le_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    fn tensor(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(DataType::Fp32, Shape::new(&[values.len() as i64]), data.into())
    }

    fn difference(right: &[f32], found: &[f32]) -> Difference {
        let mut difference = Difference::default();
        difference.add(&tensor(right), &tensor(found));
        difference
    }

    #[test]
    fn errors_are_absolute_and_relative_to_what_is_right() {
        let found = difference(&[2.0, -4.0, 0.0, 8.0], &[3.0, -4.0, 0.5, 8.0]);
        assert_eq!((found.absolute.max, found.absolute.mean()), (1.0, 0.375));
        assert_eq!((found.relative.max, found.relative.count), (0.5, 3));
    }

    #[test]
    fn what_is_no_number_is_right_only_where_it_should_be() {
        assert_eq!(difference(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY]).absolute.max, 0.0);
        assert_eq!(difference(&[1.0], &[f32::NAN]).relative.max, f64::INFINITY);
        assert_eq!(difference(&[f32::NAN], &[1.0]).absolute.max, f64::INFINITY);
    }

    #[test]
    fn what_has_another_shape_is_not_compared_by_number() {
        let found = difference(&[1.0], &[1.0, 2.0]);
        assert_eq!((found.unlike, found.absolute.count), (1, 0));
        assert!(found.to_string().ends_with("and 1 of other type, shape or text"), "{found}");
    }
}
