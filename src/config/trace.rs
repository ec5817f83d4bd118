//! Reads `--trace-config`, the reference server's way to set what is traced: `[<mode>,]<setting>=<value>`, repeated.
//!
//! Begin with [`read`]. Every mistake is collected; what it is about keeps its default.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::telemetry::trace::{Level, Mode, Settings, Transport};

/// The settings of these texts, and what is wrong with them.
pub fn read(texts: &[String]) -> (Settings, Vec<String>) {
    let mut reader = Reader::default();
    for text in texts {
        let (mode, rest) = match text.split_once(',') {
            Some((mode, rest)) if !mode.contains('=') => (Some(mode), rest),
            _ => (None, text.as_str()),
        };
        match rest.split_once('=') {
            Some((name, value)) => reader.set(mode, name, value),
            None => reader.mistake(format!("'{text}' is not [<mode>,]<setting>=<value>")),
        }
    }
    reader.finish()
}

#[derive(Default)]
struct Reader {
    settings: Settings,
    /// The levels given; none of them means the default.
    levels: Vec<String>,
    mistakes: Vec<String>,
}

impl Reader {
    fn mistake(&mut self, mistake: String) {
        self.mistakes.push(mistake);
    }

    fn set(&mut self, mode: Option<&str>, name: &str, value: &str) {
        match mode {
            None => self.set_global(name, value),
            Some("triton") => self.set_triton(name, value),
            Some("opentelemetry") => self.set_opentelemetry(name, value),
            Some(other) => self.mistake(format!("'{other}' is not a mode: triton or opentelemetry")),
        }
    }

    fn set_global(&mut self, name: &str, value: &str) {
        match name {
            "level" => self.levels.push(value.to_owned()),
            "rate" => self.number(name, value, 0..=u32::MAX, |settings, rate| settings.values.rate = rate),
            "count" if value == "-1" => self.settings.values.count = None,
            "count" => {
                self.number(name, value, 0..=i32::MAX as u32, |settings, count| settings.values.count = Some(count));
            }
            "mode" if value == Mode::Triton.name() => self.settings.mode = Mode::Triton,
            "mode" if value == Mode::OpenTelemetry.name() => self.settings.mode = Mode::OpenTelemetry,
            "mode" => self.mistake(format!("mode '{value}' is neither triton nor opentelemetry")),
            "file" | "log-frequency" => self.mistake(format!("'{name}' belongs to a mode: triton,{name}={value}")),
            _ => self.mistake(format!("'{name}' is not a setting: level, rate, count or mode")),
        }
    }

    fn set_triton(&mut self, name: &str, value: &str) {
        match name {
            "file" if value.is_empty() => self.mistake("triton,file is empty".to_owned()),
            "file" => self.settings.file = Some(PathBuf::from(value)),
            "log-frequency" => {
                self.number(name, value, 0..=u32::MAX, |settings, traces| settings.values.log_frequency = traces);
            }
            _ => self.mistake(format!("'{name}' is not a setting of mode triton: file or log-frequency")),
        }
    }

    fn set_opentelemetry(&mut self, name: &str, value: &str) {
        match name {
            "url" => match Transport::of(value) {
                Ok(_) => value.clone_into(&mut self.settings.otlp.url),
                Err(reason) => self.mistake(format!("opentelemetry,url '{value}' {reason}")),
            },
            "resource" => match value.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    self.settings.otlp.resource.push((key.to_owned(), value.to_owned()));
                }
                _ => self.mistake(format!("opentelemetry,resource '{value}' is not <key>=<value>")),
            },
            "bsp_max_queue_size" => {
                self.number(name, value, 1..=10_000_000, |settings, spans| settings.otlp.queue_size_max = spans);
            }
            "bsp_schedule_delay" => self.number(name, value, 1..=3_600_000, |settings, milliseconds| {
                settings.otlp.schedule_delay = Duration::from_millis(milliseconds);
            }),
            "bsp_max_export_batch_size" => {
                self.number(name, value, 1..=1_000_000, |settings, spans| settings.otlp.batch_size_max = spans);
            }
            _ => self.mistake(format!(
                "'{name}' is not a setting of mode opentelemetry: url, resource, bsp_max_queue_size, \
                 bsp_schedule_delay or bsp_max_export_batch_size"
            )),
        }
    }

    fn number<T: FromStr + PartialOrd + Display>(
        &mut self,
        name: &str,
        value: &str,
        bounds: RangeInclusive<T>,
        set: impl FnOnce(&mut Settings, T),
    ) {
        match value.parse() {
            Ok(number) if bounds.contains(&number) => set(&mut self.settings, number),
            _ => {
                let (min, max) = bounds.into_inner();
                self.mistake(format!("{name} '{value}' is not a whole number from {min} to {max}"));
            }
        }
    }

    fn finish(mut self) -> (Settings, Vec<String>) {
        let levels: Vec<&str> = self.levels.iter().map(String::as_str).collect();
        match Level::from_names(&levels) {
            Ok(level) => self.settings.values.level = level,
            Err(reason) => self.mistakes.push(format!("level: {reason}")),
        }
        let on = self.settings.values.level.is_on();
        if on && self.settings.mode == Mode::Triton && self.settings.file.is_none() {
            self.mistakes.push("mode triton needs a file: --trace-config triton,file=<path>".to_owned());
        }
        (self.settings, self.mistakes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> (Settings, Vec<String>) {
        read(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn without_settings_nothing_is_traced() {
        assert_eq!(of(&[]), (Settings::default(), vec![]));
    }

    #[test]
    fn every_setting_of_the_reference_server_is_read() {
        let (settings, mistakes) = of(&[
            "level=TIMESTAMPS",
            "level=TENSORS",
            "rate=5",
            "count=100",
            "triton,file=trace.json",
            "triton,log-frequency=50",
        ]);
        assert_eq!(mistakes, [""; 0]);
        let values = settings.values;
        assert_eq!(values.level, Level { timestamps: true, tensors: true });
        assert_eq!((values.rate, values.count, values.log_frequency), (5, Some(100), 50));
        assert_eq!(settings.file.as_deref(), Some("trace.json".as_ref()));
        let (settings, mistakes) = of(&[
            "mode=opentelemetry",
            "level=TIMESTAMPS",
            "opentelemetry,url=grpc://collector:4317",
            "opentelemetry,resource=service.name=embedder",
            "opentelemetry,bsp_schedule_delay=100",
            "opentelemetry,bsp_max_queue_size=64",
            "opentelemetry,bsp_max_export_batch_size=16",
        ]);
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(settings.mode, Mode::OpenTelemetry);
        let otlp = settings.otlp;
        assert_eq!(otlp.url, "grpc://collector:4317");
        assert_eq!(otlp.resource, [("service.name".to_owned(), "embedder".to_owned())]);
        assert_eq!(
            (otlp.schedule_delay, otlp.queue_size_max, otlp.batch_size_max),
            (Duration::from_millis(100), 64, 16)
        );
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let (_, mistakes) = of(&[
            "level=LOUD",
            "rate=often",
            "count=-2",
            "mode=zipkin",
            "file=x",
            "triton,colour=red",
            "jaeger,url=x",
            "opentelemetry,url=ftp://x",
            "opentelemetry,resource=name",
            "opentelemetry,bsp_max_queue_size=0",
            "triton",
        ]);
        let expected = [
            "rate 'often' is not a whole number from 0 to 4294967295",
            "count '-2' is not a whole number from 0 to 2147483647",
            "mode 'zipkin' is neither triton nor opentelemetry",
            "'file' belongs to a mode: triton,file=x",
            "'colour' is not a setting of mode triton: file or log-frequency",
            "'jaeger' is not a mode: triton or opentelemetry",
            "opentelemetry,url 'ftp://x' begins with neither http:// nor grpc://",
            "opentelemetry,resource 'name' is not <key>=<value>",
            "bsp_max_queue_size '0' is not a whole number from 1 to 10000000",
            "'triton' is not [<mode>,]<setting>=<value>",
            "level: unknown trace level 'LOUD', expected OFF, TIMESTAMPS or TENSORS",
        ];
        assert_eq!(mistakes, expected);
    }

    #[test]
    fn traces_need_somewhere_to_go() {
        let (_, mistakes) = of(&["level=TIMESTAMPS"]);
        assert_eq!(mistakes, ["mode triton needs a file: --trace-config triton,file=<path>"]);
        assert_eq!(of(&["level=TIMESTAMPS", "mode=opentelemetry"]).1, [""; 0]);
    }
}
