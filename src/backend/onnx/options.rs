//! The backend's `parameters{}` and the level of graph optimisation, checked and meant.
//!
//! The keys are those of the reference server's onnxruntime backend, as its README lists them.
//!
//! | key | value | effect |
//! |---|---|---|
//! | `intra_op_thread_count` | integer ≥ 0 | threads for one operation, among all instances; 0 or none: see [`threads`] |
//! | `inter_op_thread_count` | integer ≥ 0 | threads for operations side by side where `execution_mode` is 1; 0 for ORT's choice |
//! | `execution_mode` | 0 (default) or 1 | 1: branches of the graph run side by side |
//! | `enable_mem_arena` | 0 or 1 (default) | keep memory between executions |
//! | `enable_mem_pattern` | 0 or 1 (default) | plan memory by what equal shapes took before |
//! | `memory.enable_memory_arena_shrinkage` | `cpu:0` | give unused memory back after each execution |
//! | `session.use_device_allocator_for_initializers` | 0 (default) or 1 | weights outside the arena |
//! | `session.intra_op.allow_spinning` | 0 (default) or 1 | threads wait for work by spinning, which takes cores from others |
//! | `session.inter_op.allow_spinning` | 0 or 1, by default as for `intra_op` | the same for operations side by side |
//! | `share_session_between_instances` | boolean | accepted; instances share their session in any case |
//!
//! The keys for CUDA are accepted and ignored with a warning: the library runs on the host's processors only.
//! `optimization { graph { level } }` is as there: -1 for basic optimisations, 1 for extended ones, 2 for none, else all.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::model::schema;

const INTRA_THREADS: &str = "intra_op_thread_count";
const INTER_THREADS: &str = "inter_op_thread_count";
const EXECUTION_MODE: &str = "execution_mode";
const ARENA: &str = "enable_mem_arena";
const PATTERN: &str = "enable_mem_pattern";
const SHRINKAGE: &str = "memory.enable_memory_arena_shrinkage";
const WEIGHTS_OUTSIDE: &str = "session.use_device_allocator_for_initializers";
const SPINNING: &str = "session.intra_op.allow_spinning";
const SPINNING_BESIDE: &str = "session.inter_op.allow_spinning";
const SHARING: &str = "share_session_between_instances";
const FOR_CUDA: [&str; 4] =
    ["cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream"];
/// More threads than this are a mistake.
const THREADS_MAX: usize = 1024;

/// Every key that means something to this backend.
pub const KEYS: &[&str] = &[
    INTRA_THREADS,
    INTER_THREADS,
    EXECUTION_MODE,
    ARENA,
    PATTERN,
    SHRINKAGE,
    WEIGHTS_OUTSIDE,
    SPINNING,
    SPINNING_BESIDE,
    SHARING,
    FOR_CUDA[0],
    FOR_CUDA[1],
    FOR_CUDA[2],
    FOR_CUDA[3],
];

/// What is done to the graph when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    None,
    /// What keeps the meaning of each operation.
    Basic,
    /// As `Basic`, and operations are fused.
    Extended,
    /// As `Extended`, and data are laid out for the processor.
    All,
}

impl Level {
    /// The level of this number in a configuration.
    pub fn of(number: i32) -> Self {
        match number {
            -1 => Self::Basic,
            1 => Self::Extended,
            2 => Self::None,
            _ => Self::All,
        }
    }
}

/// The parameters of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads for one operation; `None` for as many as fit.
    pub intra_threads: Option<usize>,
    /// Threads for operations side by side, `Some(0)` for ORT's choice; `None` to run one after the other.
    pub inter_threads: Option<usize>,
    /// Keep memory between executions.
    pub arena: bool,
    /// Plan memory by what equal shapes took before.
    pub pattern: bool,
    /// Give unused memory back after each execution.
    pub shrinks: bool,
    /// Keep weights outside the arena.
    pub weights_outside: bool,
    /// Let threads spin while they wait for work.
    pub spins: bool,
    /// The same for threads of operations side by side.
    pub spins_beside: bool,
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
        let flag = |key: &str, default: bool| get(key).and_then(boolean).unwrap_or(default);
        let spins = flag(SPINNING, false);
        let side_by_side = flag(EXECUTION_MODE, false);
        Ok(Self {
            intra_threads: get(INTRA_THREADS).and_then(count).filter(|count| *count > 0),
            inter_threads: side_by_side.then(|| get(INTER_THREADS).and_then(count).unwrap_or(0)),
            arena: flag(ARENA, true),
            pattern: flag(PATTERN, true),
            shrinks: get(SHRINKAGE).is_some(),
            weights_outside: flag(WEIGHTS_OUTSIDE, false),
            spins,
            spins_beside: flag(SPINNING_BESIDE, spins),
        })
    }
}

/// What is wrong with the values: a message for each key.
pub fn check(config: &schema::ModelConfig) -> Vec<(String, String)> {
    mistakes(|key| config.parameters.get(key).map(|value| value.string_value.as_str()))
}

/// The keys that are set but have no effect, for a warning.
pub fn without_effect(parameters: &BTreeMap<String, String>) -> Vec<&'static str> {
    let mut keys: Vec<_> = FOR_CUDA.into_iter().filter(|key| parameters.contains_key(*key)).collect();
    let unshared = parameters.get(SHARING).is_some_and(|value| boolean(value) == Some(false));
    keys.extend(unshared.then_some(SHARING));
    keys
}

/// Threads for one operation where the configuration does not say.
///
/// A session has one pool of threads for all instances, and an instance's own thread works, too: so many that all
/// instances and the pool together are one thread for each core, and at least the instance's own.
pub fn threads(cores: usize, instances: usize) -> usize {
    (cores + 1).saturating_sub(instances).max(1)
}

fn mistakes<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    let mut expect = |key: &str, fits: fn(&str) -> bool, expected: &str| {
        if let Some(value) = get(key).filter(|value| !fits(value)) {
            mistakes.push((key.to_owned(), format!("expected {expected}, got '{value}'")));
        }
    };
    for key in [INTRA_THREADS, INTER_THREADS] {
        expect(key, |value| count(value).is_some(), "an integer from 0 to 1024");
    }
    for key in [EXECUTION_MODE, ARENA, PATTERN, WEIGHTS_OUTSIDE, SPINNING, SPINNING_BESIDE, SHARING] {
        expect(key, |value| boolean(value).is_some(), "0 or 1");
    }
    expect(SHRINKAGE, |value| value == "cpu:0", "cpu:0");
    mistakes
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|count| *count <= THREADS_MAX)
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_wrong_value_is_reported_with_its_key() {
        let wrong = parameters(&[
            ("intra_op_thread_count", "-1"),
            ("execution_mode", "2"),
            ("memory.enable_memory_arena_shrinkage", "gpu:0"),
        ]);
        let found = mistakes(|key| wrong.get(key).map(String::as_str));
        let keys: Vec<_> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["intra_op_thread_count", "execution_mode", "memory.enable_memory_arena_shrinkage"]);
        assert_eq!(found[1].1, "expected 0 or 1, got '2'");
        assert!(Options::parse(&wrong).is_err());
    }

    #[test]
    fn threads_beside_each_other_mean_something_only_where_operations_run_so() {
        let options = |pairs: &[(&str, &str)]| Options::parse(&parameters(pairs)).expect("all are well formed");
        assert_eq!(options(&[("inter_op_thread_count", "3")]).inter_threads, None);
        assert_eq!(options(&[("inter_op_thread_count", "3"), ("execution_mode", "1")]).inter_threads, Some(3));
        assert_eq!(options(&[("execution_mode", "1")]).inter_threads, Some(0));
        assert_eq!(options(&[("intra_op_thread_count", "0")]).intra_threads, None);
        assert_eq!(options(&[("intra_op_thread_count", "4")]).intra_threads, Some(4));
    }

    #[test]
    fn threads_beside_each_other_spin_as_the_others_do_unless_they_are_told() {
        let spins = |pairs: &[(&str, &str)]| {
            let options = Options::parse(&parameters(pairs)).expect("all are well formed");
            (options.spins, options.spins_beside)
        };
        assert_eq!(spins(&[]), (false, false));
        assert_eq!(spins(&[(SPINNING, "1")]), (true, true));
        assert_eq!(spins(&[(SPINNING, "1"), (SPINNING_BESIDE, "0")]), (true, false));
        assert_eq!(spins(&[(SPINNING_BESIDE, "1")]), (false, true));
        assert!(Options::parse(&parameters(&[(SPINNING_BESIDE, "often")])).is_err());
        assert!(KEYS.contains(&SPINNING_BESIDE));
    }

    #[test]
    fn the_levels_are_those_of_the_reference_server() {
        let levels = [-1, 0, 1, 2, 7].map(Level::of);
        assert_eq!(levels, [Level::Basic, Level::All, Level::Extended, Level::None, Level::All]);
    }

    #[test]
    fn keys_without_effect_are_named() {
        let set =
            parameters(&[("gpu_mem_limit", "1"), ("share_session_between_instances", "0"), ("execution_mode", "1")]);
        assert_eq!(without_effect(&set), ["gpu_mem_limit", "share_session_between_instances"]);
    }

    proptest! {
        #[test]
        fn the_pool_and_the_instances_are_one_thread_for_each_core(cores in 1usize..300, instances in 1usize..300) {
            let threads = threads(cores, instances);
            // One of an operation's threads is the instance's own.
            let all = instances + threads - 1;
            prop_assert!(threads >= 1);
            prop_assert_eq!(all, cores.max(instances));
        }
    }
}
