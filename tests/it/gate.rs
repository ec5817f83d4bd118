//! A backend that loads when a test says so: what the integration tests of loading hold a load still with.

use std::collections::BTreeSet;
use std::sync::Arc;

use nereid::backend::identity::Identity;
use nereid::backend::{Backend, Instance, Model};
use nereid::engine::Settings;
use nereid::error::{Error, Result};
use nereid::model::{Device, Footprint, ModelConfig, VersionFiles, schema};
use nereid::repository::CudaDevices;
use parking_lot::{Condvar, Mutex};

/// The backend `gate`: as `identity`, but `open` waits until the test opens the gate, or fails if it says so. Instances
/// wait if it says that.
#[derive(Default)]
pub struct Gate {
    entry: Arc<Entry>,
}

/// The gate itself, at which models and their instances wait.
#[derive(Default)]
struct Entry {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    open: bool,
    /// How many of the next loads fail.
    failing: u32,
    /// The models that wait at the gate.
    waiting: BTreeSet<String>,
    /// The loads so far, failed ones included.
    loads: u32,
    /// How many instances do not wait; `None` for all.
    instances: Option<u32>,
    /// The instances that wait.
    held: u32,
    /// The instances that did not have to wait any more.
    passed: u32,
}

/// A model whose instances come by the gate.
struct Gated {
    model: Arc<dyn Model>,
    entry: Arc<Entry>,
}

impl Model for Gated {
    fn footprint(&self) -> Footprint {
        self.model.footprint()
    }

    fn warms_up(&self) -> bool {
        self.model.warms_up()
    }

    fn lent(&self) -> Option<Box<dyn Instance + Send>> {
        self.model.lent()
    }

    fn instance(&self, device: Device) -> Result<Box<dyn Instance>> {
        let mut state = self.entry.state.lock();
        state.held += 1;
        while state.instances == Some(0) {
            self.entry.changed.wait(&mut state);
        }
        state.held -= 1;
        state.passed += 1;
        state.instances = state.instances.map(|left| left - 1);
        drop(state);
        self.model.instance(device)
    }
}

impl Gate {
    /// Puts the gate into an engine.
    pub fn join(self: &Arc<Self>, settings: &mut Settings) {
        settings.backends.push(self.clone());
        settings.facts = nereid::engine::facts(&settings.backends, CudaDevices::default(), 1000);
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        let mut state = self.entry.state.lock();
        (state.open, state.instances) = (true, None);
        self.entry.changed.notify_all();
    }

    /// From now on instances wait, but for the next so many.
    pub fn hold_instances(&self, but: u32) {
        self.entry.state.lock().instances = Some(but);
    }

    /// How many instances wait.
    pub fn held(&self) -> u32 {
        self.entry.state.lock().held
    }

    /// How many instances came by so far.
    pub fn passed(&self) -> u32 {
        self.entry.state.lock().passed
    }

    /// The next so many loads fail at the gate.
    pub fn fail(&self, times: u32) {
        self.entry.state.lock().failing = times;
    }

    /// The models that wait.
    pub fn waiting(&self) -> Vec<String> {
        self.entry.state.lock().waiting.iter().cloned().collect()
    }

    /// How many loads there were.
    pub fn loads(&self) -> u32 {
        self.entry.state.lock().loads
    }
}

impl Backend for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn parameter_keys(&self) -> &'static [&'static str] {
        Identity.parameter_keys()
    }

    fn check_parameters(&self, config: &schema::ModelConfig) -> Vec<(String, String)> {
        Identity.check_parameters(config)
    }

    fn complete(&self, files: &VersionFiles, config: &mut schema::ModelConfig) -> Result<()> {
        Identity.complete(files, config)
    }

    fn estimate(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Footprint> {
        Identity.estimate(files, config)
    }

    fn open(&self, files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>> {
        let mut state = self.entry.state.lock();
        state.loads += 1;
        state.waiting.insert(config.name.to_string());
        while !state.open {
            self.entry.changed.wait(&mut state);
        }
        state.waiting.remove(&*config.name);
        if state.failing > 0 {
            state.failing -= 1;
            return Err(Error::unavailable("the gate said no"));
        }
        drop(state);
        Ok(Arc::new(Gated { model: Identity.open(files, config)?, entry: self.entry.clone() }))
    }
}
