//! Models that take more memory each time that they are opened, as those do that share weights with one that leaves.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use nereid::backend::identity::Identity;
use nereid::backend::{Backend, Instance, Model, Replies};
use nereid::engine::{self, Control, Device, Engine, MemoryLimit, Overrides, Settings};
use nereid::error::{Error, Result};
use nereid::model::{Footprint, ModelConfig, VersionFiles, schema};
use nereid::repository::CudaDevices;
use nereid::tensor::Batch;
use parking_lot::Mutex;

use crate::support::{engine_with, identity_config, metric, within, write_model};

/// The bytes that a load expects.
const ESTIMATE: u64 = 20;

/// The backend `growing`: its model `grows` takes these bytes, one after the other each time that it is opened, and all others
/// as much as was estimated.
struct Growing(Mutex<VecDeque<u64>>);

/// One of them, that holds so much.
struct Grown(u64);

impl Backend for Growing {
    fn name(&self) -> &'static str {
        "growing"
    }

    fn complete(&self, files: &VersionFiles, config: &mut schema::ModelConfig) -> Result<()> {
        Identity.complete(files, config)
    }

    fn estimate(&self, _files: &VersionFiles, _config: &ModelConfig) -> Result<Footprint> {
        Ok(Footprint::on(Device::Cpu, ESTIMATE))
    }

    fn open(&self, _files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>> {
        let bytes = if &*config.name == "grows" { self.0.lock().pop_front() } else { None };
        Ok(Arc::new(Grown(bytes.unwrap_or(ESTIMATE))))
    }
}

impl Model for Grown {
    fn footprint(&self) -> Footprint {
        Footprint::on(Device::Cpu, self.0)
    }

    fn warms_up(&self) -> bool {
        false
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        Ok(Box::new(Idle))
    }
}

/// An instance that nobody asks for anything.
struct Idle;

impl Instance for Idle {
    fn run(&mut self, _batch: &Batch, _replies: &mut dyn Replies) -> Result<()> {
        Err(Error::internal("nobody asks it"))
    }
}

/// An engine of 100 bytes, in which four models of 20 are idle, and `grows` takes so much each time that it is opened.
async fn engine_with_growing(root: &Path, opens: &[u64]) -> Arc<Engine> {
    let idle = ["a", "b", "c", "d"];
    for name in idle.into_iter().chain(["grows"]) {
        let residency = if name == "grows" { "resident" } else { "on_demand" };
        let residency = format!("parameters {{ key: \"memory.residency\" value {{ string_value: \"{residency}\" }} }}");
        write_model(root, name, &identity_config(&residency).replace("\"identity\"", "\"growing\""), &[1]);
    }
    let growing = Growing(Mutex::new(opens.iter().copied().collect()));
    let settings = |settings: &mut Settings| {
        settings.memory_limits.insert(Device::Cpu, MemoryLimit::Bytes(100));
        settings.backends.push(Arc::new(growing));
        settings.facts = engine::facts(&settings.backends, CudaDevices::default(), 1000);
    };
    let (engine, _) = engine_with(root, Control::Explicit(Some(Vec::new())), settings).await;
    for name in idle {
        engine.load(name, Overrides::default()).await.expect("it fits");
    }
    engine
}

#[tokio::test]
async fn what_takes_more_than_was_measured_is_opened_again_once_there_is_room_for_all_of_it() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let engine = engine_with_growing(root.path(), &[40, 70, 70]).await;
    within(engine.load("grows", Overrides::default())).await.expect("others leave for it");
    assert_eq!(metric(&engine, "nereid_memory_used_bytes"), 90.0);
    assert_eq!(metric(&engine, "nereid_evictions_total"), 3.0);
    engine.stop().await;
}

#[tokio::test]
async fn what_takes_more_each_time_is_given_up() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let engine = engine_with_growing(root.path(), &[30, 45, 65, 85]).await;
    let refused = within(engine.load("grows", Overrides::default())).await.expect_err("it does not end");
    let why = "model 'grows' took more memory each time that it was opened, 4 times in all";
    assert!(refused.message().contains(why), "{refused}");
    engine.stop().await;
}
