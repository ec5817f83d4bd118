//! What the integration tests share: repositories on disk, engines and servers to use them.

use std::path::Path;
use std::sync::Arc;

use nereid::engine::{self, Control, Engine};
use nereid::error::Error;
use nereid::telemetry::metrics::Metrics;

/// The configuration of an identity model with one UINT8 input `IN` of four elements and the output `OUT`, and `more`.
pub fn identity_config(more: &str) -> String {
    let batching = if more.contains("max_batch_size") { "" } else { "max_batch_size: 8\n" };
    format!(
        "backend: \"identity\"\n{batching}{more}\n\
         input {{ name: \"IN\" data_type: TYPE_UINT8 dims: 4 }}\n\
         output {{ name: \"OUT\" data_type: TYPE_UINT8 dims: 4 }}\n"
    )
}

/// Writes a model directory with this configuration and these version directories.
pub fn write_model(root: &Path, name: &str, config: &str, versions: &[u64]) {
    let directory = root.join(name);
    std::fs::create_dir_all(&directory).expect("the directory is writable");
    std::fs::write(directory.join("config.pbtxt"), config).expect("the file is writable");
    for version in versions {
        std::fs::create_dir_all(directory.join(version.to_string())).expect("the directory is writable");
    }
}

/// An engine over one repository, started, with the models that could not be loaded.
pub async fn engine(root: &Path, control: Control) -> (Arc<Engine>, Vec<(String, Error)>) {
    engine_with(root, control, |_| {}).await
}

/// As [`engine`], with changes to its settings.
pub async fn engine_with(
    root: &Path,
    control: Control,
    change: impl FnOnce(&mut engine::Settings),
) -> (Arc<Engine>, Vec<(String, Error)>) {
    let backends = nereid::server::backends();
    let mut settings = engine::Settings {
        roots: vec![root.to_owned()],
        control,
        load_threads: 2,
        load_retries: 0,
        auto_complete: true,
        config_name: None,
        strict_readiness: true,
        responses: engine::ResponseLimits::default(),
        facts: engine::facts(&backends, Vec::new(), 1000),
        backends,
    };
    change(&mut settings);
    let engine = Arc::new(Engine::new(settings, Metrics::new()));
    let failed = engine.start().await.expect("the repository can be read");
    (engine, failed)
}
