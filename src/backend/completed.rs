//! A configuration that a backend has completed, as text for people.

use std::fmt::Write as _;

use crate::model::schema::ModelConfig;

/// Appends the rows, tensors and batching of a configuration as `config.pbtxt` spells them.
pub fn push_completed(text: &mut String, config: &ModelConfig) {
    let _ = writeln!(text, "max_batch_size: {}", config.max_batch_size);
    let inputs = config.input.iter().map(|each| ("input", &each.name, each.data_type(), &each.dims, &each.reshape));
    let outputs = config.output.iter().map(|each| ("output", &each.name, each.data_type(), &each.dims, &each.reshape));
    for (field, name, data_type, dims, reshape) in inputs.chain(outputs) {
        let reshape = if reshape.is_some() { " reshape { shape: [] }" } else { "" };
        let data_type = data_type.as_str_name();
        let _ = writeln!(text, "{field} {{ name: \"{name}\" data_type: {data_type} dims: {dims:?}{reshape} }}");
    }
    if config.scheduling_choice.is_some() {
        text.push_str("dynamic_batching { }\n");
    }
}
