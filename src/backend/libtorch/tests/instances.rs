//! Which other instances an open model can have.

use std::thread::available_parallelism;

use super::*;

fn can_have(bench: &Bench, count: usize) -> bool {
    let model = bench.open().expect("it loads");
    model.can_have(&[Instances::new("m", Device::Cpu, count)])
}

#[test]
fn more_instances_that_would_take_more_threads_than_there_are_cores_are_not_for_an_open_model() {
    let cores = available_parallelism().expect("there are some").get();
    let one = || Bench::new(&weighted(), &[("x", FP32, &[2])], &[("y", FP32, &[2])]);
    assert_eq!(can_have(&one(), cores + 1), cores == 1, "the one that is there has all cores");
    assert!(can_have(&one().instances(cores), cores + 1), "each has one core, and cannot have less");
    assert!(can_have(&one().parameter("INTRA_OP_THREAD_COUNT", "2"), cores + 1), "as configured");
}

#[test]
fn an_open_model_has_no_room_for_another_copy_of_a_state() {
    let source = "def forward(self, x):\n    self.count.add_(1)\n    return x + self.count\n";
    let script = Script::new(source).buffer("count", floats(&[1], &[0.0]));
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    assert!(!can_have(&bench.parameter("INTRA_OP_THREAD_COUNT", "1"), 2));
}
