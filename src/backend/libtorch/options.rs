//! The backend's `parameters{}`, checked and meant.
//!
//! | key | value | effect |
//! |---|---|---|
//! | `torch.optimize` | `auto` (default), `off`, `freeze`, `full` | see [`Optimize`] |
//! | `torch.precision` | `fp32` (default), `bf16`, `fp16`, `int8` | see [`Precision`] |
//! | `INTRA_OP_THREAD_COUNT` | integer ≥ 1 | cores for one operation of each instance; default: a fair share |
//! | `INFERENCE_MODE` | boolean, default true | false: run without gradients, but with their bookkeeping |
//! | `DISABLE_OPTIMIZED_EXECUTION` | boolean, default false | run the graph as it is written |
//! | `ENABLE_CACHE_CLEANING` | boolean, default false | empty the CUDA allocator's cache after each execution |
//! | `ENABLE_WEIGHT_SHARING` | boolean | accepted; instances share their weights in any case |
//!
//! The remaining keys of the reference server set things for the whole process there; they are accepted and ignored
//! with a warning, because models with different values would disturb each other.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::model::schema;
use crate::tensor::DataType;

const OPTIMIZE: &str = "torch.optimize";
/// The key of [`Precision`].
pub const PRECISION: &str = "torch.precision";
const THREADS: &str = "INTRA_OP_THREAD_COUNT";
const INFERENCE_MODE: &str = "INFERENCE_MODE";
const UNOPTIMIZED: &str = "DISABLE_OPTIMIZED_EXECUTION";
const CACHE_CLEANING: &str = "ENABLE_CACHE_CLEANING";
const WEIGHT_SHARING: &str = "ENABLE_WEIGHT_SHARING";
const IGNORED_BOOLEANS: [&str; 4] =
    ["DISABLE_CUDNN", "ENABLE_TENSOR_FUSER", "ENABLE_JIT_PROFILING", "ENABLE_JIT_EXECUTOR"];
const IGNORED_COUNT: &str = "INTER_OP_THREAD_COUNT";

/// Every key that means something to this backend.
pub const KEYS: &[&str] = &[
    OPTIMIZE,
    PRECISION,
    THREADS,
    INFERENCE_MODE,
    UNOPTIMIZED,
    CACHE_CLEANING,
    WEIGHT_SHARING,
    IGNORED_BOOLEANS[0],
    IGNORED_BOOLEANS[1],
    IGNORED_BOOLEANS[2],
    IGNORED_BOOLEANS[3],
    IGNORED_COUNT,
];

/// What is done to a module's graph when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Optimize {
    /// `Full`, if on sample inputs it is measurably faster and gives the same numbers; else nothing.
    Auto,
    /// Nothing.
    Off,
    /// Weights become constants of the graph, unused code goes.
    Freeze,
    /// As `Freeze`; then operations are fused and weights laid out for the processor.
    Full,
}

/// What a model computes with. Its inputs and outputs have the types of its configuration in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// What its file says.
    AsSaved,
    /// All floating point becomes bfloat16.
    Bf16,
    /// All floating point becomes that of 16 bits.
    Fp16,
    /// Linear layers have weights of 8 bits, and take their inputs in 7, scaled anew in each execution; for the host only.
    Int8,
}

impl Precision {
    /// The type that weights and inputs of floating point are converted to.
    pub fn float_type(self) -> Option<DataType> {
        match self {
            Self::AsSaved | Self::Int8 => None,
            Self::Bf16 => Some(DataType::Bf16),
            Self::Fp16 => Some(DataType::Fp16),
        }
    }

    /// Its word in configurations.
    pub fn word(self) -> &'static str {
        match self {
            Self::AsSaved => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::AsSaved, Self::Bf16, Self::Fp16, Self::Int8].into_iter().find(|each| each.word() == word)
    }
}

/// The parameters of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is done to the graph.
    pub optimize: Optimize,
    /// What it computes with.
    pub precision: Precision,
    /// Cores for one operation; `None` for a fair share.
    pub threads: Option<usize>,
    /// Run in inference mode.
    pub inference_mode: bool,
    /// Let the graph executor optimise.
    pub optimized_executor: bool,
    /// Empty the CUDA allocator's cache after each execution.
    pub cache_cleaning: bool,
}

impl Options {
    /// The options that `parameters` ask for.
    ///
    /// # Errors
    /// The first value that is wrong.
    pub fn parse(parameters: &BTreeMap<String, String>) -> Result<Self> {
        let get = |key: &str| parameters.get(key).map(String::as_str);
        if let Some((key, message)) = mistakes(get).into_iter().next() {
            return Err(Error::invalid(format!("parameter '{key}': {message}")));
        }
        let flag = |key: &str, default: bool| get(key).map_or(default, |value| boolean(value) == Some(true));
        let optimized_executor = !flag(UNOPTIMIZED, false);
        Ok(Self {
            // libtorch's own optimisations do not run without its graph executor.
            optimize: if optimized_executor {
                get(OPTIMIZE).and_then(optimize).unwrap_or(Optimize::Auto)
            } else {
                Optimize::Off
            },
            precision: get(PRECISION).and_then(Precision::of).unwrap_or(Precision::AsSaved),
            threads: get(THREADS).and_then(count),
            inference_mode: flag(INFERENCE_MODE, true),
            optimized_executor,
            cache_cleaning: flag(CACHE_CLEANING, false),
        })
    }
}

/// What is wrong with the values: a message for each key.
pub fn check(config: &schema::ModelConfig) -> Vec<(String, String)> {
    mistakes(|key| config.parameters.get(key).map(|value| value.string_value.as_str()))
}

/// The keys that are set but have no effect, for a warning.
pub fn without_effect(parameters: &BTreeMap<String, String>) -> Vec<&'static str> {
    let mut keys: Vec<_> = IGNORED_BOOLEANS.into_iter().filter(|key| parameters.contains_key(*key)).collect();
    keys.extend(parameters.contains_key(IGNORED_COUNT).then_some(IGNORED_COUNT));
    let unshared = parameters.get(WEIGHT_SHARING).is_some_and(|value| boolean(value) == Some(false));
    keys.extend(unshared.then_some(WEIGHT_SHARING));
    keys
}

fn mistakes<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut expect = |key: &str, fits: fn(&str) -> bool, expected: &str| {
        if let Some(value) = get(key).filter(|value| !fits(value)) {
            mistakes.push((key.to_owned(), format!("expected {expected}, got '{value}'")));
        }
    };
    expect(OPTIMIZE, |value| optimize(value).is_some(), "auto, off, freeze or full");
    expect(PRECISION, |value| Precision::of(value).is_some(), "fp32, bf16, fp16 or int8");
    for key in [THREADS, IGNORED_COUNT] {
        expect(key, |value| count(value).is_some(), "an integer from 1 to 1024");
    }
    for key in [INFERENCE_MODE, UNOPTIMIZED, CACHE_CLEANING, WEIGHT_SHARING].into_iter().chain(IGNORED_BOOLEANS) {
        expect(key, |value| boolean(value).is_some(), "true or false");
    }
    mistakes
}

fn optimize(text: &str) -> Option<Optimize> {
    match text {
        "auto" => Some(Optimize::Auto),
        "off" => Some(Optimize::Off),
        "freeze" => Some(Optimize::Freeze),
        "full" => Some(Optimize::Full),
        _ => None,
    }
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|count| (1..=1024).contains(count))
}

/// The spellings that the reference server takes.
fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Some(true),
        "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_wrong_value_is_reported_with_its_key() {
        let wrong =
            parameters(&[("torch.optimize", "fast"), ("torch.precision", "fp8"), ("INTRA_OP_THREAD_COUNT", "0")]);
        let found = mistakes(|key| wrong.get(key).map(String::as_str));
        let keys: Vec<_> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["torch.optimize", "torch.precision", "INTRA_OP_THREAD_COUNT"]);
        assert_eq!(found[0].1, "expected auto, off, freeze or full, got 'fast'");
    }

    #[test]
    fn without_the_graph_executor_nothing_is_optimized() {
        let options = Options::parse(&parameters(&[("DISABLE_OPTIMIZED_EXECUTION", "1"), ("torch.optimize", "full")]));
        assert_eq!(options.expect("both are well formed").optimize, Optimize::Off);
    }

    #[test]
    fn keys_without_effect_are_named() {
        let set =
            parameters(&[("ENABLE_WEIGHT_SHARING", "false"), ("DISABLE_CUDNN", "true"), ("INFERENCE_MODE", "true")]);
        assert_eq!(without_effect(&set), ["DISABLE_CUDNN", "ENABLE_WEIGHT_SHARING"]);
    }
}
