//! Configurations of any content, written in any spelling and read back the same.

use std::path::Path;

use proptest::prelude::*;
use prost_reflect::{Cardinality, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::bind::{Dialect, bind, descriptor};
use super::mistakes::Positions;
use super::{json, written};
use crate::model::schema::ModelConfig;

/// A small generator: proptest gives the seed, the descriptors the form.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.roll(from.len() as u64)).expect("small")]
    }

    fn number(&mut self) -> i64 {
        [0, 1, -1, 7, 1 << 20, i64::from(i32::MAX), i64::from(i32::MIN)][usize::try_from(self.roll(7)).expect("small")]
    }

    fn text(&mut self) -> String {
        let pieces = ["", "a", "x\"y", "it's", "\\", "\n", "é", "日本", "\u{1}7", "# no comment", "\u{10ffff}"];
        format!("{}{}", self.pick(&pieces), self.pick(&pieces))
    }

    fn message(&mut self, of: &MessageDescriptor) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        let mut chosen: Vec<String> = Vec::new();
        for field in of.fields() {
            if let Some(choice) = field.containing_oneof() {
                if chosen.contains(&choice.full_name().to_owned()) {
                    continue;
                }
                chosen.push(choice.full_name().to_owned());
            }
            if self.roll(3) == 0 {
                continue;
            }
            let value = self.field(&field);
            // What is its default and has no presence is not there after reading either.
            if field.supports_presence() || !value.is_default_for_field(&field) {
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        let count = self.roll(3);
        match (field.is_map(), field.cardinality(), field.kind()) {
            (true, _, Kind::Message(entry)) => {
                let pairs = (0..count).map(|index| {
                    let key = match entry.map_entry_key_field().kind() {
                        Kind::Uint64 => MapKey::U64(index),
                        _ => MapKey::String(format!("{}{index}", self.text())),
                    };
                    (key, self.scalar(&entry.map_entry_value_field().kind()))
                });
                Value::Map(pairs.collect())
            }
            (_, Cardinality::Repeated, kind) => Value::List((0..count).map(|_| self.scalar(&kind)).collect()),
            (_, _, kind) => self.scalar(&kind),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "any number will do")]
    fn scalar(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Message(of) => Value::Message(self.message(of)),
            Kind::Enum(of) => {
                let values: Vec<i32> = of.values().map(|value| value.number()).collect();
                Value::EnumNumber(values[self.roll(values.len() as u64) as usize])
            }
            Kind::Bool => Value::Bool(self.roll(2) == 0),
            Kind::String => Value::String(self.text()),
            Kind::Int32 => Value::I32(self.number() as i32),
            Kind::Int64 => Value::I64([self.number(), i64::MIN, i64::MAX][self.roll(3) as usize]),
            Kind::Uint32 => Value::U32(self.number() as u32),
            Kind::Uint64 => Value::U64(self.number() as u64),
            Kind::Float => Value::F32([0.5, -3.0, 1e-20, 1e20][self.roll(4) as usize]),
            Kind::Double => Value::F64([0.1, -3.0, 1e-200, 1e200][self.roll(4) as usize]),
            other => panic!("the configuration has no {other:?}"),
        }
    }

    fn blank(&mut self) -> &'static str {
        self.pick(&[" ", "\n", "\t ", " # a comment {\n", "\r\n"])
    }

    fn write(&mut self, message: &DynamicMessage, out: &mut String) {
        for (field, value) in message.fields() {
            match value {
                Value::List(values) if self.roll(2) == 0 => {
                    let values: Vec<String> = values.iter().map(|value| self.value(&field.kind(), value)).collect();
                    let comma = self.pick(&[",", " , ", ",\n"]);
                    let colon = self.pick(&[":", " :"]);
                    self.name(&field, colon, &format!("[ {} ]", values.join(comma)), out);
                }
                Value::List(values) => values.iter().for_each(|value| self.one(&field, value, out)),
                Value::Map(pairs) => {
                    let Kind::Message(entry) = field.kind() else { continue };
                    for (key, value) in pairs {
                        let key = self.value(&entry.map_entry_key_field().kind(), &Value::from(key.clone()));
                        let value = self.value(&entry.map_entry_value_field().kind(), value);
                        let colon = self.pick(&["", ":"]);
                        self.name(&field, colon, &format!("{{ key: {key} value: {value} }}"), out);
                    }
                }
                value => self.one(&field, value, out),
            }
        }
    }

    fn one(&mut self, field: &FieldDescriptor, value: &Value, out: &mut String) {
        let text = self.value(&field.kind(), value);
        let colon = if matches!(value, Value::Message(_)) { self.pick(&["", ":", " "]) } else { ":" };
        self.name(field, colon, &text, out);
    }

    fn name(&mut self, field: &FieldDescriptor, colon: &str, text: &str, out: &mut String) {
        let (before, after) = (self.blank(), self.blank());
        let end = self.pick(&["\n", ",", ";", " ; "]);
        *out += &format!("{}{colon}{before}{text}{end}{after}", field.name());
    }

    fn value(&mut self, kind: &Kind, value: &Value) -> String {
        match value {
            Value::Message(message) => {
                let mut inner = String::new();
                self.write(message, &mut inner);
                if self.roll(2) == 0 { format!("{{ {inner} }}") } else { format!("<{inner}>") }
            }
            Value::EnumNumber(number) => match kind {
                Kind::Enum(of) if self.roll(2) == 0 => {
                    of.get_value(*number).expect("it was taken from there").name().to_owned()
                }
                _ => number.to_string(),
            },
            Value::Bool(value) => {
                self.pick(if *value { &["true", "True", "t", "1"] } else { &["false", "False", "f", "0"] }).to_owned()
            }
            Value::String(text) => self.quoted(text),
            Value::U64(number) if self.roll(2) == 0 => format!("{number:#x}"),
            Value::U32(number) if self.roll(2) == 0 => format!("0{number:o}"),
            Value::I32(number) => number.to_string(),
            Value::I64(number) => number.to_string(),
            Value::U32(number) => number.to_string(),
            Value::U64(number) => number.to_string(),
            Value::F32(number) => format!("{number:e}f"),
            Value::F64(number) => format!("{number}"),
            other => panic!("the configuration has no {other:?}"),
        }
    }

    fn quoted(&mut self, text: &str) -> String {
        let quote = self.pick(&["\"", "'"]);
        let mut out = quote.to_owned();
        for character in text.chars() {
            match (character, self.roll(4)) {
                (c, 0) => c.to_string().bytes().for_each(|byte| out += &format!("\\{byte:03o}")),
                (c, 1) => out += &format!("\\U{:08x}", u32::from(c)),
                ('\n', _) => out += "\\n",
                ('\\' | '"' | '\'', _) => out += &format!("\\{character}"),
                (c, 2) if !c.is_ascii_control() => out += &format!("{c}{quote} {quote}"),
                (c, _) => out.push(c),
            }
        }
        out + quote
    }
}

proptest! {
    #[test]
    fn what_is_written_as_text_is_read_back(seed in 1u64..) {
        let mut dice = Dice(seed);
        let message = dice.message(&descriptor());
        let mut text = String::new();
        dice.write(&message, &mut text);
        let (read, _, found) = written::read_text(text.as_bytes(), Path::new("c"));
        prop_assert!(found.mistakes.is_empty(), "{}\n{text}", found.mistakes);
        prop_assert_eq!(read, Some(message.transcode_to::<ModelConfig>().expect("the same messages")));
    }

    #[test]
    fn what_is_written_as_json_is_read_back(seed in 1u64..) {
        let message = Dice(seed).message(&descriptor());
        let text = serde_json::to_string(&message).expect("it is finite");
        let fields = json::parse(&text).expect("it is an object");
        let (read, found) = bind(fields, Dialect::Json, &mut Positions::of(Path::new("c")));
        prop_assert!(found.mistakes.is_empty(), "{}\n{text}", found.mistakes);
        prop_assert_eq!(read, message.transcode_to::<ModelConfig>().expect("the same messages"));
    }
}
