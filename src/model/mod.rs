//! What a model is, without running one: its identity, its configuration, what it accepts, what it weighs.
//!
//! Knows tensors; does not know requests, files' contents, libtorch or the network. Begin with [`ModelConfig`].

mod config;
mod files;
mod footprint;
mod id;
pub mod schema;
mod signature;

pub use config::{
    DynamicBatching, Instances, LatencyBudget, ModelConfig, QueuePolicy, Scheduling, TensorSpec, TimeoutAction,
    WarmupData, WarmupInput, WarmupSample,
};
pub use files::VersionFiles;
pub use footprint::Footprint;
pub use id::{Device, Version};
pub use signature::{Checked, Signature};
