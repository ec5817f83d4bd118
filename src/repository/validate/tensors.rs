//! Inputs and outputs: names, types, dimensions, reshapes, label files.

use std::collections::HashMap;

use super::super::files::{self, is_inside};
use super::super::tree::shorten;
use super::Check;
use crate::model::schema::model_input::Format;
use crate::model::schema::{DataType, ModelOutput, ModelTensorReshape};
use crate::tensor::Shape;

pub(super) fn check(check: &mut Check<'_>) {
    let config = check.config;
    for (index, input) in config.input.iter().enumerate() {
        let key = format!("input[{index}]");
        let tensor = Tensor {
            what: "model input",
            key: &key,
            name: &input.name,
            data_type: input.data_type(),
            dims: &input.dims,
            reshape: input.reshape.as_ref(),
        };
        common(check, &tensor);
        let taken = config.input[..index].iter().any(|other| !other.name.is_empty() && other.name == input.name);
        if taken {
            check.mistake(format!("{key}.name"), format!("input '{}' is given more than once", input.name));
        }
        if input.format() != Format::None && input.dims.len() != 3 {
            let message = format!("NHWC and NCHW formats require 3 dims, got {}", input.dims.len());
            check.mistake(format!("{key}.format"), message);
        }
        shape_tensor(check, &key, input.is_shape_tensor, input.is_non_linear_format_io);
    }
    for (index, output) in config.output.iter().enumerate() {
        let key = format!("output[{index}]");
        let tensor = Tensor {
            what: "model output",
            key: &key,
            name: &output.name,
            data_type: output.data_type(),
            dims: &output.dims,
            reshape: output.reshape.as_ref(),
        };
        common(check, &tensor);
        let taken = config.output[..index].iter().any(|other| !other.name.is_empty() && other.name == output.name);
        if taken {
            check.mistake(format!("{key}.name"), format!("output '{}' is given more than once", output.name));
        }
        shape_tensor(check, &key, output.is_shape_tensor, output.is_non_linear_format_io);
        labels(check, &key, output);
    }
}

/// What inputs and outputs have in common.
struct Tensor<'a> {
    what: &'static str,
    key: &'a str,
    name: &'a str,
    data_type: DataType,
    dims: &'a [i64],
    reshape: Option<&'a ModelTensorReshape>,
}

impl Tensor<'_> {
    /// Such as ` for 'x'`, once there is a name.
    fn named(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!(" for '{}'", self.name) }
    }
}

fn common(check: &mut Check<'_>, tensor: &Tensor<'_>) {
    let (what, key, named) = (tensor.what, tensor.key, tensor.named());
    // What a backend completed may leave type and dims to the model.
    let written = check.positions.wrote(key);
    if tensor.name.is_empty() {
        check.mistake(format!("{key}.name"), format!("{what} must specify 'name'"));
    }
    if tensor.data_type == DataType::TypeInvalid && written {
        check.mistake(format!("{key}.data_type"), format!("{what} must specify 'data_type'{named}"));
    }
    if tensor.dims.is_empty() && written {
        check.mistake(format!("{key}.dims"), format!("{what} must specify 'dims'{named}"));
    }
    dims(check, &format!("{key}.dims"), tensor.dims, &named);
    if let Some(reshape) = tensor.reshape {
        let key = format!("{key}.reshape");
        dims(check, &format!("{key}.shape"), &reshape.shape, &named);
        if reshape.shape.is_empty() && !check.batches() {
            let message = format!("{what} cannot have an empty reshape{named}: the model does not batch");
            check.mistake(key, message);
        } else if !same_elements(tensor.dims, &reshape.shape) {
            let (from, to) = (Shape::new(tensor.dims), Shape::new(&reshape.shape));
            check.mistake(key, format!("{what} has different size for dims and reshape{named}: {from} and {to}"));
        }
    }
}

pub(super) fn dims(check: &mut Check<'_>, key: &str, dims: &[i64], named: &str) {
    for (index, dim) in dims.iter().enumerate() {
        if *dim < 1 && *dim != -1 {
            check.mistake(
                format!("{key}[{index}]"),
                format!(
                    "dimension must be integer >= 1, or -1 to indicate a variable-size dimension, got {dim}{named}"
                ),
            );
        }
    }
    if !dims.contains(&-1) && dims.iter().all(|dim| *dim > 0) && Shape::new(dims).elements().is_none() {
        check.mistake(key, format!("the dimensions{named} have more elements than can be counted"));
    }
}

/// Whether each run of fixed dimensions between two variable ones has the same element count on both sides.
fn same_elements(dims: &[i64], reshape: &[i64]) -> bool {
    let chunks = |dims: &[i64]| -> Vec<i128> {
        let product = |chunk: &[i64]| chunk.iter().fold(1i128, |product, dim| product.saturating_mul(i128::from(*dim)));
        dims.split(|dim| *dim == -1).map(product).collect()
    };
    chunks(dims) == chunks(reshape)
}

fn shape_tensor(check: &mut Check<'_>, key: &str, is_shape_tensor: bool, is_non_linear: bool) {
    let flags = [("is_shape_tensor", is_shape_tensor), ("is_non_linear_format_io", is_non_linear)];
    for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
        check.mistake(format!("{key}.{name}"), format!("'{name}' is for TensorRT models only"));
    }
}

fn labels(check: &mut Check<'_>, key: &str, output: &ModelOutput) {
    let (key, name) = (format!("{key}.label_filename"), &output.label_filename);
    if name.is_empty() {
        return;
    }
    if !is_inside(name) {
        check.mistake(key, format!("label file '{name}' must stay inside the model directory"));
    } else if !check.directory.join(name).is_file() {
        check.mistake(key, format!("label file '{name}' does not exist in the model directory"));
    } else {
        match files::labels(check.directory, name) {
            Ok(labels) => {
                if !labels.is_text {
                    check.warn(&key, format!("label file '{name}' is not UTF-8: what is not becomes '\u{fffd}'"));
                }
                of_classes(check, &key, &labels.lines, output);
            }
            Err(why) => check.mistake(key, why),
        }
    }
}

/// Whether there is one label for each class.
fn of_classes(check: &mut Check<'_>, key: &str, labels: &[String], output: &ModelOutput) {
    let name = &output.label_filename;
    if let Some(classes) = Shape::new(&output.dims).elements().filter(|classes| *classes != labels.len()) {
        let message =
            format!("label file '{name}' has {} labels, output '{}' has {classes} elements", labels.len(), output.name);
        check.warn(key, message);
    }
    let mut seen = HashMap::new();
    for (line, label) in (1..).zip(labels).filter(|(_, label)| !label.is_empty()) {
        if let Some(first) = seen.insert(label, line) {
            let label = shorten(label);
            check.warn(key, format!("label file '{name}' has '{label}' twice, in lines {first} and {line}"));
            return;
        }
    }
}
