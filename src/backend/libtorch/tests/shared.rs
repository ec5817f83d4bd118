//! Models whose files are equal.

use std::sync::Barrier;
use std::thread;

use super::*;

/// A model that shows where its weights are.
fn shown() -> Bench {
    let script =
        Script::new("def forward(self, x):\n    return self.weight\n").parameter("weight", floats(&[4], &[1.0; 4]));
    Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[4])])
}

/// A model of another name and folder with the same file.
fn like(bench: &Bench) -> Bench {
    let folder = tempfile::tempdir().expect("a folder for the test");
    std::fs::copy(bench.folder.path().join("model.pt"), folder.path().join("model.pt")).expect("there is room");
    Bench { folder, config: ModelConfig { name: "other".into(), ..bench.config.clone() } }
}

fn open(backend: &LibTorch, bench: &Bench) -> Arc<dyn Model> {
    backend.open(&bench.files(), &bench.config).expect("it loads")
}

fn address(model: &Arc<dyn Model>) -> usize {
    let mut instance = model.instance(Device::Cpu).expect("it starts");
    let outputs = run(&mut *instance, vec![Member::new(1, vec![floats(&[1], &[0.0])])]).expect("it runs");
    assert_eq!(values(&outputs[0][0]), [1.0; 4]);
    outputs[0][0].data.as_ptr().addr()
}

fn held(model: &Arc<dyn Model>) -> u64 {
    model.footprint().bytes[&Device::Cpu]
}

#[test]
fn models_with_equal_files_share_weights_and_the_oldest_is_charged() {
    let (backend, first) = (LibTorch::default(), shown());
    let second = like(&first);
    let [one, other] = [&first, &second].map(|bench| open(&backend, bench));
    assert_eq!(address(&one), address(&other));
    assert_eq!([&one, &other].map(held), [16, 0]);
    drop((one, first));
    assert_eq!(held(&other), 16);
    address(&other);
    let third = open(&backend, &second);
    assert_eq!((address(&third), held(&third)), (address(&other), 0));
}

#[test]
fn nothing_is_left_when_the_last_has_gone() {
    let (backend, bench) = (LibTorch::default(), shown());
    let models = [open(&backend, &bench), open(&backend, &like(&bench))];
    let instance = models[0].instance(Device::Cpu).expect("it starts");
    assert_eq!(backend.opened.len(), 1);
    drop((models, instance));
    assert_eq!(backend.opened.len(), 0);
    assert_eq!(held(&open(&backend, &bench)), 16);
}

#[test]
fn only_what_is_equal_in_content_and_form_is_shared() {
    let (backend, bench) = (LibTorch::default(), shown());
    let plain = open(&backend, &bench);
    for (key, value) in [("torch.precision", "bf16"), ("torch.optimize", "freeze"), ("INFERENCE_MODE", "false")] {
        assert!(held(&open(&backend, &like(&bench).parameter(key, value))) > 0, "{key}");
    }
    assert_eq!(held(&open(&backend, &like(&bench).parameter("INTRA_OP_THREAD_COUNT", "1"))), 0);
    let script =
        Script::new("def forward(self, x):\n    return self.weight\n").parameter("weight", floats(&[4], &[2.0; 4]));
    script.save(&bench.folder.path().join("model.pt")).expect("it compiles");
    let changed = open(&backend, &bench);
    assert_eq!([held(&plain), held(&changed)], [16, 16]);
    address(&plain);
}

#[test]
fn those_who_open_a_file_at_the_same_time_open_it_once() {
    let (backend, bench, barrier) = (LibTorch::default(), shown(), Barrier::new(4));
    let models: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let own = like(&bench);
                    barrier.wait();
                    open(&backend, &own)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it opens")).collect()
    });
    let mut addresses: Vec<_> = models.iter().map(address).collect();
    addresses.dedup();
    assert_eq!((addresses.len(), models.iter().map(held).sum::<u64>()), (1, 16));
}

#[test]
fn a_model_with_state_keeps_it_to_itself() {
    let script = Script::new("def forward(self, x):\n    self.count.add_(x)\n    return self.count\n")
        .buffer("count", floats(&[1], &[0.0]));
    let (backend, first) = (LibTorch::default(), Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]));
    let second = like(&first);
    let mut instances = [&first, &second].map(|bench| open(&backend, bench).instance(Device::Cpu).expect("it starts"));
    for (index, expected) in [(0, 1.0), (0, 2.0), (1, 1.0)] {
        let member = Member::new(1, vec![floats(&[1], &[1.0])]);
        assert_eq!(values(&run(&mut *instances[index], vec![member]).expect("it runs")[0][0]), [expected]);
    }
}

#[test]
fn what_does_not_load_for_one_may_load_for_another() {
    let (backend, bench) = (LibTorch::default(), shown());
    let mut wrong = like(&bench);
    wrong.config.inputs.clear();
    assert!(backend.open(&wrong.files(), &wrong.config).is_err());
    let _right = open(&backend, &bench);
    assert!(backend.open(&wrong.files(), &wrong.config).is_err());
}
