//! The forms of a log line: the reference server's two, and JSON.
//!
//! Which of them is decided for each line, so that a running server can change it. Begin with [`Line`].

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `LMMDD hh:mm:ss.ssssss pid file:line] "message" field=value`, in UTC; L is the level's first letter.
    Default,
    /// `YYYY-MM-DDThh:mm:ssZ L pid file:line] "message" field=value`.
    Iso8601,
    /// For machines: one JSON object with time, level, module, message and fields.
    Json,
}

impl Format {
    /// Every form.
    pub const ALL: [Format; 3] = [Format::Default, Format::Iso8601, Format::Json];

    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Default => "default",
            Format::Iso8601 => "ISO8601",
            Format::Json => "json",
        }
    }

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// Writes lines in the form that is set. Cloning shares the setting.
#[derive(Clone, Debug)]
pub struct Line {
    /// An index into [`Format::ALL`].
    format: Arc<AtomicU8>,
}

impl Line {
    /// Lines of this form.
    pub fn new(format: Format) -> Self {
        Self { format: Arc::new(AtomicU8::new(format as u8)) }
    }

    /// From now on lines have this form.
    pub fn set(&self, format: Format) {
        self.format.store(format as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Format {
        Format::ALL[usize::from(self.format.load(Ordering::Relaxed))]
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let format = self.get();
        if format == Format::Json {
            let json = format::format().json().flatten_event(true).with_current_span(false).with_span_list(false);
            return json.format_event(ctx, writer, event);
        }
        let meta = event.metadata();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        head(&mut writer, format, *meta.level(), now)?;
        let file = meta.file().map_or(meta.target(), |path| path.rsplit('/').next().unwrap_or(path));
        write!(writer, "{file}:{}] ", meta.line().unwrap_or(0))?;
        let mut parts = Parts::default();
        event.record(&mut parts);
        writeln!(writer, "{:?}{}", parts.message, parts.fields)
    }
}

/// The beginning of a line, up to the place in the source.
fn head(writer: &mut impl fmt::Write, format: Format, level: Level, now: Duration) -> fmt::Result {
    let letter = match level {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        Level::INFO => 'I',
        Level::DEBUG | Level::TRACE => 'V',
    };
    let (year, month, day) = date(now.as_secs() / 86_400);
    let (hour, minute, second) = (now.as_secs() / 3600 % 24, now.as_secs() / 60 % 60, now.as_secs() % 60);
    let process = std::process::id();
    match format {
        Format::Iso8601 => {
            write!(writer, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z {letter} {process} ")
        }
        Format::Default | Format::Json => {
            let micros = now.subsec_micros();
            write!(writer, "{letter}{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06} {process} ")
        }
    }
}

/// Year, month and day of a number of days since 1970 in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from the 1st of March of year 0, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// An event's message, and its fields as ` name=value` each.
#[derive(Default)]
struct Parts {
    message: String,
    fields: String,
}

impl Visit for Parts {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
            return;
        }
        // A value comes from anywhere: it must not look like another field, nor like another line.
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=';
        let _ = match !value.is_empty() && value.chars().all(plain) {
            true => write!(self.fields, " {}={value}", field.name()),
            false => write!(self.fields, " {}={value:?}", field.name()),
        };
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_right_at_its_corners() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(19_782), (2024, 2, 29));
        assert_eq!(date(20_453), (2025, 12, 31));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn the_head_has_the_reference_servers_two_forms() {
        let now = Duration::from_micros(1_700_000_000_000_042);
        let written = |format, level| {
            let mut text = String::new();
            head(&mut text, format, level, now).expect("a string takes everything");
            text
        };
        let process = std::process::id();
        assert_eq!(written(Format::Default, Level::WARN), format!("W1114 22:13:20.000042 {process} "));
        assert_eq!(written(Format::Iso8601, Level::ERROR), format!("2023-11-14T22:13:20Z E {process} "));
    }
}
