//! How often a request allocates on its way from its message to the frame of its answer, on both threads that it meets.
//!
//! Counted by the allocator of the test binary, on threads that ask for it only: other tests run at the same time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::framing;
use crate::backend::identity::Identity;
use crate::backend::{Backend, Instance, Model};
use crate::engine::{self, Control, Engine};
use crate::error::Result;
use crate::gateway::Gateway;
use crate::infer::Instant;
use crate::model::{Device, Footprint, ModelConfig, VersionFiles, schema};
use crate::protocol::v2::context::Context;
use crate::protocol::v2::decode::Arrival;
use crate::protocol::v2::infer;
use crate::protocol::v2::wire::ModelInferRequest;
use crate::protocol::v2::wire::model_infer_request::InferInputTensor;
use crate::repository::CudaDevices;
use crate::telemetry::metrics::Metrics;

/// What a request may allocate. Who needs more says here why; who needs less lowers it.
const ALLOCATIONS_MAX: usize = 16;

const REQUESTS: usize = 1000;

#[global_allocator]
static COUNTING: Counting = Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator; counts what threads get that are [`COUNTED`].
struct Counting;

fn count() {
    if COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is the system's allocator's own; the counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The identity backend, whose instances' threads are counted.
struct Watched;

impl Backend for Watched {
    fn name(&self) -> &'static str {
        Identity.name()
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
        Ok(Arc::new(WatchedModel(Identity.open(files, config)?)))
    }
}

struct WatchedModel(Arc<dyn Model>);

impl Model for WatchedModel {
    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }

    fn warms_up(&self) -> bool {
        self.0.warms_up()
    }

    fn instance(&self, device: Device) -> Result<Box<dyn Instance>> {
        COUNTED.set(true);
        self.0.instance(device)
    }
}

fn engine(root: &Path) -> Engine {
    let backends: Vec<Arc<dyn Backend>> = vec![Arc::new(Watched)];
    let settings = engine::Settings {
        roots: vec![root.to_owned()].into(),
        namespacing: false,
        control: Control::None,
        load_threads: 1,
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
    Engine::new(settings, Metrics::new())
}

/// A request with one tensor, as the network brings it.
fn message() -> Bytes {
    let input = InferInputTensor {
        name: "IN".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 16],
        ..InferInputTensor::default()
    };
    let message = ModelInferRequest {
        model_name: "model".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![Bytes::from_static(&[0; 64])],
        ..ModelInferRequest::default()
    };
    message.encode_to_vec().into()
}

/// The way of one request, between the network's two ends.
async fn answer(gateway: &Gateway, message: &Bytes) -> framing::Body {
    let message = ModelInferRequest::decode(message.clone()).expect("it is a request");
    let arrival =
        Arrival { at: Instant::now(), deadline: None, context: Context::default(), portion: gateway.portion() };
    let response = infer::unary(gateway, message, arrival).await.expect("it is answered");
    framing::Body::new(response, usize::MAX).expect("it is small")
}

#[tokio::test]
async fn a_request_allocates_no_more_than_is_said_here() {
    let root = tempfile::tempdir().expect("a folder for the test");
    fs::create_dir_all(root.path().join("model/1")).expect("the folder is writable");
    let config = "backend: \"identity\" max_batch_size: 8\n\
                  input { name: \"IN\" data_type: TYPE_FP32 dims: 16 }\n\
                  output { name: \"OUT\" data_type: TYPE_FP32 dims: 16 }\n";
    fs::write(root.path().join("model/config.pbtxt"), config).expect("the folder is writable");
    let engine = Arc::new(engine(root.path()));
    assert_eq!(engine.start().await.expect("the repository can be read").len(), 0);
    let (gateway, message) = (Gateway::new(engine.clone()), message());
    let several = async |count: usize| {
        for _ in 0..count {
            answer(&gateway, &message).await;
        }
    };
    several(100).await;
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    COUNTED.set(true);
    several(REQUESTS).await;
    COUNTED.set(false);
    let count = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let each = count as f64 / REQUESTS as f64;
    println!("{each} allocations for each request");
    assert!(each >= 5.0, "{each} allocations: they are not counted");
    // Histograms take new memory now and then.
    assert!(each < ALLOCATIONS_MAX as f64 + 0.5, "{each} allocations for each request, {ALLOCATIONS_MAX} are allowed");
    tokio::time::timeout(Duration::from_secs(20), engine.stop()).await.expect("it stops");
}
