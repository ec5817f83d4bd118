//! The settings of one port: its address and its limits, by the same names for every front end.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Reader, flags};
use crate::protocol::transport::{Address, Files, Settings};

/// Where a front end listens, and within which limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Where to listen.
    pub address: Address,
    /// Whether other processes may listen there, too.
    pub reuse: bool,
    /// The limits.
    pub settings: Settings,
    /// The files of its TLS; `None` for none.
    pub tls: Option<Files>,
}

impl Port {
    /// What the settings say of the front end `settings.name`, which listens at the setting `address`; where there is
    /// no setting `settings` hold.
    pub(super) fn read(reader: &mut Reader, address: &'static str, settings: Settings) -> Self {
        let mut named = Named { front_end: settings.name, reader };
        let reuse = flags::find(&format!("reuse-{}-port", settings.name));
        Self {
            address: named.address(address),
            reuse: reuse.is_some_and(|flag| named.reader.truth(flag.name)),
            tls: named.tls(),
            settings: named.limits(settings),
        }
    }
}

/// Reads the settings whose names begin with that of a front end.
struct Named<'a, 'b> {
    front_end: &'static str,
    reader: &'a mut Reader<'b>,
}

impl Named<'_, '_> {
    fn limits(&self, mut settings: Settings) -> Settings {
        let set = |limit: &mut usize, name| {
            if let Some(number) = self.number(name) {
                *limit = number as usize;
            }
        };
        set(&mut settings.connections_max, "max-connections");
        set(&mut settings.head_bytes_max, "max-header-bytes");
        set(&mut settings.headers_max, "max-headers");
        let set = |time: &mut Duration, name| {
            if let Some(number) = self.number(name) {
                *time = Duration::from_millis(number);
            }
        };
        set(&mut settings.handshake_timeout, "handshake-timeout");
        set(&mut settings.head_timeout, "header-timeout");
        set(&mut settings.http2.keepalive_interval, "keepalive-time");
        set(&mut settings.http2.keepalive_timeout, "keepalive-timeout");
        let set = |time: &mut Option<Duration>, name| {
            if let Some(number) = self.number(name) {
                *time = Some(Duration::from_millis(number)).filter(|time| !time.is_zero());
            }
        };
        set(&mut settings.idle_timeout, "idle-timeout");
        set(&mut settings.idle_timeout, "max-connection-idle");
        set(&mut settings.body_timeout, "body-timeout");
        set(&mut settings.send_timeout, "send-timeout");
        set(&mut settings.age_max, "max-connection-age");
        set(&mut settings.age_grace, "max-connection-age-grace");
        if let Some(number) = self.number("max-concurrent-streams") {
            settings.http2.calls_max = number as u32;
        }
        settings
    }

    fn tls(&mut self) -> Option<Files> {
        let is_mutual = self.truth("use-ssl-mutual");
        let file = |name| self.text(name).map(PathBuf::from);
        let (certificate, key, roots) = (file("server-cert"), file("server-key"), file("root-cert"));
        if !is_mutual && !self.truth("use-ssl") {
            if certificate.is_some() || key.is_some() {
                let warning =
                    format!("--{0}-server-cert and --{0}-server-key do nothing without --{0}-use-ssl", self.front_end);
                self.reader.typed.warnings.push(warning);
            }
            return None;
        }
        let user = if is_mutual { "use-ssl-mutual" } else { "use-ssl" };
        let needed = [("server-cert", &certificate), ("server-key", &key), ("root-cert", &roots)];
        for (name, file) in &needed[..if is_mutual { 3 } else { 2 }] {
            if let (None, Some(flag)) = (file, flags::find(&format!("{}-{user}", self.front_end))) {
                let origin = self.reader.typed.origin(flag.name);
                self.reader.mistake(&origin, format!("needs --{}-{name}", self.front_end));
            }
        }
        Some(Files {
            certificate: certificate?,
            key: key?,
            client_roots: roots.filter(|_| is_mutual),
            interval: Duration::from_millis(self.reader.number("ssl-reload-interval-ms")),
        })
    }

    fn truth(&self, name: &str) -> bool {
        flags::find(&format!("{}-{name}", self.front_end)).is_some_and(|flag| self.reader.truth(flag.name))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.reader.optional(flags::find(&format!("{}-{name}", self.front_end))?.name)
    }

    fn number(&self, name: &str) -> Option<u64> {
        let flag = flags::find(&format!("{}-{name}", self.front_end))?;
        self.reader.maybe_number(flag.name)
    }

    fn address(&mut self, name: &'static str) -> Address {
        let text = self.reader.text(name);
        if let Some(path) = Address::unix_path(&text) {
            let origin = self.reader.typed.origin(name);
            if path.as_os_str().is_empty() {
                self.reader.mistake(&origin, format!("'{text}' has no path"));
            }
            if !name.starts_with(self.front_end) {
                let own = format!("--{}-address must be given: it cannot share '{text}'", self.front_end);
                self.reader.mistake(&origin, own);
            }
            return Address::Unix(path);
        }
        let host = if text == "localhost" { "127.0.0.1" } else { text.trim_matches(['[', ']']) };
        let ip = host.parse().unwrap_or_else(|_| {
            let origin = self.reader.typed.origin(name);
            self.reader.mistake(&origin, format!("'{text}' is not an IP address, nor unix: and a path"));
            IpAddr::from([0, 0, 0, 0])
        });
        let port = self.number("port").unwrap_or_default();
        Address::Tcp(SocketAddr::new(ip, port as u16))
    }
}
