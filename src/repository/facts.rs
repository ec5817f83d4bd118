//! What a configuration is held against: the machine, the backends and the server's own limits.
//!
//! The engine fills this in, because the repository sees neither backends nor devices.

use std::fmt;
use std::sync::{Arc, LazyLock};

use crate::model::{Amount, schema};

/// The parameter that gives a model a latency budget, in microseconds.
pub const LATENCY_BUDGET: &str = "latency.budget_us";

/// The parameter that bounds an execution, in microseconds.
pub const EXECUTION_TIMEOUT: &str = "execution.timeout_us";

/// The parameter that says how firmly a model is in memory: one of [`crate::model::Residency::WORDS`].
pub const RESIDENCY: &str = "memory.residency";

/// The parameter that gives each priority level a share in what is executed: one weight for each, from level 1 on.
pub const PRIORITY_WEIGHTS: &str = "priority.weights";

/// The parameter that lets a request count as one priority level higher each time that it has waited so long, in
/// microseconds.
pub const PRIORITY_AGEING: &str = "priority.ageing_us";

/// The parameter that says how long the response cache may answer for the model, in milliseconds.
pub const CACHE_TTL: &str = "cache.ttl_ms";

/// The parameter that names the output which says that an iterative model is done with a request.
pub const DONE_OUTPUT: &str = "sequence.done_output";

/// The parameter that bounds the executions of one request of an iterative model.
pub const STEPS_MAX: &str = "sequence.steps_max";

/// The parameter that bounds an ensemble's requests at a time.
pub const ENSEMBLE_REQUESTS_MAX: &str = "ensemble.requests_max";

/// What the server has and allows.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The CUDA devices that may be used.
    pub cuda_devices: CudaDevices,
    /// The backends that are registered.
    pub backends: Vec<BackendFacts>,
    /// Keys of `parameters{}` that the server itself understands, besides those above.
    pub parameter_keys: Vec<String>,
    /// The histograms whose bounds a model may set.
    pub histograms: &'static [&'static str],
    /// The bound of a queue whose configuration gives none.
    pub queue_requests_max: usize,
    /// What the rate limiter gives out, as far as the operator says; `None` if it is off.
    pub rate_limits: Option<Vec<Amount>>,
    /// The names of the policies for host threads.
    pub host_policies: Vec<String>,
}

/// The indices of CUDA devices, ascending, which are looked for once somebody asks for them: a library must be loaded for
/// that.
#[derive(Clone)]
pub struct CudaDevices(Arc<LazyLock<Vec<u32>, LookForDevices>>);

type LookForDevices = Box<dyn FnOnce() -> Vec<u32> + Send>;

impl CudaDevices {
    /// The devices that `look_for` finds. It is called at most once.
    pub fn new(look_for: impl FnOnce() -> Vec<u32> + Send + 'static) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(look_for))))
    }

    /// The indices.
    pub fn indices(&self) -> &[u32] {
        &self.0
    }
}

impl Default for CudaDevices {
    fn default() -> Self {
        Self::new(Vec::new)
    }
}

impl fmt::Debug for CudaDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a configuration needs to know of a backend.
#[derive(Clone)]
pub struct BackendFacts {
    /// The name in the `backend` field.
    pub name: String,
    /// The model file where the configuration names none; `None` if there is no file.
    pub default_model_filename: Option<String>,
    /// Whether instances can run on a CUDA device.
    pub uses_cuda: bool,
    /// The keys of `parameters{}` that it understands.
    pub parameter_keys: Vec<String>,
    /// Says for each parameter key whose value is wrong, why.
    pub check_parameters: CheckParameters,
}

/// A check of the values of `parameters{}`: the keys that are wrong, each with its reason.
pub type CheckParameters = Arc<dyn Fn(&schema::ModelConfig) -> Vec<(String, String)> + Send + Sync>;

impl fmt::Debug for BackendFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendFacts").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Facts {
    /// The backend of this name.
    pub fn backend(&self, name: &str) -> Option<&BackendFacts> {
        self.backends.iter().find(|backend| backend.name == name)
    }

    /// The backends' names as a list for messages.
    pub(super) fn backend_names(&self) -> String {
        let names: Vec<_> = self.backends.iter().map(|backend| backend.name.as_str()).collect();
        names.join(", ")
    }
}
