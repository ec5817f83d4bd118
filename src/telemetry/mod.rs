//! What the server tells about itself: statistics, metrics, logs, traces.
//!
//! A measure is recorded once, where it happens; every metric's name stands in [`metrics`].

pub mod host;
pub mod logging;
pub mod metrics;
pub mod stats;
pub mod trace;
