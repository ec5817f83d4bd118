//! Forwards headers of a call to the model: those whose names match a pattern become parameters of the request.

use std::collections::HashMap;

use http::HeaderMap;
use regex::{Regex, RegexBuilder};

use super::wire::{InferParameter, infer_parameter::ParameterChoice};

/// Parameters that mean something to the server, which a header does not say.
const MEANT: [&str; 5] = ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout"];

/// Which headers are forwarded; none by default.
#[derive(Clone, Debug, Default)]
pub struct Forward(Option<Regex>);

impl PartialEq for Forward {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref().map(Regex::as_str) == other.0.as_ref().map(Regex::as_str)
    }
}

impl Eq for Forward {}

impl Forward {
    /// Those whose name `pattern` matches in any part, whatever the case of its letters; an empty one matches none.
    ///
    /// # Errors
    /// What is wrong with the pattern.
    pub fn new(pattern: &str) -> Result<Self, String> {
        if pattern.is_empty() {
            return Ok(Self::default());
        }
        let regex = RegexBuilder::new(pattern).case_insensitive(true).build();
        regex.map(|regex| Self(Some(regex))).map_err(|error| error.to_string())
    }

    /// The parameters that `headers` become. Names are in lower case; values that are no text are left out.
    pub fn parameters(&self, headers: &HeaderMap) -> Vec<(String, InferParameter)> {
        let Some(regex) = &self.0 else { return Vec::new() };
        let matching = headers.iter().filter(|(name, _)| {
            let name = name.as_str();
            regex.is_match(name) && !MEANT.contains(&name) && !name.starts_with("triton_")
        });
        let parameter =
            |text: &str| InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())) };
        matching.filter_map(|(name, value)| Some((name.to_string(), parameter(value.to_str().ok()?)))).collect()
    }

    /// Adds to `parameters` what `headers` become; a header goes before a parameter of the same name.
    pub fn add(&self, headers: &HeaderMap, parameters: &mut HashMap<String, InferParameter>) {
        if self.0.is_some() {
            parameters.extend(self.parameters(headers));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn headers_that_match_become_parameters() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-user", "me"), ("x-team", "us"), ("accept", "all"), ("timeout", "5"), ("triton_x", "1")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert("x-binary", HeaderValue::from_bytes(&[0xff]).expect("allowed"));
        let forwarded = |pattern: &str| {
            let mut parameters = HashMap::new();
            Forward::new(pattern).expect("a pattern").add(&headers, &mut parameters);
            let mut names: Vec<String> = parameters.into_keys().collect();
            names.sort();
            names
        };
        assert_eq!(forwarded(""), Vec::<String>::new());
        assert_eq!(forwarded("X-"), ["x-team", "x-user"]);
        assert_eq!(forwarded("^x-user$"), ["x-user"]);
        assert_eq!(forwarded(".*"), ["accept", "x-team", "x-user"]);
        assert!(Forward::new("(").is_err());
    }
}
