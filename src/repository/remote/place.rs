//! Where a repository lies that is not a directory: the URL that `--model-repository` takes, in its parts. Pure.

use std::fmt;

/// The kinds of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    As,
}

impl Store {
    const ALL: [Store; 3] = [Store::S3, Store::Gs, Store::As];

    /// The scheme of its URLs, and its key in the file of credentials.
    pub fn scheme(self) -> &'static str {
        match self {
            Store::S3 => "s3",
            Store::Gs => "gs",
            Store::As => "as",
        }
    }

    /// What Triton's variable for its local copies calls it.
    pub(super) fn of_mount_directory(self) -> &'static str {
        match self {
            Store::S3 => "AWS",
            Store::Gs => "GCS",
            Store::As => "AZURE",
        }
    }
}

/// A repository in an object store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The kind of store.
    pub store: Store,
    /// Where the store is, if not where its maker runs it: `http://host:port`.
    pub endpoint: Option<String>,
    /// The account of [`Store::As`]; empty elsewhere.
    pub account: String,
    /// The bucket, or the container of [`Store::As`].
    pub bucket: String,
    /// The path of the models inside the bucket, without slashes around it; may be empty.
    pub prefix: String,
}

impl Place {
    /// Reads a URL; `None` if `text` is none, which is to say a directory.
    ///
    /// # Errors
    /// What is wrong with a URL of a known scheme.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let with_scheme =
            |store: &Store| text.strip_prefix(store.scheme())?.strip_prefix("://").map(|rest| (*store, rest));
        let (store, rest) = Store::ALL.iter().find_map(with_scheme)?;
        Some(Self::of_rest(store, rest))
    }

    fn of_rest(store: Store, rest: &str) -> Result<Self, String> {
        let inner = ["http://", "https://"].iter().find(|scheme| rest.starts_with(**scheme));
        let (endpoint, path) = match inner {
            // As Triton has it, a bucket of `host:port` is an address without TLS.
            None => match rest.split_once('/').filter(|(host, _)| is_address(host)) {
                Some((host, path)) => (Some(format!("http://{host}")), path),
                None => (None, rest),
            },
            Some(scheme) => {
                let (host, path) = rest[scheme.len()..].split_once('/').unwrap_or((&rest[scheme.len()..], ""));
                if host.is_empty() || host.contains('@') {
                    return Err("names no host:port after its second scheme".to_owned());
                }
                (Some(format!("{scheme}{host}")), path)
            }
        };
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let mut part = |what: &str| parts.next().map(str::to_owned).ok_or_else(|| format!("names no {what}"));
        let account = match store {
            Store::As => part("account")?.trim_end_matches(".blob.core.windows.net").to_owned(),
            Store::S3 | Store::Gs => String::new(),
        };
        let bucket = part(if store == Store::As { "container" } else { "bucket" })?;
        if [&account, &bucket].iter().any(|name| name.contains(['@', '?', '#', ':'])) {
            return Err("has more than names in it; credentials come from the environment or a file".to_owned());
        }
        let prefix: Vec<&str> = parts.collect();
        if rest.split('/').any(|part| [".", ".."].contains(&part)) {
            return Err("has '.' or '..' in its path".to_owned());
        }
        Ok(Self { store, endpoint, account, bucket, prefix: prefix.join("/") })
    }

    /// The bucket without the path of the models.
    pub(super) fn root(&self) -> Self {
        Self { prefix: String::new(), ..self.clone() }
    }

    /// The path of this repository as that of a directory, such as `s3/bucket/models`.
    pub(super) fn directory(&self) -> String {
        self.to_string().replacen("://", "/", 2).replace(':', "_")
    }
}

/// Whether this is `host:port`.
fn is_address(text: &str) -> bool {
    let name = |host: &str| !host.is_empty() && !host.contains(['@', '?', '#', ':']);
    text.rsplit_once(':').is_some_and(|(host, port)| name(host) && port.parse::<u16>().is_ok())
}

impl fmt::Display for Place {
    /// The URL, in one form only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.store.scheme())?;
        let parts = [self.endpoint.as_deref().unwrap_or_default(), &self.account, &self.bucket, &self.prefix];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        f.write_str(&parts.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Result<Place, String> {
        Place::parse(text).unwrap_or_else(|| Err("a directory".to_owned()))
    }

    #[test]
    fn every_form_of_a_url_is_taken_apart() {
        for (text, endpoint, account, bucket, prefix) in [
            ("s3://b/a/path", None, "", "b", "a/path"),
            ("s3://b", None, "", "b", ""),
            ("s3://b//a///c/", None, "", "b", "a/c"),
            ("s3://http://127.0.0.1:9000/b/models", Some("http://127.0.0.1:9000"), "", "b", "models"),
            ("s3://https://minio.example:443/b", Some("https://minio.example:443"), "", "b", ""),
            ("s3://minio:9000/b/models", Some("http://minio:9000"), "", "b", "models"),
            ("gs://b/models", None, "", "b", "models"),
            ("as://account/container/a/b", None, "account", "container", "a/b"),
            ("as://account.blob.core.windows.net/container", None, "account", "container", ""),
            ("as://http://127.0.0.1:10000/dev/container/m", Some("http://127.0.0.1:10000"), "dev", "container", "m"),
        ] {
            let place = place(text).expect(text);
            let found = (place.endpoint.as_deref(), &*place.account, &*place.bucket, &*place.prefix);
            assert_eq!(found, (endpoint, account, bucket, prefix), "{text}");
            assert_eq!(Place::parse(&place.to_string()), Some(Ok(place)), "{text}");
        }
    }

    #[test]
    fn what_is_no_url_of_a_store_is_a_directory() {
        for text in ["models", "/s3://b", "s3:/b", "ftp://b", "./s3"] {
            assert_eq!(Place::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_url_that_names_too_little_or_too_much_is_refused() {
        for (text, why) in [
            ("s3://", "names no bucket"),
            ("s3://http://host:1", "names no bucket"),
            ("s3://http:///b", "names no host"),
            ("gs:///", "names no bucket"),
            ("as://account", "names no container"),
            ("s3://key:secret@b/m", "has more than names"),
            ("s3://http://key:secret@host/b", "names no host"),
            ("s3://key:secret/b", "has more than names"),
            ("s3://b/../c", "has '.' or '..'"),
            ("s3://../c", "has '.' or '..'"),
            ("s3://http://../c", "has '.' or '..'"),
            ("as://../../c", "has '.' or '..'"),
        ] {
            let error = place(text).expect_err(text);
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }

    #[test]
    fn its_directory_leads_nowhere_else() {
        let directory = |text: &str| place(text).map(|place| place.directory());
        assert_eq!(directory("s3://b/m").as_deref(), Ok("s3/b/m"));
        assert_eq!(directory("s3://http://host:9/b/m").as_deref(), Ok("s3/http/host_9/b/m"));
    }
}
