//! Executions that need more memory than there is: a puppet that says so, and a TorchScript model that asks for too much.

use super::tests::{Asked, Order, Stage, respond, settings};
use super::*;
use crate::backend::Backend as _;
use crate::backend::libtorch::LibTorch;
use crate::backend::libtorch::script::Script;
use crate::model::{Device, Instances, ModelConfig, TensorSpec, VersionFiles};
use crate::telemetry::metrics::Metrics;
use crate::tensor::{DataType, Shape};
use futures_util::StreamExt as _;

/// As many rows as the model has memory for.
const ROWS_FIT: usize = 5;

async fn outcome(mut asked: Asked) -> Result<String> {
    asked.next().await.expect("there is one response").map(|response| response.id)
}

/// A stage on which four requests of one row are one batch.
async fn four(stage: &Stage) -> Vec<Asked> {
    let asked = (0..4).map(|_| stage.ask(1, 4, None).expect("accepted")).collect();
    assert_eq!(stage.begun(), [1, 1, 1, 1]);
    asked
}

fn held() -> QueueSettings {
    QueueSettings { hold: 4, ..settings(4) }
}

#[tokio::test]
async fn a_batch_that_needs_too_much_memory_runs_once_more_in_halves() {
    let mut stage = Stage::new(held());
    let asked = four(&stage).await;
    stage.order(Order::RunOut);
    for _ in 0..2 {
        assert_eq!(stage.begun(), [1, 1]);
        stage.order(Order::Answer);
    }
    for each in asked {
        assert_eq!(outcome(each).await.expect("answered"), "[7, 7, 7, 7]");
    }
    stage.close();
    let stats = stage.queue.stats().snapshot();
    assert_eq!((stats.success.count, stats.fail.count, stats.execution_count), (4, 0, 1));
}

#[tokio::test]
async fn a_half_that_is_still_too_much_fails_alone() {
    let mut stage = Stage::new(held());
    let asked = four(&stage).await;
    stage.order(Order::RunOut);
    for order in [Order::RunOut, Order::Answer] {
        assert_eq!(stage.begun(), [1, 1]);
        stage.order(order);
    }
    let mut kinds = Vec::new();
    for each in asked {
        kinds.push(outcome(each).await.err().map(|error| error.kind()));
    }
    assert_eq!(kinds, [Some(Kind::OutOfMemory), Some(Kind::OutOfMemory), None, None]);
    stage.close();
}

#[tokio::test]
async fn a_request_that_is_too_much_alone_fails_and_the_next_one_runs() {
    let mut stage = Stage::new(settings(4));
    let large = stage.ask(4, 4, None).expect("accepted");
    assert_eq!(stage.begun(), [4]);
    let small: Vec<Asked> = (0..4).map(|_| stage.ask(1, 4, None).expect("accepted")).collect();
    stage.order(Order::RunOut);
    assert_eq!(outcome(large).await.expect_err("too much").kind(), Kind::OutOfMemory);
    for _ in 0..2 {
        assert_eq!(stage.begun(), [1, 1], "half of what was too much");
        stage.order(Order::Answer);
    }
    for each in small {
        outcome(each).await.expect("answered");
    }
    stage.close();
}

#[tokio::test]
async fn a_model_that_asks_for_too_much_is_given_less() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let source = format!(
        "def forward(self, x):\n    if x.size(0) > {ROWS_FIT}:\n        return torch.empty([4611686018427, 1])\n    return x * 2\n"
    );
    Script::new(source).save(&folder.path().join("model.pt")).expect("the script compiles");
    let files = VersionFiles {
        model_dir: folder.path().to_owned(),
        version_dir: folder.path().to_owned(),
        model_file: Some(folder.path().join("model.pt")),
    };
    let spec = |name: &str| TensorSpec::new(name, Some(DataType::Uint8), Some(Shape::new(&[2])));
    let config = ModelConfig {
        max_batch_rows: 8,
        inputs: vec![spec("x")],
        outputs: vec![spec("y")],
        instances: vec![Instances::new("g", Device::Cpu, 1)],
        ..ModelConfig::new("m", "pytorch")
    };
    let (model, metrics) = (LibTorch::default().open(&files, &config).expect("it loads"), Metrics::new());
    let stats = Arc::new(ModelStats::new(&metrics, &config, 1));
    let queue = Arc::new(Queue::new(QueueSettings { hold: 8, ..settings(8) }, stats));
    let ask = |number: u8| {
        let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1, 2]), vec![number, 1].into());
        let now = Instant::now();
        let pushed = Pushed::new(Member::new(1, vec![tensor]), now);
        let waiting = queue.clone().push(pushed, now).expect("accepted");
        Waiter::new(queue.clone() as Arc<dyn Scheduler>, waiting, (now, None), respond())
    };
    let starting = Starting {
        scheduler: queue.clone(),
        model,
        device: Device::Cpu,
        index: 0,
        thread_name: "m/1/0".to_owned(),
        warmup: Arc::new([]),
    };
    let instance = start(starting).expect("a thread starts");
    // The first eight are one batch.
    for first in [0, 8, 72] {
        let asked: Vec<_> = (first..(first * 9).max(8)).map(|number| (number, ask(number as u8))).collect();
        for (number, each) in asked {
            let doubled = (number as u8).wrapping_mul(2);
            assert_eq!(outcome(each).await.expect("answered"), format!("[{doubled}, 2]"));
        }
    }
    queue.close();
    instance.thread.join().expect("it does not panic");
    let snapshot = queue.stats().snapshot();
    assert_eq!((snapshot.success.count, snapshot.fail.count), (648, 0));
    let failed: f64 = {
        let begin = "nereid_out_of_memory_total{model=\"m\",version=\"1\"} ";
        let text = metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(begin)).expect("it is counted");
        value.parse().expect("a number")
    };
    // Once at eight rows; then at most at seven and six, on the way from four to five, and at six again, ever more seldom.
    assert!((1.0..=5.0).contains(&failed), "{failed}");
}
