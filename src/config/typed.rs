//! The settings as typed: what the command line, the environment and the file say, with the place where they say it.
//!
//! Knows names and layers, not meanings; [`Typed::read`] merges the layers and collects every mistake.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

use super::flags::{self, Flag, Value};

/// Where a setting was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag on the command line.
    Flag(&'static str),
    /// An environment variable.
    Variable(String),
    /// A key of the file.
    File {
        /// The file's path.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The key as it should be written.
        key: &'static str,
    },
    /// Nobody gave it.
    Default(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) | Origin::Default(name) => write!(f, "--{name}"),
            Origin::Variable(name) => write!(f, "environment variable {name}"),
            Origin::File { path, line, key } => write!(f, "{path}:{line}: {key}"),
        }
    }
}

/// A setting's texts and where they came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// One text, or any number for a list.
    pub texts: Vec<String>,
    /// The place to name in a message.
    pub origin: Origin,
}

/// The file of settings: its path and its text.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// The path, for messages.
    pub path: &'a str,
    /// The contents.
    pub text: &'a str,
}

/// The environment: names and values.
pub type Environment = BTreeMap<String, String>;

/// Everything that was given, by setting; of several layers the highest one that gives it.
#[derive(Debug, Default)]
pub struct Typed {
    given: BTreeMap<&'static str, Given>,
    /// What could not be taken as a setting at all.
    pub mistakes: Vec<String>,
    /// What was ignored and is probably not meant.
    pub warnings: Vec<String>,
}

impl Typed {
    /// Merges the layers: command line before environment before file.
    pub fn read(args: &[String], environment: &Environment, file: Option<File<'_>>) -> Self {
        let mut typed = Self::default();
        if let Some(file) = file {
            typed.read_file(file);
        }
        typed.read_environment(environment);
        typed.read_args(args);
        typed
    }

    /// The setting as given, or else its default.
    pub fn get(&self, flag: &'static Flag) -> Option<Given> {
        let default = |text: &str| Given { texts: vec![text.to_owned()], origin: Origin::Default(flag.name) };
        self.given.get(flag.name).cloned().or_else(|| flag.default.map(default))
    }

    /// The texts of the setting of that name, or of its default.
    pub fn texts(&self, name: &str) -> Option<Vec<String>> {
        flags::find(name).and_then(|flag| self.get(flag)).map(|given| given.texts)
    }

    /// Where the setting was given, for messages.
    pub fn origin(&self, name: &'static str) -> Origin {
        self.given.get(name).map_or(Origin::Default(name), |given| given.origin.clone())
    }

    fn read_args(&mut self, args: &[String]) {
        let mut from_args: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let mut args = args.iter().peekable();
        while let Some(arg) = args.next() {
            let Some(written) = arg.strip_prefix("--").filter(|rest| !rest.is_empty()) else {
                self.mistakes.push(format!("'{arg}': settings begin with --"));
                continue;
            };
            let (name, value) = match written.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (written, None),
            };
            let next_is_value = |next: &&String| !next.starts_with("--");
            let Some(flag) = flags::find(name) else {
                let told = if flags::is_without_effect(name) { &mut self.warnings } else { &mut self.mistakes };
                told.push(format!("--{name} {}", flags::why_unknown(name)));
                if value.is_none() {
                    args.next_if(next_is_value);
                }
                continue;
            };
            let value = match flag.value {
                Value::Bool => value.or_else(|| args.next_if(|next| parse_bool(next).is_some()).cloned()),
                _ => value.or_else(|| args.next_if(next_is_value).cloned()),
            };
            match (value, flag.value) {
                (Some(value), _) => from_args.entry(flag.name).or_default().push(value),
                (None, Value::Bool) => from_args.entry(flag.name).or_default().push("true".to_owned()),
                (None, _) => self.mistakes.push(format!("--{} needs a value", flag.name)),
            }
        }
        for (name, mut texts) in from_args {
            // Of a repeated flag that is not a list the last one holds, so that a wrapper script can be overruled.
            if !flags::find(name).is_some_and(|flag| matches!(flag.value, Value::List(_) | Value::Phrases(_))) {
                texts.drain(..texts.len() - 1);
            }
            self.given.insert(name, Given { texts, origin: Origin::Flag(name) });
        }
    }

    fn read_environment(&mut self, environment: &Environment) {
        for (variable, text) in environment {
            let Some(name) = variable.strip_prefix("NEREID_") else { continue };
            let name = name.to_ascii_lowercase();
            match flags::find(&name) {
                Some(flag) if is_port(flag) && (text.starts_with("tcp://") || text.starts_with("udp://")) => {
                    let why = "is ignored: an orchestrator sets it for a service of that name";
                    self.warnings.push(format!("environment variable {variable} ('{text}') {why}"));
                }
                Some(flag) => {
                    let texts = match flag.value {
                        Value::List(_) => split(text, ','),
                        Value::Phrases(_) => split(text, ';'),
                        _ => vec![text.clone()],
                    };
                    self.given.insert(flag.name, Given { texts, origin: Origin::Variable(variable.clone()) });
                }
                // Not a mistake: orchestrators set variables that begin with a service's name, such as NEREID_PORT.
                None => self.warnings.push(format!("environment variable {variable} {}", flags::why_unknown(&name))),
            }
        }
    }

    fn read_file(&mut self, file: File<'_>) {
        let line_of =
            |at: usize| file.text.as_bytes()[..at.min(file.text.len())].iter().filter(|b| **b == b'\n').count() + 1;
        let (table, errors) = DeTable::parse_recoverable(file.text);
        for error in &errors {
            let line = error.span().map_or(1, |span| line_of(span.start));
            self.mistakes.push(format!("{}:{line}: {}", file.path, error.message()));
        }
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let line = line_of(key.span().start);
            let name = key.get_ref();
            let Some(flag) = flags::find(name) else {
                let told = if flags::is_without_effect(name) { &mut self.warnings } else { &mut self.mistakes };
                told.push(format!("{}:{line}: {name} {}", file.path, flags::why_unknown(name)));
                continue;
            };
            if flag.name == "config" {
                self.mistakes.push(format!("{}:{line}: a file cannot name another file", file.path));
                continue;
            }
            match texts_of(value.get_ref()) {
                Some(texts) => {
                    let origin = Origin::File { path: file.path.to_owned(), line, key: flag.name };
                    self.given.insert(flag.name, Given { texts, origin });
                }
                None => {
                    let kind = value.get_ref().type_str();
                    self.mistakes.push(format!("{}:{line}: {} cannot be a {kind}", file.path, flag.name));
                }
            }
        }
    }
}

/// Whether a setting is the number of a port.
fn is_port(flag: &Flag) -> bool {
    matches!(flag.value, Value::Number(..)) && flag.name.ends_with("-port")
}

fn split(text: &str, separator: char) -> Vec<String> {
    text.split(separator).filter(|each| !each.is_empty()).map(str::to_owned).collect()
}

/// The texts of a TOML value; `None` for a table, a date or an array of arrays.
fn texts_of(value: &DeValue<'_>) -> Option<Vec<String>> {
    match value {
        DeValue::Array(array) => array.iter().map(|each| text_of(each.get_ref())).collect(),
        single => text_of(single).map(|text| vec![text]),
    }
}

fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// The truth values that are understood.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" => Some(true),
        "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn texts(typed: &Typed, name: &str) -> Vec<String> {
        typed.texts(name).unwrap_or_default()
    }

    #[test]
    fn a_flag_goes_before_the_environment_and_that_before_the_file() {
        let environment = Environment::from([
            ("NEREID_GRPC_PORT".to_owned(), "2".to_owned()),
            ("NEREID_METRICS_PORT".to_owned(), "2".to_owned()),
            ("HOME".to_owned(), "/".to_owned()),
        ]);
        let file = File { path: "f.toml", text: "grpc-port = 3\nmetrics_port = 3\nid = \"three\"\n" };
        let typed = Typed::read(&args("--grpc-port=1"), &environment, Some(file));
        assert_eq!(texts(&typed, "grpc-port"), ["1"]);
        assert_eq!(texts(&typed, "metrics-port"), ["2"]);
        assert_eq!(texts(&typed, "id"), ["three"]);
        assert_eq!(texts(&typed, "log-format"), ["default"]);
        assert!(typed.mistakes.is_empty() && typed.warnings.is_empty());
    }

    #[test]
    fn what_an_orchestrator_says_of_a_service_is_no_port() {
        for (name, variable) in [
            ("grpc-port", "NEREID_GRPC_PORT"),
            ("http-port", "NEREID_HTTP_PORT"),
            ("metrics-port", "NEREID_METRICS_PORT"),
        ] {
            let environment = Environment::from([(variable.to_owned(), "tcp://10.0.0.11:9".to_owned())]);
            let file = format!("{name} = 7\n");
            let typed = Typed::read(&[], &environment, Some(File { path: "f.toml", text: &file }));
            assert_eq!(texts(&typed, name), ["7"]);
            assert!(typed.mistakes.is_empty(), "{:?}", typed.mistakes);
            assert!(typed.warnings[0].starts_with(&format!("environment variable {variable} ('tcp://")), "{variable}");
        }
        let environment = Environment::from([("NEREID_ID".to_owned(), "tcp://x".to_owned())]);
        assert_eq!(texts(&Typed::read(&[], &environment, None), "id"), ["tcp://x"]);
    }

    #[test]
    fn a_truth_value_may_stand_alone_or_have_a_text() {
        for (line, expected) in [
            ("--allow-metrics --id=x", "true"),
            ("--allow-metrics=false", "false"),
            ("--allow_metrics off --id x", "off"),
            ("--allow-metrics", "true"),
        ] {
            let typed = Typed::read(&args(line), &Environment::new(), None);
            assert_eq!(texts(&typed, "allow-metrics"), [expected], "{line}");
            assert!(typed.mistakes.is_empty(), "{line}");
        }
    }

    #[test]
    fn lists_repeat_on_the_command_line_and_have_commas_in_the_environment() {
        let typed = Typed::read(&args("--model-store a --model-repository=b"), &Environment::new(), None);
        assert_eq!(texts(&typed, "model-repository"), ["a", "b"]);
        let environment = Environment::from([("NEREID_LOAD_MODEL".to_owned(), "a,b".to_owned())]);
        assert_eq!(texts(&Typed::read(&[], &environment, None), "load-model"), ["a", "b"]);
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let file = File { path: "f.toml", text: "# settings\ngrpc-prot = 1\nid = {}\nconfig = \"x\"\n" };
        let typed = Typed::read(&args("stray --backend-config a,b=c --id"), &Environment::new(), Some(file));
        let expected = [
            "f.toml:2: grpc-prot is unknown; did you mean grpc-port?",
            "f.toml:3: id cannot be a table",
            "f.toml:4: a file cannot name another file",
            "'stray': settings begin with --",
            "--backend-config is not supported by this server version",
            "--id needs a value",
        ];
        assert_eq!(typed.mistakes, expected);
    }

    #[test]
    fn what_only_tunes_the_reference_server_is_told_and_has_no_effect() {
        let file = File { path: "f.toml", text: "backend-directory = \"/opt\"\n" };
        let given = args("--cuda-memory-pool-byte-size 0:8000 --allow_gpu_metrics=false --http-thread-count=8 --id=a");
        let typed = Typed::read(&given, &Environment::new(), Some(file));
        assert_eq!((&*typed.mistakes, texts(&typed, "id")), (&[][..], vec!["a".to_owned()]));
        let names = ["f.toml:1: backend-directory", "--cuda-memory-pool-byte-size", "--allow_gpu_metrics"];
        let told = "has no effect: it tunes the reference server";
        let expected = names.into_iter().chain(["--http-thread-count"]).map(|name| format!("{name} {told}"));
        assert_eq!(typed.warnings, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_strict_model_configuration_is_one_that_is_not_completed() {
        let typed = Typed::read(&args("--strict-model-config=false"), &Environment::new(), None);
        assert_eq!(texts(&typed, "disable-auto-complete-config"), ["false"]);
    }

    #[test]
    fn a_file_that_is_not_toml_is_reported_with_its_line() {
        let typed = Typed::read(&[], &Environment::new(), Some(File { path: "f.toml", text: "id = \"a\"\nid =\n" }));
        assert!(typed.mistakes.iter().any(|mistake| mistake.starts_with("f.toml:2: ")), "{:?}", typed.mistakes);
    }
}
