//! Binds a written value to a scalar type.

use prost_reflect::{EnumDescriptor, Kind, Value as Bound};

use super::bind::Dialect;
use super::suggest::nearest_value;
use super::tree::{Value, shorten};

/// Enums with at most this many values are listed in full where no value is near.
const VALUES_LISTED_MAX: usize = 8;

/// Why a value does not fit, and what may have been meant.
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) suggestion: Option<String>,
}

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self { message, suggestion: None }
    }
}

/// `value` as `kind`, which is not a message; `name` is the field's.
pub(super) fn bind(name: &str, kind: &Kind, value: &Value, dialect: Dialect) -> Result<Bound, Wrong> {
    let wrong = |expected: &str| Wrong::from(format!("expected {expected} for '{name}', got {}", value.describe()));
    match kind {
        Kind::Bool => boolean(value, dialect).map(Bound::Bool).ok_or_else(|| wrong("true or false")),
        Kind::String => match value {
            Value::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Ok(Bound::String(text.to_owned())),
                Err(_) => Err(format!("the string of '{name}' is not valid UTF-8").into()),
            },
            _ => Err(wrong("a quoted string")),
        },
        Kind::Bytes => match value {
            Value::Text(text) => Ok(Bound::Bytes(text.clone().into())),
            _ => Err(wrong("a quoted string")),
        },
        Kind::Float | Kind::Double => {
            let number = float(value).ok_or_else(|| wrong("a number"))?;
            #[allow(clippy::cast_possible_truncation, reason = "a float field keeps what a float can hold")]
            Ok(if matches!(kind, Kind::Float) { Bound::F32(number as f32) } else { Bound::F64(number) })
        }
        Kind::Enum(values) => enumeration(name, values, value, dialect),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            integer(name, value, dialect, "a 32-bit integer").map(Bound::I32)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            integer(name, value, dialect, "a 64-bit integer").map(Bound::I64)
        }
        Kind::Uint32 | Kind::Fixed32 => integer(name, value, dialect, "an unsigned 32-bit integer").map(Bound::U32),
        Kind::Uint64 | Kind::Fixed64 => integer(name, value, dialect, "an unsigned 64-bit integer").map(Bound::U64),
        Kind::Message(_) => Err(wrong("a message")),
    }
}

fn boolean(value: &Value, dialect: Dialect) -> Option<bool> {
    match value {
        Value::Word(word) => match word.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            "True" | "t" if dialect == Dialect::Text => Some(true),
            "False" | "f" if dialect == Dialect::Text => Some(false),
            _ => None,
        },
        Value::Integer(integer) if dialect == Dialect::Text => match integer.value()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
        _ => None,
    }
}

fn integer<T: TryFrom<i128>>(name: &str, value: &Value, dialect: Dialect, wanted: &str) -> Result<T, Wrong> {
    let (number, text) = match value {
        Value::Integer(integer) => (integer.value(), integer.text.clone()),
        Value::Text(text) if dialect == Dialect::Json => {
            let text = String::from_utf8_lossy(text);
            let Ok(number) = text.parse::<i128>() else {
                return Err(format!("expected {wanted} for '{name}', got {}", value.describe()).into());
            };
            (Some(number), text.into_owned())
        }
        #[allow(clippy::cast_possible_truncation, reason = "the bound is checked before")]
        Value::Float(number) if dialect == Dialect::Json && number.fract() == 0.0 && number.abs() < 1e15 => {
            (Some(*number as i128), number.to_string())
        }
        _ => return Err(format!("expected {wanted} for '{name}', got {}", value.describe()).into()),
    };
    let fits = number.and_then(|number| T::try_from(number).ok());
    fits.ok_or_else(|| format!("{} is out of range for '{name}', {wanted}", shorten(&text)).into())
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        #[allow(clippy::cast_precision_loss, reason = "a float field keeps what a float can hold")]
        Value::Integer(integer) => match integer.value() {
            Some(number) => Some(number as f64),
            // Beyond 64 bits only decimal digits are a float.
            None => integer.text.parse().ok().filter(|_| !integer.text.trim_start_matches('-').starts_with('0')),
        },
        Value::Word(word) => {
            let (negative, word) = word.strip_prefix('-').map_or((false, word.as_str()), |rest| (true, rest));
            let number = match word.to_ascii_lowercase().as_str() {
                "inf" | "infinity" => f64::INFINITY,
                "nan" => f64::NAN,
                _ => return None,
            };
            Some(if negative { -number } else { number })
        }
        _ => None,
    }
}

fn enumeration(name: &str, of: &EnumDescriptor, value: &Value, dialect: Dialect) -> Result<Bound, Wrong> {
    let values: Vec<_> = of.values().collect();
    let names: Vec<&str> = values.iter().map(|value| value.name()).collect();
    let word = match value {
        Value::Integer(integer) => {
            let found = values.iter().find(|value| Some(i128::from(value.number())) == integer.value());
            return match found {
                Some(found) => Ok(Bound::EnumNumber(found.number())),
                None => Err(format!("unknown value {} for '{name}'", shorten(&integer.text)).into()),
            };
        }
        Value::Word(word) => word.clone(),
        Value::Text(text) if dialect == Dialect::Json => String::from_utf8_lossy(text).into_owned(),
        Value::Text(text) => {
            let suggestion = nearest_value(&String::from_utf8_lossy(text), &names);
            return Err(Wrong {
                message: format!("expected a name without quotes for '{name}', got {}", value.describe()),
                suggestion,
            });
        }
        _ => return Err(format!("expected one of {} for '{name}', got {}", names.join(", "), value.describe()).into()),
    };
    let found = values
        .iter()
        .find(|value| value.name() == word || dialect == Dialect::Json && value.name().eq_ignore_ascii_case(&word));
    if let Some(found) = found {
        return Ok(Bound::EnumNumber(found.number()));
    }
    let suggestion = nearest_value(&word, &names);
    let mut message = format!("unknown value '{}' for '{name}'", shorten(&word));
    if suggestion.is_none() && names.len() <= VALUES_LISTED_MAX {
        message.push_str(&format!(" (one of {} is expected)", names.join(", ")));
    }
    Err(Wrong { message, suggestion })
}
