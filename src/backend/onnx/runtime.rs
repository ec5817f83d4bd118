//! Finds ONNX Runtime and loads it, once, when the first model needs it.
//!
//! Nothing is linked against it: without it the server starts, and only models in ONNX fail to load, with a message
//! that says what to do. A library that is put in its place later is found by the next load. It is never unloaded.

use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;

use ort::environment::Environment;
use ort::logging::LogLevel;
use parking_lot::Mutex;

use crate::backend::message;
use crate::error::{Error, Kind, Result};

/// The name by which the library is looked for: in the executable's search path (see `build.rs`) and the system's.
const LIBRARY: &str = "libonnxruntime.so.1";

/// What the library's arena and its other allocators say when there is no memory left.
const MEMORY: [&str; 2] = ["Failed to allocate memory for requested buffer", "std::bad_alloc"];

/// The one environment of the process; `None` until a library could be loaded.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// ONNX Runtime, loaded from `library` or else from where it usually is. Once it is loaded, `library` has no effect.
///
/// # Errors
/// [`Kind::Unavailable`] saying what is missing or wrong, and what helps.
pub fn environment(library: Option<&Path>) -> Result<Environment> {
    let mut loaded = ENVIRONMENT.lock();
    if let Some(environment) = &*loaded {
        return Ok(environment.clone());
    }
    let path = library.unwrap_or(Path::new(LIBRARY));
    let environment = ort::init_from(path)
        .map_err(|error| unusable(&reason(&error)))?
        .with_name("nereid")
        .with_telemetry(false)
        .with_logger(Arc::new(|level, _category, id, _place, text| log(level, id, text)))
        .build()
        .map_err(|error| unusable(error.message()))?;
    Ok(loaded.insert(environment).clone())
}

/// Errors are not logged as such, since the call that fails reports them, too.
fn log(level: LogLevel, model: &str, text: &str) {
    match level {
        LogLevel::Verbose => {}
        LogLevel::Info | LogLevel::Error | LogLevel::Fatal => {
            tracing::debug!(model, "ONNX Runtime: {}", message::one_line(text));
        }
        LogLevel::Warning => tracing::warn!(model, "ONNX Runtime: {}", message::one_line(text)),
    }
}

/// What the system's loader says, which the error itself does not.
fn reason(error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => {
            error.source().map_or_else(|| error.to_string(), ToString::to_string)
        }
        other => other.to_string(),
    }
}

fn unusable(why: &str) -> Error {
    Error::unavailable(format!(
        "ONNX Runtime cannot be used: {}; `scripts/setup-onnxruntime` fetches it, or let --onnxruntime name its library",
        message::one_line(why)
    ))
}

/// What a call of the library says has failed.
impl<R> From<ort::Error<R>> for Error {
    fn from(error: ort::Error<R>) -> Self {
        let text = error.message();
        Self::new(kind(text), format!("onnx runtime error: {}", message::one_line(text)))
    }
}

/// What kind of failure a text of the library tells of. Its error codes have none for a lack of memory.
fn kind(text: &str) -> Kind {
    if MEMORY.iter().any(|phrase| text.contains(phrase)) { Kind::OutOfMemory } else { Kind::Backend }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_memory_is_told_by_the_text() {
        for text in [
            "Non-zero status code returned while running Expand node. Name:'' Status Message: bfc_arena.cc:376 void* \
             onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of \
             size 400000000000",
            "Non-zero status code returned while running ConstantOfShape node. Name:'' Status Message: std::bad_alloc",
        ] {
            assert_eq!(kind(text), Kind::OutOfMemory, "{text}");
        }
        assert_eq!(kind("Got invalid dimensions for input: X"), Kind::Backend);
    }
}
