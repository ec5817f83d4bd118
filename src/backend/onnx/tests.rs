//! The backend from its seam down, with model files made here.

mod file;
mod load;
mod run;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::file::Graph;
use super::{Onnx, runtime};
use crate::backend::{Backend, Instance, Model, Replies};
use crate::error::Result;
use crate::model::{Device, Instances, ModelConfig, TensorSpec, VersionFiles, schema};
use crate::tensor::{Batch, DataType, Member, Shape, Tensor};

const FP32: DataType = DataType::Fp32;

/// Whether the library is there. If it is not, the test that asks ends at once and says so where nobody captures it.
fn library_is_there() -> bool {
    let Err(error) = runtime::environment(None) else { return true };
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {error}");
    false
}

/// A model in a folder of its own, and its configuration.
struct Bench {
    folder: tempfile::TempDir,
    config: ModelConfig,
}

impl Bench {
    fn new(graph: Graph, inputs: &[(&str, DataType, &[i64])], outputs: &[(&str, DataType, &[i64])]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        std::fs::write(folder.path().join("model.onnx"), graph.file()).expect("the folder is writable");
        let config = ModelConfig {
            inputs: specs(inputs),
            outputs: specs(outputs),
            instances: vec![Instances::new("m", Device::Cpu, 1)],
            ..ModelConfig::new("m", "onnxruntime")
        };
        Self { folder, config }
    }

    /// `Y = X + X` for batches of rows of any length.
    fn doubled() -> Self {
        Self::new(Graph::doubled(), &[("X", FP32, &[-1])], &[("Y", FP32, &[-1])]).batching(8)
    }

    fn batching(mut self, rows: usize) -> Self {
        self.config.max_batch_rows = rows;
        self
    }

    fn parameter(mut self, key: &str, value: &str) -> Self {
        self.config.parameters.insert(key.to_owned(), value.to_owned());
        self
    }

    fn files(&self) -> VersionFiles {
        let folder = self.folder.path().to_owned();
        let model_file = Some(folder.join("model.onnx"));
        VersionFiles { model_dir: folder.clone(), version_dir: folder, model_file }
    }

    fn open(&self) -> Result<Arc<dyn Model>> {
        Onnx::default().open(&self.files(), &self.config)
    }

    fn instance(&self) -> Box<dyn Instance> {
        self.open().expect("the model loads").instance(Device::Cpu).expect("an instance starts")
    }

    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        run(&mut *self.instance(), vec![Member::new(1, inputs)]).map(|mut outputs| outputs.remove(0))
    }

    fn load_error(&self) -> String {
        match self.open() {
            Ok(_) => panic!("the model must not load"),
            Err(error) => error.message().to_owned(),
        }
    }
}

fn specs(all: &[(&str, DataType, &[i64])]) -> Vec<TensorSpec> {
    let spec =
        |(name, dtype, dims): &(&str, DataType, &[i64])| TensorSpec::new(*name, Some(*dtype), Some(Shape::new(dims)));
    all.iter().map(spec).collect()
}

/// Collects what an instance replies, member by member.
#[derive(Default)]
struct Collected {
    outputs: Vec<Vec<Tensor>>,
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

    fn member(&mut self, _index: usize, _outputs: Vec<Tensor>) -> Result<()> {
        unreachable!("this backend replies with whole batches");
    }

    fn send(&mut self, _index: usize, _outputs: Vec<Tensor>) -> Result<()> {
        unreachable!("this backend has no decoupled models");
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
    Tensor::new(FP32, Shape::new(shape), data.into())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype, FP32);
    tensor.data.as_chunks::<4>().0.iter().map(|each| f32::from_le_bytes(*each)).collect()
}
