//! Turns an output tensor into its best classes: the protocol's classification extension.
//!
//! Each class is `value:index` or `value:index:label`, best first; a value that is no whole number has six decimals.

use std::cmp::Ordering;
use std::fmt::{Display, Write as _};

use crate::error::{Error, Result};
use crate::infer::{RequestedOutput, Response};
use crate::model::ModelConfig;
use crate::tensor::{DataType, Shape, Tensor, strings};

/// The most classes of one output, over all rows.
const CLASSES_MAX: usize = 1_000_000;

/// Replaces the outputs of `response` for which `wanted` asks for classes.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if an output's element type cannot be ranked or too many classes are asked
/// for.
pub fn response(mut response: Response, wanted: &[RequestedOutput], config: &ModelConfig) -> Result<Response> {
    for output in &mut response.outputs {
        let Some(request) = wanted.iter().find(|request| *request.name == *output.name) else { continue };
        if request.classification == 0 {
            continue;
        }
        let labels = config.outputs.iter().find(|spec| spec.name == output.name).map_or(&[][..], |spec| &spec.labels);
        let batching = config.max_batch_rows > 0;
        output.tensor = top(&output.tensor, request.classification as usize, labels, batching)
            .map_err(|error| error.context(format_args!("classification of output '{}'", output.name)))?;
    }
    Ok(response)
}

/// The best `classes` elements of each row, as strings of shape `[rows, k]`, or `[k]` without a batch dimension.
fn top(tensor: &Tensor, classes: usize, labels: &[String], batching: bool) -> Result<Tensor> {
    macro_rules! numbers {
        ($type:ty, $compare:expr) => {{
            let read = |bytes: &[u8]| bytes.try_into().map(<$type>::from_le_bytes).unwrap_or_default();
            best(tensor, classes, labels, batching, Numbers { read, compare: $compare })
        }};
    }
    match tensor.dtype {
        DataType::Uint8 => numbers!(u8, u8::cmp),
        DataType::Uint16 => numbers!(u16, u16::cmp),
        DataType::Uint32 => numbers!(u32, u32::cmp),
        DataType::Uint64 => numbers!(u64, u64::cmp),
        DataType::Int8 => numbers!(i8, i8::cmp),
        DataType::Int16 => numbers!(i16, i16::cmp),
        DataType::Int32 => numbers!(i32, i32::cmp),
        DataType::Int64 => numbers!(i64, i64::cmp),
        DataType::Fp32 => numbers!(f32, f32::total_cmp),
        DataType::Fp64 => numbers!(f64, f64::total_cmp),
        dtype @ (DataType::Bool | DataType::Fp16 | DataType::Bf16 | DataType::Bytes) => {
            Err(Error::invalid(format!("elements of type '{dtype}' cannot be classified")))
        }
    }
}

/// How elements of one type are read and compared.
struct Numbers<T, R> {
    read: R,
    compare: fn(&T, &T) -> Ordering,
}

fn best<T: Display, R: Fn(&[u8]) -> T>(
    tensor: &Tensor,
    classes: usize,
    labels: &[String],
    batching: bool,
    numbers: Numbers<T, R>,
) -> Result<Tensor> {
    let size = size_of::<T>();
    let rows = if batching { tensor.shape.first().map_or(0, |&rows| rows as usize) } else { 1 };
    let columns = (tensor.data.len() / size).checked_div(rows).unwrap_or(0);
    let kept = classes.min(columns);
    if kept.saturating_mul(rows) > CLASSES_MAX {
        return Err(Error::invalid(format!("{kept} classes for each of {rows} rows are more than {CLASSES_MAX}")));
    }
    let mut texts = Vec::with_capacity(kept * rows);
    for row in tensor.data.chunks_exact((columns * size).max(1)).take(rows) {
        let value = |index: usize| (numbers.read)(&row[index * size..(index + 1) * size]);
        let mut order: Vec<usize> = (0..columns).collect();
        let best_first = |a: &usize, b: &usize| (numbers.compare)(&value(*b), &value(*a)).then(a.cmp(b));
        if kept < columns {
            order.select_nth_unstable_by(kept, best_first);
            order.truncate(kept);
        }
        order.sort_unstable_by(best_first);
        texts.extend(order.into_iter().map(|index| class(value(index), index, labels)));
    }
    let shape = if batching { Shape::new(&[rows as i64, kept as i64]) } else { Shape::new(&[kept as i64]) };
    let data = strings::encode(texts.iter().map(|text| text.as_bytes()));
    Ok(Tensor::new(DataType::Bytes, shape, data))
}

fn class(value: impl Display, index: usize, labels: &[String]) -> String {
    // The precision says nothing to whole numbers.
    let mut text = format!("{value:.6}:{index}");
    if let Some(label) = labels.get(index).filter(|label| !label.is_empty()) {
        let _ = write!(text, ":{label}");
    }
    text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn floats(shape: &[i64], values: &[f32]) -> Tensor {
        let data: Bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(DataType::Fp32, Shape::new(shape), data)
    }

    fn texts(tensor: &Tensor) -> Vec<String> {
        let text = |element: std::result::Result<&[u8], _>| {
            String::from_utf8_lossy(element.expect("well framed")).into_owned()
        };
        strings::iter(&tensor.data).map(text).collect()
    }

    #[test]
    fn each_row_has_its_best_first_with_labels() {
        let labels = ["cat".to_owned(), String::new(), "dog".to_owned()];
        let best = top(&floats(&[2, 3], &[0.1, 0.2, 0.7, 3.0, -1.0, 2.0]), 2, &labels, true).expect("numbers");
        assert_eq!(&*best.shape, &[2, 2]);
        assert_eq!(texts(&best), ["0.700000:2:dog", "0.200000:1", "3.000000:0:cat", "2.000000:2:dog"]);
    }

    #[test]
    fn more_classes_than_elements_gives_all_and_a_tie_goes_to_the_lower_index() {
        let best = top(&floats(&[3], &[1.0, 1.0, 0.0]), 9, &[], false).expect("numbers");
        assert_eq!(&*best.shape, &[3]);
        assert_eq!(texts(&best), ["1.000000:0", "1.000000:1", "0.000000:2"]);
    }

    #[test]
    fn whole_numbers_are_compared_and_written_as_such() {
        let near = [9_007_199_254_740_992_i64, 9_007_199_254_740_993, -1];
        let data: Bytes = near.iter().flat_map(|value| value.to_le_bytes()).collect();
        let best = top(&Tensor::new(DataType::Int64, Shape::new(&[3]), data), 3, &[], false).expect("numbers");
        assert_eq!(texts(&best), ["9007199254740993:1", "9007199254740992:0", "-1:2"]);
        let data: Bytes = [3u64, u64::MAX].iter().flat_map(|value| value.to_le_bytes()).collect();
        let best = top(&Tensor::new(DataType::Uint64, Shape::new(&[2]), data), 1, &[], false).expect("numbers");
        assert_eq!(texts(&best), ["18446744073709551615:1"]);
    }

    #[test]
    fn types_without_an_order_are_refused() {
        for dtype in [DataType::Bool, DataType::Fp16, DataType::Bf16, DataType::Bytes] {
            let tensor = Tensor::new(dtype, Shape::new(&[1]), Bytes::new());
            assert!(top(&tensor, 1, &[], false).is_err(), "{dtype}");
        }
    }

    #[test]
    fn no_rows_give_no_classes() {
        let best = top(&floats(&[0, 3], &[]), 2, &[], true).expect("numbers");
        assert_eq!(texts(&best), Vec::<String>::new());
    }
}
