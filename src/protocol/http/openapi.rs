//! `/openapi.json`: what this front end offers, for programs; the file beside this one, written by hand.

use axum::response::Response;
use http::StatusCode;

use super::reply;

/// OpenAPI 3.1.
const DESCRIPTION: &str = include_str!("openapi.json");

/// `GET /openapi.json`.
pub async fn describe() -> Response {
    reply::json(StatusCode::OK, DESCRIPTION)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::routes::ROUTES;
    use super::*;
    use crate::tensor::DataType;

    fn description() -> Value {
        serde_json::from_str(DESCRIPTION).expect("valid JSON")
    }

    /// Each method of each path, with what it is about.
    fn described(description: &Value) -> BTreeSet<(String, String, String)> {
        let paths = description["paths"].as_object().expect("always there");
        let methods = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("an object by method");
            methods.iter().map(move |(method, operation)| {
                let tag = operation["tags"][0].as_str().expect("each has a tag");
                (method.to_uppercase(), path.clone(), tag.to_owned())
            })
        });
        methods.collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let open = |(_, path, _): &(String, String, String)| path != "/openapi.json";
        let routes = ROUTES.iter().filter_map(|route| {
            let category = route.category?;
            Some((route.method.to_owned(), route.path.to_owned(), category.name().to_owned()))
        });
        let routes: BTreeSet<_> = routes.collect();
        assert_eq!(described(&description()).into_iter().filter(open).collect::<BTreeSet<_>>(), routes);
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_name_in_a_path_is_declared() {
        let description = description();
        let mut left = vec![&description];
        while let Some(value) = left.pop() {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(reference)) = members.get("$ref") {
                        assert!(description.pointer(&reference[1..]).is_some(), "{reference}");
                    }
                    left.extend(members.values());
                }
                Value::Array(elements) => left.extend(elements),
                _ => {}
            }
        }
        for (method, path, _) in described(&description) {
            let operation = &description["paths"][&path][method.to_lowercase()];
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let declared = |name: &str| {
                parameters.iter().any(|parameter| {
                    let reference = parameter["$ref"].as_str().unwrap_or_default();
                    description.pointer(&reference[1..]).is_some_and(|found| found["name"] == name)
                })
            };
            for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                assert!(declared(part), "{method} {path}: {part}");
            }
        }
    }

    #[test]
    fn the_element_types_are_the_servers() {
        let names = description()["components"]["schemas"]["Datatype"]["enum"].clone();
        let mut names: Vec<String> = serde_json::from_value(names).expect("texts");
        let mut expected = DataType::ALL.map(|dtype| dtype.name().to_owned()).to_vec();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}
