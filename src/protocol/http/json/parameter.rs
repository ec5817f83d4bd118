//! Reads parameters: a JSON object whose values are booleans, numbers or strings.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::protocol::v2::PARTS_MAX;
use crate::protocol::v2::wire::InferParameter;
use crate::protocol::v2::wire::infer_parameter::ParameterChoice;

/// A value of a parameter.
pub struct Value(pub InferParameter);

impl Value {
    fn of<E>(choice: ParameterChoice) -> Result<Self, E> {
        Ok(Self(InferParameter { parameter_choice: Some(choice) }))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl Visitor<'_> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a parameter that is a boolean, a number or a string")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Value::of(ParameterChoice::BoolParam(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Value::of(ParameterChoice::Int64Param(value))
    }

    /// A number has the signed type if it fits, as clients of the other protocol send it.
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Value::of(i64::try_from(value).map_or(ParameterChoice::Uint64Param(value), ParameterChoice::Int64Param))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Value::of(ParameterChoice::DoubleParam(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Value::of(ParameterChoice::StringParam(value.to_owned()))
    }
}

/// The parameters of a request, an input or an output.
#[derive(Debug, Default)]
pub struct Parameters(pub HashMap<String, InferParameter>);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ParametersVisitor)
    }
}

struct ParametersVisitor;

impl<'de> Visitor<'de> for ParametersVisitor {
    type Value = Parameters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of parameters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Parameters, A::Error> {
        let mut parameters = HashMap::new();
        while let Some((key, Value(value))) = object.next_entry()? {
            parameters.insert(key, value);
            if parameters.len() > PARTS_MAX {
                return Err(A::Error::custom(format_args!("the request has more than {PARTS_MAX} parameters")));
            }
        }
        Ok(Parameters(parameters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Parameters, String> {
        serde_json::from_str(text).map_err(|error| super::super::reason(&error))
    }

    #[test]
    fn each_kind_of_value_has_its_type() {
        let text = r#"{"a": true, "b": -1, "c": 18446744073709551615, "d": 0.5, "e": "x", "f": 7}"#;
        let read = read(text).expect("parameters").0;
        let choice = |key: &str| read[key].parameter_choice.clone().expect("a value");
        assert_eq!(choice("a"), ParameterChoice::BoolParam(true));
        assert_eq!(choice("b"), ParameterChoice::Int64Param(-1));
        assert_eq!(choice("c"), ParameterChoice::Uint64Param(u64::MAX));
        assert_eq!(choice("d"), ParameterChoice::DoubleParam(0.5));
        assert_eq!(choice("e"), ParameterChoice::StringParam("x".to_owned()));
        assert_eq!(choice("f"), ParameterChoice::Int64Param(7));
    }

    #[test]
    fn other_values_are_refused_and_so_are_too_many() {
        for text in [r#"{"a": null}"#, r#"{"a": [1]}"#, r#"{"a": {}}"#, "[]", "1"] {
            assert!(read(text).expect_err(text).contains("expected a"), "{text}");
        }
        let many: Vec<String> = (0..=PARTS_MAX).map(|index| format!("\"{index}\": 1")).collect();
        let refused = read(&format!("{{{}}}", many.join(","))).expect_err("too many");
        assert_eq!(refused, "the request has more than 4096 parameters");
    }
}
