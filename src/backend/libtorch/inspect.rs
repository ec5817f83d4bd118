//! What a model file says about itself: for people, and for a configuration that leaves things out.

use std::fmt::Write as _;
use std::path::Path;

use super::binding;
use super::model::weight_bytes;
use super::module::{Argument, Module, Schema, Weight};
use crate::error::{Error, Result};
use crate::model::{Device, schema};

/// Fills names and arity of inputs and outputs from `forward`'s schema. Types and dimensions stay open where the schema
/// does not tell.
pub fn complete(schema: &Schema, config: &mut schema::ModelConfig) -> Result<()> {
    let unknown = |what: &str, kind: &str| {
        let message = format!("the configuration of model '{}' must list its {what}: forward has {kind}", config.name);
        Err(Error::invalid(message))
    };
    if config.input.is_empty() {
        let inputs = schema.arguments.iter().filter(|argument| is_input(argument));
        if let Some(dictionary) = inputs.clone().find(|argument| binding::is_dictionary(&argument.kind)) {
            return unknown("inputs", &dictionary.kind);
        }
        let inputs = inputs.map(|argument| schema::ModelInput {
            name: argument.name.clone(),
            data_type: data_type(argument).into(),
            dims: dims(argument),
            optional: binding::is_optional(&argument.kind),
            ..Default::default()
        });
        config.input = inputs.collect();
    }
    if config.output.is_empty() {
        if let Some(container) = schema.returns.iter().find(|returned| !binding::is_single(&returned.kind)) {
            return unknown("outputs", &container.kind);
        }
        let outputs = schema.returns.iter().enumerate().map(|(index, returned)| schema::ModelOutput {
            name: output_name(index, returned),
            data_type: data_type(returned).into(),
            dims: dims(returned),
            ..Default::default()
        });
        config.output = outputs.collect();
    }
    Ok(())
}

/// Whether an argument is an input where the configuration does not say: not one that has a default and is no tensor.
fn is_input(argument: &Argument) -> bool {
    argument.fallback.is_none() || binding::is_optional(&argument.kind)
}

fn output_name(index: usize, returned: &Argument) -> String {
    if returned.name.is_empty() { format!("OUTPUT__{index}") } else { returned.name.clone() }
}

fn data_type(argument: &Argument) -> schema::DataType {
    if binding::is_strings(&argument.kind) { schema::DataType::TypeString } else { schema::DataType::TypeInvalid }
}

fn dims(argument: &Argument) -> Vec<i64> {
    if binding::is_strings(&argument.kind) { vec![-1] } else { Vec::new() }
}

/// A description of a TorchScript file, and a configuration to start from.
///
/// # Errors
/// If libtorch or the file cannot be loaded.
pub fn inspect(path: &Path) -> Result<String> {
    let module = Module::load(path, Device::Cpu)?;
    let schema = module.schema()?;
    let weights = module.weights()?;
    let effects = module.effects()?;
    let mut text = String::new();
    let _ = writeln!(text, "forward takes");
    for argument in &schema.arguments {
        let fallback = argument.fallback.as_ref().map_or(String::new(), |fallback| format!(" = {fallback}"));
        let _ = writeln!(text, "  {}: {}{fallback}", argument.name, argument.kind);
    }
    let _ = writeln!(text, "forward returns");
    for (index, returned) in schema.returns.iter().enumerate() {
        let _ = writeln!(text, "  {}: {}", output_name(index, returned), returned.kind);
    }
    describe_weights(&mut text, "parameters", weights.iter().filter(|weight| !weight.buffer));
    describe_weights(&mut text, "buffers", weights.iter().filter(|weight| weight.buffer));
    let _ = writeln!(text, "memory: {} bytes on each device, shared by all instances there", weight_bytes(&module)?);
    if effects.inputs {
        let _ = writeln!(text, "forward may write into its inputs: each request's tensors are copied first");
    }
    if effects.state {
        let _ = writeln!(text, "forward may write into the module: each instance has a copy of its own");
    }
    let _ = write!(text, "\nconfig.pbtxt to start from:\n\n{}", starting_point(path, &schema));
    Ok(text)
}

fn describe_weights<'a>(text: &mut String, what: &str, weights: impl Iterator<Item = &'a Weight>) {
    let (mut count, mut bytes) = (0, 0);
    let mut types: Vec<String> = Vec::new();
    for weight in weights {
        count += 1;
        bytes += weight.bytes;
        let name = binding::type_name(weight.dtype);
        if !types.contains(&name) {
            types.push(name);
        }
    }
    let types = if types.is_empty() { String::new() } else { format!(" ({})", types.join(", ")) };
    let _ = writeln!(text, "{what}: {count}, {bytes} bytes{types}");
}

/// A `config.pbtxt` with what the file tells, and comments where only its author knows.
fn starting_point(path: &Path, schema: &Schema) -> String {
    let mut text = String::from("backend: \"pytorch\"\n");
    match path.file_name().and_then(|name| name.to_str()) {
        Some("model.pt") | None => {}
        Some(name) => {
            let _ = writeln!(text, "default_model_filename: \"{name}\"");
        }
    }
    text.push_str("# With a batch dimension in front of every dims below, the most rows of one execution; else 0.\n");
    text.push_str("max_batch_size: 0\n");
    for argument in schema.arguments.iter().filter(|argument| is_input(argument)) {
        let dictionary = binding::is_dictionary(&argument.kind);
        let name = if dictionary { "<key>" } else { &argument.name };
        let note = match (dictionary, binding::is_optional(&argument.kind)) {
            (true, _) => "  # one entry for each key\n",
            (false, true) => "  optional: true\n",
            (false, false) => "",
        };
        push_tensor(&mut text, "input", name, argument, note);
    }
    for (index, returned) in schema.returns.iter().enumerate() {
        let container = !binding::is_single(&returned.kind);
        let note = if container { "  # one entry for each element\n" } else { "" };
        push_tensor(&mut text, "output", &output_name(index, returned), returned, note);
    }
    text
}

fn push_tensor(text: &mut String, field: &str, name: &str, argument: &Argument, note: &str) {
    let (dtype, dims, remark) = match binding::is_strings(&argument.kind) {
        true => ("TYPE_STRING", "[ -1 ]", ""),
        false => ("TYPE_FP32", "[ -1 ]", "  # type and dims are guesses: the file does not tell\n"),
    };
    let _ = writeln!(text, "{field} {{\n{note}{remark}  name: \"{name}\"\n  data_type: {dtype}\n  dims: {dims}\n}}");
}
