//! The settings of the HTTP front end.

/// What can be set of the HTTP front end.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name that the server's metadata answers.
    pub server_id: String,
    /// The most bytes of a request's body, and of what it is when decompressed (`--http-max-input-size`).
    pub request_bytes_max: usize,
    /// The most connections at a time; more wait until one closes.
    pub connections_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { server_id: "nereid".to_owned(), request_bytes_max: 64 << 20, connections_max: 4096 }
    }
}
