//! The libtorch backend against `tch`, an independent way to libtorch: the same files, the same inputs, the same bits.
//!
//! Only tests link against libtorch; the server finds it when it runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nereid::backend::libtorch::LibTorch;
use nereid::backend::libtorch::script::Script;
use nereid::backend::{Backend, Replies};
use nereid::error::Result;
use nereid::model::{Device, Instances, ModelConfig, TensorSpec, VersionFiles};
use nereid::tensor::{Batch, DataType, Member, Shape, Tensor};
use tch::{CModule, IValue, Kind};

/// The types that `tch` has a name for.
const KINDS: [(DataType, Kind); 10] = [
    (DataType::Bool, Kind::Bool),
    (DataType::Uint8, Kind::Uint8),
    (DataType::Int8, Kind::Int8),
    (DataType::Int16, Kind::Int16),
    (DataType::Int32, Kind::Int),
    (DataType::Int64, Kind::Int64),
    (DataType::Fp16, Kind::Half),
    (DataType::Bf16, Kind::BFloat16),
    (DataType::Fp32, Kind::Float),
    (DataType::Fp64, Kind::Double),
];

struct Outputs(Vec<Tensor>);

impl Replies for Outputs {
    fn inputs_ready(&mut self) {}

    fn outputs_ready(&mut self) {}

    fn batch(&mut self, outputs: Vec<Tensor>) -> Result<()> {
        self.0 = outputs;
        Ok(())
    }

    fn member(&mut self, _index: usize, _outputs: Vec<Tensor>) -> Result<()> {
        unreachable!("this backend replies with whole batches");
    }

    fn send(&mut self, _index: usize, _outputs: Vec<Tensor>) -> Result<()> {
        unreachable!("the model is not decoupled");
    }

    fn pause(&mut self, _index: usize, _time: Duration) -> Result<()> {
        unreachable!("the model is not decoupled");
    }
}

fn specs(prefix: &str, count: usize) -> Vec<TensorSpec> {
    let spec = |index| TensorSpec::new(format!("{prefix}__{index}"), None, None);
    (0..count).map(spec).collect()
}

/// What the backend returns for `file`, through the seam.
fn by_backend(file: &Path, inputs: &[Tensor], outputs: usize) -> Vec<Tensor> {
    let config = ModelConfig {
        inputs: specs("INPUT", inputs.len()),
        outputs: specs("OUTPUT", outputs),
        instances: vec![Instances::new("oracle", Device::Cpu, 1)],
        // Both sides compute with one thread and without rearranging, so that there is one order of additions.
        parameters: [("INTRA_OP_THREAD_COUNT", "1"), ("torch.optimize", "off")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..ModelConfig::new("oracle", "pytorch")
    };
    let folder = file.parent().expect("a file lies in a folder").to_owned();
    let files = VersionFiles { model_dir: folder.clone(), version_dir: folder, model_file: Some(file.to_owned()) };
    let model = LibTorch::default().open(&files, &config).expect("the model loads");
    let mut instance = model.instance(Device::Cpu).expect("an instance starts");
    let batch = Batch::new(vec![Member::new(1, inputs.to_vec())]);
    let mut collected = Outputs(Vec::new());
    instance.run(&batch, &mut collected).expect("the model runs");
    collected.0
}

/// What `tch` returns for `file`.
fn by_tch(file: &Path, inputs: &[Tensor]) -> Vec<Tensor> {
    tch::set_num_threads(1);
    let module = CModule::load(file).expect("tch loads the file");
    let inputs: Vec<IValue> = inputs.iter().map(|input| IValue::Tensor(to_tch(input))).collect();
    let returned = tch::no_grad(|| module.forward_is(&inputs)).expect("tch runs the model");
    match returned {
        IValue::Tensor(tensor) => vec![from_tch(&tensor)],
        IValue::Tuple(values) => values
            .iter()
            .map(|value| match value {
                IValue::Tensor(tensor) => from_tch(tensor),
                other => panic!("not a tensor: {other:?}"),
            })
            .collect(),
        other => panic!("neither tensor nor tuple: {other:?}"),
    }
}

fn to_tch(tensor: &Tensor) -> tch::Tensor {
    let kind = KINDS.iter().find(|(dtype, _)| *dtype == tensor.dtype).expect("a type that tch has").1;
    tch::Tensor::f_from_data_size(&tensor.data, &tensor.shape, kind).expect("the bytes fit the shape")
}

fn from_tch(tensor: &tch::Tensor) -> Tensor {
    let kind = tensor.f_kind().expect("a type that tch has");
    let dtype = KINDS.iter().find(|(_, each)| *each == kind).expect("a type of the protocol").0;
    let mut data = vec![0; tensor.numel() * dtype.size().expect("not strings")];
    tensor.contiguous().f_copy_data_u8(&mut data, tensor.numel()).expect("the elements fit");
    Tensor::new(dtype, Shape::new(&tensor.size()), data.into())
}

fn assert_same_bits(file: &Path, inputs: &[Tensor]) {
    let expected = by_tch(file, inputs);
    let got = by_backend(file, inputs, expected.len());
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(&expected) {
        assert_eq!((got.dtype, &got.shape), (expected.dtype, &expected.shape));
        assert!(got.data == expected.data, "{file:?}: {} {} differs", got.dtype, got.shape);
    }
}

fn numbers<T: Copy, const SIZE: usize>(
    dtype: DataType,
    shape: &[i64],
    number: impl Fn(usize) -> T,
    bytes: fn(T) -> [u8; SIZE],
) -> Tensor {
    let shape = Shape::new(shape);
    let elements = shape.elements().expect("a small shape");
    let data: Vec<u8> = (0..elements).flat_map(|index| bytes(number(index))).collect();
    Tensor::new(dtype, shape, data.into())
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model_repository").join(path)
}

#[test]
fn add_sub_has_the_same_bits() {
    let left = numbers(DataType::Fp32, &[3, 16], |index| (index as f32).sqrt(), f32::to_le_bytes);
    let right = numbers(DataType::Fp32, &[3, 16], |index| 1.0 / (index as f32 + 0.3), f32::to_le_bytes);
    for version in ["1", "2"] {
        let file = repository("add_sub").join(version).join("model.pt");
        assert_same_bits(&file, &[left.clone(), right.clone()]);
    }
}

#[test]
fn every_type_that_both_have_has_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let file = folder.path().join("model.pt");
    let source = "def forward(self, x):\n    y = x.flip([0])\n    return torch.cat([x, y]), x.t(), x * y, x == y\n";
    Script::new(source).save(&file).expect("the script compiles");
    for (dtype, _) in KINDS {
        let size = dtype.size().expect("not strings");
        let byte = |index: usize| if dtype == DataType::Bool { (index % 2) as u8 } else { (index * 37 % 60) as u8 };
        let data: Vec<u8> = (0..6 * size).map(byte).collect();
        assert_same_bits(&file, &[Tensor::new(dtype, Shape::new(&[3, 2]), data.into())]);
    }
}

#[test]
fn the_sentence_encoder_has_the_same_bits() {
    let file = repository("minilm/1/model.pt");
    // `make test` prepares it; a bare `cargo test` may come before that.
    if !file.exists() {
        return;
    }
    let ids = numbers(DataType::Int64, &[2, 24], |index| 1000 + index as i64 * 37, i64::to_le_bytes);
    let mask = numbers(DataType::Int64, &[2, 24], |index| i64::from(index < 40), i64::to_le_bytes);
    assert_same_bits(&file, &[ids, mask]);
}
