//! Members that do what a test tells them, and an ensemble over them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use parking_lot::Mutex;

use super::graph::Member;
use super::*;
use crate::error::Result;
use crate::infer::{Instant, Output, Parameters, Response, Times};
use crate::model::{Ensemble as Graph, EnsembleStep, QueuePolicy, Signature, TensorSpec, TimeoutAction};
use crate::scheduler::stopping;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::stats::Snapshot;
use crate::tensor::{DataType, NamedTensor, Shape, Tensor};

/// One thing that a member does to answer a request.
#[derive(Clone)]
pub(super) enum Act {
    /// It takes so long.
    Wait(Duration),
    /// It gives a response: each output is the sum of all inputs' first elements, plus this.
    Give(f32),
    /// It fails.
    Fail(crate::error::Kind),
}

/// What the members have seen.
#[derive(Default)]
pub(super) struct Seen {
    /// The requests in the order in which they came, with the time.
    pub(super) requests: Vec<(Instant, Request)>,
    /// By member, requests under way, and the most there ever were.
    pub(super) under_way: BTreeMap<String, (usize, usize)>,
    /// Responses that were taken, by member.
    pub(super) taken: BTreeMap<String, usize>,
}

/// Members by name.
#[derive(Default)]
pub(super) struct Puppet {
    acts: BTreeMap<String, Vec<Act>>,
    outputs: BTreeMap<String, Vec<String>>,
    pub(super) seen: Arc<Mutex<Seen>>,
}

/// One request to a member.
struct Playing {
    request: Request,
    outputs: Vec<String>,
    acts: std::vec::IntoIter<Act>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    began: Instant,
    seen: Arc<Mutex<Seen>>,
}

impl Infer for Puppet {
    fn infer(&self, request: Request) -> Responses {
        let mut seen = self.seen.lock();
        seen.requests.push((Instant::now(), request.clone()));
        let (now, most) = seen.under_way.entry(request.model.clone()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        let wanted =
            |name: &&String| request.outputs.is_empty() || request.outputs.iter().any(|output| output.name == **name);
        Box::pin(Playing {
            outputs: self.outputs[&request.model].iter().filter(wanted).cloned().collect(),
            acts: self.acts[&request.model].clone().into_iter(),
            pause: None,
            began: Instant::now(),
            seen: self.seen.clone(),
            request,
        })
    }
}

impl Stream for Playing {
    type Item = Result<Response>;

    fn poll_next(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(ctx));
                self.pause = None;
            }
            match self.acts.next() {
                None => return Poll::Ready(None),
                Some(Act::Wait(time)) => self.pause = Some(Box::pin(tokio::time::sleep_until(Instant::now() + time))),
                Some(Act::Fail(kind)) => return Poll::Ready(Some(Err(crate::error::Error::new(kind, "no luck")))),
                Some(Act::Give(plus)) => {
                    *self.seen.lock().taken.entry(self.request.model.clone()).or_default() += 1;
                    return Poll::Ready(Some(Ok(self.response(plus))));
                }
            }
        }
    }
}

impl Playing {
    /// Half of the time it has waited, in the other half it has computed.
    fn response(&self, plus: f32) -> Response {
        let sum: f32 = self.request.inputs.iter().map(|input| number(&input.tensor)).sum();
        let now = Instant::now();
        let half = self.began + (now - self.began) / 2;
        let output = |name: &String| Output { name: name.as_str().into(), tensor: tensor(sum + plus), placed: false };
        Response {
            model: self.request.model.as_str().into(),
            version: 1,
            id: self.request.id.clone(),
            outputs: self.outputs.iter().map(output).collect(),
            parameters: Parameters::new(),
            last: self.acts.len() == 0,
            times: Some(Times { queued: self.began, began: half, inputs_ready: half, outputs_ready: now, ended: now }),
        }
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        let mut seen = self.seen.lock();
        seen.under_way.entry(self.request.model.clone()).or_default().0 -= 1;
    }
}

/// One float.
pub(super) fn tensor(value: f32) -> Tensor {
    let data = Bytes::copy_from_slice(&value.to_le_bytes());
    Tensor::new(DataType::Fp32, Shape::new(&[1]), data)
}

/// The float in a tensor.
pub(super) fn number(tensor: &Tensor) -> f32 {
    f32::from_le_bytes(tensor.data[..4].try_into().expect("four bytes"))
}

/// A float for each name.
pub(super) fn specs(names: &[&str]) -> Vec<TensorSpec> {
    names.iter().map(|name| TensorSpec::new(*name, Some(DataType::Fp32), Some(Shape::new(&[1])))).collect()
}

/// A step of `member`, whose inputs and outputs have the names of the graph's tensors.
pub(super) fn step(member: &str, inputs: &[&str], outputs: &[&str]) -> EnsembleStep {
    let same = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), (*name).to_owned())).collect();
    EnsembleStep {
        model: member.to_owned(),
        version: None,
        namespace: String::new(),
        inputs: same(inputs),
        outputs: same(outputs),
    }
}

/// A graph without bounds.
pub(super) fn graph(steps: Vec<EnsembleStep>) -> Graph {
    let queue = QueuePolicy {
        timeout_action: TimeoutAction::Reject,
        timeout: None,
        allow_timeout_override: false,
        requests_max: 1000,
    };
    Graph { steps, step_requests_max: None, queue }
}

/// The member of a step, as its configuration says.
pub(super) fn member(step: &EnsembleStep, decoupled: bool) -> Member {
    let names = |map: &BTreeMap<String, String>| specs(&map.keys().map(String::as_str).collect::<Vec<_>>());
    let config = ModelConfig {
        inputs: names(&step.inputs),
        outputs: names(&step.outputs),
        decoupled,
        ..ModelConfig::new(&step.model, "puppet")
    };
    Member { config: Arc::new(config), depth: 0, keeps_outputs: true }
}

/// An ensemble over puppets.
pub(super) struct Bench {
    pub(super) puppet: Arc<Puppet>,
    pub(super) ensemble: Arc<Ensemble>,
    pub(super) stats: Arc<ModelStats>,
    config: ModelConfig,
    signature: Signature,
    metrics: Metrics,
}

impl Bench {
    /// The ensemble `e` with these tensors as inputs and outputs; `acts` by member say what it does.
    pub(super) fn new(inputs: &[&str], outputs: &[&str], graph: Graph, acts: &[(&str, Vec<Act>)]) -> Self {
        Self::within(64, inputs, outputs, graph, acts)
    }

    /// The same with this bound of responses under way. A member that gives several responses is decoupled.
    pub(super) fn within(
        responses_max: usize,
        inputs: &[&str],
        outputs: &[&str],
        graph: Graph,
        acts: &[(&str, Vec<Act>)],
    ) -> Self {
        let acts: BTreeMap<String, Vec<Act>> =
            acts.iter().map(|(name, acts)| ((*name).to_owned(), acts.clone())).collect();
        let gives = |name: &str| acts[name].iter().filter(|act| matches!(act, Act::Give(_))).count();
        let members: Vec<Member> = graph.steps.iter().map(|step| member(step, gives(&step.model) > 1)).collect();
        let outputs_of =
            graph.steps.iter().map(|step| (step.model.clone(), step.outputs.keys().cloned().collect())).collect();
        let config = ModelConfig { inputs: specs(inputs), outputs: specs(outputs), ..ModelConfig::new("e", "") };
        let plan = Plan::new(&config, &graph, &members).expect("the graph fits");
        let puppet = Arc::new(Puppet { acts, outputs: outputs_of, seen: Arc::default() });
        let members: Arc<dyn Infer> = puppet.clone();
        let responses = ResponseLimits { waiting_max: responses_max, ..ResponseLimits::default() };
        Self {
            puppet,
            ensemble: Arc::new(Ensemble::new(&config, 1, plan, members, responses)),
            stats: Arc::default(),
            signature: Signature::new(&config),
            metrics: Metrics::off(),
            config,
        }
    }

    /// The same with an input that requests may leave out.
    pub(super) fn with_optional(mut self, input: &str) -> Self {
        for spec in self.config.inputs.iter_mut().filter(|spec| *spec.name == *input) {
            spec.optional = true;
        }
        self.signature = Signature::new(&self.config);
        self
    }

    /// A request with these inputs.
    pub(super) fn request(inputs: &[(&str, f32)]) -> Request {
        let input = |(name, value): &(&str, f32)| NamedTensor { name: (*name).to_owned(), tensor: tensor(*value) };
        Request { inputs: inputs.iter().map(input).collect(), ..Request::new("e", Instant::now()) }
    }

    /// Starts a request as a handle would.
    pub(super) fn start(&self, mut request: Request) -> Result<Responses> {
        let names: Vec<String> = request.outputs.iter().map(|output| output.name.clone()).collect();
        let inputs = std::mem::take(&mut request.inputs);
        let checked = self.signature.check(inputs, names.iter().map(String::as_str))?;
        let pass = self.ensemble.gate.enter()?.ok_or_else(stopping)?;
        Ok(self.ensemble.start((request, checked), pass, (&self.stats, self.metrics.request_received())))
    }

    /// The first outputs of all responses to a request, or its error.
    pub(super) async fn all(&self, request: Request) -> Result<Vec<f32>> {
        use futures_util::TryStreamExt as _;
        let responses: Vec<Response> = self.start(request)?.try_collect().await?;
        Ok(responses.iter().map(|response| number(&response.outputs[0].tensor)).collect())
    }

    /// How often a member was asked.
    pub(super) fn asked(&self, member: &str) -> usize {
        self.puppet.seen.lock().requests.iter().filter(|(_, request)| request.model == member).count()
    }

    /// Requests under way in a member, and the most there ever were.
    pub(super) fn under_way(&self, member: &str) -> (usize, usize) {
        self.puppet.seen.lock().under_way.get(member).copied().unwrap_or_default()
    }

    /// The ensemble's statistics.
    pub(super) fn counted(&self) -> Snapshot {
        self.stats.snapshot()
    }
}
