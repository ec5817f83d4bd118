//! Batches that are gathered in memory that earlier ones were in.

use super::*;
use crate::tensor::Keep;

/// Two members of one row each.
fn members(first: f32, keep: Keep) -> Vec<Member> {
    let member = |value: f32| Member { keep, ..Member::new(1, vec![floats(&[1, 2], &[value, value + 0.5])]) };
    vec![member(first), member(first + 1.0)]
}

fn rows(first: f32) -> [[f32; 2]; 2] {
    [first, first + 1.0].map(|value| [value, value + 0.5])
}

/// What the members got as output `index`.
fn seen(outputs: &[Vec<Tensor>], index: usize) -> Vec<Vec<f32>> {
    let fetched = |outputs: &Vec<Tensor>| {
        let mut output = outputs[index].clone();
        output.fetch().expect("it is there");
        values(&output)
    };
    outputs.iter().map(fetched).collect()
}

/// The outputs of several batches, all of them held until the last has run.
fn several(bench: &Bench, keep: Keep) -> Vec<Vec<Vec<Tensor>>> {
    let mut instance = bench.instance();
    (0..4_u8).map(|batch| run(&mut *instance, members(f32::from(batch) * 10.0, keep)).expect("it runs")).collect()
}

#[test]
fn outputs_that_are_inputs_or_views_of_them_stay_as_they_are() {
    let script = Script::new("def forward(self, x):\n    return x, x.unsqueeze(1), x + 0\n");
    let outputs: [(&str, DataType, &[i64]); 3] = [("y", FP32, &[2]), ("view", FP32, &[1, 2]), ("new", FP32, &[2])];
    let bench = Bench::new(&script, &[("x", FP32, &[2])], &outputs).batching(8);
    for keep in [Keep::default(), Keep::default().passing(0).passing(1), Keep::default().lasting(0, true).passing(2)] {
        for (batch, outputs) in several(&bench, keep).into_iter().enumerate() {
            for index in 0..3 {
                assert_eq!(seen(&outputs, index), rows(batch as f32 * 10.0), "{keep:?}, batch {batch}, output {index}");
            }
        }
    }
}

#[test]
fn what_a_model_keeps_of_its_input_stays_as_it_is() {
    let script = Script::new("def forward(self, x):\n    y = self.last\n    self.last = x\n    return y\n");
    let script = script.buffer("last", floats(&[2, 2], &[-10.0, -9.5, -9.0, -8.5]));
    let bench = Bench::new(&script, &[("x", FP32, &[2])], &[("y", FP32, &[2])]).batching(8);
    for (batch, outputs) in several(&bench, Keep::default()).into_iter().enumerate() {
        assert_eq!(seen(&outputs, 0), rows(batch as f32 * 10.0 - 10.0), "batch {batch}");
    }
}

#[test]
fn a_model_that_writes_into_a_batch_of_inputs_spoils_no_other() {
    let script = Script::new("def forward(self, x):\n    return x.add_(1)\n");
    let bench = Bench::new(&script, &[("x", FP32, &[2])], &[("y", FP32, &[2])]).batching(8);
    for (batch, outputs) in several(&bench, Keep::default()).into_iter().enumerate() {
        assert_eq!(seen(&outputs, 0), rows(batch as f32 * 10.0 + 1.0), "batch {batch}");
    }
}

#[test]
fn batches_of_any_size_follow_each_other() {
    let script = Script::new("def forward(self, x):\n    return x * 2\n");
    let bench = Bench::new(&script, &[("x", FP32, &[-1])], &[("y", FP32, &[-1])]).batching(8);
    let mut instance = bench.instance();
    for (rows, length) in [(1, 3), (2, 3), (7, 1), (3, 5), (2, 1), (7, 5)] {
        let member = |row: usize| Member::new(1, vec![floats(&[1, length as i64], &vec![row as f32; length])]);
        let outputs = run(&mut *instance, (0..rows).map(member).collect()).expect("it runs");
        let expected: Vec<_> = (0..rows).map(|row| vec![row as f32 * 2.0; length]).collect();
        assert_eq!(seen(&outputs, 0), expected);
    }
}
