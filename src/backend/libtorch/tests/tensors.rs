//! Tensors and strings on their way into a module and out of it.

use super::*;

#[test]
fn every_tensor_type_passes_through_unchanged() {
    for dtype in DataType::ALL.into_iter().filter(|dtype| *dtype != DataType::Bytes) {
        let bench = Bench::new(&Script::new(IDENTITY), &[("x", dtype, &[3])], &[("y", dtype, &[3])]);
        let size = dtype.size().expect("not strings");
        let data: Vec<u8> = (0..3 * size).map(|index| u8::from(index % size == 0)).collect();
        let input = Tensor::new(dtype, Shape::new(&[3]), data.into());
        let outputs = bench.run(vec![input.clone()]).expect("identity runs");
        assert_eq!(outputs, [input], "{dtype}");
    }
}

#[test]
fn an_aligned_input_is_read_in_place_and_an_output_is_a_view() {
    let bench = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[4])], &[("y", FP32, &[4])]);
    let input = floats(&[4], &[1.0, 2.0, 3.0, 4.0]);
    let outputs = bench.run(vec![input.clone()]).expect("identity runs");
    assert_eq!(outputs[0].data.as_ptr(), input.data.as_ptr());
    drop(input);
    assert_eq!(values(&outputs[0]), [1.0, 2.0, 3.0, 4.0], "the output keeps the memory alive");
}

#[test]
fn a_tensor_without_elements_passes_through() {
    let bench = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[0, 4])], &[("y", FP32, &[0, 4])]);
    let input = floats(&[0, 4], &[]);
    assert_eq!(bench.run(vec![input.clone()]).expect("identity runs"), [input]);
}

#[test]
fn a_misaligned_input_is_copied() {
    let bench = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    let mut input = floats(&[1], &[7.5]);
    let mut shifted = vec![0];
    shifted.extend_from_slice(&input.data);
    input.data = Bytes::from(shifted).slice(1..);
    let outputs = bench.run(vec![input.clone()]).expect("identity runs");
    assert_ne!(outputs[0].data.as_ptr(), input.data.as_ptr());
    assert_eq!(values(&outputs[0]), [7.5]);
}

#[test]
fn a_model_that_writes_into_its_input_leaves_the_request_alone() {
    let script = Script::new("def forward(self, x):\n    x[0] = 9.0\n    return x.add_(1)\n");
    let bench = Bench::new(&script, &[("x", FP32, &[2])], &[("y", FP32, &[2])]);
    let input = floats(&[2], &[1.0, 2.0]);
    let outputs = bench.run(vec![input.clone()]).expect("it runs");
    assert_eq!(values(&outputs[0]), [10.0, 3.0]);
    assert_eq!(values(&input), [1.0, 2.0]);
}

#[test]
fn members_of_a_batch_get_their_own_rows() {
    let script = Script::new("def forward(self, x):\n    return x * 2, x.sum(1, True)\n");
    let bench = Bench::new(&script, &[("x", FP32, &[2])], &[("y", FP32, &[2]), ("sum", FP32, &[1])]).batching(4);
    let members = vec![
        Member::new(1, vec![floats(&[1, 2], &[1.0, 2.0])]),
        Member::new(2, vec![floats(&[2, 2], &[3.0, 4.0, 5.0, 6.0])]),
    ];
    let outputs = run(&mut *bench.instance(), members).expect("it runs");
    assert_eq!(values(&outputs[0][0]), [2.0, 4.0]);
    assert_eq!(values(&outputs[1][0]), [6.0, 8.0, 10.0, 12.0]);
    assert_eq!(values(&outputs[1][1]), [7.0, 11.0]);
    assert_eq!(&*outputs[1][1].shape, &[2, 1]);
}

#[test]
fn an_output_that_is_not_dense_is_made_so() {
    let script = Script::new("def forward(self, x):\n    return x.t()\n");
    let bench = Bench::new(&script, &[("x", FP32, &[2, 2])], &[("y", FP32, &[2, 2])]);
    let outputs = bench.run(vec![floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0])]).expect("it runs");
    assert_eq!(values(&outputs[0]), [1.0, 3.0, 2.0, 4.0]);
}

#[test]
fn strings_of_any_bytes_pass_in_and_out() {
    let script = Script::new(
        "def forward(self, x: List[str], n):\n    out: List[str] = []\n    for s in x:\n        out.append(s + s)\n    return out\n",
    );
    let bench = Bench::new(&script, &[("x", STRING, &[-1]), ("n", FP32, &[1])], &[("y", STRING, &[-1])]);
    let elements: [&[u8]; 3] = [b"a\0b", b"\xff\xfe", b""];
    let outputs = bench.run(vec![text(&[3], &elements), floats(&[1], &[0.0])]).expect("it runs");
    assert_eq!(outputs[0], text(&[3], &[b"a\0ba\0b", b"\xff\xfe\xff\xfe", b""]));
}

#[test]
fn strings_of_a_batch_keep_the_batch_dimension() {
    let script = Script::new("def forward(self, x: List[str]):\n    return x\n");
    let bench = Bench::new(&script, &[("x", STRING, &[1])], &[("y", STRING, &[1])]).batching(4);
    let member = |word: &[u8]| Member::new(1, vec![text(&[1, 1], &[word])]);
    let outputs = run(&mut *bench.instance(), vec![member(b"one"), member(b"two")]).expect("it runs");
    assert_eq!(outputs, [[text(&[1, 1], &[b"one"])], [text(&[1, 1], &[b"two"])]]);
}

#[test]
fn an_operator_that_frees_its_scratch_memory_by_a_bare_pointer_runs() {
    let script = Script::new("def forward(self, x):\n    return torch.gelu(x)\n");
    let bench = Bench::new(&script, &[("x", FP32, &[-1])], &[("y", FP32, &[-1])]);
    let zeros = vec![0.0; 1 << 20];
    let outputs = bench.run(vec![floats(&[1 << 20], &zeros)]).expect("it runs");
    assert_eq!(values(&outputs[0]), zeros);
}
