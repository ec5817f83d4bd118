//! Executions: what goes in and comes out, and whose memory it is in.

use std::thread;

use super::file::STRING;
use super::*;
use crate::error::Kind;
use crate::tensor::strings;

#[test]
fn each_member_of_a_batch_gets_its_own_rows() {
    if !library_is_there() {
        return;
    }
    let mut instance = Bench::doubled().instance();
    let members = vec![
        Member::new(1, vec![floats(&[1, 2], &[1.0, 2.0])]),
        Member::new(2, vec![floats(&[2, 2], &[3.0, 4.0, 5.0, 6.0])]),
    ];
    let outputs = run(&mut *instance, members).expect("it runs");
    assert_eq!(
        outputs.iter().map(|each| values(&each[0])).collect::<Vec<_>>(),
        [vec![2.0, 4.0], vec![6.0, 8.0, 10.0, 12.0]]
    );
    assert_eq!(&*outputs[1][0].shape, &[2, 2]);
    let longer = run(&mut *instance, vec![Member::new(1, vec![floats(&[1, 3], &[1.0, 1.0, 1.0])])]);
    assert_eq!(values(&longer.expect("another length")[0][0]), [2.0; 3]);
}

#[test]
fn weights_are_the_files() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty()
        .input("X", file::FP32, &[-1, 2])
        .constant("W", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .node("MatMul", &["X", "W"], "Y")
        .output("Y", file::FP32, &[-1, 3]);
    let bench = Bench::new(graph, &[("X", FP32, &[2])], &[("Y", FP32, &[3])]).batching(4);
    let outputs = bench.run(vec![floats(&[2, 2], &[1.0, 0.0, 1.0, 1.0])]).expect("it runs");
    assert_eq!(values(&outputs[0]), [1.0, 2.0, 3.0, 5.0, 7.0, 9.0]);
}

#[test]
fn every_element_type_passes_unchanged() {
    if !library_is_there() {
        return;
    }
    // ONNX's numbers of the types.
    let types = [9, 2, 4, 12, 13, 3, 5, 6, 7, 10, 16, 1, 11, 8];
    for (dtype, element) in DataType::ALL.into_iter().zip(types) {
        let graph =
            Graph::empty().input("X", element, &[-1, 2]).node("Identity", &["X"], "Y").output("Y", element, &[-1, 2]);
        let bench = Bench::new(graph, &[("X", dtype, &[2])], &[("Y", dtype, &[2])]).batching(4);
        let data = match dtype.size() {
            Some(size) => Bytes::from((0..4 * size as u8).map(|byte| byte % 2).collect::<Vec<u8>>()),
            None => strings::encode([&b"one"[..], b"", b"\0two\xff", "öäü".as_bytes()]),
        };
        let tensor = Tensor::new(dtype, Shape::new(&[2, 2]), data);
        let outputs = bench.run(vec![tensor.clone()]).expect("it runs");
        assert_eq!(outputs, std::slice::from_ref(&tensor));
        // The same as a batch of two.
        let members = Batch::new(vec![Member::new(2, vec![tensor.clone()]), Member::new(2, vec![tensor.clone()])]);
        let outputs = run(&mut *bench.instance(), members.members).expect("it runs");
        assert_eq!(outputs, [[tensor.clone()], [tensor]]);
    }
}

#[test]
fn an_input_is_read_where_it_is_and_never_written_to() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty().input("X", file::FP32, &[-1]).node("Relu", &["X"], "A").node("Neg", &["A"], "Y").output(
        "Y",
        file::FP32,
        &[-1],
    );
    let bench = Bench::new(graph, &[("X", FP32, &[-1])], &[("Y", FP32, &[-1])]);
    let input = floats(&[3], &[-1.0, 2.0, -3.0]);
    let outputs = bench.run(vec![input.clone()]).expect("it runs");
    assert_eq!(values(&outputs[0]), [0.0, -2.0, 0.0]);
    assert_eq!(values(&input), [-1.0, 2.0, -3.0]);
}

#[test]
fn an_output_that_is_an_input_is_the_requests_own_memory() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty()
        .input("X", file::FP32, &[-1])
        .node("Neg", &["X"], "Y")
        .output("X", file::FP32, &[-1])
        .output("Y", file::FP32, &[-1]);
    let bench = Bench::new(graph, &[("X", FP32, &[-1])], &[("X", FP32, &[-1]), ("Y", FP32, &[-1])]);
    let input = floats(&[2], &[1.0, 2.0]);
    let outputs = bench.run(vec![input.clone()]).expect("it runs");
    assert_eq!(outputs[0].data.as_ptr(), input.data.as_ptr());
    drop(bench);
    drop(input);
    assert_eq!((values(&outputs[0]), values(&outputs[1])), (vec![1.0, 2.0], vec![-1.0, -2.0]));
}

#[test]
fn unaligned_bytes_are_copied_and_give_the_same_numbers() {
    if !library_is_there() {
        return;
    }
    let bench = Bench::doubled();
    let mut bytes = vec![0; 3];
    bytes.extend_from_slice(&floats(&[1, 2], &[1.5, 2.5]).data);
    for cut in 0..4 {
        let mut shifted = vec![0; cut];
        shifted.extend_from_slice(&bytes[3..]);
        let data = Bytes::from(shifted).slice(cut..);
        let outputs = bench.run(vec![Tensor::new(FP32, Shape::new(&[1, 2]), data)]).expect("it runs");
        assert_eq!(values(&outputs[0]), [3.0, 5.0]);
    }
}

#[test]
fn outputs_outlive_the_model() {
    if !library_is_there() {
        return;
    }
    let (large, bench) = (vec![1.0; 100_000], Bench::doubled());
    let outputs = bench.run(vec![floats(&[1, 100_000], &large)]).expect("it runs");
    drop(bench);
    assert!(values(&outputs[0]).iter().all(|value| *value == 2.0));
}

#[test]
fn instances_run_one_session_at_the_same_time() {
    if !library_is_there() {
        return;
    }
    let model = Bench::doubled().open().expect("it loads");
    thread::scope(|scope| {
        for number in 0..4u8 {
            let model = &model;
            scope.spawn(move || {
                let mut instance = model.instance(Device::Cpu).expect("it starts");
                for round in 0..100u8 {
                    let value = f32::from(number) * 1000.0 + f32::from(round);
                    let input = floats(&[1, 300], &[value; 300]);
                    let outputs = run(&mut *instance, vec![Member::new(1, vec![input])]).expect("it runs");
                    assert_eq!(values(&outputs[0][0]), [2.0 * value; 300]);
                }
            });
        }
    });
}

#[test]
fn an_input_with_a_default_can_be_left_out() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty()
        .input("X", file::FP32, &[-1, 2])
        .input("B", file::FP32, &[-1, 2])
        .constant("B", &[1, 2], &[10.0, 20.0])
        .node("Add", &["X", "B"], "Y")
        .output("Y", file::FP32, &[-1, 2]);
    let mut bench = Bench::new(graph, &[("X", FP32, &[2]), ("B", FP32, &[2])], &[("Y", FP32, &[2])]).batching(4);
    bench.config.inputs[1].optional = true;
    let x = floats(&[1, 2], &[1.0, 2.0]);
    let outputs = bench.run(vec![x.clone(), Tensor::absent()]).expect("it runs without");
    assert_eq!(values(&outputs[0]), [11.0, 22.0]);
    let outputs = bench.run(vec![x.clone(), x]).expect("it runs with");
    assert_eq!(values(&outputs[0]), [2.0, 4.0]);
}

#[test]
fn a_scalar_is_one_dimension_of_one_for_callers() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty().input("X", file::FP32, &[]).node("Neg", &["X"], "Y").output("Y", file::FP32, &[]);
    let bench = Bench::new(graph, &[("X", FP32, &[1])], &[("Y", FP32, &[1])]);
    let outputs = bench.run(vec![floats(&[1], &[4.0])]).expect("it runs");
    assert_eq!((values(&outputs[0]), &*outputs[0].shape), (vec![-4.0], &[1][..]));
}

#[test]
fn what_the_library_refuses_fails_that_execution_only() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty()
        .input("X", file::FP32, &[-1, -1])
        .constant("W", &[2, 1], &[1.0, 1.0])
        .node("MatMul", &["X", "W"], "Y")
        .output("Y", file::FP32, &[-1, 1]);
    let bench = Bench::new(graph, &[("X", FP32, &[-1])], &[("Y", FP32, &[1])]).batching(4);
    let mut instance = bench.instance();
    let error = run(&mut *instance, vec![Member::new(1, vec![floats(&[1, 3], &[1.0; 3])])]).expect_err("3 is not 2");
    assert_eq!(error.kind(), Kind::Backend);
    assert!(error.message().starts_with("onnx runtime error: ") && !error.message().contains('\n'), "{error}");
    let outputs = run(&mut *instance, vec![Member::new(1, vec![floats(&[1, 2], &[1.0; 2])])]).expect("it lives");
    assert_eq!(values(&outputs[0][0]), [2.0]);
}

#[test]
fn strings_of_no_number_are_none() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty().input("X", STRING, &[-1]).node("Identity", &["X"], "Y").output("Y", STRING, &[-1]);
    let bench = Bench::new(graph, &[("X", DataType::Bytes, &[-1])], &[("Y", DataType::Bytes, &[-1])]);
    let none = Tensor::new(DataType::Bytes, Shape::new(&[0]), Bytes::new());
    assert_eq!(bench.run(vec![none.clone()]).expect("it runs"), [none]);
}
