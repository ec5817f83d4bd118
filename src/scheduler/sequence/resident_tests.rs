//! States that stay where a TorchScript model computes them.

use futures_util::StreamExt as _;

use super::*;
use crate::backend::libtorch::LibTorch;
use crate::backend::libtorch::script::Script;
use crate::backend::{Backend as _, Instance, Model};
use crate::infer::{Output, Parameters, Response};
use crate::model::{
    Device, InitialState, Instances, ModelConfig, QueuePolicy, Scheduling, SequenceBatching, SequenceState,
    SequenceStrategy, TensorSpec, TimeoutAction, VersionFiles,
};
use crate::scheduler::instance::execute_there;
use crate::scheduler::{Answer, ResponseLimits, Waiter};
use crate::telemetry::metrics::Metrics;
use crate::tensor::{DataType, Member, Shape, Tensor};

/// A model that is given `IN`, rows of numbers of any length, and gives `OUT`.
struct Bench {
    scheduler: Arc<Sequences>,
    model: Arc<dyn Model>,
    instance: Box<dyn Instance>,
    metrics: Metrics,
    _folder: tempfile::TempDir,
}

fn state(name: &str, dtype: DataType, dims: &[i64]) -> SequenceState {
    SequenceState {
        input: format!("{name}_IN").as_str().into(),
        output: name.into(),
        dtype,
        dims: Shape::new(dims),
        initial: None,
        same_buffer: false,
        growable: false,
    }
}

impl Bench {
    fn new(script: &Script, strategy: SequenceStrategy, states: Vec<SequenceState>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        script.save(&folder.path().join("model.pt")).expect("the script compiles");
        let files = VersionFiles {
            model_dir: folder.path().to_owned(),
            version_dir: folder.path().to_owned(),
            model_file: Some(folder.path().join("model.pt")),
        };
        let floats = |name: &str| TensorSpec::new(name, Some(DataType::Fp32), Some(Shape::new(&[-1])));
        let queue = QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: None,
            allow_timeout_override: false,
            requests_max: 20,
        };
        let idle_max = Duration::from_secs(1);
        let batching = SequenceBatching { strategy, idle_max, controls: Vec::new(), states, iterative: None, queue };
        let config = ModelConfig {
            max_batch_rows: 4,
            inputs: vec![floats("IN")],
            outputs: vec![floats("OUT")],
            instances: vec![Instances::new("g", Device::Cpu, 1)],
            scheduling: Scheduling::Sequence(batching.clone()),
            ..ModelConfig::new("m", "pytorch")
        };
        let responses = ResponseLimits { waiting_max: 2, stall_max: idle_max };
        let settings = SequenceSettings::new(&config, &batching, responses).expect("it is right");
        let model = LibTorch::default().open(&files, &config.of_file()).expect("it loads");
        let (instance, metrics) = (model.instance(Device::Cpu).expect("it starts"), Metrics::new());
        let scheduler = Sequences::new(settings, Arc::new(ModelStats::new(&metrics, &config, 1)));
        Self { scheduler, model, instance, metrics, _folder: folder }
    }

    fn direct(source: &str, states: Vec<SequenceState>) -> Self {
        let strategy = SequenceStrategy::Direct { queue_delay_max: Duration::ZERO, slot_utilization_min: 0.0 };
        Self::new(&Script::new(source), strategy, states)
    }

    fn ask(&self, id: u64, numbers: &[f32], flags: &str) -> Asked {
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let shape = Shape::new(&[1, numbers.len() as i64]);
        let member = Member::new(1, vec![Tensor::new(DataType::Fp32, shape, data.into())]);
        let id = CorrelationId::Number(id);
        let sequence = Sequence { id, start: flags.contains('S'), end: flags.contains('E') };
        let now = Instant::now();
        let pushed = Pushed { sequence: Some(sequence), ..Pushed::new(member, now) };
        let waiting = self.scheduler.clone().push(pushed, now).expect("there is room");
        let respond: Respond = Box::new(|Answer { outputs, last, .. }: Answer| {
            let output = |tensor| Output { name: "OUT".into(), tensor, placed: false };
            let outputs = outputs.into_iter().map(output).collect();
            let (id, parameters) = (String::new(), Parameters::new());
            Response { model: "m".into(), version: 1, id, outputs, parameters, last, times: None }
        });
        Waiter::new(self.scheduler.clone(), waiting, (now, None), respond)
    }

    /// Runs what is there; how many rows.
    fn run(&mut self) -> usize {
        let Some(pulled) = self.scheduler.try_pull(0) else { return 0 };
        let rows = pulled.entries.len();
        execute_there(&*self.scheduler, 0, &mut *self.instance, pulled);
        rows
    }

    /// Runs one request alone.
    async fn step(&mut self, id: u64, numbers: &[f32], flags: &str) -> Vec<f32> {
        let asked = self.ask(id, numbers, flags);
        assert!(self.run() > 0);
        answer(asked).await
    }

    fn gauge(&self, name: &str) -> f64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    fn state_bytes(&self) -> f64 {
        self.gauge("nereid_sequence_state_bytes{")
    }

    /// Whether each state of a sequence that waits is where it was computed, and not on the host.
    fn are_resident(&self) -> Vec<bool> {
        let state = self.scheduler.state.lock();
        let ready: Vec<_> = state.table.ready(0).collect();
        let kept = ready.iter().filter_map(|ready| ready.state.as_deref()).flatten();
        kept.map(|tensor| tensor.resident.is_some() && !tensor.is_on_host()).collect()
    }
}

type Respond = Box<dyn FnMut(Answer) -> Response + Send>;
type Asked = Waiter<Respond>;

/// The numbers of the only output.
async fn answer(mut asked: Asked) -> Vec<f32> {
    let response = asked.next().await.expect("there is a response").expect("it is answered");
    assert_eq!(response.outputs.len(), 1, "callers get no states");
    response.outputs[0].tensor.data.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

#[tokio::test(start_paused = true)]
async fn rows_with_a_state_on_the_device_and_rows_without_share_a_batch() {
    let source = "def forward(self, x, total, count):\n    sum = total + x\n    return torch.cat([sum, count + 1], 1), sum, count + 1\n";
    let states = vec![state("SUM", DataType::Fp32, &[1]), state("COUNT", DataType::Fp32, &[1])];
    let mut bench = Bench::direct(source, states);
    assert_eq!(bench.step(1, &[5.0], "S").await, [5.0, 1.0]);
    let asked = [bench.ask(3, &[1.0], "S"), bench.ask(2, &[7.0], "S"), bench.ask(1, &[2.0], "")];
    assert_eq!((bench.are_resident(), bench.run()), (vec![true, true], 3));
    let mut sums = Vec::new();
    for asked in asked {
        sums.push(answer(asked).await);
    }
    assert_eq!(sums, [[1.0, 1.0], [7.0, 1.0], [7.0, 2.0]]);
    // The row of sequence 1 only keeps the others in their places, and so does not count.
    let asked = [bench.ask(2, &[1.0], "E"), bench.ask(3, &[1.0], "E")];
    assert_eq!(bench.run(), 3);
    for asked in asked {
        let sum = answer(asked).await;
        assert_eq!(sum[1], 2.0);
    }
    assert_eq!(bench.state_bytes(), 8.0);
    assert_eq!(bench.step(1, &[3.0], "E").await, [10.0, 3.0]);
    assert_eq!(bench.state_bytes(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_state_grows_where_it_is_and_is_freed_at_the_end() {
    let source = "def forward(self, x, seen):\n    all = torch.cat([seen, x], 1)\n    return all.sum(1, True), all\n";
    let oldest = SequenceStrategy::Oldest {
        candidates_max: 3,
        preferred_rows: Vec::new(),
        queue_delay_max: Duration::ZERO,
        preserve_ordering: false,
    };
    let empty = InitialState { dims: Shape::new(&[0]), data: None };
    let states = vec![SequenceState { initial: Some(empty), growable: true, ..state("SEEN", DataType::Fp32, &[-1]) }];
    let mut bench = Bench::new(&Script::new(source), oldest, states);
    for (numbers, flags, sum, bytes) in
        [(&[1.0][..], "S", 1.0, 4.0), (&[2.0, 3.0], "", 6.0, 12.0), (&[4.0; 10], "", 46.0, 52.0)]
    {
        assert_eq!(bench.step(1, numbers, flags).await, [sum]);
        assert_eq!(bench.state_bytes(), bytes);
    }
    // States of other shapes are not in one batch.
    assert_eq!(bench.step(2, &[1.0], "S").await, [1.0]);
    let asked = [bench.ask(1, &[1.0], "E"), bench.ask(2, &[1.0], "")];
    assert_eq!((bench.run(), bench.run()), (1, 1));
    for (asked, sum) in asked.into_iter().zip([47.0, 2.0]) {
        assert_eq!(answer(asked).await, [sum]);
    }
    assert_eq!(bench.state_bytes(), 8.0);
    let (slots, used) = ("nereid_sequence_slots{", "nereid_sequence_slots_used{");
    assert_eq!((bench.gauge(slots), bench.gauge(used), bench.gauge("nereid_sequence_backlog{")), (3.0, 1.0, 0.0));
    let _waiting: Vec<Asked> = (3..7).map(|id| bench.ask(id, &[1.0], "S")).collect();
    assert_eq!((bench.gauge(used), bench.gauge("nereid_sequence_backlog{")), (3.0, 2.0));
    bench.scheduler.abort();
    assert_eq!((bench.gauge(used), bench.gauge("nereid_sequence_backlog{"), bench.state_bytes()), (0.0, 0.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_state_outlives_the_instance_that_computed_it_and_no_scheduler() {
    let source = "def forward(self, x, total):\n    sum = total + x\n    return sum, sum\n";
    let mut bench = Bench::direct(source, vec![state("SUM", DataType::Fp32, &[1])]);
    assert_eq!(bench.step(1, &[1.0], "S").await, [1.0]);
    bench.instance = bench.model.instance(Device::Cpu).expect("it starts");
    assert_eq!(bench.step(1, &[2.0], "").await, [3.0]);
    assert_eq!(bench.state_bytes(), 4.0);
    let Bench { scheduler, metrics, .. } = bench;
    drop(scheduler);
    assert!(metrics.render().contains("nereid_sequence_state_bytes{model=\"m\",version=\"1\"} 0"));
    assert!(metrics.render().contains("nereid_sequence_slots{model=\"m\",version=\"1\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_writes_to_its_states_and_its_own_memory_spoils_nobodys_state() {
    let source = "def forward(self, x, total):\n    total.add_(x)\n    self.last.copy_(total)\n    return total * 1, self.last\n";
    let last = Tensor::new(DataType::Fp32, Shape::new(&[1, 1]), vec![0; 4].into());
    let script = Script::new(source).buffer("last", last);
    let strategy = SequenceStrategy::Direct { queue_delay_max: Duration::ZERO, slot_utilization_min: 0.0 };
    let mut bench = Bench::new(&script, strategy, vec![state("SUM", DataType::Fp32, &[1])]);
    // One row at a time: slot 0, and for the second sequence slot 0 again.
    assert_eq!(bench.step(1, &[1.0], "S").await, [1.0]);
    assert_eq!(bench.step(1, &[2.0], "").await, [3.0]);
    let model = bench.model.clone();
    let mut other = model.instance(Device::Cpu).expect("it starts");
    std::mem::swap(&mut bench.instance, &mut other);
    assert_eq!(bench.step(1, &[4.0], "E").await, [7.0]);
    assert_eq!(bench.step(2, &[9.0], "SE").await, [9.0]);
}

#[tokio::test(start_paused = true)]
async fn states_of_strings_stay_on_the_host_beside_those_on_the_device() {
    let source = "def forward(self, x, total, words: List[str]):\n    sum = total + x + len(words[0])\n    \
                  return sum, sum, [word + \"a\" for word in words]\n";
    let states = vec![state("SUM", DataType::Fp32, &[1]), state("WORDS", DataType::Bytes, &[1])];
    let mut bench = Bench::direct(source, states);
    assert_eq!(bench.step(1, &[1.0], "S").await, [1.0]);
    let asked = bench.ask(1, &[1.0], "");
    assert_eq!((bench.are_resident(), bench.run()), (vec![true, false], 1));
    assert_eq!(answer(asked).await, [3.0]);
    assert_eq!(bench.step(1, &[1.0], "E").await, [6.0]);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_callers_get_too_is_on_both_sides() {
    let source = "def forward(self, x, total):\n    return total + x\n";
    let mut bench = Bench::direct(source, vec![state("OUT", DataType::Fp32, &[1])]);
    assert_eq!(bench.step(1, &[1.0], "S").await, [1.0]);
    let asked = bench.ask(1, &[2.0], "E");
    assert_eq!((bench.are_resident(), bench.run()), (vec![true], 1));
    assert_eq!(answer(asked).await, [3.0]);
}
