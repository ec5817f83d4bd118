//! The backend seam: a kind of model file, and how to run it.
//!
//! A [`Backend`] knows at most what it has open, and is registered by name in `server.rs`. It opens a [`Model`]: the weights, shared by all
//! [`Instance`]s. An instance belongs to one OS thread and runs one [`Batch`] at a time, blocking.
//! Backends see checked tensors, never a request, a queue or a protocol.

mod completed;
pub mod identity;
pub mod libtorch;
mod message;
pub mod onnx;
pub mod spill;

use std::sync::Arc;
use std::time::Duration;

pub use self::spill::Spill;
use crate::error::{Error, Result};
use crate::model::{Device, Footprint, Instances, ModelConfig, VersionFiles, schema};
use crate::tensor::{Batch, Tensor};

/// A kind of model file.
pub trait Backend: Send + Sync {
    /// The name in a configuration's `backend` field.
    fn name(&self) -> &'static str;

    /// The model file's name where the configuration gives none; `None` if there is no file.
    fn default_model_filename(&self) -> Option<&'static str> {
        None
    }

    /// Whether instances can run on a CUDA device.
    fn uses_cuda(&self) -> bool {
        false
    }

    /// The keys of `parameters{}` that mean something to this backend.
    fn parameter_keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// Checks the values of this backend's `parameters{}`: a message for each key that is wrong.
    fn check_parameters(&self, _config: &schema::ModelConfig) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The bytes of host memory that [`Backend::complete`] takes until it is done: those of the files that it has to read
    /// as a whole.
    fn completes_in(&self, _files: &VersionFiles, _config: &schema::ModelConfig) -> u64 {
        0
    }

    /// Fills what the configuration leaves out from the model file itself.
    ///
    /// # Errors
    /// If the file cannot be read, or says something that contradicts the configuration.
    fn complete(&self, files: &VersionFiles, config: &mut schema::ModelConfig) -> Result<()>;

    /// An upper bound of what [`Backend::open`] and its instances will hold, before opening.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn estimate(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Footprint>;

    /// Reads the weights. Blocking; called on a loader thread.
    ///
    /// # Errors
    /// If the file is missing, broken, or does not fit the configuration.
    fn open(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>>;
}

/// An open model version; dropping the last reference gives its memory back.
pub trait Model: Send + Sync {
    /// The memory held, as measured. What equal models share is one's only, and another's when that one goes.
    fn footprint(&self) -> Footprint;

    /// Whether it can have these instances instead of those it was opened for: in the memory that it holds, and as good as
    /// if it were opened anew.
    fn can_have(&self, _instances: &[Instances]) -> bool {
        true
    }

    /// Whether executions with zeros before serving make the first requests faster.
    fn warms_up(&self) -> bool {
        true
    }

    /// Whether instances can leave outputs where they computed them ([`Batch::keeps`]), and take inputs that any model of
    /// this backend left somewhere. The inputs of others are in host memory always.
    fn keeps_outputs(&self) -> bool {
        false
    }

    /// What it would hold while its weights are paged out; `None` if they cannot leave, or too little of them could.
    /// Blocking: may look through the whole model.
    fn paged(&self) -> Option<Paged> {
        None
    }

    /// Moves the weights to a cheaper place: what is on the host to `spill`, what is on devices to host memory. Blocking.
    /// The model has no instances, and gets none before [`Model::page_in`]. What equal models share leaves with the last
    /// of them.
    ///
    /// # Errors
    /// Why they could not leave; then they are where they were.
    fn page_out(&self, _spill: Option<&Arc<Spill>>) -> Result<()> {
        Err(Error::internal("models of this backend cannot be paged out"))
    }

    /// Brings the weights back to where they were, the same to the bit. Blocking.
    ///
    /// # Errors
    /// Why they could not come back; then the model is of no use any more.
    fn page_in(&self) -> Result<()> {
        Ok(())
    }

    /// A new instance that any thread may run, one at a time: it never blocks, and its executions take microseconds, so
    /// that a network thread runs it rather than to wake another one. `None` if that is not so.
    fn lent(&self) -> Option<Box<dyn Instance + Send>> {
        None
    }

    /// A new instance, for the calling thread.
    ///
    /// # Errors
    /// If the device cannot hold or run it.
    fn instance(&self, device: Device) -> Result<Box<dyn Instance>>;
}

/// A model while its weights are paged out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paged {
    /// The memory that it holds then, at most.
    pub footprint: Footprint,
    /// The bytes that it has in a spill then, at most.
    pub spilled: u64,
    /// What it holds when its weights are back, at most.
    pub resident: Footprint,
}

/// One execution context; lives and dies on one thread.
pub trait Instance {
    /// Runs one batch and hands each member its responses through `replies`. Blocking. A decoupled model's batch has one
    /// member.
    ///
    /// # Errors
    /// The reason why the batch failed; every member that has not its last response yet gets it.
    /// [`crate::error::Kind::OutOfMemory`] if a smaller batch may succeed, [`crate::error::Kind::DeviceLost`] if this
    /// instance can run nothing any more.
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()>;
}

/// Takes what an instance produces.
///
/// An instance of an ordinary model gives each member one response, by [`Replies::batch`] or [`Replies::member`]. One of
/// a decoupled model may give a member any number before that by [`Replies::send`], and may end without another.
pub trait Replies {
    /// The inputs are where the computation needs them. Ends the `compute_input` time.
    fn inputs_ready(&mut self);

    /// The computation is done. Ends the `compute_infer` time.
    fn outputs_ready(&mut self);

    /// The last outputs of the whole batch, in the order of the model's configuration; split over the members.
    ///
    /// # Errors
    /// [`crate::error::Kind::Backend`] if an output's outermost dimension is not the batch's rows, or if it does not fit
    /// what the configuration says about its shape.
    fn batch(&mut self, outputs: Vec<Tensor>) -> Result<()>;

    /// The last outputs of one member, in the order of the model's configuration; [`Tensor::absent`] for one that it does
    /// not get.
    ///
    /// # Errors
    /// [`crate::error::Kind::Backend`] if an output does not fit what the configuration says about its shape.
    fn member(&mut self, index: usize, outputs: Vec<Tensor>) -> Result<()>;

    /// Sends one response of a member of a decoupled model now; another may follow. Blocks while as many as may wait for
    /// the caller.
    ///
    /// # Errors
    /// Once nobody takes this member's responses any more: stop producing them. [`crate::error::Kind::Internal`] if the
    /// model is not decoupled.
    fn send(&mut self, index: usize, outputs: Vec<Tensor>) -> Result<()>;

    /// Blocks for `time`, for a decoupled model that does not produce as fast as it could.
    ///
    /// # Errors
    /// As [`Replies::send`], at once when it comes true.
    fn pause(&mut self, index: usize, time: Duration) -> Result<()>;
}
