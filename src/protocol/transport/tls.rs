//! TLS of a port: its certificate and key, read from files, and read again whenever they change.
//!
//! New connections get what is newest; those that are open keep what they began with, so that no call fails. A pair
//! that is broken, or whose halves do not belong together because only one of them was replaced so far, is not used.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;

use super::settings::Protocols;
use crate::error::{Error, Result};

/// The files of a port's TLS; each of them holds PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, and behind it those of who signed it.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The certificates of who may sign clients' certificates; `None` if clients need none.
    pub client_roots: Option<PathBuf>,
    /// How often the files are looked at.
    pub interval: Duration,
}

/// A port's TLS.
pub struct Tls {
    files: Files,
    protocols: Protocols,
    /// What the first of `current` was made of.
    loaded: Contents,
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] if one cannot be read, or what is in it cannot be used; the message has
    /// its name.
    pub fn load(files: Files, protocols: Protocols) -> Result<Self> {
        let loaded = Contents::read(&files)?;
        let current = ArcSwap::from_pointee(loaded.config(&files, protocols)?);
        Ok(Self { files, protocols, loaded, current })
    }

    /// What a new connection begins with.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.load_full().into()
    }

    /// Looks at the files for ever, and takes what is new.
    pub async fn watch(&self) -> Infallible {
        let mut looks = tokio::time::interval(self.files.interval);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Ok(self.loaded.clone());
        // A mistake and whether it was warned of. One that is gone at the next look was a moment between two writes.
        let mut mistake: Option<(Error, bool)> = None;
        loop {
            looks.tick().await;
            let files = self.files.clone();
            let look = tokio::task::spawn_blocking(move || Contents::read(&files)).await;
            let look = look.unwrap_or_else(|error| Err(Error::internal(error.to_string())));
            if look == seen {
                if let Some((error, warned @ false)) = &mut mistake {
                    *warned = true;
                    tracing::warn!(%error, "new certificate not used, the old one stays");
                }
                continue;
            }
            let config = look.as_ref().map_err(Error::clone).and_then(|new| new.config(&self.files, self.protocols));
            mistake = config.as_ref().err().map(|error| (error.clone(), false));
            if let Ok(config) = config {
                self.current.store(Arc::new(config));
                tracing::info!(certificate = %self.files.certificate.display(), "certificate reloaded");
            }
            seen = look;
        }
    }
}

/// What is in the files.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_roots: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &Files) -> Result<Self> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| wrong(path, error));
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_roots: files.client_roots.as_deref().map(read).transpose()?,
        })
    }

    fn config(&self, files: &Files, protocols: Protocols) -> Result<ServerConfig> {
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| wrong(&files.key, format!("no private key in PEM: {error}")))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal(error.to_string()))?;
        let builder = match (&files.client_roots, &self.client_roots) {
            (Some(path), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path, pem)? {
                    roots.add(root).map_err(|error| wrong(path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| wrong(path, error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                wrong(&files.key, format!("not the key of the certificate in {}", files.certificate.display()))
            }
            error => wrong(&files.certificate, error),
        })?;
        config.alpn_protocols = match protocols {
            Protocols::Http2 => vec![b"h2".to_vec()],
            Protocols::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(config)
    }
}

/// The certificates in `pem`, which came from `path`.
pub fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(wrong(path, "no certificate in PEM")),
        Ok(all) => Ok(all),
        Err(error) => Err(wrong(path, error)),
    }
}

/// A mistake in the file `path`.
pub fn wrong(path: &Path, what: impl fmt::Display) -> Error {
    Error::invalid(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
    use tempfile::TempDir;

    use super::*;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).expect("the directory is writable");
            path
        }

        fn files(&self, certificate: &str, key: &str, roots: Option<&str>) -> Files {
            Files {
                certificate: self.write("server.crt", certificate),
                key: self.write("server.key", key),
                client_roots: roots.map(|roots| self.write("roots.crt", roots)),
                interval: Duration::from_secs(1),
            }
        }
    }

    /// A certificate and its key.
    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("a name that is allowed");
        (cert.pem(), KeyPair::serialize_pem(&signing_key))
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let folder = Folder::new();
        let ((certificate, key), (_, other_key)) = (pair(), pair());
        let broken = certificate.replacen('M', "%", 3);
        for (certificate, key, roots, file, message) in [
            ("", &key, None, "server.crt", "no certificate in PEM"),
            (&key, &key, None, "server.crt", "no certificate in PEM"),
            (&broken, &key, None, "server.crt", ""),
            (&certificate, &certificate, None, "server.key", "no private key in PEM: "),
            (&certificate, &other_key, None, "server.key", "not the key of the certificate in "),
            (&certificate, &key, Some(""), "roots.crt", "no certificate in PEM"),
        ] {
            let files = folder.files(certificate, key, roots);
            let error = Tls::load(files, Protocols::Both).err().expect("something is wrong");
            let start = format!("{}: {message}", folder.0.path().join(file).display());
            assert!(error.message().starts_with(&start), "{error} is not {start}");
        }
        let mut files = folder.files(&certificate, &key, Some(&certificate));
        assert!(Tls::load(files.clone(), Protocols::Http2).is_ok());
        files.key = folder.0.path().join("nowhere.key");
        let error = Tls::load(files, Protocols::Http2).err().expect("it is not there");
        assert!(error.message().contains("nowhere.key: No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_new_pair_is_used_once_it_is_whole() {
        let folder = Folder::new();
        let ((certificate, key), (new_certificate, new_key)) = (pair(), pair());
        let files = Files { interval: Duration::from_millis(1), ..folder.files(&certificate, &key, None) };
        let tls = Tls::load(files, Protocols::Both).expect("a pair");
        let first = tls.current.load_full();
        let is_new = || !Arc::ptr_eq(&first, &tls.current.load_full());
        let watching = tls.watch();
        tokio::pin!(watching);
        let mut look = async |count: u64| {
            let looks = Duration::from_millis(50 * count);
            let _ = tokio::time::timeout(looks, &mut watching).await;
        };
        look(1).await;
        assert!(!is_new(), "nothing has changed");
        folder.write("server.crt", &new_certificate);
        look(1).await;
        assert!(!is_new(), "the new certificate has no key yet");
        folder.write("server.key", "not a key");
        look(1).await;
        assert!(!is_new(), "the new key is broken");
        folder.write("server.key", &new_key);
        for _ in 0..100 {
            look(1).await;
            if is_new() {
                return;
            }
        }
        panic!("the new pair is not used");
    }
}
