//! Reads a configuration written as JSON, as a load request may bring one, into the same tree as the text.

use serde_json::Value as Json;

use super::tree::{Field, Integer, Node, Value};

/// The fields of a JSON object; an error names what JSON itself forbids, with its line and column.
pub(super) fn parse(text: &str) -> Result<Vec<Field>, String> {
    // serde_json limits the nesting to 128 itself.
    match serde_json::from_str(text) {
        Ok(Json::Object(members)) => Ok(fields(members)),
        Ok(_) => Err("expected a JSON object".to_owned()),
        Err(error) => Err(format!("malformed JSON: {error}")),
    }
}

fn fields(members: serde_json::Map<String, Json>) -> Vec<Field> {
    // Null means absent, as the JSON form of protobuf has it.
    let present = members.into_iter().filter(|(_, value)| !value.is_null());
    present.map(|(name, value)| Field { name, at: None, value: node(value) }).collect()
}

fn node(json: Json) -> Node {
    let value = match json {
        Json::Null => Value::Word("null".to_owned()),
        Json::Bool(value) => Value::Word(value.to_string()),
        Json::String(text) => Value::Text(text.into_bytes()),
        Json::Array(elements) => Value::List(elements.into_iter().map(node).collect()),
        Json::Object(members) => Value::Message(fields(members)),
        Json::Number(number) => number_value(&number),
    };
    Node { at: None, value }
}

fn number_value(number: &serde_json::Number) -> Value {
    let text = number.to_string();
    if let Some(value) = number.as_u64() {
        return Value::Integer(Integer { negative: false, magnitude: Some(value), text });
    }
    if let Some(value) = number.as_i64() {
        return Value::Integer(Integer { negative: value < 0, magnitude: Some(value.unsigned_abs()), text });
    }
    Value::Float(number.as_f64().unwrap_or(f64::NAN))
}
