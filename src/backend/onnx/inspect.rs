//! What a model file says about itself, for people.

use std::fmt::Write as _;
use std::path::Path;

use super::complete::complete;
use super::description::{Description, Outlet};
use super::{describe, runtime};
use crate::backend::completed::push_completed;
use crate::error::Result;
use crate::model::schema::ModelConfig;

/// A description of an ONNX file, and the configuration that the server gives it by itself.
///
/// # Errors
/// If ONNX Runtime or the file cannot be loaded.
pub fn inspect(path: &Path) -> Result<String> {
    let description = describe(&runtime::environment(None)?, path)?;
    Ok(text(&description))
}

fn text(description: &Description) -> String {
    let mut text = String::new();
    for (what, outlets) in [("inputs", &description.inputs), ("outputs", &description.outputs)] {
        let _ = writeln!(text, "{what}");
        for Outlet { name, kind, optional, .. } in outlets {
            let default = if *optional { ", which has a default" } else { "" };
            let _ = writeln!(text, "  {name}: {kind}{default}");
        }
    }
    let mut config = ModelConfig { name: "model".to_owned(), ..Default::default() };
    match complete(description, &mut config) {
        Ok(()) => push_config(&mut text, &config),
        Err(error) => {
            let _ = writeln!(text, "\nit cannot be served: {error}");
        }
    }
    text
}

fn push_config(text: &mut String, config: &ModelConfig) {
    let _ = writeln!(text, "\nconfig.pbtxt as the server completes it:\n\nbackend: \"onnxruntime\"");
    push_completed(text, config);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DataType, Shape};

    #[test]
    fn a_description_ends_with_the_configuration() {
        let outlet = |name: &str, dtype, dims: &[i64]| Outlet {
            name: name.to_owned(),
            dtype,
            dims: Shape::new(dims),
            optional: name == "W",
            kind: "KIND".to_owned(),
        };
        let inputs = vec![outlet("X", Some(DataType::Fp32), &[-1, 3]), outlet("W", Some(DataType::Fp32), &[3])];
        let mut description = Description { inputs, outputs: vec![outlet("Y", Some(DataType::Bytes), &[-1])] };
        let expected = "inputs\n  X: KIND\n  W: KIND, which has a default\noutputs\n  Y: KIND\n\n\
                        config.pbtxt as the server completes it:\n\nbackend: \"onnxruntime\"\nmax_batch_size: 4\n\
                        input { name: \"X\" data_type: TYPE_FP32 dims: [3] }\n\
                        output { name: \"Y\" data_type: TYPE_STRING dims: [1] reshape { shape: [] } }\n\
                        dynamic_batching { }\n";
        assert_eq!(text(&description), expected);
        description.outputs[0].dtype = None;
        assert!(
            text(&description).ends_with("it cannot be served: autofill failed for model 'model': 'Y' has type KIND\n")
        );
    }
}
