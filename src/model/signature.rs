//! Checks a request's tensors against the model, once; nothing behind this looks again.
//!
//! The messages keep the shape of the reference server's, because clients match on them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use super::ModelConfig;
use super::config::TensorSpec;
use crate::error::{Error, Result};
use crate::tensor::{DataType, Forms, NamedTensor, Reshape, Shape, Tensor, strings};

/// What a model accepts and returns.
#[derive(Clone, Debug)]
pub struct Signature {
    model: Arc<str>,
    max_batch_rows: usize,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    /// The input that the server makes where a request leaves it out.
    made: Option<usize>,
    forms: Option<Arc<Forms>>,
}

/// A request's tensors that were found to fit.
#[derive(Debug)]
pub struct Checked {
    /// The inputs in the order of the signature, shapes as the model file sees them; [`Tensor::absent`] for those that the
    /// request left out.
    pub inputs: Vec<Tensor>,
    /// The size of the batch dimension; 1 for a model without one.
    pub rows: usize,
    /// Indices of the wanted outputs in the order asked for; `None` for all in the model's order.
    pub outputs: Option<Vec<usize>>,
}

impl Signature {
    /// The signature of a configuration.
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            model: config.name.clone(),
            max_batch_rows: config.max_batch_rows,
            inputs: config.inputs.clone(),
            outputs: config.outputs.clone(),
            made: config.padding.as_ref().and_then(|padding| padding.mask).map(|mask| mask.tensor),
            forms: config.forms(),
        }
    }

    /// The outputs in the model's order.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Checks names, counts, types, shapes and sizes, and puts the inputs in order.
    ///
    /// `outputs` are the names that the request asks for; none means all.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] with what was expected and what came.
    pub fn check<'a>(
        &self,
        inputs: Vec<NamedTensor>,
        outputs: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<Checked> {
        // Before anything else: behind this a negative dimension says that the request left the input out.
        if let Some(open) = inputs.iter().find(|input| input.tensor.shape.iter().any(|&dim| dim < 0)) {
            return Err(Error::invalid(format!(
                "All input dimensions should be specified for input '{}' for model '{}', got {}",
                open.name, self.model, open.tensor.shape
            )));
        }
        let mut inputs = self.in_order(inputs)?;
        let mut rows = None;
        for (spec, tensor) in self.inputs.iter().zip(&mut inputs) {
            if !tensor.is_absent() {
                self.check_input(spec, tensor, &mut rows)?;
            }
        }
        if let Some(forms) = &self.forms {
            self.check_padding(forms, &inputs)?;
        }
        let outputs = self.select_outputs(outputs)?;
        Ok(Checked { inputs, rows: rows.unwrap_or(1), outputs })
    }

    /// The inputs of a request as it brought them, from what [`Signature::check`] has made of them.
    pub fn uncheck(&self, inputs: Vec<Tensor>) -> Vec<NamedTensor> {
        let given = self.inputs.iter().zip(inputs).filter(|(_, tensor)| !tensor.is_absent());
        let given = given.map(|(spec, mut tensor)| {
            if let (Some(model), Some(caller)) = (&spec.reshape, &spec.dims) {
                let reshape = Reshape { model: model.clone(), caller: caller.clone() };
                tensor.shape = reshape.to_caller(&tensor.shape, self.max_batch_rows > 0);
            }
            NamedTensor { name: spec.name.to_string(), tensor }
        });
        given.collect()
    }

    fn in_order(&self, inputs: Vec<NamedTensor>) -> Result<Vec<Tensor>> {
        let same_order = inputs.len() == self.inputs.len()
            && inputs.iter().zip(&self.inputs).all(|(input, spec)| *input.name == *spec.name);
        if same_order {
            return Ok(inputs.into_iter().map(|input| input.tensor).collect());
        }
        let mut names = HashSet::with_capacity(inputs.len());
        for input in &inputs {
            if !names.insert(input.name.as_str()) {
                return Err(Error::invalid(format!("input '{}' already exists in request", input.name)));
            }
        }
        if inputs.len() > self.inputs.len() || inputs.len() < self.required().count() {
            return Err(self.wrong_count(&inputs));
        }
        let known = |input: &&NamedTensor| self.inputs.iter().any(|spec| *spec.name == *input.name);
        if let Some(unknown) = inputs.iter().find(|input| !known(input)) {
            let message = format!("unexpected inference input '{}' for model '{}'", unknown.name, self.model);
            return Err(Error::invalid(message));
        }
        if self.required().any(|spec| !names.contains(&*spec.name)) {
            return Err(self.wrong_count(&inputs));
        }
        let mut inputs: Vec<Option<NamedTensor>> = inputs.into_iter().map(Some).collect();
        let ordered = self.inputs.iter().map(|spec| {
            let found = inputs.iter_mut().find(|i| i.as_ref().is_some_and(|i| *i.name == *spec.name));
            found.and_then(Option::take).map_or_else(Tensor::absent, |input| input.tensor)
        });
        Ok(ordered.collect())
    }

    /// The inputs that a request must bring.
    fn required(&self) -> impl Iterator<Item = &TensorSpec> {
        let must = |(index, spec): &(usize, &TensorSpec)| !spec.optional && self.made != Some(*index);
        self.inputs.iter().enumerate().filter(must).map(|(_, spec)| spec)
    }

    fn wrong_count(&self, inputs: &[NamedTensor]) -> Error {
        let (required, all) = (self.required().count(), self.inputs.len());
        let expected = if required == all {
            format!("{all} inputs")
        } else {
            format!("number of inputs between {required} and {all}")
        };
        let mut message =
            format!("expected {expected} but got {} inputs for model '{}'. Got input(s) [", inputs.len(), self.model);
        push_names(&mut message, inputs.iter().map(|input| input.name.as_str()));
        message.push_str("], but missing required input(s) [");
        let given: HashSet<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        let missing = self.required().filter(|spec| !given.contains(&*spec.name));
        push_names(&mut message, missing.map(|spec| &*spec.name));
        message.push_str("]. Please provide all required input(s).");
        Error::invalid(message)
    }

    fn check_input(&self, spec: &TensorSpec, tensor: &mut Tensor, rows: &mut Option<usize>) -> Result<()> {
        if let Some(expected) = spec.dtype
            && expected != tensor.dtype
        {
            return Err(Error::invalid(format!(
                "inference input '{}' data-type is '{}', but model '{}' expects '{}'",
                spec.name, tensor.dtype, self.model, expected
            )));
        }
        self.check_shape(spec, &tensor.shape)?;
        if self.max_batch_rows > 0 {
            self.check_rows(spec, tensor.shape.first().copied().unwrap_or(0), rows)?;
        }
        check_size(&self.model, spec, tensor)?;
        if let (Some(model), Some(caller)) = (&spec.reshape, &spec.dims) {
            let reshape = Reshape { model: model.clone(), caller: caller.clone() };
            tensor.shape = reshape.to_model(&tensor.shape, self.max_batch_rows > 0);
        }
        Ok(())
    }

    fn check_shape(&self, spec: &TensorSpec, shape: &Shape) -> Result<()> {
        let batching = usize::from(self.max_batch_rows > 0);
        let fits = match &spec.dims {
            None => shape.len() >= batching,
            Some(dims) => {
                shape.len() == dims.len() + batching
                    && dims.iter().zip(&shape[batching..]).all(|(&want, &got)| want == -1 || want == got)
            }
        };
        if fits {
            return Ok(());
        }
        let expected = spec.dims.clone().unwrap_or_default();
        let expected = if batching == 1 { expected.with_rows(-1) } else { expected };
        let mut message = format!(
            "unexpected shape for input '{}' for model '{}'. Expected {}, got {}.",
            spec.name, self.model, expected, shape
        );
        if batching == 1 {
            message.push_str(
                " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be \
                 prepended to each input shape.",
            );
        }
        Err(Error::invalid(message))
    }

    fn check_rows(&self, spec: &TensorSpec, got: i64, rows: &mut Option<usize>) -> Result<()> {
        let got = usize::try_from(got).unwrap_or(0);
        if rows.is_some_and(|rows| rows != got) {
            return Err(Error::invalid(format!(
                "input '{}' batch size does not match other inputs for '{}'",
                spec.name, self.model
            )));
        }
        if got == 0 || got > self.max_batch_rows {
            return Err(Error::invalid(format!(
                "inference request batch-size must be <= {} for '{}'",
                self.max_batch_rows, self.model
            )));
        }
        *rows = Some(got);
        Ok(())
    }

    fn check_padding(&self, forms: &Forms, inputs: &[Tensor]) -> Result<()> {
        if let Some((mask, wanted)) = forms.misfit(inputs) {
            return Err(Error::invalid(format!(
                "unexpected shape for input '{}' for model '{}'. Expected {wanted} as long as what it masks, got {}.",
                self.inputs[mask].name, self.model, inputs[mask].shape
            )));
        }
        if let Some(large) = forms.oversized(inputs, PADDED_BYTES_MAX) {
            return Err(Error::invalid(format!(
                "input '{}' of shape {} for model '{}' would be padded to more than {PADDED_BYTES_MAX} bytes",
                self.inputs[large].name, inputs[large].shape, self.model
            )));
        }
        Ok(())
    }

    fn select_outputs<'a>(&self, names: impl ExactSizeIterator<Item = &'a str>) -> Result<Option<Vec<usize>>> {
        if names.len() == 0 {
            return Ok(None);
        }
        let mut selected = Vec::with_capacity(names.len());
        for name in names {
            let Some(index) = self.outputs.iter().position(|spec| *spec.name == *name) else {
                return Err(Error::invalid(format!(
                    "unexpected inference output '{}' for model '{}'",
                    name, self.model
                )));
            };
            if selected.contains(&index) {
                return Err(Error::invalid(format!("output '{name}' already exists in request")));
            }
            selected.push(index);
        }
        Ok(Some(selected))
    }
}

/// The most bytes that padding makes of one input of a request.
const PADDED_BYTES_MAX: usize = 1 << 30;

/// The most names that a message lists.
const NAMES_SHOWN_MAX: usize = 32;

fn push_names<'a>(message: &mut String, names: impl Iterator<Item = &'a str>) {
    for (index, name) in names.enumerate() {
        if index == NAMES_SHOWN_MAX {
            message.push_str(",...");
            return;
        }
        let _ = write!(message, "{}'{name}'", if index > 0 { "," } else { "" });
    }
}

fn check_size(model: &str, spec: &TensorSpec, tensor: &Tensor) -> Result<()> {
    let Some(elements) = tensor.shape.elements() else {
        return Err(Error::invalid(format!(
            "input '{}' of shape {} for model '{model}' has more elements than can be counted",
            spec.name, tensor.shape
        )));
    };
    let got = tensor.bytes();
    if let Some(size) = tensor.dtype.size() {
        return match elements.checked_mul(size) {
            Some(expected) if expected == got => Ok(()),
            expected => Err(Error::invalid(format!(
                "input byte size mismatch for input '{}' for model '{model}'. Expected {}, got {got}",
                spec.name,
                expected.map_or_else(|| "more than fits in memory".to_owned(), |bytes| bytes.to_string()),
            ))),
        };
    }
    strings::check(&tensor.data, elements).map_err(|framing| {
        Error::invalid(match framing {
            strings::Framing::IncompleteLength => format!(
                "incomplete string length indicator for inference input '{}' for model '{model}', expecting \
                 {elements} string elements",
                spec.name
            ),
            strings::Framing::IncompleteElement => format!(
                "incomplete string data for inference input '{}' for model '{model}', expecting {elements} string \
                 elements",
                spec.name
            ),
            strings::Framing::Count { found } if found > elements => format!(
                "unexpected number of string elements {found} for inference input '{}' for model '{model}', \
                 expecting {elements}",
                spec.name
            ),
            strings::Framing::Count { found } => format!(
                "expected {elements} string elements for inference input '{}' for model '{model}', got {found}",
                spec.name
            ),
        })
    })
}

impl TensorSpec {
    /// The protocol's name of the element type, or the reference server's word for an unknown one.
    pub fn dtype_name(&self) -> &'static str {
        self.dtype.map_or("<invalid>", DataType::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Padded, ServerPadding};
    use crate::tensor::Buckets;

    fn config(inputs: &[(&str, &[i64])]) -> ModelConfig {
        let spec =
            |(name, dims): &(&str, &[i64])| TensorSpec::new(*name, Some(DataType::Uint8), Some(Shape::new(dims)));
        ModelConfig {
            max_batch_rows: 4,
            inputs: inputs.iter().map(spec).collect(),
            ..ModelConfig::new("m", "identity")
        }
    }

    fn check(config: &ModelConfig, inputs: &[(&str, &[i64])]) -> Result<Checked> {
        let input = |(name, shape): &(&str, &[i64])| {
            let shape = Shape::new(shape);
            let data = vec![0; shape.elements().expect("small")].into();
            NamedTensor { name: (*name).to_owned(), tensor: Tensor::new(DataType::Uint8, shape, data) }
        };
        Signature::new(config).check(inputs.iter().map(input).collect(), std::iter::empty())
    }

    fn refusal(config: &ModelConfig, inputs: &[(&str, &[i64])]) -> String {
        check(config, inputs).expect_err("it does not fit").message().to_owned()
    }

    #[test]
    fn optional_inputs_may_be_left_out_and_keep_their_place() {
        let mut config = config(&[("a", &[1]), ("b", &[1]), ("c", &[1])]);
        config.inputs[0].optional = true;
        config.inputs[2].optional = true;
        let checked = check(&config, &[("c", &[2, 1]), ("b", &[2, 1])]).expect("both fit");
        let absent: Vec<bool> = checked.inputs.iter().map(Tensor::is_absent).collect();
        assert_eq!((absent, checked.rows), (vec![true, false, false], 2));
        let end = "Please provide all required input(s).";
        assert_eq!(
            refusal(&config, &[]),
            format!(
                "expected number of inputs between 1 and 3 but got 0 inputs for model 'm'. Got input(s) [], but missing \
                 required input(s) ['b']. {end}"
            )
        );
        assert_eq!(
            refusal(&config, &[("a", &[1, 1])]),
            format!(
                "expected number of inputs between 1 and 3 but got 1 inputs for model 'm'. Got input(s) ['a'], but missing \
                 required input(s) ['b']. {end}"
            )
        );
        assert_eq!(refusal(&config, &[("b", &[1, 1]), ("z", &[1, 1])]), "unexpected inference input 'z' for model 'm'");
        assert_eq!(
            refusal(&config, &[("b", &[1, 1]), ("a", &[2, 1])]),
            "input 'b' batch size does not match other inputs for 'm'"
        );
    }

    #[test]
    fn what_was_checked_can_be_checked_again() {
        let mut config = config(&[("a", &[-1, 2]), ("b", &[2, -1]), ("c", &[1])]);
        config.inputs[0].reshape = Some(Shape::new(&[2, 1, -1]));
        config.inputs[2].optional = true;
        let signature = Signature::new(&config);
        let checked = check(&config, &[("b", &[3, 2, 5]), ("a", &[3, 7, 2])]).expect("both fit");
        let again = signature.uncheck(checked.inputs.clone());
        let shapes: Vec<(&str, &[i64])> = again.iter().map(|input| (&*input.name, &input.tensor.shape[..])).collect();
        assert_eq!(shapes, [("a", &[3, 7, 2][..]), ("b", &[3, 2, 5])]);
        assert_eq!(signature.check(again, std::iter::empty()).expect("both fit").inputs, checked.inputs);
    }

    #[test]
    fn an_input_with_negative_dimensions_is_not_one_that_was_left_out() {
        let mut config = config(&[("a", &[1]), ("b", &[1])]);
        config.inputs[1].optional = true;
        let tensor = |name: &str| NamedTensor { name: name.to_owned(), tensor: Tensor::absent() };
        for inputs in [vec!["a"], vec!["a", "b"], vec!["b", "a"]] {
            let inputs = inputs.into_iter().map(tensor).collect();
            let error = Signature::new(&config).check(inputs, std::iter::empty()).expect_err("no dimension is known");
            let expected = "All input dimensions should be specified for input '";
            assert!(error.message().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_mask_that_is_given_is_as_long_as_what_it_masks() {
        let mut config = config(&[("ids", &[-1]), ("mask", &[-1])]);
        config.padding = Some(ServerPadding {
            buckets: Buckets::Lengths(vec![1 << 40]),
            inputs: vec![(0, 0.0)],
            mask: Some(Padded { tensor: 1, source: 0 }),
            outputs: Vec::new(),
        });
        let expected =
            "unexpected shape for input 'mask' for model 'm'. Expected [1,3] as long as what it masks, got [1,2].";
        assert_eq!(refusal(&config, &[("ids", &[1, 3]), ("mask", &[1, 2])]), expected);
        let expected = "input 'ids' of shape [1,3] for model 'm' would be padded to more than 1073741824 bytes";
        assert_eq!(refusal(&config, &[("ids", &[1, 3])]), expected);
    }
}
