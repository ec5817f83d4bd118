//! Ragged, optional and padded inputs, as TorchScript models see them.

use super::*;
use crate::model::{BatchInput, BatchOutput, Padded, ServerPadding};
use crate::tensor::{BatchInputKind, Buckets};

/// Runs members in the forms of the configuration, which the backend is opened with as the model file sees it.
fn run_formed(mut bench: Bench, members: Vec<Member>) -> Result<Vec<Vec<Tensor>>> {
    let forms = bench.config.forms();
    bench.config = bench.config.of_file();
    let batch = Batch::formed(members, forms.as_ref())?;
    let mut collected = Collected { batch: batch.clone(), ..Collected::default() };
    bench.instance().run(&batch, &mut collected)?;
    Ok(collected.outputs)
}

fn row(inputs: Vec<Tensor>) -> Member {
    Member::new(1, inputs)
}

fn longs(shape: &[i64], numbers: &[i64]) -> Tensor {
    let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    Tensor::new(DataType::Int64, Shape::new(shape), data.into())
}

const LONG: DataType = DataType::Int64;

#[test]
fn a_ragged_batch_is_flat_and_the_model_is_told_where_each_request_ends() {
    let script = Script::new(
        "def forward(self, values, ends):\n    sums = torch.cumsum(values, 0)[ends.long() - 1]\n    \
         before = torch.cat([torch.zeros([1]), sums[:-1]])\n    return (sums - before).unsqueeze(1), values * 2\n",
    );
    let outputs = [("sum", FP32, &[1_i64] as &[i64]), ("twice", FP32, &[-1, 2])];
    let mut bench = Bench::new(&script, &[("values", FP32, &[-1, 2])], &outputs).batching(8);
    bench.config.inputs[0].ragged = true;
    bench.config.batch_inputs = vec![BatchInput {
        kind: BatchInputKind::AccumulatedElementCount,
        targets: vec!["ends".into()],
        dtype: DataType::Int32,
        source: 0,
    }];
    bench.config.batch_outputs = vec![BatchOutput { targets: vec!["twice".into()], source: 0 }];
    let members = vec![
        row(vec![floats(&[1, 1, 2], &[1.0, 2.0])]),
        row(vec![floats(&[1, 3, 2], &[1.0, 1.0, 1.0, 1.0, 1.0, 2.0])]),
        row(vec![floats(&[1, 2, 2], &[0.5, 0.0, 0.0, 0.0])]),
    ];
    let outputs = run_formed(bench, members.clone()).expect("it runs");
    let sums: Vec<f32> = outputs.iter().flat_map(|outputs| values(&outputs[0])).collect();
    assert_eq!(sums, [3.0, 7.0, 0.5]);
    for (member, outputs) in members.iter().zip(&outputs) {
        assert_eq!(outputs[0].shape, Shape::new(&[1, 1]));
        assert_eq!(outputs[1].shape, member.inputs[0].shape);
        let twice: Vec<f32> = values(&member.inputs[0]).iter().map(|value| value * 2.0).collect();
        assert_eq!(values(&outputs[1]), twice);
    }
}

/// A model of `x`, which must be there, and two more inputs, in each form that its graph can have.
fn optional_benches(source: &str) -> impl Iterator<Item = Bench> {
    let script = Script::new(source);
    ["off", "freeze", "full"].into_iter().map(move |form| {
        let inputs: [(&str, DataType, &[i64]); 3] = [("x", FP32, &[2]), ("plus", FP32, &[2]), ("times", FP32, &[2])];
        let mut bench = Bench::new(&script, &inputs, &[("y", FP32, &[2])]).parameter("torch.optimize", form);
        bench.config.inputs.iter_mut().skip(1).for_each(|input| input.optional = true);
        bench
    })
}

#[test]
fn an_input_that_is_left_out_has_its_default_or_is_none() {
    let body = "    y = x\n    if plus is not None:\n        y = y + plus\n    if times is not None:\n        y = y * times\n    return y\n";
    let heads = [
        "def forward(self, x, plus: Optional[Tensor]=None, times: Optional[Tensor]=None):\n",
        "def forward(self, x, plus: Optional[Tensor], times: Optional[Tensor]=None):\n",
        "def forward(self, x, plus: Optional[Tensor], times: Optional[Tensor]):\n",
    ];
    let (x, other) = (|| floats(&[2], &[1.0, 2.0]), || floats(&[2], &[3.0, 4.0]));
    for head in heads {
        for bench in optional_benches(&format!("{head}{body}")) {
            let y = |plus, times| values(&bench.run(vec![x(), plus, times]).expect("it runs")[0]);
            assert_eq!(y(Tensor::absent(), Tensor::absent()), [1.0, 2.0], "{head}");
            assert_eq!(y(other(), Tensor::absent()), [4.0, 6.0], "{head}");
            assert_eq!(y(Tensor::absent(), other()), [3.0, 8.0], "{head}");
            assert_eq!(y(other(), other()), [12.0, 24.0], "{head}");
        }
    }
}

#[test]
fn a_key_that_is_left_out_is_not_in_the_dictionary() {
    let script = Script::new(
        "def forward(self, x: Dict[str, Tensor]):\n    y = x[\"a\"]\n    if \"b\" in x:\n        y = y + x[\"b\"]\n    return y\n",
    );
    let mut bench = Bench::new(&script, &[("a", FP32, &[1]), ("b", FP32, &[1])], &[("y", FP32, &[1])]);
    bench.config.inputs[1].optional = true;
    let y = |b| values(&bench.run(vec![floats(&[1], &[2.0]), b]).expect("it runs")[0]);
    assert_eq!((y(Tensor::absent()), y(floats(&[1], &[3.0]))), (vec![2.0], vec![5.0]));
}

#[test]
fn an_input_that_the_model_cannot_do_without_cannot_be_optional() {
    let script = Script::new("def forward(self, x, y):\n    return x + y\n");
    let mut bench = Bench::new(&script, &[("x", FP32, &[1]), ("y", FP32, &[1])], &[("z", FP32, &[1])]);
    bench.config.inputs[1].optional = true;
    assert_eq!(
        bench.load_error(),
        "unable to load model 'm', input 'y' is optional in the configuration, but argument 'y: Tensor' of forward has no \
         default and is not Optional[Tensor]"
    );
}

#[test]
fn an_optional_argument_is_an_optional_input_where_the_configuration_does_not_say() {
    let script = Script::new("def forward(self, x, bias: Optional[Tensor]=None, scale: float=1.0):\n    return x\n");
    let bench = Bench::new(&script, &[], &[]);
    let mut written = schema::ModelConfig::default();
    LibTorch::default().complete(&bench.files(), &mut written).expect("the file says it");
    let inputs: Vec<_> = written.input.iter().map(|input| (input.name.as_str(), input.optional)).collect();
    assert_eq!(inputs, [("x", false), ("bias", true)]);
}

#[test]
fn padded_requests_of_mixed_lengths_share_a_batch_and_get_what_they_would_alone() {
    let script = Script::new(
        "def forward(self, ids, mask):\n    return (ids * mask).sum(1, True), ids + 1, torch.ones_like(ids).sum(1, True)\n",
    );
    let inputs: [(&str, DataType, &[i64]); 2] = [("ids", LONG, &[-1]), ("mask", LONG, &[-1])];
    let outputs: [(&str, DataType, &[i64]); 3] = [("sum", LONG, &[1]), ("next", LONG, &[-1]), ("length", LONG, &[1])];
    let padded = || {
        let mut bench = Bench::new(&script, &inputs, &outputs).batching(8);
        bench.config.padding = Some(ServerPadding {
            buckets: Buckets::Multiple(8),
            inputs: vec![(0, 9.0)],
            mask: Some(Padded { tensor: 1, source: 0 }),
            outputs: vec![Padded { tensor: 1, source: 0 }],
        });
        bench
    };
    let members = vec![
        row(vec![longs(&[1, 3], &[1, 2, 3]), Tensor::absent()]),
        Member::new(2, vec![longs(&[2, 2], &[1, 2, 3, 4]), longs(&[2, 2], &[1, 0, 1, 1])]),
        row(vec![longs(&[1, 8], &[1; 8]), Tensor::absent()]),
    ];
    let together = run_formed(padded(), members.clone()).expect("it runs");
    assert_eq!(together[0][..2], [longs(&[1, 1], &[6]), longs(&[1, 3], &[2, 3, 4])]);
    assert_eq!(together[1][..2], [longs(&[2, 1], &[1, 7]), longs(&[2, 2], &[2, 3, 4, 5])]);
    assert_eq!(together[2][..2], [longs(&[1, 1], &[8]), longs(&[1, 8], &[2; 8])]);
    assert_eq!(together[0][2], longs(&[1, 1], &[8]), "the model saw the length of the bucket");
    for (member, together) in members.into_iter().zip(together) {
        assert_eq!(run_formed(padded(), vec![member]).expect("it runs"), [together]);
    }
}
