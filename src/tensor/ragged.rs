//! Ragged batching: what tells a model where each request begins in a flat input, and how a flat output is cut.
//!
//! Pure arithmetic on shapes; knows neither names nor configurations.

use super::{DataType, Member, Shape, Tensor};
use crate::error::{Error, Kind, Result};

/// What an input that is made for the whole batch says about its source input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchInputKind {
    /// The element count of each of `n` requests: `[n]`.
    ElementCount,
    /// The running sums of the element counts: `[n]`.
    AccumulatedElementCount,
    /// The same with a zero in front: `[n + 1]`.
    AccumulatedElementCountWithZero,
    /// Nothing: its shape is the largest element count.
    MaxElementCountAsShape,
    /// The shape of each row without the batch dimension: `[rows, dims]`.
    ItemShape,
    /// The same in one dimension.
    ItemShapeFlatten,
}

/// An input that is made when a batch is gathered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeInput {
    /// What it says.
    pub kind: BatchInputKind,
    /// Its element type; one of numbers.
    pub dtype: DataType,
    /// The position of the input that it is about.
    pub source: usize,
}

impl MadeInput {
    /// The input for these members, whose tensors have a batch dimension if `batching`.
    ///
    /// # Errors
    /// If a number does not fit the element type.
    pub fn make(&self, members: &[Member], batching: bool) -> Result<Tensor> {
        let shapes = || members.iter().map(|member| &member.inputs[self.source].shape);
        let counts = || shapes().map(|shape| shape.elements().unwrap_or(0) as i64);
        let running = || {
            counts().scan(0i64, |sum, count| {
                *sum = sum.saturating_add(count);
                Some(*sum)
            })
        };
        let flat = |numbers: Vec<i64>| (Shape::new(&[numbers.len() as i64]), numbers);
        let (shape, numbers) = match self.kind {
            BatchInputKind::ElementCount => flat(counts().collect()),
            BatchInputKind::AccumulatedElementCount => flat(running().collect()),
            BatchInputKind::AccumulatedElementCountWithZero => flat(std::iter::once(0).chain(running()).collect()),
            BatchInputKind::MaxElementCountAsShape => {
                let most = counts().max().unwrap_or(0);
                (Shape::new(&[most]), vec![0; most as usize])
            }
            BatchInputKind::ItemShape | BatchInputKind::ItemShapeFlatten => {
                let numbers = item_shapes(members, shapes(), batching);
                let rows = members.iter().map(|member| member.rows as i64).sum();
                let shape = match self.kind {
                    BatchInputKind::ItemShape => Shape::new(&[rows, numbers.len() as i64 / rows.max(1)]),
                    _ => Shape::new(&[numbers.len() as i64]),
                };
                (shape, numbers)
            }
        };
        let mut data = Vec::with_capacity(numbers.len() * self.dtype.size().unwrap_or(1));
        for number in numbers {
            let encoded = self.dtype.encode(number as f64).ok_or_else(|| {
                let message = format!("the batch's element count {number} does not fit the type {}", self.dtype);
                Error::new(Kind::Backend, message)
            })?;
            data.extend_from_slice(&encoded);
        }
        Ok(Tensor::new(self.dtype, shape, data.into()))
    }
}

/// The shape of each row of each member, one after the other.
fn item_shapes<'a>(members: &[Member], shapes: impl Iterator<Item = &'a Shape>, batching: bool) -> Vec<i64> {
    let each = members.iter().zip(shapes).flat_map(|(member, shape)| {
        let item = shape.get(usize::from(batching)..).unwrap_or_default();
        std::iter::repeat_n(item, member.rows).flatten().copied()
    });
    each.collect()
}

/// The shape of a request's part of a flat output: `dims`, each -1 of which takes the dimension of the same position of
/// the source input. `None` if there is no such dimension.
pub fn scattered(dims: &[i64], source: &Shape) -> Option<Shape> {
    let each = dims.iter().enumerate().map(|(at, &dim)| if dim == -1 { source.get(at).copied() } else { Some(dim) });
    each.collect::<Option<Vec<i64>>>().map(Shape::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(shapes: &[&[i64]]) -> Vec<Member> {
        let member = |shape: &&[i64]| {
            let shape = Shape::new(shape);
            let data = vec![0; shape.elements().expect("small")].into();
            Member::new(shape[0] as usize, vec![Tensor::new(DataType::Uint8, shape, data)])
        };
        shapes.iter().map(member).collect()
    }

    fn made(kind: BatchInputKind, dtype: DataType, shapes: &[&[i64]]) -> (Vec<i64>, Vec<i64>) {
        let input = MadeInput { kind, dtype, source: 0 };
        let tensor = input.make(&members(shapes), true).expect("the numbers fit");
        let numbers = tensor.data.as_chunks::<4>().0.iter().map(|word| match dtype {
            DataType::Fp32 => f32::from_le_bytes(*word) as i64,
            _ => i64::from(i32::from_le_bytes(*word)),
        });
        (tensor.shape.to_vec(), numbers.collect())
    }

    #[test]
    fn each_kind_says_what_its_name_says() {
        use BatchInputKind::*;
        let shapes: [&[i64]; 3] = [&[1, 3], &[2, 2], &[1, 5]];
        for dtype in [DataType::Int32, DataType::Fp32] {
            let made = |kind| made(kind, dtype, &shapes);
            assert_eq!(made(ElementCount), (vec![3], vec![3, 4, 5]));
            assert_eq!(made(AccumulatedElementCount), (vec![3], vec![3, 7, 12]));
            assert_eq!(made(AccumulatedElementCountWithZero), (vec![4], vec![0, 3, 7, 12]));
            assert_eq!(made(MaxElementCountAsShape), (vec![5], vec![0; 5]));
            assert_eq!(made(ItemShape), (vec![4, 1], vec![3, 2, 2, 5]));
            assert_eq!(made(ItemShapeFlatten), (vec![4], vec![3, 2, 2, 5]));
        }
    }

    #[test]
    fn items_of_several_dimensions_keep_them() {
        let shapes: [&[i64]; 2] = [&[2, 3, 4], &[1, 5, 6]];
        let (shape, numbers) = made(BatchInputKind::ItemShape, DataType::Int32, &shapes);
        assert_eq!((shape, numbers), (vec![3, 2], vec![3, 4, 3, 4, 5, 6]));
    }

    #[test]
    fn without_a_batch_dimension_the_item_is_the_whole_shape() {
        let mut members = members(&[&[3, 2]]);
        members[0].rows = 1;
        let input = MadeInput { kind: BatchInputKind::ItemShape, dtype: DataType::Int32, source: 0 };
        let tensor = input.make(&members, false).expect("the numbers fit");
        assert_eq!(&*tensor.shape, &[1, 2]);
        assert_eq!(&tensor.data[..], [3, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn a_count_that_does_not_fit_is_an_error() {
        let mut members = members(&[&[1, 1]]);
        members[0].inputs[0].shape = Shape::new(&[1, 1 << 31]);
        let input = MadeInput { kind: BatchInputKind::ElementCount, dtype: DataType::Int32, source: 0 };
        assert!(input.make(&members, true).is_err());
    }

    #[test]
    fn a_part_takes_the_free_dimensions_of_its_source() {
        assert_eq!(scattered(&[-1, 4, -1], &Shape::new(&[2, 9, 7])), Some(Shape::new(&[2, 4, 7])));
        assert_eq!(scattered(&[-1, -1, -1], &Shape::new(&[2, 9])), None);
    }

    proptest! {
        #[test]
        fn running_sums_end_at_the_flat_length(lengths in prop::collection::vec((1i64..4, 0i64..50), 1..12)) {
            let shapes: Vec<Vec<i64>> = lengths.iter().map(|(rows, length)| vec![*rows, *length]).collect();
            let shapes: Vec<&[i64]> = shapes.iter().map(Vec::as_slice).collect();
            let flat: i64 = lengths.iter().map(|(rows, length)| rows * length).sum();
            let (_, counts) = made(BatchInputKind::ElementCount, DataType::Int32, &shapes);
            let (_, sums) = made(BatchInputKind::AccumulatedElementCount, DataType::Int32, &shapes);
            let (_, bounds) = made(BatchInputKind::AccumulatedElementCountWithZero, DataType::Int32, &shapes);
            let (most, _) = made(BatchInputKind::MaxElementCountAsShape, DataType::Int32, &shapes);
            prop_assert_eq!(sums.last().copied(), Some(flat));
            prop_assert_eq!(&bounds[1..], &sums[..]);
            let steps: Vec<i64> = bounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
            prop_assert_eq!(&steps, &counts);
            prop_assert_eq!(counts.iter().max(), most.first());
            let (shape, items) = made(BatchInputKind::ItemShape, DataType::Int32, &shapes);
            prop_assert_eq!(shape[0], lengths.iter().map(|(rows, _)| rows).sum::<i64>());
            prop_assert_eq!(items.iter().sum::<i64>(), flat);
        }
    }
}
