//! Which configured input is which argument of `forward`, and which configured output is which returned value.
//!
//! TorchScript names arguments but not results. The rules are the reference server's: by exact name, else by a
//! `__<index>` at the name's end, else by order; a mixture of conventions falls back to order. Pure.

use super::module::{Argument, Schema};
use crate::error::{Error, Kind, Result};
use crate::model::{ModelConfig, TensorSpec};
use crate::tensor::DataType;

/// How the configuration and `forward` fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// For each argument in order, what it gets.
    pub inputs: Vec<Bound>,
    /// All inputs go into one dictionary, under their names.
    pub as_dictionary: bool,
    /// For each configured output, its position among the returned values.
    pub outputs: Vec<usize>,
}

/// One argument of `forward`, or one key of its dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The index of the configured input.
    pub input: usize,
    /// The argument's name, or the key.
    pub name: String,
    /// Whether it can be left out; if not, `None` stands for an input that a request left out.
    pub can_be_left_out: bool,
}

const TENSOR_DICTIONARY: &str = "Dict[str, Tensor]";
const STRINGS: &str = "List[str]";
const OPTIONAL_TENSOR: &str = "Optional[Tensor]";

impl Binding {
    /// Fits a configuration to a schema.
    ///
    /// # Errors
    /// What does not fit: counts, types, indices.
    pub fn new(config: &ModelConfig, schema: &Schema) -> Result<Self> {
        let as_dictionary = matches!(schema.arguments.as_slice(), [only] if only.kind == TENSOR_DICTIONARY);
        let inputs = if as_dictionary {
            for spec in &config.inputs {
                if spec.dtype == Some(DataType::Bytes) {
                    return Err(kind_mismatch(config, spec, &schema.arguments[0]));
                }
            }
            let key = |(input, spec): (usize, &TensorSpec)| Bound {
                input,
                name: spec.name.to_string(),
                can_be_left_out: true,
            };
            config.inputs.iter().enumerate().map(key).collect()
        } else {
            bind_inputs(config, &schema.arguments)?
        };
        if config.decoupled && !matches!(schema.returns.as_slice(), [only] if is_list(&only.kind)) {
            let kinds: Vec<_> = schema.returns.iter().map(|each| each.kind.as_str()).collect();
            return Err(Error::invalid(format!(
                "model '{}' is decoupled, so forward must return a list with an element for each response, not {}",
                config.name,
                kinds.join(", ")
            )));
        }
        Ok(Self { inputs, as_dictionary, outputs: bind_outputs(config, &schema.returns)? })
    }

    /// Where each configured output is among values with these names: by name if all are there, else by position.
    pub fn locate<'a>(&'a self, specs: &[TensorSpec], names: &'a [String]) -> impl Iterator<Item = Option<usize>> + 'a {
        let find = |spec: &TensorSpec| names.iter().position(|name| *name == *spec.name);
        let by_name: Option<Vec<usize>> =
            if names.iter().all(String::is_empty) { None } else { specs.iter().map(find).collect() };
        let positions = by_name.unwrap_or_else(|| self.outputs.clone());
        positions.into_iter().map(|position| (position < names.len()).then_some(position))
    }
}

fn bind_inputs(config: &ModelConfig, arguments: &[Argument]) -> Result<Vec<Bound>> {
    let count = config.inputs.len();
    let required = arguments.iter().filter(|argument| argument.fallback.is_none()).count();
    if count < required || count > arguments.len() {
        return Err(Error::invalid(format!(
            "unable to load model '{}', configuration expects {count} inputs, model provides {}",
            config.name,
            arguments.len()
        )));
    }
    let exact = |spec: &TensorSpec| arguments.iter().position(|argument| argument.name == *spec.name);
    let positions = all(&config.inputs, exact).or_else(|| all(&config.inputs, |spec| index_of(&spec.name)));
    let positions = positions.unwrap_or_else(|| {
        tracing::warn!(model = &*config.name, "input names are not forward's, their order is trusted");
        (0..count).collect()
    });
    let mut bound = vec![None; arguments.len()];
    for (input, &position) in positions.iter().enumerate() {
        let name = &config.inputs[input].name;
        let Some(place) = bound.get_mut(position) else {
            return Err(Error::invalid(format!(
                "The input {name} in the model configuration refers to an input index which doesn't exist. This model \
                 has {} inputs",
                arguments.len()
            )));
        };
        if let Some(other) = place.replace(input) {
            let other: usize = other;
            return Err(Error::invalid(format!(
                "inputs '{}' and '{name}' in the model configuration refer to the same argument '{}'",
                config.inputs[other].name, arguments[position].name
            )));
        }
        check_kind(config, &config.inputs[input], &arguments[position])?;
    }
    let each = bound.iter().zip(arguments).map_while(|(input, argument)| {
        let can_be_left_out = argument.fallback.is_some();
        input.map(|input| Bound { input, name: argument.name.clone(), can_be_left_out })
    });
    let given: Vec<Bound> = each.collect();
    if given.len() < count {
        return Err(Error::invalid(format!(
            "argument '{}' of forward has no input in the configuration of model '{}', but a later one has",
            arguments[given.len()].name,
            config.name
        )));
    }
    Ok(given)
}

fn bind_outputs(config: &ModelConfig, returns: &[Argument]) -> Result<Vec<usize>> {
    let named = |spec: &TensorSpec| returns.iter().position(|each| !each.name.is_empty() && each.name == *spec.name);
    let positions = all(&config.outputs, named)
        .or_else(|| all(&config.outputs, |spec| index_of(&spec.name)))
        .unwrap_or_else(|| (0..config.outputs.len()).collect());
    // How many values come out of a list or dictionary, only an execution tells.
    if returns.iter().all(|each| is_single(&each.kind)) {
        for (spec, &position) in config.outputs.iter().zip(&positions) {
            if position >= returns.len() {
                return Err(Error::invalid(format!(
                    "The output {} in the model configuration refers to an output index which doesn't exist. This model \
                     has {} outputs",
                    spec.name,
                    returns.len()
                )));
            }
        }
    }
    Ok(positions)
}

/// Whether a returned value of this type is one output, as far as its type tells.
pub fn is_single(kind: &str) -> bool {
    !is_list(kind) && !kind.starts_with("Dict[") && !kind.starts_with("Tuple[") || kind == STRINGS
}

fn is_list(kind: &str) -> bool {
    kind.starts_with("List[")
}

/// Whether a value of this type is a list of strings.
pub fn is_strings(kind: &str) -> bool {
    kind == STRINGS
}

/// Whether an argument of this type may be a tensor or nothing.
pub fn is_optional(kind: &str) -> bool {
    kind == OPTIONAL_TENSOR
}

/// Whether a value of this type is a dictionary.
pub fn is_dictionary(kind: &str) -> bool {
    kind.starts_with("Dict[")
}

fn check_kind(config: &ModelConfig, spec: &TensorSpec, argument: &Argument) -> Result<()> {
    let strings = is_strings(&argument.kind);
    if !strings && argument.kind != "Tensor" && argument.kind != OPTIONAL_TENSOR {
        return Err(Error::new(
            Kind::Internal,
            format!(
                "An input of type '{}' was detected in the model. Only a single input of type Dict(str, Tensor) or \
                 input(s) of type Tensor are supported.",
                argument.kind
            ),
        ));
    }
    if spec.optional && argument.fallback.is_none() && argument.kind != OPTIONAL_TENSOR {
        return Err(Error::invalid(format!(
            "unable to load model '{}', input '{}' is optional in the configuration, but argument '{}: {}' of forward has \
             no default and is not Optional[Tensor]",
            config.name, spec.name, argument.name, argument.kind
        )));
    }
    match spec.dtype {
        Some(dtype) if strings != (dtype == DataType::Bytes) => Err(kind_mismatch(config, spec, argument)),
        _ => Ok(()),
    }
}

fn kind_mismatch(config: &ModelConfig, spec: &TensorSpec, argument: &Argument) -> Error {
    let dtype = type_name(spec.dtype);
    Error::invalid(format!(
        "unable to load model '{}', configuration expects datatype {dtype} for input '{}', forward takes {}",
        config.name, spec.name, argument.kind
    ))
}

/// The configuration's spelling of an element type, such as `TYPE_FP32`.
pub fn type_name(dtype: Option<DataType>) -> String {
    match dtype {
        None => "TYPE_INVALID".to_owned(),
        Some(DataType::Bytes) => "TYPE_STRING".to_owned(),
        Some(other) => format!("TYPE_{other}"),
    }
}

fn all(specs: &[TensorSpec], find: impl Fn(&TensorSpec) -> Option<usize>) -> Option<Vec<usize>> {
    specs.iter().map(find).collect()
}

/// The index that a name ends with, as in `INPUT__1`.
fn index_of(name: &str) -> Option<usize> {
    let (_, index) = name.rsplit_once("__")?;
    index.parse().ok()
}
