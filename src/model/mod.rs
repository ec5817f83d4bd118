//! What a model is, without running one: its identity, its configuration, what it accepts, what it weighs.
//!
//! Knows tensors; does not know requests, files' contents, libtorch or the network. Begin with [`ModelConfig`].

mod config;
mod files;
mod footprint;
mod forms;
mod host_policy;
mod id;
mod padding;
mod ragged;
mod rate_limit;
mod residency;
mod scheduling;
pub mod schema;
mod signature;
mod written_type;

pub use config::{Instances, LatencyBudget, ModelConfig, TensorSpec, WarmupData, WarmupInput, WarmupSample};
pub use files::VersionFiles;
pub use footprint::{Allocated, Footprint};
pub use host_policy::{HostPolicies, HostPolicy, host_policy, parse_cores};
pub use id::{Device, Version};
pub use padding::{Padded, ServerPadding};
pub use ragged::{BatchInput, BatchOutput};
pub use rate_limit::{Amount, Place, RateLimit, Resource};
pub use residency::Residency;
pub use scheduling::{
    DynamicBatching, Ensemble, EnsembleStep, Flag, InitialState, Iterative, Priorities, QueuePolicy, Scheduling,
    SequenceBatching, SequenceControl, SequenceControlKind, SequenceState, SequenceStrategy, TimeoutAction,
};
pub use signature::{Checked, Signature};
pub use written_type::{data_type, written_type};
