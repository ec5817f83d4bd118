//! A backend that loads when a test says so: what the integration tests of loading hold a load still with.

use std::collections::BTreeSet;
use std::sync::Arc;

use nereid::backend::identity::Identity;
use nereid::backend::{Backend, Model};
use nereid::engine::Settings;
use nereid::error::{Error, Result};
use nereid::model::{Footprint, ModelConfig, VersionFiles, schema};
use nereid::repository::CudaDevices;
use parking_lot::{Condvar, Mutex};

/// The backend `gate`: as `identity`, but `open` waits until the test opens the gate, or fails if it says so.
#[derive(Default)]
pub struct Gate {
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
}

impl Gate {
    /// Puts the gate into an engine.
    pub fn join(self: &Arc<Self>, settings: &mut Settings) {
        settings.backends.push(self.clone());
        settings.facts = nereid::engine::facts(&settings.backends, CudaDevices::default(), 1000);
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.state.lock().open = true;
        self.changed.notify_all();
    }

    /// The next so many loads fail at the gate.
    pub fn fail(&self, times: u32) {
        self.state.lock().failing = times;
    }

    /// The models that wait.
    pub fn waiting(&self) -> Vec<String> {
        self.state.lock().waiting.iter().cloned().collect()
    }

    /// How many loads there were.
    pub fn loads(&self) -> u32 {
        self.state.lock().loads
    }
}

impl Backend for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        None
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
        let mut state = self.state.lock();
        state.loads += 1;
        state.waiting.insert(config.name.to_string());
        while !state.open {
            self.changed.wait(&mut state);
        }
        state.waiting.remove(&*config.name);
        if state.failing > 0 {
            state.failing -= 1;
            return Err(Error::unavailable("the gate said no"));
        }
        drop(state);
        Identity.open(files, config)
    }
}
