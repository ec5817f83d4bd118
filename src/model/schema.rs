//! The model configuration as written: the messages of `proto/model_config.proto`, generated.
//!
//! This is the format of `config.pbtxt`, and the answer of the ModelConfig call. What the server works with is
//! [`super::ModelConfig`], made from it once, in `repository`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/model_config.rs"));

/// The serialised descriptor set of `proto/`, for reading text and JSON by field name.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
