//! Makes model files from TorchScript source text and weights, without Python.
//!
//! ```no_run
//! use nereid::backend::libtorch::script::Script;
//! let source = "def forward(self, x):\n    return x + 1\n";
//! Script::new(source).save("model.pt".as_ref()).expect("it compiles");
//! ```
//!
//! The source holds methods only, as the body of a module class would; weights are attributes with flat names.

use std::path::Path;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};

use super::handle::Handle;
use super::module::Module;
use crate::error::{Error, Result};
use crate::tensor::{DataType, Tensor};

/// A module to be: its methods' source text and its weights.
#[derive(Clone, Debug)]
pub struct Script {
    source: String,
    weights: Vec<(String, Tensor, bool)>,
}

impl Script {
    /// A module with the methods of `source`, one of them `forward`.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), weights: Vec::new() }
    }

    /// Adds a weight, readable as `self.<name>`; dots in the name become underscores.
    #[must_use]
    pub fn parameter(mut self, name: &str, tensor: Tensor) -> Self {
        self.weights.push((attribute_name(name), tensor, false));
        self
    }

    /// Adds a buffer: a tensor that methods may write to, or that is not of floating point.
    #[must_use]
    pub fn buffer(mut self, name: &str, tensor: Tensor) -> Self {
        self.weights.push((attribute_name(name), tensor, true));
        self
    }

    /// Compiles the module.
    ///
    /// # Errors
    /// What the TorchScript compiler says, or a weight whose bytes do not fit its shape.
    fn compile(&self) -> Result<Module> {
        let mut module = Module::new("Model")?;
        for (name, tensor, buffer) in &self.weights {
            let expected = tensor.dtype.size().zip(tensor.shape.elements()).and_then(|(size, n)| n.checked_mul(size));
            if expected != Some(tensor.data.len()) {
                return Err(Error::invalid(format!(
                    "weight '{name}' of {} bytes is not {} of shape {}",
                    tensor.data.len(),
                    tensor.dtype,
                    tensor.shape
                )));
            }
            module.register(name, &Handle::over(tensor.dtype, &tensor.shape, &tensor.data)?, *buffer)?;
        }
        module.define(&self.source)?;
        Ok(module)
    }

    /// Compiles the module and writes it to `path`, in full or not at all.
    ///
    /// # Errors
    /// Those of [`Script::compile`], or a file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let module = self.compile()?;
        let partial = path.with_extension("pt.partial");
        module.save(&partial)?;
        std::fs::rename(&partial, path)
            .map_err(|error| Error::unavailable(format!("cannot write {}: {error}", path.display())))
    }
}

/// Compiles the source text in one file with the weights of another (safetensors), and writes a model file.
///
/// The source reads a weight as `self.<name>`, with underscores for the dots of its name; weights that it does not read
/// are left out. Weights that are not of floating point become buffers.
///
/// # Errors
/// A file that cannot be read or written, what the TorchScript compiler says, or a weight of a type that libtorch lacks.
pub fn build(source: &Path, weights: Option<&Path>, out: &Path) -> Result<()> {
    let unreadable =
        |path: &Path, error: &dyn std::fmt::Display| Error::invalid(format!("cannot read {}: {error}", path.display()));
    let text = std::fs::read_to_string(source).map_err(|error| unreadable(source, &error))?;
    let mut script = Script::new(text);
    if let Some(path) = weights {
        let file = Bytes::from(std::fs::read(path).map_err(|error| unreadable(path, &error))?);
        let tensors = SafeTensors::deserialize(&file).map_err(|error| unreadable(path, &error))?;
        for (name, view) in tensors.tensors() {
            if !reads(&script.source, &attribute_name(&name)) {
                continue;
            }
            let dtype = data_type(view.dtype())
                .ok_or_else(|| unreadable(path, &format_args!("'{name}' has type {:?}", view.dtype())))?;
            let shape = view.shape().iter().map(|&dim| dim as i64).collect::<Vec<_>>().into();
            let tensor = Tensor::new(dtype, shape, file.slice_ref(view.data()));
            let floating = matches!(dtype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64);
            script = if floating { script.parameter(&name, tensor) } else { script.buffer(&name, tensor) };
        }
    }
    script.save(out)
}

/// The attribute that a weight is read by: its name with underscores for dots.
pub fn attribute_name(weight: &str) -> String {
    weight.replace('.', "_")
}

/// Whether the source reads `self.<attribute>`.
fn reads(source: &str, attribute: &str) -> bool {
    let wanted = format!("self.{attribute}");
    source.match_indices(&wanted).any(|(at, _)| {
        let next = source[at + wanted.len()..].chars().next();
        !next.is_some_and(|next| next.is_alphanumeric() || next == '_')
    })
}

fn data_type(dtype: Dtype) -> Option<DataType> {
    Some(match dtype {
        Dtype::BOOL => DataType::Bool,
        Dtype::U8 => DataType::Uint8,
        Dtype::I8 => DataType::Int8,
        Dtype::I16 => DataType::Int16,
        Dtype::U16 => DataType::Uint16,
        Dtype::F16 => DataType::Fp16,
        Dtype::BF16 => DataType::Bf16,
        Dtype::I32 => DataType::Int32,
        Dtype::U32 => DataType::Uint32,
        Dtype::F32 => DataType::Fp32,
        Dtype::F64 => DataType::Fp64,
        Dtype::I64 => DataType::Int64,
        Dtype::U64 => DataType::Uint64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_that_is_only_part_of_another_name_is_not_read() {
        let source = "def forward(self, x):\n    return x + self.layer_1_weight\n";
        assert!(reads(source, "layer_1_weight"));
        assert!(!reads(source, "layer_1"));
    }

    #[test]
    fn the_weights_that_the_source_reads_come_from_safetensors() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("m.py"), "def forward(self, x):\n    return x + self.a_b\n").expect("writable");
        let one = 1_f32.to_le_bytes();
        let weight = || safetensors::tensor::TensorView::new(Dtype::F32, vec![1], &one).expect("four bytes");
        let file = safetensors::serialize([("a.b", weight()), ("unused", weight())], &None).expect("two weights");
        std::fs::write(path("m.safetensors"), file).expect("writable");
        build(&path("m.py"), Some(&path("m.safetensors")), &path("m.pt")).expect("it compiles");
        let weights = Module::load(&path("m.pt"), crate::model::Device::Cpu).and_then(|module| module.weights());
        let names: Vec<_> = weights.expect("it loads").into_iter().map(|weight| weight.name).collect();
        assert_eq!(names, ["a_b"]);
    }

    #[test]
    fn a_weight_of_the_wrong_size_is_refused() {
        let tensor = Tensor::new(DataType::Fp32, crate::tensor::Shape::new(&[2]), Bytes::from_static(&[0; 4]));
        let error = Script::new("def forward(self):\n    return self.w\n").parameter("w", tensor).compile();
        let message = error.err().map(|error| error.message().to_owned());
        assert_eq!(message.as_deref(), Some("weight 'w' of 4 bytes is not FP32 of shape [2]"));
    }
}
