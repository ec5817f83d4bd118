//! What the integration tests share: repositories on disk, engines and servers to use them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nereid::engine::{self, Control, Engine};
use nereid::error::Error;
use nereid::gateway::Gateway;
use nereid::gateway::request_memory::RequestMemory;
use nereid::infer::{Instant, Request};
use nereid::repository::CudaDevices;
use nereid::telemetry::metrics::Metrics;
use nereid::tensor::{DataType, NamedTensor, Shape, Tensor};
use tokio::task::JoinHandle;

/// How long one execution of the model `slow` takes.
pub const SLOW: Duration = Duration::from_millis(300);

/// Longer than anything takes that does not hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

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
    let engine = Arc::new(new_engine(root, control, change));
    let failed = engine.start().await.expect("the repository can be read");
    (engine, failed)
}

/// An engine that is not started yet.
pub fn new_engine(root: &Path, control: Control, change: impl FnOnce(&mut engine::Settings)) -> Engine {
    let backends = nereid::server::backends(None, true);
    let mut settings = engine::Settings {
        roots: vec![root.to_owned()].into(),
        namespacing: false,
        control,
        load_threads: 2,
        load_retries: 0,
        load_time_max: None,
        gpu_limits: BTreeMap::new(),
        memory_limits: BTreeMap::new(),
        spill: None,
        demands_max: 1000,
        cache: None,
        override_bytes_max: 1000,
        auto_complete: true,
        config_name: None,
        strict_readiness: true,
        responses: engine::ResponseLimits::default(),
        instances: engine::InstanceSettings::default(),
        hold: engine::Hold::default(),
        facts: engine::facts(&backends, CudaDevices::default(), 1000),
        backends,
    };
    change(&mut settings);
    Engine::new(settings, Metrics::new())
}

/// A request to a model of [`identity_config`].
pub fn request(model: &str) -> Request {
    let mut request = Request::new(model, Instant::now());
    let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1, 4]), Bytes::from_static(b"abcd"));
    request.inputs.push(NamedTensor { name: "IN".to_owned(), tensor });
    request
}

/// The sum of the series whose lines begin so.
pub fn metric(engine: &Engine, start: &str) -> f64 {
    let text = engine.metrics().render();
    let lines = text.lines().filter(|line| line.starts_with(start));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// `gateway` with so many bytes for all requests, or without a bound.
pub fn bounded(gateway: Gateway, request_memory: Option<usize>) -> Gateway {
    let Some(limit) = request_memory else { return gateway };
    let metrics = gateway.metrics().request_memory();
    gateway.with_request_memory(RequestMemory::new(limit, metrics))
}

/// Does something with the engine beside the test.
pub fn beside<F: Future<Output: Send> + Send + 'static>(
    engine: &Arc<Engine>,
    work: impl FnOnce(Arc<Engine>) -> F,
) -> JoinHandle<F::Output> {
    tokio::spawn(work(engine.clone()))
}

/// Writes the models that most tests use: `pair` (FP32 and INT32 of 4 elements), `text` (strings), `slow` (one at a
/// time), `free` (FP32 without a batch dimension, any size), `versions` (1 and 3) and the example `repeat_int32`.
pub fn write_usual_models(root: &Path) {
    let delay =
        format!("parameters {{ key: \"identity.delay_us\" value {{ string_value: \"{}\" }} }}", SLOW.as_micros());
    for (name, config, versions) in [
        ("pair", identity("max_batch_size: 8", &[("FP32", "4"), ("INT32", "4")]), &[1][..]),
        ("text", identity("max_batch_size: 8", &[("STRING", "-1")]), &[1]),
        ("slow", identity(&format!("max_batch_size: 1 {delay}"), &[("FP32", "-1")]), &[1]),
        ("free", identity("max_batch_size: 0", &[("FP32", "-1")]), &[1]),
        ("repeat_int32", include_str!("../../model_repository/repeat_int32/config.pbtxt").to_owned(), &[1]),
        ("versions", identity("max_batch_size: 8 version_policy { all {} }", &[("FP32", "-1")]), &[1, 3]),
    ] {
        write_model(root, name, &config, versions);
    }
}

/// The configuration of an identity model with these inputs (`INPUT0`, …), and outputs of the same kind.
pub fn identity(more: &str, tensors: &[(&str, &str)]) -> String {
    let mut config = format!("backend: \"identity\" {more}\n");
    for (index, (dtype, dims)) in tensors.iter().enumerate() {
        for (field, name) in [("input", "INPUT"), ("output", "OUTPUT")] {
            config += &format!("{field} {{ name: \"{name}{index}\" data_type: TYPE_{dtype} dims: [{dims}] }}\n");
        }
    }
    config
}

/// Fails the test instead of hanging it.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing takes this long")
}

/// Waits until `condition` holds.
pub async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A client's shared memory object, which on Linux is a file of one directory; removed with this.
pub struct SharedObject {
    /// The key to register it by.
    pub key: String,
    file: File,
}

impl SharedObject {
    /// A new object of zeros.
    pub fn new(bytes: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let key = format!("/nereid_it_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = format!("/dev/shm{key}");
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(path).expect("a new object");
        file.set_len(bytes).expect("its size can be set");
        Self { key, file }
    }

    /// Writes as the client would.
    pub fn write(&self, at: u64, data: &[u8]) {
        self.file.write_all_at(data, at).expect("written");
    }

    /// Reads as the client would.
    pub fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.file.read_exact_at(&mut data, at).expect("read");
        data
    }

    /// Makes it shorter.
    pub fn truncate(&self, bytes: u64) {
        self.file.set_len(bytes).expect("truncated");
    }
}

impl Drop for SharedObject {
    fn drop(&mut self) {
        let _ = fs::remove_file(format!("/dev/shm{}", self.key));
    }
}
