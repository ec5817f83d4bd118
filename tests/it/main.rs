//! The integration tests: one binary, one module for each area.

mod grpc;
mod http;
mod instances;
mod libtorch_missing;
mod lifecycle;
mod oracle;
mod process;
mod secure;
mod support;
mod trace;
