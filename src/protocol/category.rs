//! What an RPC or a route is about: the groups by which access is restricted, the same for both protocols.

/// A group of RPCs and routes, named as the reference server names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// Liveness and readiness.
    Health,
    /// What the server and its models are.
    Metadata,
    /// Requests to models.
    Inference,
    /// Regions of shared memory.
    SharedMemory,
    /// The configuration of models.
    ModelConfig,
    /// What there is, loading and unloading.
    ModelRepository,
    /// Counts and times.
    Statistics,
    /// The trace settings.
    Trace,
    /// The log settings.
    Logging,
}

impl Category {
    /// Every category.
    pub const ALL: [Category; 9] = [
        Category::Health,
        Category::Metadata,
        Category::Inference,
        Category::SharedMemory,
        Category::ModelConfig,
        Category::ModelRepository,
        Category::Statistics,
        Category::Trace,
        Category::Logging,
    ];

    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Category::Health => "health",
            Category::Metadata => "metadata",
            Category::Inference => "inference",
            Category::SharedMemory => "shared-memory",
            Category::ModelConfig => "model-config",
            Category::ModelRepository => "model-repository",
            Category::Statistics => "statistics",
            Category::Trace => "trace",
            Category::Logging => "logging",
        }
    }

    /// The category of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|category| category.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for category in Category::ALL {
            assert_eq!(Category::from_name(category.name()), Some(category));
        }
        assert_eq!(Category::from_name("model_config"), None);
    }
}
