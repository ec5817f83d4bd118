//! Where a front end listens: an IP address and port, or a socket in the file system.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where a front end listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port; port 0 for any that is free.
    Tcp(SocketAddr),
    /// A Unix-domain socket, by its path.
    Unix(PathBuf),
}

impl Address {
    /// The path that `text` names if it has the form of a Unix-domain socket, `unix:PATH` or `unix://PATH`.
    pub fn unix_path(text: &str) -> Option<PathBuf> {
        let path = text.strip_prefix("unix:")?;
        let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
        Some(PathBuf::from(path))
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) => None,
        }
    }

    /// How a client on this machine names it: the loopback address where the server listens on all.
    pub fn for_clients(&self) -> String {
        match self {
            Address::Tcp(address) if address.ip().is_unspecified() => format!("127.0.0.1:{}", address.port()),
            other => other.to_string(),
        }
    }

    /// Whether no two listeners can have `self` and `other` at the same time.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Address::Tcp(one), Address::Tcp(other)) => {
                let same_host = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
                same_host && one.port() == other.port() && one.port() != 0
            }
            (Address::Unix(one), Address::Unix(other)) => one == other,
            _ => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_the_file_system_is_told_by_its_prefix() {
        let path = |text| Address::unix_path(text).map(|path| path.display().to_string());
        assert_eq!(path("unix:/run/n.sock").as_deref(), Some("/run/n.sock"));
        assert_eq!(path("unix:///run/n.sock").as_deref(), Some("/run/n.sock"));
        assert_eq!(path("unix:n.sock").as_deref(), Some("n.sock"));
        assert_eq!(path("127.0.0.1"), None);
    }
}
