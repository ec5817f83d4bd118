//! The nearest valid spelling of a wrong word.

use strsim::{damerau_levenshtein, jaro_winkler};

/// What people write who know other names for the element types.
const KNOWN_AS: &[(&str, &str)] = &[
    ("TYPE_FLOAT", "TYPE_FP32"),
    ("TYPE_FLOAT32", "TYPE_FP32"),
    ("TYPE_DOUBLE", "TYPE_FP64"),
    ("TYPE_FLOAT64", "TYPE_FP64"),
    ("TYPE_HALF", "TYPE_FP16"),
    ("TYPE_FLOAT16", "TYPE_FP16"),
    ("TYPE_BFLOAT16", "TYPE_BF16"),
    ("TYPE_BYTES", "TYPE_STRING"),
    ("TYPE_LONG", "TYPE_INT64"),
    ("TYPE_INT", "TYPE_INT32"),
    ("TYPE_BOOLEAN", "TYPE_BOOL"),
];

/// Words longer than this are compared with nothing.
const LENGTH_MAX: usize = 100;

/// Words are compared with no more candidates than these: each takes microseconds, and there may be many wrong words.
const CANDIDATES_MAX: usize = 500;

/// The candidate nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if word.len() > LENGTH_MAX {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let near = candidates.into_iter().take(CANDIDATES_MAX).filter_map(|candidate| {
        let lower = candidate.to_ascii_lowercase();
        let edits = damerau_levenshtein(&word, &lower);
        let close = edits <= 2.min(word.len() / 2) || edits * 3 <= word.len().max(lower.len());
        // A word that lacks a part, as `max_batch` does, is many edits away but begins alike.
        let begins = jaro_winkler(&word, &lower) >= 0.9;
        (close || begins).then_some((edits, candidate))
    });
    near.min_by_key(|(edits, _)| *edits).map(|(_, candidate)| candidate.to_owned())
}

/// The enum value nearest to `word`, prefixes and other languages' names considered.
pub(super) fn nearest_value(word: &str, values: &[&str]) -> Option<String> {
    if word.len() > LENGTH_MAX {
        return None;
    }
    let upper = word.to_ascii_uppercase();
    let prefix = values.first().and_then(|value| value.split_once('_')).map_or("", |(prefix, _)| prefix);
    let full = format!("{prefix}_{upper}");
    for spelling in [&upper, &full] {
        if let Some(value) = values.iter().find(|value| **value == spelling.as_str()) {
            return Some((*value).to_owned());
        }
        let known = KNOWN_AS.iter().find(|(name, value)| name == spelling && values.contains(value));
        if let Some((_, value)) = known {
            return Some((*value).to_owned());
        }
    }
    nearest(word, values.iter().copied()).or_else(|| nearest(&full, values.iter().copied()))
}

/// The key that `key` begins, or that is within two edits of it: near enough to be what was meant.
pub(super) fn misspelt<'a>(key: &str, keys: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if key.len() > LENGTH_MAX {
        return None;
    }
    let lower = key.to_ascii_lowercase();
    let near = keys.into_iter().filter_map(|known| {
        let edits = damerau_levenshtein(&lower, &known.to_ascii_lowercase());
        let begins = lower.len() * 2 > known.len() && known.to_ascii_lowercase().starts_with(&lower);
        (begins || edits <= 2 && edits * 2 < known.len()).then_some((edits, known))
    });
    near.min_by_key(|(edits, _)| *edits).map(|(_, known)| known)
}
