//! Outputs that stay where they were computed, and inputs that come from there.

use super::*;
use crate::tensor::{Elsewhere, Keep};

const DOUBLE: &str = "def forward(self, x):\n    return x * 2\n";

fn bench(source: &str) -> Bench {
    Bench::new(&Script::new(source), &[("x", FP32, &[2])], &[("y", FP32, &[2])])
}

/// The first output of one member that keeps it.
fn kept(bench: &Bench, input: Tensor, keep: Keep) -> Tensor {
    let member = Member { keep, ..Member::new(1, vec![input]) };
    let output = run(&mut *bench.instance(), vec![member]).expect("it runs").remove(0).remove(0);
    assert!(output.resident.is_some());
    output
}

fn passing() -> Keep {
    Keep::default().passing(0)
}

fn lasting() -> Keep {
    Keep::default().lasting(0, false)
}

/// Its elements, fetched.
fn fetched(tensor: &Tensor) -> Tensor {
    let mut fetched = tensor.clone();
    fetched.fetch().expect("it is there");
    fetched
}

#[test]
fn what_one_execution_keeps_another_takes_without_a_copy() {
    let output = kept(&bench(DOUBLE), floats(&[2], &[1.0, 2.0]), passing());
    assert_eq!((&*output.shape, output.bytes(), output.is_on_host()), (&[2_i64] as &[i64], 8, false));
    let there = fetched(&output);
    assert_eq!(values(&there), [2.0, 4.0]);
    let next = bench(IDENTITY).run(vec![output]).expect("it runs");
    assert_eq!(next[0].data.as_ptr(), there.data.as_ptr());
}

#[test]
fn every_type_and_shape_of_numbers_can_be_kept() {
    for dtype in DataType::ALL.into_iter().filter(|dtype| *dtype != DataType::Bytes) {
        let bench = Bench::new(&Script::new(IDENTITY), &[("x", dtype, &[-1, 3])], &[("y", dtype, &[-1, 3])]);
        for rows in [0, 2] {
            let bytes = rows * 3 * dtype.size().expect("not strings");
            let input = Tensor::new(dtype, Shape::new(&[rows as i64, 3]), vec![1; bytes].into());
            let output = kept(&bench, input.clone(), lasting());
            assert_eq!((output.bytes(), fetched(&output)), (bytes, input.clone()), "{dtype}");
            assert_eq!(bench.run(vec![output]).expect("it runs"), [input], "{dtype}");
        }
    }
}

#[test]
fn an_output_that_is_not_dense_is_kept_dense() {
    let bench = Bench::new(
        &Script::new("def forward(self, x):\n    return x.t()\n"),
        &[("x", FP32, &[2, 2])],
        &[("y", FP32, &[2, 2])],
    );
    let output = kept(&bench, floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), passing());
    assert_eq!(values(&fetched(&output)), [1.0, 3.0, 2.0, 4.0]);
}

#[test]
fn what_is_kept_for_long_holds_on_to_nothing_of_others() {
    let input = floats(&[2], &[1.0, 2.0]);
    let passed = kept(&bench(IDENTITY), input.clone(), passing());
    assert_eq!(fetched(&passed).data.as_ptr(), input.data.as_ptr());
    let long = kept(&bench(IDENTITY), input.clone(), lasting());
    assert_ne!(fetched(&long).data.as_ptr(), input.data.as_ptr(), "the request's memory");
    let part = Script::new("def forward(self, x):\n    y = x + 1\n    return y, y[1:]\n");
    let bench = Bench::new(&part, &[("x", FP32, &[2])], &[("y", FP32, &[2]), ("part", FP32, &[1])]);
    let keep = Keep::default().passing(0).lasting(1, false);
    let member = Member { keep, ..Member::new(1, vec![input]) };
    let outputs = run(&mut *bench.instance(), vec![member]).expect("it runs").remove(0);
    let [whole, part] = [0, 1].map(|index| fetched(&outputs[index]));
    assert_eq!(values(&part), [3.0]);
    assert!(!whole.data.as_ptr_range().contains(&part.data.as_ptr()), "the memory of a larger tensor");
}

#[test]
fn members_that_keep_and_members_that_read_share_a_batch() {
    let bench = bench(DOUBLE).batching(8);
    let member = |rows: usize, first: f32, keep| {
        let numbers: Vec<f32> = (0..rows * 2).map(|index| first + index as f32).collect();
        Member { keep, ..Member::new(rows, vec![floats(&[rows as i64, 2], &numbers)]) }
    };
    let members = vec![member(1, 0.0, Keep::default()), member(2, 10.0, lasting()), member(1, 20.0, lasting())];
    let mut instance = bench.instance();
    let outputs = run(&mut *instance, members).expect("it runs");
    assert_eq!(outputs.iter().map(|outputs| outputs[0].is_on_host()).collect::<Vec<_>>(), [true, false, false]);
    let [read, two, one] = [0, 1, 2].map(|index| fetched(&outputs[index][0]));
    let expected: [&[f32]; 3] = [&[0.0, 2.0], &[20.0, 22.0, 24.0, 26.0], &[40.0, 42.0]];
    assert_eq!([&read, &two, &one].map(values), expected);
    assert_ne!(two.data.as_ptr_range().end, one.data.as_ptr(), "each has memory of its own");

    // What was kept, what comes from a caller, and what another backend has.
    let elsewhere = floats(&[1, 2], &[5.0, 6.0]);
    let resident: Arc<dyn crate::tensor::Resident> = Arc::new(Elsewhere(elsewhere.data.clone()));
    let elsewhere = Tensor { data: Bytes::new(), resident: Some(resident), ..elsewhere };
    let members = [outputs[1][0].clone(), floats(&[1, 2], &[1.0, 2.0]), elsewhere, outputs[2][0].clone()];
    let members = members.map(|input| Member::new(input.shape[0] as usize, vec![input])).to_vec();
    let outputs = run(&mut *instance, members).expect("it runs");
    let expected: [&[f32]; 4] = [&[40.0, 44.0, 48.0, 52.0], &[2.0, 4.0], &[10.0, 12.0], &[80.0, 84.0]];
    assert_eq!(outputs.iter().map(|outputs| values(&outputs[0])).collect::<Vec<_>>(), expected);
}

#[test]
fn a_tensor_that_is_kept_may_be_taken_in_another_shape() {
    let output = kept(&bench(DOUBLE), floats(&[2], &[1.0, 2.0]), passing());
    let square = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[1, 2])], &[("y", FP32, &[1, 2])]);
    let next = square.run(vec![Tensor { shape: Shape::new(&[1, 2]), ..output }]).expect("it runs");
    assert_eq!(next, [floats(&[1, 2], &[2.0, 4.0])]);
}

#[test]
fn what_is_kept_of_a_model_with_state_is_not_changed_by_later_executions() {
    let script = Script::new("def forward(self, x):\n    self.count.add_(x)\n    return self.count\n")
        .buffer("count", floats(&[2], &[0.0, 0.0]));
    let bench = Bench::new(&script, &[("x", FP32, &[2])], &[("y", FP32, &[2])]);
    let mut instance = bench.instance();
    let mut count = |keep| {
        let member = Member { keep, ..Member::new(1, vec![floats(&[2], &[1.0, 1.0])]) };
        run(&mut *instance, vec![member]).expect("it runs").remove(0).remove(0)
    };
    let (passed, long) = (count(passing()), count(lasting()));
    assert_eq!(values(&count(Keep::default())), [3.0, 3.0]);
    assert_eq!((values(&fetched(&passed)), values(&fetched(&long))), (vec![1.0, 1.0], vec![2.0, 2.0]));
}

#[test]
fn a_model_that_writes_into_its_input_leaves_what_is_kept_alone() {
    let state = kept(&bench(DOUBLE), floats(&[2], &[1.0, 2.0]), lasting());
    for inference_mode in ["true", "false"] {
        let writes = bench("def forward(self, x):\n    return x.add_(1)\n").parameter("INFERENCE_MODE", inference_mode);
        assert_eq!(values(&writes.run(vec![state.clone()]).expect("it runs")[0]), [3.0, 5.0]);
        assert_eq!(values(&fetched(&state)), [2.0, 4.0]);
    }
}

#[test]
fn strings_stay_on_the_host() {
    let script = Script::new("def forward(self, x: List[str]):\n    return x\n");
    let bench = Bench::new(&script, &[("x", STRING, &[1])], &[("y", STRING, &[1])]);
    let member = Member { keep: lasting(), ..Member::new(1, vec![text(&[1], &[b"word"])]) };
    assert_eq!(run(&mut *bench.instance(), vec![member]).expect("it runs"), [[text(&[1], &[b"word"])]]);
}
