//! The backend from its seam down, with models made from source text.

mod forms;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::LibTorch;
use super::handle::{Handle, Module};
use super::script::Script;
use crate::backend::{Backend, Instance, Model, Replies};
use crate::error::{Error, Kind, Result};
use crate::model::{Device, Instances, ModelConfig, TensorSpec, VersionFiles, schema};
use crate::tensor::{Batch, DataType, Member, Shape, Tensor, strings};

/// A model in a folder of its own, and its configuration.
struct Bench {
    folder: tempfile::TempDir,
    config: ModelConfig,
}

impl Bench {
    fn new(script: &Script, inputs: &[(&str, DataType, &[i64])], outputs: &[(&str, DataType, &[i64])]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        script.save(&folder.path().join("model.pt")).expect("the script compiles");
        Self { folder, config: config(inputs, outputs) }
    }

    fn parameter(mut self, key: &str, value: &str) -> Self {
        self.config.parameters.insert(key.to_owned(), value.to_owned());
        self
    }

    fn batching(mut self, rows: usize) -> Self {
        self.config.max_batch_rows = rows;
        self
    }

    fn decoupled(mut self) -> Self {
        self.config.decoupled = true;
        self
    }

    fn instances(mut self, count: usize) -> Self {
        self.config.instances[0].count = count;
        self
    }

    fn files(&self) -> VersionFiles {
        files(self.folder.path())
    }

    fn open(&self) -> Result<Arc<dyn Model>> {
        LibTorch.open(&self.files(), &self.config)
    }

    fn instance(&self) -> Box<dyn Instance> {
        self.open().expect("the model loads").instance(Device::Cpu).expect("an instance starts")
    }

    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        run(&mut *self.instance(), vec![Member { rows: 1, inputs }]).map(|mut outputs| outputs.remove(0))
    }

    /// The responses of a decoupled model, of which at most `taken_max` are taken, and whether the last said so.
    fn responses(&self, inputs: Vec<Tensor>, taken_max: Option<usize>) -> Result<(Vec<Vec<Tensor>>, bool)> {
        let batch = Batch::new(vec![Member { rows: 1, inputs }]);
        let mut collected = Collected { taken_max, ..Collected::default() };
        self.instance().run(&batch, &mut collected)?;
        Ok((collected.outputs, collected.ended))
    }

    fn failure(&self, inputs: Vec<Tensor>) -> Error {
        self.run(inputs).expect_err("the execution fails")
    }

    fn load_error(&self) -> String {
        match self.open() {
            Ok(_) => panic!("the model must not load"),
            Err(error) => error.message().to_owned(),
        }
    }
}

fn files(folder: &Path) -> VersionFiles {
    VersionFiles {
        model_dir: folder.to_owned(),
        version_dir: folder.to_owned(),
        model_file: Some(folder.join("model.pt")),
    }
}

fn specs(all: &[(&str, DataType, &[i64])]) -> Vec<TensorSpec> {
    let spec =
        |(name, dtype, dims): &(&str, DataType, &[i64])| TensorSpec::new(*name, Some(*dtype), Some(Shape::new(dims)));
    all.iter().map(spec).collect()
}

fn config(inputs: &[(&str, DataType, &[i64])], outputs: &[(&str, DataType, &[i64])]) -> ModelConfig {
    ModelConfig {
        inputs: specs(inputs),
        outputs: specs(outputs),
        instances: vec![Instances::new("m", Device::Cpu, 1)],
        ..ModelConfig::new("m", "pytorch")
    }
}

/// Collects what an instance replies, member by member; of a decoupled model, response by response.
#[derive(Default)]
struct Collected {
    outputs: Vec<Vec<Tensor>>,
    /// Whether the last response said so.
    ended: bool,
    /// The most responses that are taken.
    taken_max: Option<usize>,
    phases: Vec<&'static str>,
    batch: Batch,
}

impl Replies for Collected {
    fn inputs_ready(&mut self) {
        self.phases.push("inputs");
    }

    fn outputs_ready(&mut self) {
        self.phases.push("outputs");
    }

    fn batch(&mut self, outputs: Vec<Tensor>) -> Result<()> {
        self.outputs = vec![Vec::new(); self.batch.members.len()];
        for (index, output) in outputs.into_iter().enumerate() {
            let parts = self.batch.split(index, output)?;
            self.outputs.iter_mut().zip(parts).for_each(|(member, part)| member.push(part));
        }
        Ok(())
    }

    fn member(&mut self, index: usize, outputs: Vec<Tensor>) -> Result<()> {
        assert_eq!(index, 0, "ordinary models reply with whole batches, decoupled ones have one member");
        self.outputs.push(outputs);
        self.ended = true;
        Ok(())
    }

    fn send(&mut self, index: usize, outputs: Vec<Tensor>) -> Result<()> {
        assert_eq!(index, 0);
        if self.taken_max == Some(self.outputs.len()) {
            return Err(Error::new(Kind::Cancelled, ""));
        }
        self.outputs.push(outputs);
        Ok(())
    }

    fn pause(&mut self, _index: usize, _time: Duration) -> Result<()> {
        unreachable!("this backend is as fast as it can be");
    }
}

fn run(instance: &mut dyn Instance, members: Vec<Member>) -> Result<Vec<Vec<Tensor>>> {
    let batch = Batch::new(members);
    let mut collected = Collected { batch: batch.clone(), ..Collected::default() };
    instance.run(&batch, &mut collected)?;
    assert_eq!(collected.phases, ["inputs", "outputs"]);
    Ok(collected.outputs)
}

fn floats(shape: &[i64], values: &[f32]) -> Tensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    Tensor { dtype: DataType::Fp32, shape: Shape::new(shape), data: data.into() }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype, DataType::Fp32);
    tensor.data.as_chunks::<4>().0.iter().map(|each| f32::from_le_bytes(*each)).collect()
}

fn text(shape: &[i64], elements: &[&[u8]]) -> Tensor {
    Tensor { dtype: DataType::Bytes, shape: Shape::new(shape), data: strings::encode(elements.iter().copied()) }
}

const FP32: DataType = DataType::Fp32;
const STRING: DataType = DataType::Bytes;
const IDENTITY: &str = "def forward(self, x):\n    return x\n";

#[test]
fn every_tensor_type_passes_through_unchanged() {
    for dtype in DataType::ALL.into_iter().filter(|dtype| *dtype != DataType::Bytes) {
        let bench = Bench::new(&Script::new(IDENTITY), &[("x", dtype, &[3])], &[("y", dtype, &[3])]);
        let size = dtype.size().expect("not strings");
        let data: Vec<u8> = (0..3 * size).map(|index| u8::from(index % size == 0)).collect();
        let input = Tensor { dtype, shape: Shape::new(&[3]), data: data.into() };
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
        Member { rows: 1, inputs: vec![floats(&[1, 2], &[1.0, 2.0])] },
        Member { rows: 2, inputs: vec![floats(&[2, 2], &[3.0, 4.0, 5.0, 6.0])] },
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
    let member = |word: &[u8]| Member { rows: 1, inputs: vec![text(&[1, 1], &[word])] };
    let outputs = run(&mut *bench.instance(), vec![member(b"one"), member(b"two")]).expect("it runs");
    assert_eq!(outputs, [[text(&[1, 1], &[b"one"])], [text(&[1, 1], &[b"two"])]]);
}

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

#[test]
fn what_a_model_raises_fails_the_execution_and_nothing_else() {
    let script = Script::new("def forward(self, x):\n    assert bool(x[0] <= 0), \"too large\"\n    return x\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    let mut instance = bench.instance();
    let member = |value| vec![Member { rows: 1, inputs: vec![floats(&[1], &[value])] }];
    let error = run(&mut *instance, member(1.0)).expect_err("it raises");
    assert_eq!(error.kind(), Kind::Backend);
    assert!(error.message().starts_with("PyTorch execute failure: "), "{error}");
    assert!(error.message().contains("too large"), "{error}");
    assert!(!error.message().contains('\n') && !error.message().contains("HERE"), "{error}");
    assert!(run(&mut *instance, member(0.0)).is_ok(), "the instance lives on");
}

#[test]
fn shapes_that_do_not_fit_are_the_models_error() {
    let script = Script::new("def forward(self, a, b):\n    return torch.matmul(a, b)\n");
    let bench = Bench::new(&script, &[("a", FP32, &[-1, -1]), ("b", FP32, &[-1, -1])], &[("y", FP32, &[-1])]);
    let error = bench.failure(vec![floats(&[1, 2], &[0.0; 2]), floats(&[3, 1], &[0.0; 3])]);
    assert!(error.message().contains("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x1)"), "{error}");
}

#[test]
fn an_output_of_another_type_is_refused() {
    let bench = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[1])], &[("y", DataType::Int64, &[1])]);
    let error = bench.failure(vec![floats(&[1], &[0.0])]);
    assert_eq!(error.message(), "configuration expects datatype TYPE_INT64 for output 'y', model provides TYPE_FP32");
}

#[test]
fn an_output_that_is_no_tensor_is_refused() {
    let script = Script::new("def forward(self, x):\n    return 3\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    let error = bench.failure(vec![floats(&[1], &[0.0])]);
    assert_eq!(error.message(), "output at index 0 must be of type Tensor or List[str], received Int");
    let script = Script::new("def forward(self, x):\n    return x.sum()\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    assert_eq!(bench.failure(vec![floats(&[1], &[0.0])]).message(), "output 'y' is a scalar which is not supported.");
}

#[test]
fn an_output_of_other_rows_than_the_batch_is_refused() {
    let script = Script::new("def forward(self, x):\n    return x[:1]\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]).batching(4);
    let member = || Member { rows: 1, inputs: vec![floats(&[1, 1], &[0.0])] };
    let error = run(&mut *bench.instance(), vec![member(), member()]).expect_err("one row for two");
    assert!(error.message().contains("has shape [1,1] for a batch of 2"), "{error}");
}

#[test]
fn a_configuration_that_does_not_fit_forward_does_not_load() {
    let two = Script::new("def forward(self, a, b):\n    return a\n");
    let one = &[("a", FP32, &[1_i64] as &[i64])];
    assert_eq!(
        Bench::new(&two, one, one).load_error(),
        "unable to load model 'm', configuration expects 1 inputs, model provides 2"
    );
    let identity = Script::new(IDENTITY);
    assert_eq!(
        Bench::new(&identity, one, &[("OUTPUT__3", FP32, &[1])]).load_error(),
        "The output OUTPUT__3 in the model configuration refers to an output index which doesn't exist. This model has \
         1 outputs"
    );
    let number = Script::new("def forward(self, x: int):\n    return torch.zeros([x])\n");
    assert!(
        Bench::new(&number, one, one).load_error().starts_with("An input of type 'int' was detected in the model.")
    );
}

#[test]
fn a_file_that_is_missing_or_broken_does_not_load() {
    let bench = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    let path = bench.folder.path().join("model.pt");
    std::fs::write(&path, "not a model").expect("writable");
    let error = bench.load_error();
    assert!(error.starts_with("failed to load model 'm': "), "{error}");
    std::fs::remove_file(&path).expect("removable");
    assert!(bench.load_error().starts_with("unable to find 'm/"), "{}", bench.load_error());
}

fn weighted() -> Script {
    let weights = floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    Script::new("def forward(self, x):\n    return torch.relu(torch.matmul(x, self.linear_weight))\n")
        .parameter("linear.weight", weights)
}

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
            let member = Member { rows: 1, inputs: vec![floats(&[1], &[0.0])] };
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
    let estimate = LibTorch.estimate(&bench.files(), &bench.config).expect("the file is there");
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
        let member = Member { rows: 1, inputs: vec![floats(&[1], &[1.0])] };
        run(&mut *instances[index], vec![member]).expect("it runs").remove(0).remove(0)
    };
    let first = count(0);
    assert_eq!(values(&count(0)), [2.0]);
    assert_eq!(values(&count(1)), [1.0]);
    assert_eq!(values(&first), [1.0], "a response is not changed by later executions");
    assert_eq!(model.footprint().bytes[&Device::Cpu], 8);
}

/// Whether a model with weight `w` and these methods is taken to write to its inputs and to its state.
fn effects(source: &str) -> (bool, bool) {
    let script = Script::new(source).parameter("w", floats(&[1], &[1.0]));
    let bench = Bench::new(&script, &[], &[]);
    let module = Module::load(&bench.folder.path().join("model.pt"), Device::Cpu).expect("it loads");
    let effects = module.effects().expect("the graph can be analysed");
    (effects.inputs, effects.state)
}

#[test]
fn what_forward_writes_to_is_known() {
    let body = |lines: &str| format!("def forward(self, x):\n{lines}    return x + self.w\n");
    assert_eq!(effects(&body("")), (false, false), "nothing");
    assert_eq!(effects(&body("    y = x + 1\n    y.add_(1)\n")), (false, false), "something new");
    assert_eq!(effects(&body("    x.add_(1)\n")), (true, false), "an input");
    assert_eq!(effects(&body("    x.view(-1)[0].add_(1)\n")), (true, false), "a view of an input");
    assert!(effects(&body("    self.w.add_(1)\n")).1, "a weight");
    assert!(effects(&body("    self.w.view(-1).add_(1)\n")).1, "a view of a weight");
    assert_eq!(effects(&body("    [x, self.w][1].add_(1)\n")), (true, true), "an element of a list of both");
    assert!(effects(&body("    for y in [self.w, self.w]:\n        y.add_(1)\n")).1, "a weight in a list");
    assert!(effects(&body("    y = x if bool(x.sum() > 0) else self.w\n    y.add_(1)\n")).1, "one or the other");
    let new = "    out: List[Tensor] = []\n    for i in range(3):\n        out.append(x)\n";
    assert_eq!(effects(&body(new)), (false, false), "a new list");
}

#[test]
fn a_write_to_an_element_of_a_dictionary_input_is_known() {
    let source = |line: &str| format!("def forward(self, x: Dict[str, Tensor]):\n{line}    return x[\"a\"] + self.w\n");
    assert_eq!(effects(&source("")), (false, false));
    assert_eq!(effects(&source("    x[\"a\"].add_(1)\n")), (true, false));
    assert_eq!(effects(&source("    x[\"b\"] = x[\"a\"]\n")), (true, false));
}

#[test]
fn a_write_to_an_element_of_a_list_that_the_module_holds_is_known() {
    let held = |source: &str| {
        let mut module = Module::new("Model").expect("libtorch is there");
        let weight = floats(&[1], &[1.0]);
        module.register_list("cache", &Handle::over(FP32, &weight.shape, &weight.data).expect("it fits")).expect("new");
        module.define(source).expect("it compiles");
        let effects = module.effects().expect("the graph can be analysed");
        (effects.inputs, effects.state)
    };
    assert_eq!(held("def forward(self, x):\n    return x + self.cache[0]\n"), (false, false));
    assert!(held("def forward(self, x):\n    self.cache[0].add_(x)\n    return self.cache[0]\n").1);
    assert!(held("def forward(self, x):\n    self.cache.append(x)\n    return x\n").1);
}

#[test]
fn an_absurd_allocation_fails_its_execution_only() {
    let script = Script::new(
        "def forward(self, x):\n    n = int(x[0].item())\n    if n == 1:\n        return torch.empty([4611686018427])\n    \
         if n == 2:\n        return x.expand([4611686018427])\n    return x\n",
    );
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[-1])]);
    let mut instance = bench.instance();
    let mut run = |which: f32| {
        run(&mut *instance, vec![Member { rows: 1, inputs: vec![floats(&[1], &[which])] }])
            .map(|outputs| values(&outputs[0][0]))
    };
    for which in [1.0, 2.0] {
        let error = run(which).expect_err("no machine has 18 TB");
        assert_eq!(error.kind(), Kind::Backend);
        let expected = "not enough memory: you tried to allocate 18446744073708 bytes of at most";
        assert!(error.message().contains(expected), "{error}");
        assert_eq!(run(0.0).expect("it runs on"), [0.0]);
    }
}

#[test]
fn an_operator_that_frees_its_scratch_memory_by_a_bare_pointer_runs() {
    let script = Script::new("def forward(self, x):\n    return torch.gelu(x)\n");
    let bench = Bench::new(&script, &[("x", FP32, &[-1])], &[("y", FP32, &[-1])]);
    let zeros = vec![0.0; 1 << 20];
    let outputs = bench.run(vec![floats(&[1 << 20], &zeros)]).expect("it runs");
    assert_eq!(values(&outputs[0]), zeros);
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

#[test]
fn a_configuration_is_completed_from_the_schema() {
    let script = Script::new("def forward(self, a, words: List[str], k: int = 1):\n    return a, words\n");
    let bench = Bench::new(&script, &[], &[]);
    let mut config = schema::ModelConfig { name: "m".to_owned(), ..Default::default() };
    LibTorch.complete(&bench.files(), &mut config).expect("the schema tells");
    assert_eq!((config.backend.as_str(), config.platform.as_str()), ("pytorch", "pytorch_libtorch"));
    let inputs: Vec<_> = config.input.iter().map(|input| (input.name.as_str(), input.data_type())).collect();
    assert_eq!(inputs, [("a", schema::DataType::TypeInvalid), ("words", schema::DataType::TypeString)]);
    let outputs: Vec<_> = config.output.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(outputs, ["OUTPUT__0", "OUTPUT__1"]);
}

#[test]
fn inspect_describes_a_file_and_offers_a_configuration() {
    let bench = Bench::new(&weighted(), &[], &[]);
    let text = super::inspect(&bench.folder.path().join("model.pt")).expect("it loads");
    assert!(text.contains("forward takes\n  x: Tensor\n"), "{text}");
    assert!(text.contains("parameters: 1, 16 bytes (TYPE_FP32)"), "{text}");
    assert!(text.contains("input {\n  # type and dims"), "{text}");
    assert!(text.contains("name: \"OUTPUT__0\""), "{text}");
}
