//! Requests that find a version just before it is taken out of service.

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;

use super::*;
use crate::backend::identity::Identity;
use crate::backend::{Backend as _, Model};
use crate::engine::cache::{Cache, ModelCache, Settings};
use crate::engine::handle::Served;
use crate::engine::usage::Usage;
use crate::error::Kind;
use crate::infer::{Response, only};
use crate::model::{Device, ModelConfig, Scheduling, Signature, TensorSpec, VersionFiles};
use crate::scheduler::{Levels, Limits, Queue, QueueSettings, Scheduler, Underway};
use crate::telemetry::stats::ModelStats;
use crate::tensor::{DataType, NamedTensor, Shape, Tensor};

/// A version of an identity model whose instance runs when the test says so.
fn version(metrics: &Metrics, cache: Option<&Arc<Cache>>) -> Arc<Handle> {
    let spec = |name| TensorSpec::new(name, Some(DataType::Uint8), Some(Shape::new(&[4])));
    let mut config = ModelConfig::new("m", "identity");
    (config.inputs, config.outputs, config.response_cache) = (vec![spec("IN")], vec![spec("OUT")], cache.is_some());
    let Scheduling::Single(policy) = &config.scheduling else { unreachable!("a new configuration batches nothing") };
    let levels = Levels::one(policy.clone());
    let files = VersionFiles { model_dir: "".into(), version_dir: "".into(), model_file: None };
    let model = Identity.open(&files, &config).expect("it needs no file");
    let stats = Arc::new(ModelStats::new(metrics, &config, 1));
    let settings = QueueSettings {
        requests_max: 10,
        limits: Limits::single(),
        levels,
        preserve_order: false,
        hold: 0,
        shapes_vary: false,
        forms: None,
        instances: 1,
        responses: None,
    };
    let cache = ModelCache::new(cache, &config, &stats);
    let served = Served::Instances { scheduler: Arc::new(Queue::new(settings, stats.clone())), model };
    let signature = Arc::new(Signature::new(&config));
    Arc::new(Handle {
        config: Arc::new(config),
        version: 1,
        signature,
        stats,
        served,
        usage: Usage::new(Instant::now()),
        cache,
    })
}

fn parts(handle: &Handle) -> (&Arc<dyn Scheduler>, &Arc<dyn Model>) {
    match &handle.served {
        Served::Instances { scheduler, model } => (scheduler, model),
        Served::Ensemble(_) | Served::Nothing => unreachable!("it has instances"),
    }
}

/// Runs what waits.
fn run(handle: &Handle) {
    let (scheduler, model) = parts(handle);
    let mut instance = model.instance(Device::Cpu).expect("it needs nothing");
    while let Ok(underway) = Underway::begin(&**scheduler, 0, None) {
        underway.finish(&**scheduler, &mut *instance);
    }
}

/// A model with one version after the other.
struct Site {
    metrics: Metrics,
    entrance: Entrance,
    versions: Arc<Mutex<Vec<Arc<Handle>>>>,
    /// How many further versions take the place of the one that was found, before the request gets there.
    swaps: Arc<Mutex<usize>>,
}

impl Site {
    fn new(versions: Vec<Arc<Handle>>, metrics: Metrics, swaps: usize) -> Self {
        let (versions, swaps) = (Arc::new(Mutex::new(versions)), Arc::new(Mutex::new(swaps)));
        let (served, left) = (versions.clone(), swaps.clone());
        let find = move |_: &Request| {
            let found = served.lock()[0].clone();
            if *left.lock() > 0 {
                *left.lock() -= 1;
                swap(&served);
            }
            Ok(found)
        };
        Self { entrance: Entrance::new(&metrics, find), metrics, versions, swaps }
    }

    fn request(&self) -> Responses {
        let tensor = Tensor::new(DataType::Uint8, Shape::new(&[4]), Bytes::from_static(b"abcd"));
        let inputs = vec![NamedTensor { name: "IN".into(), tensor }];
        self.entrance.infer(Request { inputs, ..Request::new("m", Instant::now()) })
    }

    fn served(&self) -> Arc<Handle> {
        self.versions.lock()[0].clone()
    }
}

/// Shows readers the next version, then closes the one before, as the manager does.
fn swap(versions: &Mutex<Vec<Arc<Handle>>>) {
    let mut versions = versions.lock();
    versions.rotate_left(1);
    parts(versions.last().expect("there are some")).0.close();
}

fn answered(responses: Responses) -> Result<Response> {
    only(responses).now_or_never().expect("it has its outcome")
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_a_version_just_before_it_is_replaced_goes_to_its_replacement() {
    let metrics = Metrics::new();
    let site = Site::new((0..3).map(|_| version(&metrics, None)).collect(), metrics, 2);
    let responses = site.request();
    run(&site.served());
    let response = answered(responses).expect("answered");
    assert_eq!(&response.outputs[0].tensor.data[..], b"abcd");
    let failed: u64 = site.versions.lock().iter().map(|each| each.stats.snapshot().failures.len() as u64).sum();
    assert_eq!((*site.swaps.lock(), failed, site.served().stats.snapshot().success.count), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_must_lead_after_its_version_was_replaced_leads_at_the_replacement() {
    let metrics = Metrics::new();
    let cache = Arc::new(Cache::new(&Settings { bytes_max: 1 << 20, ttl: None }, &metrics));
    let site = Site::new((0..2).map(|_| version(&metrics, Some(&cache))).collect(), metrics, 0);
    let mut leads = site.request();
    let mut waits = site.request();
    assert!(leads.next().now_or_never().is_none() && waits.next().now_or_never().is_none());
    assert_eq!(parts(&site.served()).0.waiting(), 1, "equal requests are executed once");
    swap(&site.versions);
    drop(leads);
    assert!(waits.next().now_or_never().is_none());
    run(&site.served());
    answered(waits).expect("answered");
    assert_eq!(site.served().stats.snapshot().success.count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_only_closed_versions_is_refused_once_and_told_why() {
    let metrics = Metrics::new();
    let site = Site::new(vec![version(&metrics, None)], metrics, usize::MAX);
    let error = answered(site.request()).expect_err("nobody takes it");
    assert_eq!(error.kind(), Kind::Unavailable);
    let told = "model 'm' was replaced or left each time before the request could start there; try again";
    assert_eq!(error.message(), told);
    let outcomes = site.metrics.outcomes().expect("they are counted");
    assert_eq!((outcomes.received, outcomes.answered, outcomes.refused), (1, 0, 1));
}
