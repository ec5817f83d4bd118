//! The integration tests: one binary, one module for each area.

mod gate;
mod growing;
mod grpc;
mod http;
mod instances;
mod instructions;
mod latch;
mod libtorch_missing;
mod lifecycle;
mod loading;
mod memory;
mod oracle;
mod paging;
mod process;
mod resident;
mod secure;
mod support;
mod trace;
mod waiting;
