//! The parameters that ask the server to pad: read once, for the check and for the meaning.
//!
//! | key | value | effect |
//! |---|---|---|
//! | `padding.inputs` | `NAME, ...` | the inputs whose -1 dimensions are padded, so that requests of other lengths share a batch |
//! | `padding.multiple` | integer | lengths become the next multiple of it |
//! | `padding.buckets` | `LENGTH, ...` ascending | lengths become the next of these; longer ones stay as they are |
//! | `padding.value` | `NUMBER` or `NAME=NUMBER, ...` | what fills, by default 0 |
//! | `padding.mask_input` | `NAME` or `NAME=INPUT` | made by the server where a request leaves it out: 1 for real elements of the first padded input, or of `INPUT`, 0 for padding |
//! | `padding.outputs` | `NAME, ...` or `NAME=INPUT, ...` | outputs whose -1 dimensions are cut back to the length of the first padded input, or of `INPUT` |
//!
//! Either `padding.multiple` or `padding.buckets` is needed.

use super::mistakes::MISTAKES_MAX;
use super::suggest::nearest;
use super::tree::shorten;
use crate::model::schema::{ModelConfig, ModelInput};
use crate::model::{Padded, ServerPadding, data_type};
use crate::tensor::Buckets;

const INPUTS: &str = "padding.inputs";
const MULTIPLE: &str = "padding.multiple";
const BUCKETS: &str = "padding.buckets";
const VALUE: &str = "padding.value";
const MASK: &str = "padding.mask_input";
const OUTPUTS: &str = "padding.outputs";

/// Every key.
pub(super) const KEYS: [&str; 6] = [INPUTS, MULTIPLE, BUCKETS, VALUE, MASK, OUTPUTS];

/// A longer bucket is a mistake.
const LENGTH_MAX: i64 = 1 << 24;

/// What is wrong with the value of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The key.
    pub(super) key: &'static str,
    /// Why.
    pub(super) message: String,
    /// The nearest name that would be right.
    pub(super) suggestion: Option<String>,
}

/// The padding that the parameters ask for, as far as they are right, and all that is wrong with them.
pub(super) fn read(schema: &ModelConfig) -> (Option<ServerPadding>, Vec<Wrong>) {
    let mut reader = Reader { schema, wrong: Vec::new() };
    let padding = reader.read();
    (padding, reader.wrong)
}

struct Reader<'a> {
    schema: &'a ModelConfig,
    wrong: Vec<Wrong>,
}

impl<'a> Reader<'a> {
    fn read(&mut self) -> Option<ServerPadding> {
        let Some(names) = self.value(INPUTS) else {
            let given: Vec<&str> = KEYS.into_iter().filter(|key| self.value(key).is_some()).collect();
            for key in given {
                self.wrong(key, format!("'{key}' has no meaning without '{INPUTS}'"));
            }
            return None;
        };
        let mut inputs: Vec<usize> = Vec::new();
        for name in list(names) {
            let Some(index) = self.input(INPUTS, name) else { continue };
            if inputs.contains(&index) {
                self.wrong(INPUTS, format!("input '{name}' is listed twice"));
            } else if self.can_be_padded(INPUTS, index) {
                inputs.push(index);
            }
        }
        let buckets = self.buckets();
        let values = self.values(&inputs);
        let mask = self.value(MASK).and_then(|text| self.mask(text, &inputs));
        let outputs = self.value(OUTPUTS).map_or_else(Vec::new, |text| self.outputs(text, &inputs));
        if inputs.is_empty() && self.wrong.is_empty() {
            self.wrong(INPUTS, format!("'{INPUTS}' must list one or more inputs"));
        }
        Some(ServerPadding { buckets: buckets?, inputs: inputs.into_iter().zip(values).collect(), mask, outputs })
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.schema.parameters.get(key).map(|value| value.string_value.as_str())
    }

    fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.wrong_near(key, message, || None);
    }

    fn wrong_near(&mut self, key: &str, message: impl Into<String>, suggestion: impl FnOnce() -> Option<String>) {
        // What is beyond will only be counted.
        let suggestion = if self.wrong.len() < MISTAKES_MAX { suggestion() } else { None };
        let key = KEYS.into_iter().find(|known| *known == key).unwrap_or(INPUTS);
        self.wrong.push(Wrong { key, message: message.into(), suggestion });
    }

    /// The position of the input with this name.
    fn input(&mut self, key: &str, name: &str) -> Option<usize> {
        let found = self.schema.input.iter().position(|input| input.name == name);
        if found.is_none() {
            let schema = self.schema;
            let suggestion = || nearest(name, schema.input.iter().map(|input| input.name.as_str()));
            self.wrong_near(key, format!("the model has no input '{}'", shorten(name)), suggestion);
        }
        found
    }

    /// Whether the server can pad this input; else says why not.
    fn can_be_padded(&mut self, key: &str, index: usize) -> bool {
        let input = &self.schema.input[index];
        let name = &input.name;
        let why = if !input.dims.contains(&-1) {
            format!("input '{name}' has no dimension of -1 that could be padded")
        } else if input.allow_ragged_batch {
            format!("input '{name}' is ragged, so that it needs no padding")
        } else if data_type(input.data_type()).is_none_or(|dtype| dtype.size().is_none()) {
            format!("input '{name}' is {}, only numbers can be padded", input.data_type().as_str_name())
        } else {
            return true;
        };
        self.wrong(key, why);
        false
    }

    fn buckets(&mut self) -> Option<Buckets> {
        let length = |text: &str| text.trim().parse::<i64>().ok().filter(|length| (1..=LENGTH_MAX).contains(length));
        match (self.value(MULTIPLE), self.value(BUCKETS)) {
            (None, None) => {
                self.wrong(INPUTS, format!("'{INPUTS}' needs either '{MULTIPLE}' or '{BUCKETS}'"));
                None
            }
            (Some(_), Some(_)) => {
                self.wrong(BUCKETS, format!("only one of '{MULTIPLE}' and '{BUCKETS}' can be given"));
                None
            }
            (Some(text), None) => {
                let multiple = length(text);
                if multiple.is_none() {
                    let got = shorten(text);
                    self.wrong(
                        MULTIPLE,
                        format!("'{MULTIPLE}' must be an integer from 1 to {LENGTH_MAX}, got '{got}'"),
                    );
                }
                multiple.map(Buckets::Multiple)
            }
            (None, Some(text)) => {
                let lengths: Option<Vec<i64>> = text.split(',').map(length).collect();
                let lengths = lengths.filter(|lengths| lengths.is_sorted_by(|a, b| a < b));
                if lengths.is_none() {
                    let message =
                        format!("'{BUCKETS}' must be ascending integers from 1 to {LENGTH_MAX} with commas between");
                    self.wrong(BUCKETS, format!("{message}, got '{}'", shorten(text)));
                }
                lengths.map(Buckets::Lengths)
            }
        }
    }

    /// What fills each of `inputs`.
    fn values(&mut self, inputs: &[usize]) -> Vec<f64> {
        let mut values = vec![0.0; inputs.len()];
        for item in self.value(VALUE).into_iter().flat_map(list) {
            let (name, number) =
                item.split_once('=').map_or((None, item), |(name, number)| (Some(name.trim()), number));
            let Some(number) = number.trim().parse::<f64>().ok().filter(|number| number.is_finite()) else {
                self.wrong(VALUE, format!("'{VALUE}' must be NUMBER or NAME=NUMBER, got '{}'", shorten(item)));
                continue;
            };
            let one = match name {
                None => None,
                Some(name) => match self.padded(VALUE, name, inputs) {
                    None => continue,
                    found => found,
                },
            };
            for (value, &index) in
                values.iter_mut().zip(inputs).filter(|(_, index)| one.is_none_or(|one| one == **index))
            {
                let input = &self.schema.input[index];
                if data_type(input.data_type()).and_then(|dtype| dtype.encode(number)).is_some() {
                    *value = number;
                } else {
                    let dtype = input.data_type().as_str_name();
                    let message = format!("{number} is no value of input '{}', which is {dtype}", input.name);
                    self.wrong.push(Wrong { key: VALUE, message, suggestion: None });
                }
            }
        }
        values
    }

    fn mask(&mut self, text: &str, inputs: &[usize]) -> Option<Padded> {
        let (name, source) = self.with_source(MASK, text, inputs)?;
        let index = self.input(MASK, name)?;
        if inputs.contains(&index) {
            self.wrong(MASK, format!("'{name}' is one of '{INPUTS}', it cannot be their mask"));
            return None;
        }
        if !self.can_be_padded(MASK, index) {
            return None;
        }
        let input = &self.schema.input[index];
        let free = free(&input.dims);
        self.as_long(MASK, format!("input '{name}'"), free, source).then_some(Padded { tensor: index, source })
    }

    fn outputs(&mut self, text: &str, inputs: &[usize]) -> Vec<Padded> {
        let schema = self.schema;
        let mut outputs: Vec<Padded> = Vec::new();
        for item in list(text) {
            let Some((name, source)) = self.with_source(OUTPUTS, item, inputs) else { continue };
            let Some(tensor) = schema.output.iter().position(|output| output.name == name) else {
                let suggestion = || nearest(name, schema.output.iter().map(|output| output.name.as_str()));
                self.wrong_near(OUTPUTS, format!("the model has no output '{}'", shorten(name)), suggestion);
                continue;
            };
            let output = &schema.output[tensor];
            if outputs.iter().any(|other| other.tensor == tensor) {
                self.wrong(OUTPUTS, format!("output '{name}' is listed twice"));
            } else if schema.batch_output.iter().any(|scattered| scattered.target_name.contains(&output.name)) {
                self.wrong(OUTPUTS, format!("output '{name}' is split by 'batch_output' already"));
            } else if self.as_long(OUTPUTS, format!("output '{name}'"), free(&output.dims), source) {
                outputs.push(Padded { tensor, source });
            }
        }
        outputs
    }

    /// A name and the padded input that it goes with: the one behind `=`, else the first.
    fn with_source<'t>(&mut self, key: &str, text: &'t str, inputs: &[usize]) -> Option<(&'t str, usize)> {
        let (name, source) = match text.split_once('=') {
            Some((name, source)) => (name.trim(), self.padded(key, source.trim(), inputs)?),
            None => (text.trim(), *inputs.first()?),
        };
        let input: &ModelInput = &self.schema.input[source];
        if input.optional {
            self.wrong(key, format!("input '{}' is optional, so that its length may not be known", input.name));
            return None;
        }
        Some((name, source))
    }

    /// The position of an input that is padded.
    fn padded(&mut self, key: &str, name: &str, inputs: &[usize]) -> Option<usize> {
        let index = self.input(key, name)?;
        if !inputs.contains(&index) {
            self.wrong(key, format!("input '{name}' is not one of '{INPUTS}'"));
            return None;
        }
        Some(index)
    }

    fn as_long(&mut self, key: &str, what: String, count: usize, source: usize) -> bool {
        let input = &self.schema.input[source];
        let expected = free(&input.dims);
        if count != expected {
            let name = &input.name;
            self.wrong(
                key,
                format!("{what} must have as many dimensions of -1 as input '{name}', {expected}, got {count}"),
            );
        }
        count == expected
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn free(dims: &[i64]) -> usize {
    dims.iter().filter(|dim| **dim == -1).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::schema::{DataType, ModelOutput, ModelParameter};

    fn config(parameters: &[(&str, &str)]) -> ModelConfig {
        let input = |name: &str| ModelInput {
            name: name.to_owned(),
            data_type: DataType::TypeInt32.into(),
            dims: vec![-1],
            ..ModelInput::default()
        };
        let output =
            |name: &str, dims: &[i64]| ModelOutput { name: name.to_owned(), dims: dims.to_vec(), ..Default::default() };
        let value = |value: &str| ModelParameter { string_value: value.to_owned() };
        ModelConfig {
            input: vec![input("ids"), input("types"), input("mask")],
            output: vec![output("pooled", &[4]), output("each", &[-1, 4])],
            parameters: parameters.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect(),
            ..ModelConfig::default()
        }
    }

    #[test]
    fn each_parameter_is_read() {
        let (padding, wrong) = read(&config(&[
            ("padding.inputs", "ids, types"),
            ("padding.buckets", "16, 64"),
            ("padding.value", "1, types=-2"),
            ("padding.mask_input", "mask"),
            ("padding.outputs", "each=types"),
        ]));
        assert_eq!(wrong, []);
        let expected = ServerPadding {
            buckets: Buckets::Lengths(vec![16, 64]),
            inputs: vec![(0, 1.0), (1, -2.0)],
            mask: Some(Padded { tensor: 2, source: 0 }),
            outputs: vec![Padded { tensor: 1, source: 1 }],
        };
        assert_eq!(padding, Some(expected));
    }

    #[test]
    fn what_belongs_together_is_given_together() {
        let wrong = |parameters: &[(&str, &str)]| {
            let (_, wrong) = read(&config(parameters));
            wrong.into_iter().map(|wrong| format!("{}: {}", wrong.key, wrong.message)).collect::<Vec<_>>()
        };
        assert_eq!(
            wrong(&[("padding.value", "1")]),
            ["padding.value: 'padding.value' has no meaning without 'padding.inputs'"]
        );
        let neither = "padding.inputs: 'padding.inputs' needs either 'padding.multiple' or 'padding.buckets'";
        assert_eq!(wrong(&[("padding.inputs", "ids")]), [neither]);
        let both = [("padding.inputs", "ids"), ("padding.multiple", "8"), ("padding.buckets", "8")];
        let one = "padding.buckets: only one of 'padding.multiple' and 'padding.buckets' can be given";
        assert_eq!(wrong(&both), [one]);
        let none = [("padding.inputs", ","), ("padding.multiple", "8")];
        assert_eq!(wrong(&none), ["padding.inputs: 'padding.inputs' must list one or more inputs"]);
    }
}
