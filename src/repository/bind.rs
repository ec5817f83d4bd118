//! Gives a tree its meaning: fields by the descriptors of the configuration messages, values by their types.
//!
//! Every unknown name, wrong type, value out of range and repetition is a mistake at its place; what is right is kept,
//! so that one reading finds all of them. Begin with [`bind`].

use std::collections::HashMap;
use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Bound};

use super::mistakes::{Findings, Mistake, Position, Positions};
use super::scalar;
use super::suggest::nearest;
use super::tree::{Field, Node, Value, shorten};
use crate::model::schema;

/// The most entries of one list or map; what is more is no model's configuration.
const ENTRIES_MAX: usize = 4096;

/// Which spelling rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Protobuf text format.
    Text,
    /// The JSON form: names in two cases, enum values as strings, long integers as strings, maps as objects.
    Json,
}

/// The configuration that `fields` write, the places of its keys in `positions`, and what is wrong or suspicious.
pub(super) fn bind(fields: Vec<Field>, dialect: Dialect, positions: &mut Positions) -> (schema::ModelConfig, Findings) {
    let mut binder = Binder { dialect, positions, found: Findings::default() };
    let message = binder.message(&descriptor(), fields, "");
    let config = message.transcode_to().expect("the dynamic message was built from the descriptors of this very type");
    (config, binder.found)
}

pub(super) fn descriptor() -> MessageDescriptor {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let pool =
        POOL.get_or_init(|| DescriptorPool::decode(schema::DESCRIPTORS).expect("the build script wrote a valid set"));
    pool.get_message_by_name("inference.ModelConfig").expect("proto/model_config.proto defines it")
}

struct Binder<'a> {
    dialect: Dialect,
    positions: &'a mut Positions,
    found: Findings,
}

/// A message and what it has set so far.
struct Building {
    message: DynamicMessage,
    singular: HashMap<u32, Option<Position>>,
    /// By oneof: the field that was set.
    choices: HashMap<String, String>,
    /// By repeated field or map: how many elements.
    counts: HashMap<u32, usize>,
}

impl Binder<'_> {
    fn report(&mut self, at: Option<Position>, key: &str, message: String) {
        self.report_near(at, key, message, || None);
    }

    fn report_near(
        &mut self,
        at: Option<Position>,
        key: &str,
        message: String,
        suggestion: impl FnOnce() -> Option<String>,
    ) {
        let known = self.positions.mistake(key, message);
        self.found.mistakes.push_near(Mistake { position: at.or(known.position), ..known }, suggestion);
    }

    fn message(&mut self, of: &MessageDescriptor, fields: Vec<Field>, path: &str) -> DynamicMessage {
        let mut building = Building {
            message: DynamicMessage::new(of.clone()),
            singular: HashMap::new(),
            choices: HashMap::new(),
            counts: HashMap::new(),
        };
        for field in fields {
            let key = join(path, &field.name);
            let Some(known) = self.find(of, &field.name) else {
                self.unknown(of, &field, &key);
                continue;
            };
            // Both spellings of a name are the same key.
            let key = join(path, known.name());
            self.positions.insert(&key, field.at);
            if known.is_map() {
                self.map(&mut building, &known, field.value, &key);
            } else if known.is_list() {
                self.list(&mut building, &known, field.value, &key);
            } else {
                self.singular(&mut building, &known, field, &key);
            }
        }
        building.message
    }

    fn find(&self, of: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
        let found = of.get_field_by_name(name);
        if self.dialect == Dialect::Json { found.or_else(|| of.get_field_by_json_name(name)) } else { found }
    }

    fn unknown(&mut self, of: &MessageDescriptor, field: &Field, key: &str) {
        let message = format!("unknown field '{}'", shorten(&field.name));
        self.report_near(field.at, key, message, || {
            let names: Vec<_> = of.fields().map(|known| known.name().to_owned()).collect();
            nearest(&field.name, names.iter().map(String::as_str))
        });
    }

    fn singular(&mut self, building: &mut Building, known: &FieldDescriptor, field: Field, key: &str) {
        let name = known.name();
        if let Some(first) = building.singular.insert(known.number(), field.at) {
            let first = first.map(|at| format!(", first at {at}")).unwrap_or_default();
            self.report(field.at, key, format!("'{name}' is given more than once{first}"));
            return;
        }
        if let Some(choice) = known.containing_oneof()
            && let Some(other) = building.choices.insert(choice.full_name().to_owned(), name.to_owned())
        {
            self.report(field.at, key, format!("'{name}' and '{other}' exclude each other, give only one"));
            return;
        }
        if matches!(field.value.value, Value::List(_)) {
            let message = format!("'{name}' takes one value, not a list");
            self.report(field.value.at, key, message);
            return;
        }
        if let Some(value) = self.value(known, field.value, key) {
            building.message.set_field(known, value);
        }
    }

    fn list(&mut self, building: &mut Building, known: &FieldDescriptor, node: Node, key: &str) {
        let nodes = match node.value {
            Value::List(nodes) => nodes,
            _ if self.dialect == Dialect::Json => {
                let got = node.value.describe();
                self.report(node.at, key, format!("expected a list for '{}', got {got}", known.name()));
                return;
            }
            value => vec![Node { at: node.at, value }],
        };
        for node in nodes {
            let count = building.counts.entry(known.number()).or_default();
            let element = format!("{key}[{count}]");
            *count += 1;
            if *count > ENTRIES_MAX {
                return self.report(node.at, key, format!("'{}' has more than {ENTRIES_MAX} entries", known.name()));
            }
            self.positions.insert(&element, node.at);
            // An element that is wrong keeps its place, so that the keys of those behind it stay true.
            let value = self.value(known, node, &element).unwrap_or_else(|| Bound::default_value(&known.kind()));
            if let Some(list) = building.message.get_field_mut(known).as_list_mut() {
                list.push(value);
            }
        }
    }

    fn map(&mut self, building: &mut Building, known: &FieldDescriptor, node: Node, key: &str) {
        let nodes = match node.value {
            Value::List(nodes) if self.dialect == Dialect::Text => nodes,
            Value::Message(fields) if self.dialect == Dialect::Json => {
                for field in fields {
                    let written = Node { at: field.at, value: Value::Text(field.name.into_bytes()) };
                    self.entry(building, known, (written, Some(field.value)), key);
                }
                return;
            }
            value => vec![Node { at: node.at, value }],
        };
        for node in nodes {
            let Value::Message(fields) = node.value else {
                let got = node.value.describe();
                let wanted = if self.dialect == Dialect::Text { "{ key: ... value: ... }" } else { "an object" };
                self.report(node.at, key, format!("expected {wanted} in '{}', got {got}", known.name()));
                continue;
            };
            let (mut entry_key, mut entry_value, mut misread) = (None, None, false);
            for field in fields {
                let slot = match field.name.as_str() {
                    "key" => &mut entry_key,
                    "value" => &mut entry_value,
                    _ => {
                        let suggestion = || nearest(&field.name, ["key", "value"]);
                        let message = format!("unknown field '{}'", shorten(&field.name));
                        self.report_near(field.at, &join(key, &field.name), message, suggestion);
                        misread = true;
                        continue;
                    }
                };
                if slot.is_some() {
                    let message = format!("'{}' is given more than once", field.name);
                    self.report(field.at, &join(key, &field.name), message);
                } else {
                    *slot = Some(field.value);
                }
            }
            match entry_key {
                Some(entry_key) => self.entry(building, known, (entry_key, entry_value), key),
                None if misread => {}
                None => self.report(node.at, key, format!("an entry of '{}' must specify 'key'", known.name())),
            }
        }
    }

    fn entry(
        &mut self,
        building: &mut Building,
        known: &FieldDescriptor,
        (key, value): (Node, Option<Node>),
        path: &str,
    ) {
        let Kind::Message(entry) = known.kind() else { return };
        let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        let at = key.at;
        // The keys of a JSON object are strings, whatever they stand for.
        let Some(bound) = self.value(&key_field, key, path).and_then(Bound::into_map_key) else { return };
        let count = building.counts.entry(known.number()).or_default();
        *count += 1;
        if *count > ENTRIES_MAX {
            return self.report(at, path, format!("'{}' has more than {ENTRIES_MAX} entries", known.name()));
        }
        let path = format!("{path}[{}]", shorten(&key_text(&bound)));
        if self.positions.wrote(&path) {
            // As for protobuf's own parser, to which entries are elements of a repeated field.
            let known =
                self.positions.mistake(&path, format!("'{path}' is given more than once: the last value holds"));
            self.found.warnings.push(Mistake { position: at.or(known.position), ..known });
            self.positions.forget(&path);
        }
        self.positions.insert(&path, at);
        let value = match value {
            Some(node) => self.value(&value_field, node, &path),
            None => Some(Bound::default_value_for_field(&value_field)),
        };
        if let (Some(value), Some(map)) = (value, building.message.get_field_mut(known).as_map_mut()) {
            map.insert(bound, value);
        }
    }

    /// One value of the field's type; `None`, and a mistake, if it is of another.
    fn value(&mut self, known: &FieldDescriptor, node: Node, key: &str) -> Option<Bound> {
        if let Kind::Message(of) = known.kind() {
            return match node.value {
                Value::Message(fields) => Some(Bound::Message(self.message(&of, fields, key))),
                other => {
                    let got = other.describe();
                    let wanted = if self.dialect == Dialect::Text { "'{'" } else { "an object" };
                    self.report(node.at, key, format!("expected {wanted} for '{}', got {got}", known.name()));
                    None
                }
            };
        }
        match scalar::bind(known.name(), &known.kind(), &node.value, self.dialect) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.report_near(node.at, key, wrong.message, || wrong.suggestion);
                None
            }
        }
    }
}

fn join(path: &str, name: &str) -> String {
    let name = shorten(name);
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(value) => value.to_string(),
        MapKey::I32(value) => value.to_string(),
        MapKey::I64(value) => value.to_string(),
        MapKey::U32(value) => value.to_string(),
        MapKey::U64(value) => value.to_string(),
        MapKey::String(value) => value.clone(),
    }
}
