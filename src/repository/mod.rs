//! The model repository: what lies on disk, and what its configurations mean.
//!
//! [`Roots`] finds the models, on this machine and elsewhere; [`read`] reads one's `config.pbtxt` (or a JSON override), the backend completes it, and
//! [`Written::finish`] checks it and makes it a [`crate::model::ModelConfig`]. All mistakes are found at once, each
//! with its place. Knows neither backends nor devices: what it must know of them comes as [`Facts`].
//! Inside: lexer -> pbtxt (or json) -> tree -> bind -> normalise -> validate -> normalise -> meant.

mod bind;
mod facts;
mod files;
mod json;
mod lexer;
mod meant;
mod mistakes;
mod normalise;
mod padding;
mod pbtxt;
mod remote;
mod roots;
mod scalar;
mod scan;
mod shares;
mod suggest;
mod tree;
mod validate;
mod version_policy;
mod written;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod tests;

pub use facts::{BackendFacts, CheckParameters, CudaDevices, Facts, LATENCY_BUDGET};
pub use files::is_inside;
pub use mistakes::{Mistake, Mistakes, Position, Positions};
pub use remote::{Cloud, Files, Place, Progress, RemoteSettings, Store};
pub use roots::{Found, Root, Roots, nowhere};
pub use scan::{ModelDir, Scan, Stamp, check_name, find, look, scan};
pub use suggest::nearest;
pub use version_policy::{Selected, select};
pub use written::{CONFIG_BYTES_MAX, Finished, Source, Written, read};
