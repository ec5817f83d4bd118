//! What instances hold and share, and what is done to graphs.

use super::*;

#[test]
fn all_instances_share_one_copy_of_the_weights() {
    let script = weighted();
    let shown =
        Script::new("def forward(self, x):\n    return self.weight\n").parameter("weight", floats(&[1], &[1.0]));
    let bench = Bench::new(&shown, &[("x", FP32, &[1])], &[("y", FP32, &[1])]).instances(2);
    let model = bench.open().expect("it loads");
    let addresses: Vec<_> = (0..2)
        .map(|_| {
            let mut instance = model.instance(Device::Cpu).expect("it starts");
            let member = Member::new(1, vec![floats(&[1], &[0.0])]);
            run(&mut *instance, vec![member]).expect("it runs")[0][0].data.as_ptr()
        })
        .collect();
    assert_eq!(addresses[0], addresses[1]);
    let bench = Bench::new(&script, &[("x", FP32, &[2])], &[("y", FP32, &[2])]).instances(4);
    assert_eq!(bench.open().expect("it loads").footprint().bytes[&Device::Cpu], 16);
}

#[test]
fn the_estimate_is_not_below_what_is_held() {
    let bench = Bench::new(&weighted(), &[("x", FP32, &[2])], &[("y", FP32, &[2])]);
    let estimate = LibTorch::default().estimate(&bench.files(), &bench.config).expect("the file is there");
    let held = bench.open().expect("it loads").footprint();
    assert!(estimate.bytes[&Device::Cpu] >= held.bytes[&Device::Cpu]);
}

#[test]
fn a_model_with_state_of_its_own_has_one_for_each_instance() {
    let script = Script::new("def forward(self, x):\n    self.count.add_(x)\n    return self.count\n")
        .buffer("count", floats(&[1], &[0.0]));
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]).instances(2);
    let model = bench.open().expect("it loads");
    let mut instances = [0, 1].map(|_| model.instance(Device::Cpu).expect("it starts"));
    let mut count = |index: usize| {
        let member = Member::new(1, vec![floats(&[1], &[1.0])]);
        run(&mut *instances[index], vec![member]).expect("it runs").remove(0).remove(0)
    };
    let first = count(0);
    assert_eq!(values(&count(0)), [2.0]);
    assert_eq!(values(&count(1)), [1.0]);
    assert_eq!(values(&first), [1.0], "a response is not changed by later executions");
    assert_eq!(model.footprint().bytes[&Device::Cpu], 12, "one is what the copies are made from");
}

#[test]
fn every_optimization_gives_the_same_numbers() {
    for optimize in ["off", "freeze", "full", "auto"] {
        let bench = Bench::new(&weighted(), &[("x", FP32, &[2])], &[("y", FP32, &[2])])
            .batching(4)
            .parameter("torch.optimize", optimize);
        let outputs = bench.run(vec![floats(&[1, 2], &[1.0, -1.0])]).expect("it runs");
        assert_eq!(values(&outputs[0]), [0.0, 0.0], "{optimize}");
        let outputs = bench.run(vec![floats(&[1, 2], &[1.0, 1.0])]).expect("it runs");
        assert_eq!(values(&outputs[0]), [4.0, 6.0], "{optimize}");
    }
}

#[test]
fn modes_of_execution_give_the_same_numbers() {
    for (key, value) in [("INFERENCE_MODE", "false"), ("DISABLE_OPTIMIZED_EXECUTION", "true")] {
        let bench = Bench::new(&weighted(), &[("x", FP32, &[1, 2])], &[("y", FP32, &[1, 2])]).parameter(key, value);
        let outputs = bench.run(vec![floats(&[1, 2], &[1.0, 1.0])]).expect("it runs");
        assert_eq!(values(&outputs[0]), [4.0, 6.0], "{key}");
    }
}
