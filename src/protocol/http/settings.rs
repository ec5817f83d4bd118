//! The settings of the HTTP front end.

use http::HeaderValue;

use crate::protocol::restricted::Restrictions;
use crate::protocol::v2::forward::Forward;

/// What can be set of the HTTP front end.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name that the server's metadata answers.
    pub server_id: String,
    /// Whether the console is served at `/`.
    pub console: bool,
    /// Who decides what is loaded, as the console shows it: `none`, `poll` or `explicit`.
    pub model_control_mode: &'static str,
    /// The most bytes of a request's body, and of what it is when decompressed (`--http-max-input-size`).
    pub request_bytes_max: usize,
    /// The headers that become parameters of a request (`--http-header-forward-pattern`).
    pub forward: Forward,
    /// Which routes need a secret (`--http-restricted-api`).
    pub restrictions: Restrictions,
    /// The pages that may call from a browser, by origin; `*` for all (`--http-cors-origin`).
    pub cors_origins: Vec<HeaderValue>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            server_id: "nereid".to_owned(),
            console: true,
            model_control_mode: "none",
            request_bytes_max: 64 << 20,
            forward: Forward::default(),
            restrictions: Restrictions::default(),
            cors_origins: Vec::new(),
        }
    }
}
