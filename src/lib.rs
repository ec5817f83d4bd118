//! Nereid: a multi-model inference server.
//!
//! The rooms, in the order in which they may import each other; `tests/tidy.rs` holds them to it.

pub mod error;
pub mod infer;
pub mod model;
pub mod tensor;

pub mod backend;
pub mod repository;
pub mod telemetry;

pub mod engine;
pub mod gateway;
pub mod protocol;
pub mod scheduler;

pub mod cli;
pub mod config;
pub mod server;
