//! What carries calls, for every front end: listeners, connections, HTTP/1.1 and HTTP/2, limits and timeouts.
//!
//! A [`Port`] is where a front end is reached; [`Port::serve`] accepts connections there, gives each to one of the
//! [`Workers`], and hands every request to a [`Service`]. Knows nothing of what calls mean. Begin with `port`.

mod address;
mod body;
mod clock;
mod connection;
mod crowd;
mod dial;
mod last;
mod listener;
mod peer;
mod piece;
mod port;
mod preface;
mod rehearsal;
mod service;
mod settings;
mod stream;
mod tls;
mod wire;
mod workers;

pub use address::Address;
pub use body::{Body, BodyError};
pub use dial::dial;
pub use listener::{Listener, Options};
pub use port::Port;
pub use service::Service;
pub use settings::{Http2, Protocols, Settings};
pub use tls::{Files, Tls};
pub use workers::Workers;
