//! Who this server is to an object store: from the environment, or from Triton's file of credentials. Never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;

use object_store::gcp::GoogleConfigKey;
use serde_json::Value;

use super::checksum;
use super::place::{Place, Store};
use crate::error::{Error, Result};

/// Triton's variable with the path of the file of credentials.
const FILE_VARIABLE: &str = "TRITON_CLOUD_CREDENTIAL_PATH";

/// Where containers of Azure that are no virtual machines ask who they are. The secret that goes with it, `IDENTITY_HEADER`,
/// `object_store` reads itself.
const IDENTITY_VARIABLE: &str = "IDENTITY_ENDPOINT";
/// Of its names the one that the others go before: what names Azure is meant for this.
const IDENTITY_OPTION: &str = "azure_identity_endpoint";

/// What the environment says about object stores; its `Debug` shows names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Cloud {
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// Options of a store, by the names that `object_store` has for them.
type Options = BTreeMap<String, String>;

/// What a store is opened with.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    /// Where they come from, for messages.
    pub(super) source: String,
    pub(super) options: Options,
    /// The checksums of the key files that `options` name; `None` of one that is not there.
    keys: Vec<Option<String>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Credentials {
    /// Looks into the key files that are named.
    pub(super) fn new(source: String, options: Options) -> Self {
        let key = |(name, path): (&String, &String)| match name.parse().ok()? {
            // A store reads it but once. Files of tokens are read for each.
            GoogleConfigKey::ServiceAccount | GoogleConfigKey::ApplicationCredentials => Some(checksum_of(path)),
            _ => None,
        };
        let keys = options.iter().filter_map(key).collect();
        Self { source, options, keys }
    }
}

impl Cloud {
    /// Keeps what matters of an environment.
    pub fn of(environment: &BTreeMap<String, String>) -> Self {
        let starts = ["AWS_", "GOOGLE_", "AZURE_", "TRITON_"];
        let matters = |name: &str| name == IDENTITY_VARIABLE || starts.iter().any(|start| name.starts_with(start));
        let variables = environment.iter().filter(|(name, value)| matters(name) && !value.is_empty());
        Self { variables: variables.map(|(name, value)| (name.clone(), value.clone())).collect() }
    }

    /// The directory that Triton's variable gives for local copies of this store's files.
    pub fn mount_directory(&self, store: Store) -> Option<PathBuf> {
        let name = format!("TRITON_{}_MOUNT_DIRECTORY", store.of_mount_directory());
        self.variables.get(&name).map(PathBuf::from)
    }

    /// The credentials for one repository. Reads the file of credentials if there is one, and key files.
    ///
    /// # Errors
    /// If that file cannot be read or understood.
    pub(super) fn credentials(&self, place: &Place) -> Result<Credentials> {
        if let Some(path) = self.variables.get(FILE_VARIABLE) {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::invalid(format!("cannot read {FILE_VARIABLE} '{path}': {error}")))?;
            let found = of_file(&text, place);
            let found = found.map_err(|what| Error::invalid(format!("{FILE_VARIABLE} '{path}': {what}")))?;
            if let Some((prefix, mut options)) = found {
                self.complete(place.store, &mut options);
                return Ok(Credentials::new(format!("those for \"{prefix}\" in '{path}'"), options));
            }
        }
        Ok(self.of_environment(place.store))
    }

    fn of_environment(&self, store: Store) -> Credentials {
        let telling = match store {
            Store::S3 => ["aws_access_key_id", "aws_web_identity_token_file", "aws_skip_signature"],
            Store::Gs => ["google_application_credentials", "google_service_account", "google_skip_signature"],
            Store::As => ["azure_storage_account_key", "azure_storage_sas_token", "azure_skip_signature"],
        };
        let mut source = "none in the environment, so those of the machine are asked for".to_owned();
        let mut options = BTreeMap::new();
        for (name, value) in &self.variables {
            let option = match (store, name.as_str()) {
                // Triton's names, which are Azure's own tools' too.
                (Store::As, "AZURE_STORAGE_ACCOUNT") => "azure_storage_account_name".to_owned(),
                (Store::As, "AZURE_STORAGE_KEY") => "azure_storage_account_key".to_owned(),
                (Store::As, IDENTITY_VARIABLE) if !options.contains_key(IDENTITY_OPTION) => IDENTITY_OPTION.to_owned(),
                (Store::S3, _) if name.starts_with("AWS_") => name.to_ascii_lowercase(),
                (Store::Gs, _) if name.starts_with("GOOGLE_") => name.to_ascii_lowercase(),
                (Store::As, _) if name.starts_with("AZURE_") => name.to_ascii_lowercase(),
                _ => continue,
            };
            if telling.contains(&option.as_str()) {
                source = format!("{name} of the environment");
            }
            options.insert(option, value.clone());
        }
        Credentials::new(source, options)
    }

    /// What is no secret may come from the environment even if the secrets come from the file.
    fn complete(&self, store: Store, options: &mut Options) {
        let names: &[&str] = match store {
            Store::S3 => &[
                "AWS_REGION",
                "AWS_DEFAULT_REGION",
                "AWS_ENDPOINT_URL",
                "AWS_ENDPOINT_URL_S3",
                "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
            ],
            Store::Gs => &["GOOGLE_BASE_URL"],
            Store::As => &["AZURE_STORAGE_ENDPOINT"],
        };
        for name in names {
            if let Some(value) = self.variables.get(*name) {
                options.entry(name.to_ascii_lowercase()).or_insert_with(|| value.clone());
            }
        }
    }
}

/// `None` also of a pipe, whose content is gone once it was read.
fn checksum_of(path: &str) -> Option<String> {
    let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    is_file.then(|| File::open(path).and_then(checksum::sha256).ok()).flatten()
}

/// The options of the longest prefix in the file's `text` that `place` has, and that prefix.
fn of_file(text: &str, place: &Place) -> Result<Option<(String, Options)>, String> {
    // The parser's message would quote the text, which is secret.
    let root: Value = serde_json::from_str(text)
        .map_err(|error| format!("is not JSON (line {}, column {})", error.line(), error.column()))?;
    let scheme = place.store.scheme();
    let prefixes = match root.get(scheme) {
        None => return Ok(None),
        Some(prefixes) => prefixes.as_object().ok_or_else(|| format!("\"{scheme}\" is not an object"))?,
    };
    let matching = prefixes.iter().filter(|(prefix, _)| covers(prefix, place));
    let Some((prefix, value)) = matching.max_by_key(|(prefix, _)| prefix.len()) else { return Ok(None) };
    let options = options(place.store, value).map_err(|what| format!("\"{scheme}\": \"{prefix}\": {what}"))?;
    Ok(Some((prefix.clone(), options)))
}

/// Whether `prefix` is that of the whole store, of the bucket, or of a path above or at `place`.
fn covers(prefix: &str, place: &Place) -> bool {
    let rest = match Place::parse(prefix) {
        _ if prefix.is_empty() => return true,
        Some(Ok(normal)) => place.to_string().strip_prefix(&normal.to_string()).map(str::to_owned),
        // An account alone, or half a URL, is a prefix too.
        _ => place.to_string().strip_prefix(prefix.trim_end_matches('/')).map(str::to_owned),
    };
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with("://"))
}

fn options(store: Store, value: &Value) -> Result<Options, String> {
    let names: &[(&str, &str)] = match store {
        Store::S3 => &[
            ("secret_key", "aws_secret_access_key"),
            ("key_id", "aws_access_key_id"),
            ("region", "aws_region"),
            ("session_token", "aws_session_token"),
            ("profile", ""),
        ],
        Store::Gs => {
            let path = value.as_str().ok_or("expected the path of a file of credentials")?;
            return Ok(BTreeMap::from([("google_application_credentials".to_owned(), path.to_owned())]));
        }
        Store::As => &[("account_str", "azure_storage_account_name"), ("account_key", "azure_storage_account_key")],
    };
    let given = value.as_object().ok_or("expected an object")?;
    let mut options = BTreeMap::new();
    for (name, value) in given {
        let Some((_, option)) = names.iter().find(|(known, _)| known == name) else {
            return Err(format!("unknown key \"{name}\""));
        };
        let text = value.as_str().ok_or_else(|| format!("\"{name}\" is not a string"))?;
        match (text, *option) {
            ("", _) => {}
            (_, "") => return Err(format!("\"{name}\" is not supported: give key_id and secret_key")),
            (text, option) => {
                options.insert(option.to_owned(), text.to_owned());
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use object_store::azure::AzureConfigKey;

    use super::*;

    const FILE: &str = r#"{
        "s3": {
            "": {"key_id": "all", "secret_key": "s", "region": "", "session_token": "", "profile": ""},
            "s3://bucket": {"key_id": "bucket", "secret_key": "s", "region": "eu-west-1"},
            "s3://bucket/team/": {"key_id": "team", "secret_key": "s"},
            "s3://http://host:9000/bucket": {"key_id": "host", "secret_key": "s"}
        },
        "gs": {"gs://bucket": "key.json"},
        "as": {"as://account": {"account_str": "account", "account_key": "k"}}
    }"#;

    fn place(text: &str) -> Place {
        Place::parse(text).and_then(Result::ok).expect(text)
    }

    fn cloud(pairs: &[(&str, &str)]) -> Cloud {
        Cloud::of(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_longest_prefix_wins_and_ends_where_a_name_ends() {
        let key = |text: &str| {
            let (_, options) = of_file(FILE, &place(text)).expect("valid").expect("there is one for all");
            options["aws_access_key_id"].clone()
        };
        assert_eq!(key("s3://other/team"), "all");
        assert_eq!(key("s3://bucket2"), "all");
        assert_eq!(key("s3://bucket"), "bucket");
        assert_eq!(key("s3://bucket/teams"), "bucket");
        assert_eq!(key("s3://bucket/team"), "team");
        assert_eq!(key("s3://bucket/team/models"), "team");
        assert_eq!(key("s3://http://host:9000/bucket/m"), "host");
        assert_eq!(key("s3://http://host:9001/bucket/m"), "all");
    }

    #[test]
    fn every_store_has_its_own_form() {
        let options = |text: &str| of_file(FILE, &place(text)).expect("valid").map(|(_, options)| options);
        let gs = options("gs://bucket/m").expect("covered");
        assert_eq!(gs["google_application_credentials"], "key.json");
        assert_eq!(options("gs://other/m"), None);
        let azure = options("as://account/container").expect("covered");
        assert_eq!(
            (azure["azure_storage_account_name"].as_str(), azure["azure_storage_account_key"].as_str()),
            ("account", "k")
        );
    }

    #[test]
    fn a_wrong_file_is_told_without_its_contents() {
        for (text, what) in [
            ("{\"s3\": SECRET}", "is not JSON (line 1, column 8)"),
            ("{\"s3\": \"SECRET\"}", "\"s3\" is not an object"),
            ("{\"s3\": {\"\": {\"secret_key\": 5}}}", "\"s3\": \"\": \"secret_key\" is not a string"),
            ("{\"s3\": {\"\": {\"key\": \"SECRET\"}}}", "\"s3\": \"\": unknown key \"key\""),
            (
                "{\"s3\": {\"\": {\"profile\": \"SECRET\"}}}",
                "\"s3\": \"\": \"profile\" is not supported: give key_id and secret_key",
            ),
        ] {
            assert_eq!(of_file(text, &place("s3://b")), Err(what.to_owned()));
        }
    }

    #[test]
    fn the_environment_is_taken_where_no_file_says_otherwise() {
        let environment = [("AWS_ACCESS_KEY_ID", "hunter2"), ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("HOME", "/")];
        let found = cloud(&environment).credentials(&place("s3://b")).expect("no file to read");
        assert_eq!(found.source, "AWS_ACCESS_KEY_ID of the environment");
        assert_eq!(found.options["aws_access_key_id"], "hunter2");
        assert!(!format!("{:?}", cloud(&environment)).contains("hunter2"));
        let azure = cloud(&[("AZURE_STORAGE_ACCOUNT", "a"), ("AZURE_STORAGE_KEY", "k")]);
        let found = azure.credentials(&place("as://a/c")).expect("no file to read");
        assert_eq!(found.options["azure_storage_account_key"], "k");
        assert_eq!(found.source, "AZURE_STORAGE_KEY of the environment");
        let none = cloud(&[]).credentials(&place("gs://b")).expect("no file to read");
        assert_eq!(none.source, "none in the environment, so those of the machine are asked for");
    }

    #[test]
    fn a_container_of_azure_is_told_where_to_ask_who_it_is() {
        let asked = |more: &[(&str, &str)]| {
            let contained = cloud(&[&[("IDENTITY_ENDPOINT", "http://localhost:42356/msi/token")], more].concat());
            let found = contained.credentials(&place("as://a/c")).expect("no file to read");
            let of_endpoint = |(name, _): &(&String, &String)| {
                name.parse::<AzureConfigKey>().ok() == Some(AzureConfigKey::MsiEndpoint)
            };
            // The last one holds.
            found.options.iter().rfind(of_endpoint).map(|(_, value)| value.clone())
        };
        assert_eq!(asked(&[]).as_deref(), Some("http://localhost:42356/msi/token"));
        for name in ["AZURE_MSI_ENDPOINT", "AZURE_IDENTITY_ENDPOINT"] {
            assert_eq!(asked(&[(name, "http://own")]).as_deref(), Some("http://own"));
        }
        let other = cloud(&[("IDENTITY_ENDPOINT", "x")]).credentials(&place("s3://b")).expect("no file to read");
        assert!(other.options.is_empty());
    }

    #[test]
    fn where_a_store_is_may_come_from_the_environment_even_if_a_file_says_who_asks() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        std::fs::write(file.path(), FILE).expect("there is room");
        let path = file.path().to_str().expect("it is text");
        let cloud = cloud(&[(FILE_VARIABLE, path), ("AWS_ENDPOINT_URL_S3", "http://minio:9000"), ("AWS_PROFILE", "p")]);
        let found = cloud.credentials(&place("s3://bucket/m")).expect("the file is right");
        assert_eq!(found.options["aws_endpoint_url_s3"], "http://minio:9000");
        assert_eq!(found.options.get("aws_profile"), None);
    }

    #[test]
    fn triton_s_variables_name_directories_for_copies() {
        let cloud = cloud(&[("TRITON_AWS_MOUNT_DIRECTORY", "/copies"), ("TRITON_GCS_MOUNT_DIRECTORY", "")]);
        assert_eq!(cloud.mount_directory(Store::S3), Some(PathBuf::from("/copies")));
        assert_eq!(cloud.mount_directory(Store::Gs), None);
    }
}
