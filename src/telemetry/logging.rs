//! Where log lines go, in which form, and which of them; form and levels can change while the server runs.
//!
//! [`install`] is called by `server.rs` with [`Settings`] that `config.rs` has checked; the [`Control`] that it gives
//! changes them. The log is the one thing that all servers of a process share.

mod line;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

pub use self::line::Format;
use self::line::Line;
use crate::error::{Error, Result};

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The form of a line.
    pub format: Format,
    /// What is logged where `directives` say nothing.
    pub levels: Levels,
    /// Levels by module, such as `info,nereid::engine=debug`; checked by [`check_directives`].
    pub directives: String,
    /// The file to append to; `None` for standard error.
    pub file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Default, levels: Levels::default(), directives: String::new(), file: None }
    }
}

/// Which lines are logged; each kind by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// What failed and needs somebody.
    pub error: bool,
    /// What is probably not meant.
    pub warning: bool,
    /// State changes.
    pub info: bool,
    /// 1 for each step of an operation and each request, more for whatever there is.
    pub verbose: u32,
}

impl Default for Levels {
    fn default() -> Self {
        Self { error: true, warning: true, info: true, verbose: 0 }
    }
}

impl Levels {
    /// The most detailed level that is on.
    fn most(self) -> LevelFilter {
        match self.verbose {
            2.. => LevelFilter::TRACE,
            1 => LevelFilter::DEBUG,
            0 if self.info => LevelFilter::INFO,
            0 if self.warning => LevelFilter::WARN,
            0 if self.error => LevelFilter::ERROR,
            0 => LevelFilter::OFF,
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

/// Makes all log lines of the process go where `settings` say. Only the first call in a process has an effect; every
/// call gives the control of what was installed.
///
/// # Errors
/// If the file cannot be opened for appending, or a directive is not understood.
pub fn install(settings: &Settings) -> Result<Arc<Control>> {
    static INSTALLED: OnceLock<Arc<Control>> = OnceLock::new();
    let (subscriber, control) = layers(settings, writer(settings)?)?;
    let mut ours = Some(control);
    let installed = INSTALLED.get_or_init(|| Arc::new(ours.take().unwrap_or_default()));
    if ours.is_some() {
        tracing::debug!("logging was already installed");
    } else if subscriber.try_init().is_err() {
        tracing::debug!("something else has installed logging");
    }
    Ok(installed.clone())
}

/// Changes what is logged while the server runs.
pub struct Control {
    settings: Mutex<Settings>,
    line: Line,
    hidden: Hidden,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Default for Control {
    /// Controls nothing, and remembers what it is told: for servers in a process that logs in its own way.
    fn default() -> Self {
        let nowhere = BoxMakeWriter::new(std::io::sink);
        layers(&Settings::default(), nowhere).expect("the default settings have no directives").1
    }
}

impl Control {
    /// What holds now.
    pub fn settings(&self) -> Settings {
        self.settings.lock().clone()
    }

    /// Changes levels and form; levels by module stay as they are.
    pub fn change(&self, change: impl FnOnce(&mut Levels, &mut Format)) {
        let mut settings = self.settings.lock();
        let settings = &mut *settings;
        change(&mut settings.levels, &mut settings.format);
        self.line.set(settings.format);
        self.hidden.set(settings.levels);
        let Ok(filter) = EnvFilter::builder().parse(refined(settings.levels, &settings.directives)) else { return };
        if self.filter.reload(filter).is_err() {
            tracing::debug!("nothing is logged by this control");
        }
    }
}

fn layers(settings: &Settings, writer: BoxMakeWriter) -> Result<(impl Subscriber + Send + Sync + use<>, Control)> {
    let filter = EnvFilter::builder()
        .parse(filter(settings))
        .map_err(|error| Error::invalid(format!("log level '{}': {error}", settings.directives)))?;
    let (filter, handle) = reload::Layer::new(filter);
    let (line, hidden) = (Line::new(settings.format), Hidden::default());
    hidden.set(settings.levels);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).event_format(line.clone()).with_writer(writer);
    let subscriber = tracing_subscriber::registry().with(filter).with(hidden.clone()).with(lines);
    Ok((subscriber, Control { settings: Mutex::new(settings.clone()), line, hidden, filter: handle }))
}

/// The directives of the settings on top of the level: it holds for the server, while the libraries below it only warn,
/// unless the directives begin from a level of their own.
fn filter(settings: &Settings) -> String {
    let mut directives = settings.directives.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    if directives.any(|directive| directive.parse::<LevelFilter>().is_ok()) {
        return settings.directives.clone();
    }
    refined(settings.levels, &settings.directives)
}

fn refined(levels: Levels, directives: &str) -> String {
    let level = levels.most();
    let libraries = level.min(LevelFilter::WARN);
    format!("{libraries},nereid={level},{directives}")
}

/// Hides single levels although more detailed ones are shown, which a filter by level cannot. Cloning shares it.
#[derive(Clone, Debug, Default)]
struct Hidden {
    /// One bit for each of errors, warnings and infos.
    bits: Arc<AtomicU8>,
}

impl Hidden {
    fn set(&self, levels: Levels) {
        let bit = |shown: bool, level| if shown { 0 } else { Self::bit(level) };
        let bits = bit(levels.error, Level::ERROR) | bit(levels.warning, Level::WARN) | bit(levels.info, Level::INFO);
        self.bits.store(bits, Ordering::Relaxed);
    }

    fn bit(level: Level) -> u8 {
        match level {
            Level::ERROR => 1,
            Level::WARN => 2,
            Level::INFO => 4,
            Level::DEBUG | Level::TRACE => 0,
        }
    }

    fn shows(&self, meta: &Metadata<'_>) -> bool {
        self.bits.load(Ordering::Relaxed) & Self::bit(*meta.level()) == 0
    }
}

impl<S: Subscriber> Layer<S> for Hidden {
    fn register_callsite(&self, meta: &'static Metadata<'static>) -> Interest {
        // What this says is asked again after each reload of the filter.
        if self.shows(meta) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, meta: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.shows(meta)
    }
}

fn writer(settings: &Settings) -> Result<BoxMakeWriter> {
    match &settings.file {
        None => Ok(BoxMakeWriter::new(std::io::stderr)),
        Some(path) => Ok(BoxMakeWriter::new(std::sync::Mutex::new(open(path)?))),
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
    use std::io::Read as _;

    use super::*;

    #[test]
    fn directives_name_modules_and_levels() {
        assert!(check_directives("info,nereid::engine=debug").is_ok());
        assert!(check_directives("").is_ok());
        assert!(check_directives("nereid::engine=loud").is_err());
    }

    #[test]
    fn directives_refine_the_level_or_replace_it() {
        let with = |levels, directives: &str| {
            let settings = Settings { levels, directives: directives.to_owned(), ..Settings::default() };
            EnvFilter::builder().parse(filter(&settings)).expect("valid directives").to_string()
        };
        let usual = Levels::default();
        assert_eq!(with(Levels { verbose: 1, ..usual }, ""), "nereid=debug,warn");
        assert_eq!(with(usual, "nereid::engine=trace"), "nereid::engine=trace,nereid=info,warn");
        assert_eq!(with(usual, "error"), "error");
        assert_eq!(with(Levels { error: false, warning: false, info: false, verbose: 0 }, ""), "nereid=off,off");
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_an_error_with_its_path() {
        let settings = Settings { file: Some("/nonexistent/nereid.log".into()), ..Settings::default() };
        let error = install(&settings).map(|_| ()).expect_err("the directory does not exist");
        assert!(error.message().contains("/nonexistent/nereid.log"), "{error}");
    }

    /// What `log` logs by a subscriber of its own with these directives.
    fn logged(directives: &str, log: impl FnOnce(&Control)) -> String {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let settings =
            Settings { directives: directives.to_owned(), file: Some(file.path().to_owned()), ..Settings::default() };
        let writer = writer(&settings).expect("the file can be opened");
        let (subscriber, control) = layers(&settings, writer).expect("valid directives");
        tracing::subscriber::with_default(subscriber, || log(&control));
        let mut text = String::new();
        file.read_to_string(&mut text).expect("it is text");
        text
    }

    /// The messages of the lines, which are the parts in quotes.
    fn messages(log: &str) -> Vec<&str> {
        log.lines().filter_map(|line| line.split('"').nth(1)).collect()
    }

    #[test]
    fn levels_change_while_lines_are_logged() {
        let all = || {
            tracing::error!("error");
            tracing::warn!("warning");
            tracing::info!("info");
            tracing::debug!("debug");
            tracing::trace!("trace");
        };
        let log = logged("", |control| {
            all();
            tracing::error!("1");
            control.change(|levels, _| levels.verbose = 1);
            all();
            tracing::error!("2");
            control.change(|levels, _| *levels = Levels { error: false, info: false, ..Levels::default() });
            all();
            control.change(|levels, _| *levels = Levels { error: true, warning: false, info: false, verbose: 2 });
            tracing::error!("3");
            all();
        });
        let expected = ["error", "warning", "info", "1", "error", "warning", "info", "debug", "2", "warning", "3"];
        assert_eq!(messages(&log)[..11], expected, "{log}");
        assert_eq!(messages(&log)[11..], ["error", "debug", "trace"], "{log}");
    }

    #[test]
    fn levels_by_module_outlive_a_change_of_levels() {
        let log = logged("other=debug", |control| {
            control.change(|levels, _| levels.info = false);
            tracing::debug!(target: "other", "theirs");
            tracing::debug!("ours");
        });
        assert_eq!(messages(&log), ["theirs"]);
    }

    #[test]
    fn the_form_changes_and_fields_cannot_forge_lines() {
        let log = logged("", |control| {
            tracing::info!(path = "a\nb", count = 3, name = "x", "first");
            control.change(|_, format| *format = Format::Iso8601);
            tracing::warn!("second");
            control.change(|_, format| *format = Format::Json);
            tracing::error!(count = 3, "third");
        });
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 3, "{log}");
        assert!(lines[0].starts_with('I') && lines[0].contains("logging.rs:"), "{log}");
        assert!(lines[0].ends_with(r#"] "first" path="a\nb" count=3 name=x"#), "{log}");
        assert_eq!(lines[1].find('T'), Some(10), "{log}");
        assert!(lines[1].contains("Z W "), "{log}");
        let json: serde_json::Value = serde_json::from_str(lines[2]).expect("one object");
        assert_eq!((json["message"].as_str(), json["count"].as_u64()), (Some("third"), Some(3)));
    }
}
