//! What a package says about itself, for people.

use std::fmt::Write as _;
use std::path::Path;

use super::archive::Archive;
use super::complete::complete;
use super::description::Description;
use crate::backend::completed::push_completed;
use crate::error::Result;
use crate::model::schema::ModelConfig;

/// A description of a package, and the configuration that the server gives it by itself. Runs nothing of it.
///
/// # Errors
/// If the file cannot be read, or does not describe itself.
pub fn inspect(path: &Path) -> Result<String> {
    text(&Description::read(&Archive::open(path)?.metadata()?)?)
}

fn text(package: &Description) -> Result<String> {
    let mut text = String::new();
    for (what, outlets) in [("inputs", &package.inputs), ("outputs", &package.outputs)] {
        let _ = writeln!(text, "{what}");
        for outlet in outlets {
            let _ = writeln!(text, "  {} ({}): {} {}", outlet.name, outlet.path, outlet.dtype, package.shape(outlet));
        }
    }
    let Description { torch, device, instructions, .. } = package;
    let _ = writeln!(text, "built by torch {torch} for {device} with {instructions}");
    let mut config = ModelConfig::default();
    complete(package, &mut config)?;
    text.push_str(
        "\nconfig.pbtxt as the server completes it; the server needs --allow-aoti, for a package is native code:\n\n",
    );
    let _ = writeln!(text, "platform: \"{}\"", super::PLATFORM);
    push_completed(&mut text, &config);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::description::tests::encoder;
    use super::*;

    #[test]
    fn a_description_ends_with_the_configuration() {
        let expected = "inputs\n  ids (ARGS[0]): INT64 [batch from 1 to 16, length from 2 to 128]\n  \
                        mask (KWARGS[mask]): FP32 [batch from 1 to 16, length from 2 to 128, 3]\noutputs\n  \
                        OUTPUT__0 (RESULT): FP32 [batch from 1 to 16, ?, 4]\n\
                        built by torch 2.11.0 for cpu with INVALID_VEC_ISA\n\n\
                        config.pbtxt as the server completes it; the server needs --allow-aoti, for a package is native \
                        code:\n\nplatform: \"torch_aoti\"\nmax_batch_size: 8\n\
                        input { name: \"ids\" data_type: TYPE_INT64 dims: [-1] }\n\
                        input { name: \"mask\" data_type: TYPE_FP32 dims: [-1, 3] }\n\
                        output { name: \"OUTPUT__0\" data_type: TYPE_FP32 dims: [-1, 4] }\ndynamic_batching { }\n";
        assert_eq!(text(&encoder()).expect("it is right"), expected);
    }
}
