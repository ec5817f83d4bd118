//! Connects to a server as its own probes do: over TCP or a Unix-domain socket, plain or in TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::address::Address;
use super::tls;
use crate::error::{Error, Result};

/// A connection, whatever carries it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// Connects to `address`, which is `HOST:PORT` or `unix:PATH`, in TLS if `root` names the file with the certificate of
/// who signed the server's; over HTTP/2 if `h2`, else over HTTP/1.1.
///
/// # Errors
/// [`crate::error::Kind::Unavailable`] if nobody answers there, or it is not who it should be.
pub async fn dial(address: &str, root: Option<&Path>, h2: bool) -> Result<Box<dyn Connection>> {
    let silent = |error: std::io::Error| Error::unavailable(format!("nobody answers at {address}: {error}"));
    let (stream, host): (Box<dyn Connection>, _) = match Address::unix_path(address) {
        Some(path) => (Box::new(UnixStream::connect(path).await.map_err(silent)?), "localhost"),
        None => {
            let stream = TcpStream::connect(address).await.map_err(silent)?;
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            (Box::new(stream), host.trim_matches(['[', ']']))
        }
    };
    let Some(root) = root else { return Ok(stream) };
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| Error::invalid(format!("'{host}' cannot be in a certificate")))?;
    let connector = connector(root, h2)?;
    Ok(Box::new(connector.connect(name, stream).await.map_err(silent)?))
}

fn connector(root: &Path, h2: bool) -> Result<TlsConnector> {
    let pem = std::fs::read(root).map_err(|error| tls::wrong(root, error))?;
    let mut roots = RootCertStore::empty();
    for certificate in tls::certificates(root, &pem)? {
        roots.add(certificate).map_err(|error| tls::wrong(root, error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| Error::internal(error.to_string()))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(TlsConnector::from(Arc::new(config)))
}
