//! The model repository's RPCs: what is there, load, unload.
//!
//! Checks what is wrong with the call itself; whether models may be loaded by request is the engine's to say.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use bytes::Bytes;

use super::wire::model_repository_parameter::ParameterChoice;
use super::wire::repository_index_response::ModelIndex;
use super::wire::{
    ModelRepositoryParameter, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse,
};
use crate::error::{Error, Kind, Result};
use crate::gateway::{Gateway, Overrides};
use crate::model::Version;

/// The longest name that a file system takes, in bytes.
const FILE_NAME_BYTES_MAX: usize = 255;

/// Every model version with its state and, where it is not ready, the reason.
///
/// # Errors
/// [`Kind::Unimplemented`] if a repository is named.
pub async fn index(gateway: &Gateway, request: &RepositoryIndexRequest) -> Result<RepositoryIndexResponse> {
    unnamed(&request.repository_name)?;
    let entries = gateway.index(request.ready).await.into_iter().map(|entry| ModelIndex {
        name: entry.key.name.to_string(),
        version: entry.version.as_ref().map(Version::to_string).unwrap_or_default(),
        state: entry.state.map(|state| state.to_string()).unwrap_or_default(),
        reason: entry.reason,
    });
    Ok(RepositoryIndexResponse { models: entries.collect() })
}

/// Loads a model, from its directory or from what the parameters override; answers when it is loaded.
///
/// # Errors
/// [`Kind::InvalidArgument`] for parameters that are not understood; otherwise why the model could not be loaded.
pub async fn load(gateway: &Gateway, request: RepositoryModelLoadRequest) -> Result<RepositoryModelLoadResponse> {
    unnamed(&request.repository_name)?;
    check_model_name(&request.model_name)?;
    gateway.load(&request.model_name, overrides(request.parameters)?).await?;
    Ok(RepositoryModelLoadResponse {})
}

/// Takes a model out of service.
///
/// # Errors
/// [`Kind::InvalidArgument`] for a wrong parameter or name; otherwise why it could not be unloaded.
pub async fn unload(gateway: &Gateway, request: RepositoryModelUnloadRequest) -> Result<RepositoryModelUnloadResponse> {
    unnamed(&request.repository_name)?;
    check_model_name(&request.model_name)?;
    let dependents = match request.parameters.get("unload_dependents").map(|parameter| &parameter.parameter_choice) {
        None => false,
        Some(Some(ParameterChoice::BoolParam(dependents))) => *dependents,
        Some(_) => {
            return Err(Error::invalid("invalid value type for 'unload_dependents' parameter, expected bool_param."));
        }
    };
    gateway.unload(&request.model_name, dependents).await?;
    Ok(RepositoryModelUnloadResponse {})
}

fn unnamed(repository: &str) -> Result<()> {
    match repository {
        "" => Ok(()),
        _ => Err(Error::new(Kind::Unimplemented, "'repository_name' specification is not supported")),
    }
}

/// A model's name is the name of a directory, never a path.
fn check_model_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("the model name is empty"));
    }
    match is_inside(name) && !name.contains(['/', '\\']) {
        true => Ok(()),
        false => Err(Error::invalid(format!("model name '{name}' is not the name of a directory"))),
    }
}

/// Whether `path` stays below where it starts.
fn is_inside(path: &str) -> bool {
    !path.contains('\0') && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn overrides(parameters: HashMap<String, ModelRepositoryParameter>) -> Result<Overrides> {
    let mut config = None;
    let mut files = BTreeMap::new();
    for (key, parameter) in parameters {
        let wrong_type =
            |expected| Error::invalid(format!("invalid value type for load parameter '{key}', expected {expected}."));
        match (key.strip_prefix("file:"), parameter.parameter_choice) {
            (Some(path), Some(ParameterChoice::BytesParam(data))) => insert_file(&mut files, &key, path, data)?,
            (Some(_), _) => return Err(wrong_type("bytes_param")),
            (None, Some(ParameterChoice::StringParam(json))) if key == "config" => config = Some(json),
            (None, _) if key == "config" => return Err(wrong_type("string_param")),
            (None, _) => return Err(Error::invalid(format!("unrecognized load parameter '{key}'."))),
        }
    }
    if config.is_none() && !files.is_empty() {
        return Err(Error::invalid("load parameters 'file:<path>' need the load parameter 'config' as well"));
    }
    Ok(Overrides { config, files })
}

/// Keeps a file under its path inside the model's directory, such as `1/model.pt` or `labels.txt`.
fn insert_file(files: &mut BTreeMap<String, Bytes>, key: &str, path: &str, data: Bytes) -> Result<()> {
    if path.split('/').any(|name| name.len() > FILE_NAME_BYTES_MAX) {
        // The kind and the words of the reference server, which clients look for.
        return Err(Error::internal(format!(
            "failed to poll from model repository: a load parameter has a file name of more than {FILE_NAME_BYTES_MAX} bytes"
        )));
    }
    // A path may end in a way that says a directory.
    let names_a_file = path.rsplit('/').next().is_some_and(|name| !["", "."].contains(&name));
    if !names_a_file || !is_inside(path) {
        return Err(Error::invalid(format!("load parameter '{key}' does not name a file inside the model directory")));
    }
    let parts = path.split('/').filter(|part| !["", "."].contains(part));
    let path = parts.collect::<Vec<_>>().join("/");
    let prefixes = path.match_indices('/').map(|(at, _)| &path[..at]);
    let outer = prefixes.chain([path.as_str()]).find_map(|outer| files.get_key_value(outer));
    let below = format!("{path}/");
    let inner = files.range(below.clone()..).next().filter(|(inner, _)| inner.starts_with(&below));
    if let Some((other, _)) = outer.or(inner) {
        return Err(Error::invalid(format!("load parameter '{key}' names a file where '{other}' is another one")));
    }
    files.insert(path, data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(pairs: &[(&str, ParameterChoice)]) -> std::result::Result<Overrides, String> {
        let of = |choice: &ParameterChoice| ModelRepositoryParameter { parameter_choice: Some(choice.clone()) };
        let parameters = pairs.iter().map(|(key, choice)| ((*key).to_owned(), of(choice))).collect();
        overrides(parameters).map_err(|error| error.to_string())
    }

    fn text() -> ParameterChoice {
        ParameterChoice::StringParam("{}".to_owned())
    }

    fn data() -> ParameterChoice {
        ParameterChoice::BytesParam(Bytes::from_static(b"weights"))
    }

    #[test]
    fn a_configuration_and_files_are_taken() {
        let taken = decoded(&[("config", text()), ("file:1/model.pt", data())]).expect("well formed");
        assert_eq!(taken.config.as_deref(), Some("{}"));
        assert_eq!(taken.files["1/model.pt"], "weights");
    }

    #[test]
    fn wrong_parameters_are_told_apart() {
        for (pairs, expected) in [
            (&[("config", data())][..], "invalid value type for load parameter 'config', expected string_param."),
            (&[("file:1/m", text())], "invalid value type for load parameter 'file:1/m', expected bytes_param."),
            (&[("speed", text())], "unrecognized load parameter 'speed'."),
            (&[("file:1/m", data())], "load parameters 'file:<path>' need the load parameter 'config' as well"),
        ] {
            assert_eq!(decoded(pairs).map(|_| ()), Err(expected.to_owned()));
        }
    }

    #[test]
    fn a_file_may_be_anywhere_in_the_model_directory() {
        for path in ["1/model.pt", "labels.txt", "warmup/x", "initial_state/s", "1/deep/er/x", "x/.hidden"] {
            let taken = decoded(&[("config", text()), (&format!("file:{path}"), data())]).expect(path);
            assert_eq!(taken.files[path], "weights");
        }
    }

    #[test]
    fn no_two_files_are_in_the_same_place() {
        for (one, other) in [("1", "1/m"), ("1/m", "1//m"), ("a/b/c", "a/b"), ("a", "a/./.hidden")] {
            let keys = [one, other].map(|path| format!("file:{path}"));
            let refused = decoded(&[("config", text()), (&keys[0], data()), (&keys[1], data())]).map(|_| ());
            assert!(refused.expect_err(other).contains(" is another one"), "{one} {other}");
        }
        let beside = decoded(&[("config", text()), ("file:1/m", data()), ("file:1/m2", data()), ("file:1m", data())]);
        assert_eq!(beside.expect("none is in another's place").files.len(), 3);
    }

    #[test]
    fn a_file_stays_inside_the_model_directory() {
        for path in ["", ".", "..", "1/", "1/.", "/", "1/../../m", "1/../m", "/1/m", "../1/m", "./m", "1/\0"] {
            let key = format!("file:{path}");
            let refused = decoded(&[("config", text()), (&key, data())]).map(|_| ());
            let expected = format!("load parameter '{key}' does not name a file inside the model directory");
            assert_eq!(refused, Err(expected), "{path}");
        }
    }

    #[test]
    fn a_file_name_that_no_file_can_have_is_refused() {
        let refused = |bytes: usize| decoded(&[("config", text()), (&format!("file:1/{}", "A".repeat(bytes)), data())]);
        assert!(refused(255).is_ok());
        assert!(refused(256).expect_err("too long").starts_with("failed to poll from model repository"));
    }

    #[test]
    fn a_model_name_is_never_a_path() {
        for name in ["", ".", "..", "a/b", "/a", "a\\b", "a\0"] {
            assert!(check_model_name(name).is_err(), "{name:?}");
        }
        assert!(check_model_name("all-MiniLM.L6_v2").is_ok());
    }
}
