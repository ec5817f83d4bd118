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

use super::handle::{Handle, Module};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

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
    pub fn compile(&self) -> Result<Module> {
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

/// The attribute that a weight is read by: its name with underscores for dots.
pub fn attribute_name(weight: &str) -> String {
    weight.replace('.', "_")
}
