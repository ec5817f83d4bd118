//! One repository's object store over the network: listing it, and fetching an object into a file, with clear errors.
//!
//! Connections, refusals of a busy store and interrupted bodies are tried again inside `object_store`, with backoff.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, GetOptions, ObjectStore, RetryConfig};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::checksum::{Sums, Verdict, claims};
use super::connector::{Connector, Headers};
use super::credentials::{Cloud, Credentials};
use super::listing::{Listing, OBJECTS_MAX, Object};
use super::place::{Place, Store};
use crate::error::{Error, Kind, Result};

/// The longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The longest that one request is tried again and again.
const RETRYING_MAX: Duration = Duration::from_secs(180);
/// The most of a store's own words in a message.
const WORDS_MAX: usize = 400;

/// How patient the network part is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// How often a request is tried again.
    pub(super) retries: u32,
    /// The longest that a store may say nothing.
    pub(super) silence_max: Duration,
}

/// A repository's store, with who this server is there.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) place: Place,
    /// Who says what the credentials are now; `None` if they stay what they are.
    cloud: Option<Cloud>,
    opened: Mutex<Opened>,
    patience: Patience,
}

#[derive(Debug)]
struct Opened {
    store: Arc<dyn ObjectStore>,
    credentials: Credentials,
    /// Why other credentials could not be taken.
    trouble: Option<Error>,
}

impl Bucket {
    /// Makes no connection yet. Credentials that change in their file, or their key file, are taken from then on.
    ///
    /// # Errors
    /// If the credentials do not make sense.
    pub(super) fn open(place: Place, cloud: &Cloud, patience: Patience) -> Result<Self> {
        let credentials = cloud.credentials(&place)?;
        let bucket = Self::open_as(place, credentials, patience)?;
        Ok(Self { cloud: Some(cloud.clone()), ..bucket })
    }

    fn open_as(place: Place, credentials: Credentials, patience: Patience) -> Result<Self> {
        let store = connect(&place, &credentials, patience)?;
        let opened = Mutex::new(Opened { store, credentials, trouble: None });
        Ok(Self { place, cloud: None, opened, patience })
    }

    #[cfg(test)]
    pub(super) fn of_store(place: Place, store: Arc<dyn ObjectStore>) -> Self {
        let patience = Patience { retries: 0, silence_max: Duration::from_secs(10) };
        let credentials = Credentials::new("a test's".to_owned(), Default::default());
        let opened = Mutex::new(Opened { store, credentials, trouble: None });
        Self { place, cloud: None, opened, patience }
    }

    /// The store, with the credentials that are right now. Some rotate them, and write the file anew.
    ///
    /// Blocking, as it may read a file.
    fn store(&self) -> Arc<dyn ObjectStore> {
        let mut opened = self.opened.lock();
        let Some(cloud) = &self.cloud else { return opened.store.clone() };
        let renewed = cloud.credentials(&self.place).and_then(|credentials| {
            let is_new = credentials != opened.credentials;
            let store = is_new.then(|| connect(&self.place, &credentials, self.patience)).transpose()?;
            Ok(store.map(|store| Opened { store, credentials, trouble: None }))
        });
        match renewed {
            Ok(Some(renewed)) => {
                tracing::info!("credentials of '{}' have changed: {}", self.place, renewed.credentials.source);
                *opened = renewed;
            }
            Ok(None) => opened.trouble = None,
            // Perhaps it is just being written.
            Err(error) => {
                if opened.trouble.as_ref() != Some(&error) {
                    tracing::warn!(%error, "credentials stay as they were");
                    opened.trouble = Some(error);
                }
            }
        }
        opened.store.clone()
    }

    /// Everything in the repository, or everything of one model.
    ///
    /// Blocking as [`Bucket::fetch`] is.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if the store cannot be reached or is not well, [`Kind::InvalidArgument`] if it refuses.
    pub(super) async fn list(&self, model: Option<&str>) -> Result<Listing> {
        let prefix = self.place.prefix.as_str();
        let below = [prefix, model.unwrap_or_default()].into_iter().filter(|part| !part.is_empty());
        let below = below.collect::<Vec<_>>().join("/");
        let path = Path::parse(&below).map_err(|error| self.failed("list", &below, &error.into()))?;
        let store = self.store();
        let mut found = store.list((!below.is_empty()).then_some(&path));
        let mut objects = Vec::new();
        // Each page is a request with its own tries.
        while let Some(meta) = timeout(RETRYING_MAX + self.patience.silence_max, found.try_next())
            .await
            .map_err(|_| self.silent("list", &below))?
            .map_err(|error| self.failed("list", &below, &error))?
        {
            objects.push(Object::of(&meta));
            if objects.len() > OBJECTS_MAX {
                return Err(Error::invalid(format!("'{}' has more than {OBJECTS_MAX} objects", self.place)));
            }
        }
        Ok(Listing::of(prefix, objects))
    }

    /// Writes the object into `file` from its beginning, counts the bytes in `fetched`, and gives the SHA-256.
    ///
    /// Blocking in its reads and writes of files: for a thread that may.
    ///
    /// # Errors
    /// As [`Bucket::list`]; also if the object is another than when it was listed.
    pub(super) async fn fetch(
        &self,
        object: &Object,
        file: &mut File,
        fetched: &AtomicU64,
    ) -> Result<(String, Verdict)> {
        let path = Path::parse(&object.path).map_err(|error| self.failed("read", &object.path, &error.into()))?;
        let got = self.store().get_opts(&path, GetOptions::default()).await;
        let got = got.map_err(|error| self.failed("read", &object.path, &error))?;
        let now = Object::of(&got.meta);
        if now.bytes != object.bytes || got.meta.e_tag.is_some() && now.tag != object.tag {
            return Err(self.changed(object));
        }
        let claimed = got.extensions.get::<Headers>().map(|headers| claims(self.place.store, &headers.0));
        let mut sums = Sums::new(claimed.unwrap_or_default());
        let cannot_write = |error: std::io::Error| Error::internal(format!("cannot write in the cache: {error}"));
        file.rewind().map_err(cannot_write)?;
        let mut body = got.into_stream();
        let mut bytes = 0;
        while let Some(chunk) = timeout(self.patience.silence_max, body.try_next())
            .await
            .map_err(|_| self.silent("read", &object.path))?
            .map_err(|error| self.failed("read", &object.path, &error))?
        {
            bytes += chunk.len() as u64;
            // Not more than was reserved, whatever is sent.
            if bytes > object.bytes {
                return Err(self.changed(object));
            }
            sums.update(&chunk);
            file.write_all(&chunk).map_err(cannot_write)?;
            fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        if bytes < object.bytes {
            return Err(Error::unavailable(format!(
                "'{}' ended after {bytes} of {} bytes",
                self.url(&object.path),
                object.bytes
            )));
        }
        Ok(sums.finish())
    }

    /// The URL of a path in the bucket, for people.
    pub(super) fn url(&self, path: &str) -> String {
        Place { prefix: path.to_owned(), ..self.place.clone() }.to_string()
    }

    fn changed(&self, object: &Object) -> Error {
        Error::unavailable(format!("'{}' changed while it was read", self.url(&object.path)))
    }

    fn silent(&self, what: &str, path: &str) -> Error {
        let seconds = self.patience.silence_max.as_secs_f64();
        Error::unavailable(format!("cannot {what} '{}': nothing arrived for {seconds} s", self.url(path)))
    }

    fn failed(&self, what: &str, path: &str, error: &object_store::Error) -> Error {
        let text = error.to_string();
        let kind = kind_of(error, &text);
        let (url, words, source) = (self.url(path), words(&text), self.opened.lock().credentials.source.clone());
        Error::new(kind, format!("cannot {what} '{url}': {words} (credentials: {source})"))
    }
}

/// A store that these credentials are used with; no connection yet.
fn connect(place: &Place, credentials: &Credentials, patience: Patience) -> Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig {
        backoff: BackoffConfig { max_backoff: BACKOFF_MAX, ..BackoffConfig::default() },
        max_retries: patience.retries as usize,
        retry_timeout: RETRYING_MAX,
    };
    let Credentials { source, options, .. } = credentials;
    let connector = Connector { silence_max: patience.silence_max };
    let built: object_store::Result<Arc<dyn ObjectStore>> = match place.store {
        Store::S3 => {
            let mut builder = AmazonS3Builder::new().with_retry(retry).with_http_connector(connector);
            for (key, value) in options {
                if let Ok(key) = key.parse::<AmazonS3ConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(endpoint) = &place.endpoint {
                // The one for S3 alone goes before the other, and the environment may have it.
                builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint).with_allow_http(true);
            }
            builder.with_bucket_name(&place.bucket).build().map(|store| Arc::new(store) as _)
        }
        Store::Gs => {
            let mut builder = GoogleCloudStorageBuilder::new().with_retry(retry).with_http_connector(connector);
            for (key, value) in options {
                if let Ok(key) = key.parse::<GoogleConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(endpoint) = &place.endpoint {
                builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint);
            }
            builder.with_bucket_name(&place.bucket).build().map(|store| Arc::new(store) as _)
        }
        Store::As => {
            let mut builder = MicrosoftAzureBuilder::new().with_retry(retry).with_http_connector(connector);
            for (key, value) in options {
                if let Ok(key) = key.parse::<AzureConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(endpoint) = &place.endpoint {
                builder = builder.with_endpoint(format!("{endpoint}/{}", place.account)).with_allow_http(true);
            }
            let builder = builder.with_account(&place.account).with_container_name(&place.bucket);
            builder.build().map(|store| Arc::new(store) as _)
        }
    };
    built.map_err(|error| {
        let what = words(&error.to_string());
        Error::invalid(format!("cannot use '{place}': {what} (credentials: {source})"))
    })
}

/// Whether asking again later may help.
fn kind_of(error: &object_store::Error, text: &str) -> Kind {
    use object_store::Error as Store;
    match error {
        Store::NotFound { .. } | Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
            Kind::InvalidArgument
        }
        Store::InvalidPath { .. } | Store::UnknownConfigurationKey { .. } => Kind::InvalidArgument,
        _ if status(text).is_some_and(|status| (400..500).contains(&status) && ![408, 429].contains(&status)) => {
            Kind::InvalidArgument
        }
        _ => Kind::Unavailable,
    }
}

/// The HTTP status in an error of `object_store`.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// What an error says, without the parts of a store's answer that tell of credentials.
fn words(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0)
    };
    let said: Vec<&str> = [element("Code"), element("Message")].into_iter().flatten().collect();
    let own = match (said.as_slice(), status(text)) {
        ([], _) => text.to_owned(),
        (said, Some(status)) => format!("status {status}, {}", said.join(": ")),
        (said, None) => said.join(": "),
    };
    let mut own = own.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = own.char_indices().nth(WORDS_MAX) {
        own.truncate(end);
        own.push_str("...");
    }
    own
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt as _, PutPayload};

    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(text).and_then(Result::ok).expect(text)
    }

    async fn bucket(text: &str, objects: &[(&str, &'static str)]) -> Bucket {
        let store = InMemory::new();
        for (path, contents) in objects {
            store
                .put(&Path::from(*path), PutPayload::from_static(contents.as_bytes()))
                .await
                .expect("memory is writable");
        }
        Bucket::of_store(place(text), Arc::new(store))
    }

    /// Refuses so many requests; their heads in the end.
    fn refusing(listener: TcpListener, count: usize) -> JoinHandle<Vec<String>> {
        let refuse = move || {
            let (mut caller, _) = listener.accept().expect("somebody calls");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                caller.read_exact(&mut byte).expect("the caller goes on");
                head.push(byte[0]);
            }
            let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            caller.write_all(answer).expect("the caller waits");
            String::from_utf8_lossy(&head).into_owned()
        };
        std::thread::spawn(move || (0..count).map(|_| refuse()).collect())
    }

    fn listener() -> (TcpListener, Place) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let place = place(&format!("s3://http://{}/b/models", listener.local_addr().expect("it is bound")));
        (listener, place)
    }

    #[tokio::test]
    async fn the_endpoint_of_the_repository_s_own_url_goes_before_those_of_the_environment() {
        let (listener, place) = listener();
        let asked = refusing(listener, 1);
        let elsewhere = "http://127.0.0.1:1".to_owned();
        let names = ["aws_endpoint_url", "aws_endpoint_url_s3"];
        let mut options: BTreeMap<_, _> = names.map(|name| (name.to_owned(), elsewhere.clone())).into();
        options.insert("aws_skip_signature".to_owned(), "true".to_owned());
        let credentials = Credentials::new("a test's".to_owned(), options);
        let patience = Patience { retries: 0, silence_max: Duration::from_secs(10) };
        let bucket = Bucket::open_as(place, credentials, patience).expect("it makes sense");
        let refused = bucket.list(None).await.expect_err("it is refused");
        assert_eq!(refused.kind(), Kind::InvalidArgument, "{refused}");
        asked.join().expect("it does not panic");
    }

    #[tokio::test]
    async fn credentials_that_change_in_their_file_are_taken() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let write = |text: &str| std::fs::write(file.path(), text).expect("there is room");
        let key = |id: &str| format!(r#"{{"s3": {{"": {{"key_id": "{id}", "secret_key": "hunter2"}}}}}}"#);
        write(&key("one"));
        let path = file.path().to_str().expect("it is text").to_owned();
        let cloud = Cloud::of(&BTreeMap::from([("TRITON_CLOUD_CREDENTIAL_PATH".to_owned(), path)]));
        let (listener, place) = listener();
        let asked = refusing(listener, 3);
        let patience = Patience { retries: 0, silence_max: Duration::from_secs(10) };
        let bucket = Bucket::open(place, &cloud, patience).expect("it makes sense");
        // One that is half written changes nothing.
        for text in [&key("one"), "{", &key("two")] {
            write(text);
            bucket.list(None).await.expect_err("it is refused");
        }
        let asked = asked.join().expect("it does not panic");
        let by = asked.iter().map(|head| head.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next()));
        assert_eq!(by.collect::<Vec<_>>(), [Some("one"), Some("one"), Some("two")]);
        assert!(!format!("{bucket:?}").contains("hunter2"), "what is secret is not shown");
    }

    #[test]
    fn a_key_file_that_changes_is_taken() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let write = |text: &str| std::fs::write(file.path(), text).expect("there is room");
        let key = |secret: &str| {
            let rest = format!(r#""client_id": "i", "client_secret": "{secret}", "refresh_token": "r""#);
            format!(r#"{{"type": "authorized_user", {rest}}}"#)
        };
        write(&key("one"));
        let path = file.path().to_str().expect("it is text").to_owned();
        let cloud = Cloud::of(&BTreeMap::from([("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), path)]));
        let patience = Patience { retries: 0, silence_max: Duration::from_secs(10) };
        let bucket = Bucket::open(place("gs://b"), &cloud, patience).expect("it makes sense");
        let first = bucket.store();
        // One that is half written changes nothing.
        for text in [&key("one"), "{"] {
            write(text);
            assert!(Arc::ptr_eq(&first, &bucket.store()), "{text}");
        }
        write(&key("two"));
        let second = bucket.store();
        assert!(!Arc::ptr_eq(&first, &second), "it has the other key");
        assert!(Arc::ptr_eq(&second, &bucket.store()));
    }

    #[tokio::test]
    async fn a_listing_is_of_the_path_and_not_of_its_neighbours() {
        let bucket =
            bucket("s3://b/models", &[("models/a/1/f", "x"), ("models2/b/1/f", "y"), ("models/a2/1/f", "z")]).await;
        let all = bucket.list(None).await.expect("it can be listed");
        assert_eq!(all.models.keys().collect::<Vec<_>>(), ["a", "a2"]);
        let one = bucket.list(Some("a")).await.expect("it can be listed");
        assert_eq!(one.models.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(one.models["a"], all.models["a"]);
    }

    #[tokio::test]
    async fn an_object_is_written_whole_and_counted() {
        let bucket = bucket("s3://b/models", &[("models/a/1/f", "hello")]).await;
        let object = bucket.list(None).await.expect("it can be listed").models["a"].files["1/f"].clone();
        let (mut file, fetched) = (tempfile::tempfile().expect("there is room"), AtomicU64::new(0));
        let (sha256, verdict) = bucket.fetch(&object, &mut file, &fetched).await.expect("it is there");
        assert!(sha256.starts_with("2cf24dba") && verdict == Verdict::Agrees, "{sha256}");
        assert_eq!(fetched.into_inner(), 5);
        let mut text = String::new();
        file.rewind().expect("a file");
        file.read_to_string(&mut text).expect("it was written");
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn an_object_that_changed_since_it_was_listed_is_not_taken() {
        let bucket = bucket("s3://b", &[("a/1/f", "hello")]).await;
        let listed = bucket.list(None).await.expect("it can be listed").models["a"].files["1/f"].clone();
        for changed in [Object { bytes: 4, ..listed.clone() }, Object { tag: "other".to_owned(), ..listed }] {
            let mut file = tempfile::tempfile().expect("there is room");
            let error = bucket.fetch(&changed, &mut file, &AtomicU64::new(0)).await.expect_err("changed");
            assert_eq!(error.message(), "'s3://b/a/1/f' changed while it was read");
        }
    }

    #[test]
    fn a_store_s_answer_is_told_without_what_it_repeats_of_the_credentials() {
        let text = "Generic S3 error: Server returned non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch\
                    </Code><Message>no match</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>";
        assert_eq!(words(text), "status 403, SignatureDoesNotMatch: no match");
        assert_eq!(status(text), Some(403));
        assert_eq!(words(&"a ".repeat(1000)).chars().count(), WORDS_MAX + 3);
    }

    #[test]
    fn every_store_can_be_opened_with_credentials_of_its_kind() {
        let patience = Patience { retries: 0, silence_max: Duration::from_secs(1) };
        let key = "a2V5";
        for (text, options) in [
            (
                "s3://b/m",
                &[("aws_access_key_id", "a"), ("aws_secret_access_key", "s"), ("aws_region", "eu-west-1")][..],
            ),
            ("s3://http://127.0.0.1:1/b/m", &[("aws_skip_signature", "true")]),
            ("gs://b/m", &[("google_skip_signature", "true")]),
            ("gs://http://127.0.0.1:1/b", &[("google_skip_signature", "true")]),
            ("as://account/container/m", &[("azure_storage_account_key", key)]),
            ("as://http://127.0.0.1:1/account/container", &[("azure_storage_account_key", key)]),
        ] {
            let options: BTreeMap<String, String> =
                options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let credentials = Credentials::new("a test's".to_owned(), options);
            let opened = Bucket::open_as(place(text), credentials, patience);
            assert!(opened.is_ok(), "{text}: {opened:?}");
        }
    }

    #[test]
    fn credentials_that_make_no_sense_are_refused_with_their_source() {
        let options = BTreeMap::from([("google_application_credentials".to_owned(), "/nonexistent.json".to_owned())]);
        let credentials = Credentials::new("the file".to_owned(), options);
        let patience = Patience { retries: 0, silence_max: Duration::from_secs(1) };
        let error = Bucket::open_as(place("gs://b"), credentials, patience).expect_err("there is no such file");
        assert!(error.message().ends_with("(credentials: the file)"), "{error}");
    }
}
