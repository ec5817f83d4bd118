//! Loading: what a file fills in, what it must fit, and how it is run.

use super::*;
use crate::error::Kind;

fn completed(bench: &Bench) -> Result<schema::ModelConfig> {
    let mut config = schema::ModelConfig { name: "m".to_owned(), ..Default::default() };
    Onnx::default().complete(&bench.files(), &mut config)?;
    Ok(config)
}

#[test]
fn a_configuration_is_filled_in_from_the_file() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty()
        .input("X", file::FP32, &[-1, 3])
        .input("S", file::STRING, &[-1, -1])
        .input("W", file::FP32, &[3])
        .constant("W", &[3], &[1.0, 2.0, 3.0])
        .node("Mul", &["X", "W"], "Y")
        .node("Identity", &["S"], "T")
        .output("Y", file::FP32, &[-1, 3])
        .output("T", file::STRING, &[-1, -1]);
    let config = completed(&Bench::new(graph, &[], &[])).expect("it can be");
    assert_eq!((config.backend.as_str(), config.platform.as_str()), ("onnxruntime", "onnxruntime_onnx"));
    assert_eq!(config.max_batch_size, 4);
    let inputs: Vec<_> =
        config.input.iter().map(|each| (each.name.as_str(), each.data_type(), &each.dims[..])).collect();
    let outputs: Vec<_> =
        config.output.iter().map(|each| (each.name.as_str(), each.data_type(), &each.dims[..])).collect();
    let (numbers, text) = (schema::DataType::TypeFp32, schema::DataType::TypeString);
    assert_eq!(inputs, [("X", numbers, &[3][..]), ("S", text, &[-1])]);
    assert_eq!(outputs, [("Y", numbers, &[3][..]), ("T", text, &[-1])]);
}

#[test]
fn a_list_is_no_output() {
    if !library_is_there() {
        return;
    }
    let graph = Graph::empty().input("X", file::FP32, &[-1]).node("SequenceConstruct", &["X"], "L").list("L");
    let bench = Bench::new(graph, &[("X", FP32, &[-1])], &[("L", FP32, &[-1])]);
    let error = completed(&bench).expect_err("a list cannot be sent");
    assert!(error.message().contains("'L' has type Sequence<"), "{error}");
    let error = bench.load_error();
    assert!(error.contains("output 'L' has type Sequence<"), "{error}");
}

#[test]
fn a_file_that_is_none_is_told() {
    if !library_is_there() {
        return;
    }
    let bench = Bench::doubled();
    let path = bench.files().model_file.expect("it has one");
    let whole = std::fs::read(&path).expect("it is there");
    for broken in [&b""[..], b"nonsense", &whole[..whole.len() / 2]] {
        std::fs::write(&path, broken).expect("the folder is writable");
        let error = bench.load_error();
        assert!(error.starts_with("failed to load model 'm': onnx runtime error: "), "{error}");
        assert!(!error.contains(&*bench.folder.path().to_string_lossy()), "{error}");
        assert!(completed(&bench).is_err());
    }
    std::fs::remove_file(&path).expect("it is there");
    assert!(bench.load_error().ends_with("/model.onnx' for model 'm'"));
}

#[test]
fn what_the_configuration_says_must_fit_the_file() {
    if !library_is_there() {
        return;
    }
    let mut bench = Bench::doubled();
    bench.config.outputs = specs(&[("Y", DataType::Int64, &[-1])]);
    assert!(bench.load_error().contains("expects datatype TYPE_INT64 for output 'Y', model provides TYPE_FP32"));
    bench.config.outputs = specs(&[("Z", FP32, &[-1])]);
    assert!(bench.load_error().contains("unexpected inference output 'Z', allowed outputs are: Y"));
    let mut bench = Bench::doubled();
    bench.config.instances = vec![Instances::new("m", Device::Cuda(0), 1)];
    assert!(bench.load_error().contains("run on the CPU only"));
}

#[test]
fn every_parameter_leaves_the_numbers_as_they_are() {
    if !library_is_there() {
        return;
    }
    for (key, value) in [
        ("intra_op_thread_count", "3"),
        ("execution_mode", "1"),
        ("inter_op_thread_count", "2"),
        ("enable_mem_arena", "0"),
        ("enable_mem_pattern", "0"),
        ("memory.enable_memory_arena_shrinkage", "cpu:0"),
        ("session.use_device_allocator_for_initializers", "1"),
        ("session.intra_op.allow_spinning", "1"),
    ] {
        let bench = Bench::doubled().parameter("execution_mode", "1").parameter(key, value);
        let outputs = bench.run(vec![floats(&[1, 2], &[1.0, 2.0])]).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(values(&outputs[0]), [2.0, 4.0], "{key}");
    }
    assert!(Bench::doubled().parameter("execution_mode", "x").load_error().contains("expected 0 or 1"));
}

#[test]
fn the_footprint_is_that_of_all_files_of_the_version() {
    let bench = Bench::doubled();
    let file = Graph::doubled().file().len() as u64;
    let estimate = || Onnx::default().estimate(&bench.files(), &bench.config).expect("it is there").bytes;
    assert_eq!(estimate()[&Device::Cpu], file);
    std::fs::write(bench.folder.path().join("weights.bin"), [0; 1000]).expect("the folder is writable");
    assert_eq!(estimate()[&Device::Cpu], file + 1000);
}

#[test]
fn a_missing_file_is_told_before_the_library_is_asked_for() {
    let bench = Bench::doubled();
    std::fs::remove_file(bench.folder.path().join("model.onnx")).expect("it is there");
    let error = Onnx::default().estimate(&bench.files(), &bench.config).expect_err("it is gone");
    assert_eq!(error.kind(), Kind::Unavailable);
}
