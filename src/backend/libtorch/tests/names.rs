//! Which input is which argument, and which output is which returned value.

use super::*;

#[test]
fn inputs_are_bound_by_name_by_index_or_by_order() {
    let script = Script::new("def forward(self, a, b):\n    return a - b\n");
    for (names, expected) in [(["b", "a"], 1.0), (["x__1", "x__0"], 1.0), (["x", "y"], -1.0), (["b", "x__0"], -1.0)] {
        let inputs: Vec<_> = names.iter().map(|name| (*name, FP32, &[1_i64] as &[i64])).collect();
        let bench = Bench::new(&script, &inputs, &[("y", FP32, &[1])]);
        let outputs = bench.run(vec![floats(&[1], &[1.0]), floats(&[1], &[2.0])]).expect("it runs");
        assert_eq!(values(&outputs[0]), [expected], "{names:?}");
    }
}

#[test]
fn a_dictionary_takes_and_gives_tensors_by_their_names() {
    let script = Script::new(
        "def forward(self, x: Dict[str, Tensor]) -> Dict[str, Tensor]:\n    return {\"p\": x[\"a\"] * x[\"b\"], \"s\": x[\"a\"] + x[\"b\"]}\n",
    );
    let bench = Bench::new(&script, &[("b", FP32, &[1]), ("a", FP32, &[1])], &[("s", FP32, &[1]), ("p", FP32, &[1])]);
    let outputs = bench.run(vec![floats(&[1], &[2.0]), floats(&[1], &[3.0])]).expect("it runs");
    assert_eq!((values(&outputs[0]), values(&outputs[1])), (vec![5.0], vec![6.0]));
}

#[test]
fn outputs_come_out_of_lists_and_nested_tuples_in_order() {
    let script = Script::new(
        "def forward(self, x) -> Tuple[Tensor, List[Tensor], List[str]]:\n    return x, [x + 1, x + 2], [\"s\"]\n",
    );
    let bench = Bench::new(
        &script,
        &[("x", FP32, &[1])],
        &[("a", FP32, &[1]), ("b", FP32, &[1]), ("c", FP32, &[1]), ("d", STRING, &[1])],
    );
    let outputs = bench.run(vec![floats(&[1], &[1.0])]).expect("it runs");
    let numbers: Vec<_> = outputs[..3].iter().flat_map(values).collect();
    assert_eq!(numbers, [1.0, 2.0, 3.0]);
    assert_eq!(outputs[3], text(&[1], &[b"s"]));
}

#[test]
fn outputs_are_chosen_by_index() {
    let script = Script::new("def forward(self, x):\n    return x, x + 1\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("OUTPUT__1", FP32, &[1])]);
    let outputs = bench.run(vec![floats(&[1], &[1.0])]).expect("it runs");
    assert_eq!(values(&outputs[0]), [2.0]);
}
