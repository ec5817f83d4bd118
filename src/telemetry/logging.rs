//! Where log lines go, in which form, and which of them.
//!
//! [`install`] is called once, by `server.rs`, with [`Settings`] that `config.rs` has checked.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::error::{Error, Result};

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The form of a line.
    pub format: Format,
    /// What is logged where `directives` say nothing.
    pub level: Level,
    /// Levels by module, such as `info,nereid::engine=debug`; checked by [`check_directives`].
    pub directives: String,
    /// The file to append to; `None` for standard error.
    pub file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Text, level: Level::Info, directives: String::new(), file: None }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: time (UTC, ISO 8601), level, module, message, fields.
    Text,
    /// For machines: one JSON object with the same parts.
    Json,
}

/// How much is logged: each level contains the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Off,
    /// What failed and needs somebody.
    Error,
    /// What is probably not meant.
    Warn,
    /// State changes.
    Info,
    /// Each step of an operation.
    Debug,
    /// Each request.
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => LevelFilter::OFF,
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        }
    }
}

/// Checks a list of levels by module.
///
/// # Errors
/// The reason of the first directive that is not understood.
pub fn check_directives(directives: &str) -> std::result::Result<(), String> {
    EnvFilter::builder().parse(directives).map(|_| ()).map_err(|error| error.to_string())
}

/// Makes all log lines of the process go where `settings` say. Only the first call in a process has an effect.
///
/// # Errors
/// If the file cannot be opened for appending, or a directive is not understood.
pub fn install(settings: &Settings) -> Result<()> {
    let filter = EnvFilter::builder()
        .parse(filter(settings))
        .map_err(|error| Error::invalid(format!("log level '{}': {error}", settings.directives)))?;
    let to_terminal = settings.file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(to_terminal).with_writer(writer(settings)?);
    let installed = match settings.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    if installed.is_err() {
        tracing::debug!("logging was already installed");
    }
    Ok(())
}

/// The directives of the settings on top of the level: it holds for the server, while the libraries below it only warn,
/// unless the directives begin from a level of their own.
fn filter(settings: &Settings) -> String {
    let mut directives = settings.directives.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    if directives.any(|directive| directive.parse::<LevelFilter>().is_ok()) {
        return settings.directives.clone();
    }
    let level = LevelFilter::from(settings.level);
    let libraries = level.min(LevelFilter::WARN);
    format!("{libraries},nereid={level},{}", settings.directives)
}

fn writer(settings: &Settings) -> Result<BoxMakeWriter> {
    match &settings.file {
        None => Ok(BoxMakeWriter::new(std::io::stderr)),
        Some(path) => Ok(BoxMakeWriter::new(Mutex::new(open(path)?))),
    }
}

fn open(path: &Path) -> Result<std::fs::File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| Error::invalid(format!("log file '{}': {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_name_modules_and_levels() {
        assert!(check_directives("info,nereid::engine=debug").is_ok());
        assert!(check_directives("").is_ok());
        assert!(check_directives("nereid::engine=loud").is_err());
    }

    #[test]
    fn directives_refine_the_level_or_replace_it() {
        let with = |level, directives: &str| {
            let settings = Settings { level, directives: directives.to_owned(), ..Settings::default() };
            EnvFilter::builder().parse(filter(&settings)).expect("valid directives").to_string()
        };
        assert_eq!(with(Level::Debug, ""), "nereid=debug,warn");
        assert_eq!(with(Level::Info, "nereid::engine=trace"), "nereid::engine=trace,nereid=info,warn");
        assert_eq!(with(Level::Info, "error"), "error");
        assert_eq!(with(Level::Off, ""), "nereid=off,off");
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_an_error_with_its_path() {
        let settings = Settings { file: Some("/nonexistent/nereid.log".into()), ..Settings::default() };
        let error = install(&settings).expect_err("the directory does not exist");
        assert!(error.message().contains("/nonexistent/nereid.log"), "{error}");
    }
}
