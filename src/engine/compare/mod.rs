//! How far a model's outputs in its configured precision are from those in full: what `nereid inspect --compare` says.
//!
//! Opens the newest version twice and lets both run the same samples. Begin with [`compare`].

mod difference;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::difference::Difference;
use super::warmup;
use crate::backend::{Backend, Replies, libtorch};
use crate::error::{Error, Result};
use crate::model::{Device, ModelConfig, Version, VersionFiles};
use crate::repository::{self, Facts, Source};
use crate::tensor::{Batch, Tensor};

/// How two forms of a model differ on its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    model: String,
    version: Version,
    precision: String,
    samples: usize,
    /// The outputs in the order of the configuration, by name.
    outputs: Vec<(String, Difference)>,
}

/// Compares the model in `directory` as configured with itself in full precision. Blocking: loads it twice.
///
/// # Errors
/// If it cannot be loaded or run, or there is nothing to run it with.
pub fn compare(directory: &Path, backends: &[Arc<dyn Backend>], facts: &Facts) -> Result<Comparison> {
    let (config, version, files) = read(directory, backends, facts)?;
    let backend = backend(backends, &config.backend)?;
    if !backend.parameter_keys().contains(&libtorch::PRECISION) {
        return Err(Error::invalid(format!("backend '{}' computes in one precision only", config.backend)));
    }
    let samples = warmup::samples(&config)?;
    if samples.is_empty() {
        let why = "the types or shapes of its inputs are not known; give it samples by 'model_warmup'";
        return Err(Error::invalid(format!("model '{}' cannot be compared: {why}", config.name)));
    }
    let mut full = config.clone();
    let precision = full.parameters.insert(libtorch::PRECISION.to_owned(), "fp32".to_owned());
    // One after the other, so that both need not fit into memory.
    let expected = outputs(&*backend, &files, &full, &samples)?;
    let found = outputs(&*backend, &files, &config, &samples)?;
    let mut differences = vec![Difference::default(); config.outputs.len()];
    if expected.len() != found.len() {
        return Err(Error::internal("the two give different numbers of responses"));
    }
    for (expected, found) in expected.iter().zip(&found) {
        for ((expected, found), difference) in expected.iter().zip(found).zip(&mut differences) {
            difference.add(expected, found);
        }
    }
    let names = config.outputs.iter().map(|output| output.name.to_string());
    Ok(Comparison {
        model: config.name.to_string(),
        version,
        precision: precision.unwrap_or_else(|| "fp32".to_owned()),
        samples: samples.len(),
        outputs: names.zip(differences).collect(),
    })
}

/// The model's configuration and its newest version.
fn read(
    directory: &Path,
    backends: &[Arc<dyn Backend>],
    facts: &Facts,
) -> Result<(ModelConfig, Version, VersionFiles)> {
    let unreadable = |error| Error::invalid(format!("cannot read '{}': {error}", directory.display()));
    let directory = directory.canonicalize().map_err(unreadable)?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let found = repository::look(&name, &directory, &mut Vec::new()).map_err(unreadable)?;
    let mut written = repository::read(&found, Source::File, facts)?;
    let none = || Error::invalid(format!("model '{name}' has no version"));
    let version = written.versions(&found.versions)?.versions.last().copied().ok_or_else(none)?;
    let files = written.files(version, facts)?;
    if !written.is_ensemble() {
        backend(backends, &written.schema.backend)?.complete(&files, &mut written.schema)?;
    }
    Ok((written.finish(facts)?.config, version, files))
}

fn backend(backends: &[Arc<dyn Backend>], name: &str) -> Result<Arc<dyn Backend>> {
    let found = backends.iter().find(|backend| backend.name() == name);
    found.cloned().ok_or_else(|| Error::invalid(format!("there is no backend '{name}' to compare with itself")))
}

/// All responses to the samples, in order, with what the model file gives besides at their ends.
fn outputs(
    backend: &dyn Backend,
    files: &VersionFiles,
    config: &ModelConfig,
    samples: &[Batch],
) -> Result<Vec<Vec<Tensor>>> {
    let device = config.instances.first().map_or(Device::Cpu, |group| group.device);
    let mut instance = backend.open(files, &config.of_file())?.instance(device)?;
    let mut collected = Collected(Vec::new());
    samples.iter().try_for_each(|batch| instance.run(batch, &mut collected))?;
    Ok(collected.0)
}

/// Takes what an instance gives, as it comes.
struct Collected(Vec<Vec<Tensor>>);

impl Replies for Collected {
    fn inputs_ready(&mut self) {}

    fn outputs_ready(&mut self) {}

    fn batch(&mut self, outputs: Vec<Tensor>) -> Result<()> {
        self.0.push(outputs);
        Ok(())
    }

    fn member(&mut self, _index: usize, outputs: Vec<Tensor>) -> Result<()> {
        self.batch(outputs)
    }

    fn send(&mut self, _index: usize, outputs: Vec<Tensor>) -> Result<()> {
        self.batch(outputs)
    }

    fn pause(&mut self, _index: usize, _time: Duration) -> Result<()> {
        Ok(())
    }
}

impl fmt::Display for Comparison {
    /// A line of what was compared, and one for each output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, version, precision, samples, outputs } = self;
        writeln!(f, "{model} version {version}: {precision} against fp32, on {samples} samples")?;
        let widest = outputs.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("output".len());
        writeln!(
            f,
            "{:widest$}  {:>12}  {:>12}  {:>12}  {:>12}",
            "output", "abs. max", "abs. mean", "rel. max", "rel. mean"
        )?;
        outputs.iter().try_for_each(|(name, difference)| writeln!(f, "{name:widest$}  {difference}"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::backend::identity::Identity;
    use crate::backend::libtorch::LibTorch;
    use crate::backend::libtorch::script::Script;
    use crate::engine;
    use crate::repository::CudaDevices;
    use crate::tensor::{DataType, Shape};

    const CONFIG: &str = "backend: \"pytorch\"\nmax_batch_size: 4\n\
        input { name: \"x\" data_type: TYPE_FP32 dims: [ 8 ] }\n\
        output [ { name: \"y\" data_type: TYPE_FP32 dims: [ 2 ] }, { name: \"x\" data_type: TYPE_FP32 dims: [ 8 ] } ]\n";

    const SOURCE: &str = "def forward(self, x):\n    return torch.matmul(x, self.w), x\n";

    fn folder(config: &str, source: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("there is room");
        let model = root.path().join("m");
        std::fs::create_dir_all(model.join("3")).expect("the folder is writable");
        std::fs::write(model.join("config.pbtxt"), config).expect("the folder is writable");
        let weights: Vec<u8> = (0..16).flat_map(|index| (index as f32 / 7.0).to_le_bytes()).collect();
        let weights = Tensor::new(DataType::Fp32, Shape::new(&[8, 2]), weights.into());
        let script = Script::new(source).parameter("w", weights);
        script.save(&model.join("3/model.pt")).expect("it compiles");
        (root, model)
    }

    fn compared(config: &str) -> Result<Comparison> {
        compared_of(config, SOURCE)
    }

    fn compared_of(config: &str, source: &str) -> Result<Comparison> {
        let (_root, model) = folder(config, source);
        let backends: Vec<Arc<dyn Backend>> = vec![Arc::new(LibTorch::default()), Arc::new(Identity)];
        compare(&model, &backends, &engine::facts(&backends, CudaDevices::default(), 1))
    }

    fn with_precision(precision: &str) -> String {
        format!("{CONFIG}parameters {{ key: \"torch.precision\" value {{ string_value: \"{precision}\" }} }}\n")
    }

    #[test]
    fn each_output_has_its_error_against_full_precision() {
        for (precision, error_max) in [("bf16", 0.02), ("fp16", 0.002), ("int8", 0.02)] {
            let compared = compared(&with_precision(precision)).expect("both run");
            let [(name, product), (_, input)] = compared.outputs.as_slice() else { panic!("two outputs") };
            assert_eq!((name.as_str(), compared.version, compared.samples), ("y", 3, 1));
            let relative = product.relative_max();
            assert!(relative > 0.0 && relative < error_max, "{compared}");
            assert!((precision == "int8") == (input.relative_max() == 0.0), "{compared}");
        }
    }

    #[test]
    fn full_precision_does_not_differ_from_itself() {
        let compared = compared(CONFIG).expect("it runs");
        assert_eq!(compared.outputs[0].1.relative_max(), 0.0);
        let text = compared.to_string();
        assert!(text.starts_with("m version 3: fp32 against fp32, on 1 samples\noutput "), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
    }

    #[test]
    fn a_model_of_sequences_is_given_its_controls_and_states() {
        let config = "backend: \"pytorch\"\nmax_batch_size: 4\n\
            input { name: \"x\" data_type: TYPE_FP32 dims: [ 8 ] }\noutput { name: \"y\" data_type: TYPE_FP32 dims: [ 2 ] }\n\
            sequence_batching { control_input { name: \"start\" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } } \
            state { input_name: \"before\" output_name: \"after\" data_type: TYPE_FP32 dims: [ 2 ] } }\n\
            parameters { key: \"torch.precision\" value { string_value: \"bf16\" } }\n";
        let source = "def forward(self, x, start, before):\n    \
            y = torch.matmul(x, self.w) + start + before\n    return y, y\n";
        let compared = compared_of(config, source).expect("both run");
        assert_eq!(compared.outputs.len(), 1, "what callers do not see is not compared");
        assert!(compared.outputs[0].1.relative_max() > 0.0, "{compared}");
    }

    #[test]
    fn what_cannot_be_compared_says_why() {
        let error = compared(&CONFIG.replace("pytorch", "identity")).expect_err("identity has no precision");
        assert_eq!(error.message(), "backend 'identity' computes in one precision only");
        let unknown = CONFIG.replace("dims: [ 8 ] }\noutput", "dims: [ -1 ] }\noutput");
        let error = compared(&unknown).expect_err("16 columns do not fit 8 rows");
        assert!(error.message().contains("cannot be multiplied"), "{error}");
    }
}
