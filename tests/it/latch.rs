//! A backend whose models stay busy until a test says so: what the integration tests of memory have in the way.

use std::path::Path;
use std::sync::Arc;

use nereid::backend::identity::Identity;
use nereid::backend::{Backend, Instance, Model, Replies};
use nereid::engine::Settings;
use nereid::error::Result;
use nereid::model::{Device, Footprint, ModelConfig, VersionFiles, schema};
use nereid::repository::CudaDevices;
use nereid::tensor::Batch;
use parking_lot::{Condvar, Mutex};

use crate::support::write_model;

/// The backend `latch`: as `identity`, but with memory, and executions of a negative number wait until the test opens it.
#[derive(Default)]
pub struct Latch {
    /// What each model holds.
    bytes: u64,
    open: Mutex<bool>,
    changed: Condvar,
}

impl Latch {
    /// Of models that hold so many bytes each.
    pub fn of(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, ..Self::default() })
    }

    /// Puts it into an engine.
    pub fn join(self: &Arc<Self>, settings: &mut Settings) {
        settings.backends.push(Arc::new(Latched(self.clone())));
        settings.facts = nereid::engine::facts(&settings.backends, CudaDevices::default(), 1000);
    }

    /// Lets all executions end from now on.
    pub fn open(&self) {
        *self.open.lock() = true;
        self.changed.notify_all();
    }
}

/// Writes a model from `x` to `y`, with `more` in its configuration.
pub fn write_latched(root: &Path, name: &str, more: &str) {
    let config = format!(
        "backend: \"latch\" max_batch_size: 4 {more}\n\
         input {{ name: \"x\" data_type: TYPE_FP32 dims: [1] }}\n\
         output {{ name: \"y\" data_type: TYPE_FP32 dims: [1] }}\n"
    );
    write_model(root, name, &config, &[1]);
}

/// The latch as a backend, a model and an instance.
#[derive(Clone)]
struct Latched(Arc<Latch>);

impl Backend for Latched {
    fn name(&self) -> &'static str {
        "latch"
    }

    fn complete(&self, files: &VersionFiles, config: &mut schema::ModelConfig) -> Result<()> {
        Identity.complete(files, config)
    }

    fn estimate(&self, _files: &VersionFiles, _config: &ModelConfig) -> Result<Footprint> {
        Ok(self.footprint())
    }

    fn open(&self, _files: &VersionFiles, _config: &ModelConfig) -> Result<Arc<dyn Model>> {
        Ok(Arc::new(self.clone()))
    }
}

impl Model for Latched {
    fn footprint(&self) -> Footprint {
        Footprint::on(Device::Cpu, self.0.bytes)
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        Ok(Box::new(self.clone()))
    }
}

impl Instance for Latched {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        replies.inputs_ready();
        // The sign is in the last byte.
        let is_negative = |bytes: &[u8]| bytes.last().is_some_and(|last| last >> 7 == 1);
        if batch.members.iter().any(|member| is_negative(&member.inputs[0].data)) {
            let mut open = self.0.open.lock();
            while !*open {
                self.0.changed.wait(&mut open);
            }
        }
        replies.outputs_ready();
        for (index, member) in batch.members.iter().enumerate() {
            replies.member(index, member.inputs.clone())?;
        }
        Ok(())
    }
}
