//! Models that give any number of responses.

use super::*;

#[test]
fn a_decoupled_model_gives_a_response_for_each_element_of_the_list_it_returns() {
    let one = [("x", FP32, &[1_i64] as &[i64])];
    let pair = [("n", FP32, &[1_i64] as &[i64]), ("s", STRING, &[1])];
    let body = |kind: &str, element: &str| {
        Script::new(format!(
            "def forward(self, x) -> List[{kind}]:\n    out: List[{kind}] = []\n    \
             for i in range(int(x[0])):\n        out.append({element})\n    return out\n"
        ))
    };
    let tensors = Bench::new(&body("Tensor", "x + i"), &one, &[("y", FP32, &[1])]).decoupled();
    for count in [0, 1, 3] {
        let (responses, ended) = tensors.responses(vec![floats(&[1], &[count as f32])], None).expect("it runs");
        let numbers: Vec<_> = responses.iter().flat_map(|outputs| values(&outputs[0])).collect();
        assert_eq!(numbers, (0..count).map(|index| (count + index) as f32).collect::<Vec<_>>());
        assert_eq!(ended, count > 0, "an empty list ends without a response");
    }
    let tuples = Bench::new(&body("Tuple[Tensor, List[str]]", "(x + i, [str(i)])"), &one, &pair).decoupled();
    let (responses, _) = tuples.responses(vec![floats(&[1], &[2.0])], None).expect("it runs");
    assert_eq!(responses[1], [floats(&[1], &[3.0]), text(&[1], &[b"1"])]);
    let named = [("b", FP32, &[1_i64] as &[i64]), ("a", FP32, &[1])];
    let dictionaries =
        Bench::new(&body("Dict[str, Tensor]", "{\"a\": x, \"b\": x * 2}"), &one, &named).decoupled().batching(4);
    let (responses, _) = dictionaries.responses(vec![floats(&[1, 1], &[1.0])], None).expect("it runs");
    assert_eq!(responses, [[floats(&[1, 1], &[2.0]), floats(&[1, 1], &[1.0])]]);
}

#[test]
fn a_decoupled_model_stops_when_nobody_takes_its_responses() {
    let script = Script::new("def forward(self, x) -> List[Tensor]:\n    return [x, x, x]\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]).decoupled();
    let error = bench.responses(vec![floats(&[1], &[0.0])], Some(1)).expect_err("the second is not taken");
    assert_eq!(error.kind(), Kind::Cancelled);
}

#[test]
fn a_response_that_does_not_fit_fails_a_decoupled_model() {
    let script = Script::new("def forward(self, x) -> List[Tuple[Tensor, Tensor]]:\n    return [(x, x)]\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1]), ("z", STRING, &[1])]).decoupled();
    let error = bench.responses(vec![floats(&[1], &[0.0])], None).expect_err("z is no string");
    assert_eq!(error.message(), "configuration expects datatype TYPE_STRING for output 'z', model provides TYPE_FP32");
}

#[test]
fn a_decoupled_model_whose_forward_returns_no_list_does_not_load() {
    let bench = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[1])], &[("y", FP32, &[1])]).decoupled();
    assert_eq!(
        bench.load_error(),
        "model 'm' is decoupled, so forward must return a list with an element for each response, not Tensor"
    );
}
