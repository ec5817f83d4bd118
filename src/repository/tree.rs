//! A configuration as written, before its keys mean anything: what the text and the JSON reader both produce.

use super::mistakes::Position;

/// `name: value`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) at: Option<Position>,
    pub(super) value: Node,
}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) at: Option<Position>,
    pub(super) value: Value,
}

/// What stands behind a field's name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Message(Vec<Field>),
    List(Vec<Node>),
    /// A quoted string, escapes resolved.
    Text(Vec<u8>),
    /// A bare word, with its minus sign if it has one.
    Word(String),
    Integer(Integer),
    Float(f64),
}

/// An integer of any size; `magnitude` is `None` beyond 64 bits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Integer {
    pub(super) negative: bool,
    pub(super) magnitude: Option<u64>,
    /// As written, for messages.
    pub(super) text: String,
}

impl Integer {
    /// The value, if 64 bits and a sign hold it.
    pub(super) fn value(&self) -> Option<i128> {
        let magnitude = i128::from(self.magnitude?);
        Some(if self.negative { -magnitude } else { magnitude })
    }
}

impl Value {
    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Message(_) => "a message".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Text(text) => format!("the string \"{}\"", shorten(&String::from_utf8_lossy(text))),
            Value::Word(word) => format!("'{}'", shorten(word)),
            Value::Integer(integer) => format!("the number {}", shorten(&integer.text)),
            Value::Float(number) => format!("the number {number}"),
        }
    }
}

/// At most 60 printable characters of `text`.
pub(super) fn shorten(text: &str) -> String {
    const CHARACTERS_MAX: usize = 60;
    let mut short: String =
        text.chars().take(CHARACTERS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        short.push('…');
    }
    short
}
