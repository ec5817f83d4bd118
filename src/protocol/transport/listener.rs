//! Opens and accepts: TCP, with a shared port if wanted, and Unix-domain sockets, whose file it removes at the end.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket as Raw, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::address::Address;
use crate::error::{Error, Result};

/// Connections that the system holds until they are accepted; it lowers the number to what it allows.
const BACKLOG: i32 = 4096;

/// How to open a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Other processes may listen on the same port, and the system spreads connections over them (`SO_REUSEPORT`).
    pub reuse_port: bool,
}

/// Accepts connections at one address.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    /// The file goes with the listener.
    Unix(UnixListener, #[allow(dead_code, reason = "dropped for its effect")] SocketFile),
}

/// One accepted connection.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix-domain socket.
    Unix(UnixStream),
}

impl Listener {
    /// Listens on `address`.
    ///
    /// A socket file that nobody listens on any more, as a killed server leaves it, is replaced.
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] if the system refuses, with the address.
    pub fn bind(address: &Address, options: Options) -> Result<Self> {
        let opened = match address {
            Address::Tcp(address) => tcp(*address, options),
            Address::Unix(path) => unix(path),
        };
        opened.map_err(|error| Error::internal(format!("cannot listen on {address}: {error}")))
    }

    /// Where it listens; with the port that was chosen if any was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn accept(&self) -> io::Result<Socket> {
        match &self.kind {
            Kind::Tcp(listener) => Ok(Socket::Tcp(listener.accept().await?.0)),
            Kind::Unix(listener, _) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

impl TryFrom<TcpListener> for Listener {
    type Error = io::Error;

    fn try_from(listener: TcpListener) -> io::Result<Self> {
        Ok(Self { address: Address::Tcp(listener.local_addr()?), kind: Kind::Tcp(listener) })
    }
}

impl Socket {
    /// The same connection, for the runtime of the caller: it was accepted by another one.
    ///
    /// # Errors
    /// Those of the system.
    pub fn here(self) -> io::Result<Self> {
        match self {
            Socket::Tcp(stream) => {
                let stream = TcpStream::from_std(stream.into_std()?)?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "connection without TCP_NODELAY");
                }
                Ok(Socket::Tcp(stream))
            }
            Socket::Unix(stream) => Ok(Socket::Unix(UnixStream::from_std(stream.into_std()?)?)),
        }
    }
}

fn tcp(address: SocketAddr, options: Options) -> io::Result<Listener> {
    let socket = Raw::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server need not wait for the connections of the one before to be forgotten.
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Listener::try_from(TcpListener::from_std(socket.into())?)
}

fn unix(path: &Path) -> io::Result<Listener> {
    if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        }
    }
    let listener = UnixListener::bind(path)?;
    let file = std::fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), device: file.dev(), inode: file.ino() };
    Ok(Listener { address: Address::Unix(path.to_owned()), kind: Kind::Unix(listener, file) })
}

/// The file of a socket; removed when this is dropped, unless another one has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let own = |file: std::fs::Metadata| (file.dev(), file.ino()) == (self.device, self.inode);
        if std::fs::symlink_metadata(&self.path).is_ok_and(own)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> Address {
        Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    #[tokio::test]
    async fn a_port_is_shared_only_if_all_want_it() {
        let shared = Options { reuse_port: true };
        let first = Listener::bind(&loopback(), shared).expect("a free port");
        Listener::bind(first.address(), shared).expect("shared");
        let alone = Listener::bind(first.address(), Options::default()).expect_err("taken");
        assert!(alone.message().starts_with(&format!("cannot listen on {}: ", first.address())), "{alone}");
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_a_live_one_is_not_and_none_is_left() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("grpc.sock");
        let address = Address::Unix(path.clone());
        // As a killed server leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a new file"));
        let listener = Listener::bind(&address, Options::default()).expect("the file is stale");
        let second = Listener::bind(&address, Options::default()).expect_err("the first one is alive");
        assert!(second.message().contains("another server listens there"), "{second}");
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").expect("the directory is writable");
        Listener::bind(&address, Options::default()).expect_err("not a socket");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
    }
}
