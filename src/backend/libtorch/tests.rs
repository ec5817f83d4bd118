//! The backend from its seam down, with models made from source text.

mod buffers;
mod convolution;
mod decoupled;
mod description;
mod effects;
mod forms;
mod instances;
mod mistakes;
mod names;
mod packages;
mod packed;
mod paging;
mod precision;
mod resident;
mod shared;
mod tensors;
mod weights;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::LibTorch;
use super::handle::Handle;
use super::module::Module;
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
        LibTorch::default().open(&self.files(), &self.config)
    }

    fn instance(&self) -> Box<dyn Instance> {
        self.open().expect("the model loads").instance(Device::Cpu).expect("an instance starts")
    }

    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        run(&mut *self.instance(), vec![Member::new(1, inputs)]).map(|mut outputs| outputs.remove(0))
    }

    /// The responses of a decoupled model, of which at most `taken_max` are taken, and whether the last said so.
    fn responses(&self, inputs: Vec<Tensor>, taken_max: Option<usize>) -> Result<(Vec<Vec<Tensor>>, bool)> {
        let batch = Batch::new(vec![Member::new(1, inputs)]);
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
    Tensor::new(DataType::Fp32, Shape::new(shape), data.into())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype, DataType::Fp32);
    tensor.data.as_chunks::<4>().0.iter().map(|each| f32::from_le_bytes(*each)).collect()
}

fn text(shape: &[i64], elements: &[&[u8]]) -> Tensor {
    Tensor::new(DataType::Bytes, Shape::new(shape), strings::encode(elements.iter().copied()))
}

const FP32: DataType = DataType::Fp32;
const STRING: DataType = DataType::Bytes;
const IDENTITY: &str = "def forward(self, x):\n    return x\n";

/// A model with weights.
fn weighted() -> Script {
    let weights = floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    Script::new("def forward(self, x):\n    return torch.relu(torch.matmul(x, self.linear_weight))\n")
        .parameter("linear.weight", weights)
}
