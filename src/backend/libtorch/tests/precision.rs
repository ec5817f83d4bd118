//! Models that compute with less than their files say.

use super::*;

const PRECISIONS: [&str; 3] = ["bf16", "fp16", "int8"];

/// Two linear layers, the second as a product, with an integer buffer between them that only 64 bits hold.
fn network() -> Script {
    let number = |index: usize| ((index * 7 % 19) as f32 - 9.0) / 16.0;
    let weights = |shape: &[i64]| {
        let numbers: Vec<f32> = (0..shape.iter().product::<i64>() as usize).map(number).collect();
        floats(shape, &numbers)
    };
    let large = Tensor::new(DataType::Int64, Shape::new(&[1]), 16_777_217_i64.to_le_bytes().to_vec().into());
    let source = "def forward(self, x):\n    h = torch.relu(torch.linear(x, self.first, self.bias))\n    \
                  return torch.matmul(h, self.second), self.large.expand([x.size(0), 1])\n";
    Script::new(source)
        .parameter("first", weights(&[32, 16]))
        .parameter("bias", weights(&[32]))
        .parameter("second", weights(&[32, 4]))
        .buffer("large", large)
}

fn bench(precision: &str) -> Bench {
    let outputs: [(&str, DataType, &[i64]); 2] = [("y", FP32, &[4]), ("large", DataType::Int64, &[1])];
    Bench::new(&network(), &[("x", FP32, &[16])], &outputs).batching(4).parameter("torch.precision", precision)
}

fn input() -> Tensor {
    let numbers: Vec<f32> = (0..32).map(|index| (index as f32 - 16.0) / 8.0).collect();
    floats(&[2, 16], &numbers)
}

fn rows(bench: &Bench) -> Vec<Tensor> {
    run(&mut *bench.instance(), vec![Member::new(2, vec![input()])]).expect("it runs").remove(0)
}

#[test]
fn another_precision_is_near_but_not_equal_and_keeps_types_and_integers() {
    let exact = values(&rows(&bench("fp32"))[0]);
    let scale = exact.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for precision in PRECISIONS {
        for optimize in ["off", "freeze", "full", "auto"] {
            let outputs = rows(&bench(precision).parameter("torch.optimize", optimize));
            let found = values(&outputs[0]);
            let error = exact.iter().zip(&found).fold(0.0_f32, |most, (left, right)| most.max((left - right).abs()));
            assert!(error > 0.0 && error < scale * 0.03, "{precision} {optimize}: {error} of {scale}");
            let large: Vec<u8> = 16_777_217_i64.to_le_bytes().repeat(2);
            assert_eq!(outputs[1].data, large, "{precision} {optimize}");
        }
    }
}

#[test]
fn less_precise_weights_take_less_memory() {
    let held = |precision| bench(precision).open().expect("it loads").footprint().bytes[&Device::Cpu];
    let (weights, buffer) = (16 * 32 + 32 + 32 * 4, 8);
    assert_eq!(held("fp32"), weights * 4 + buffer);
    assert_eq!([held("bf16"), held("fp16")], [weights * 2 + buffer; 2]);
    assert!(held("int8") < weights * 2, "{}", held("int8"));
}

#[test]
fn weights_that_are_shared_are_so_after_the_conversion() {
    let bench = |precision: &str| {
        let bench = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[64])], &[("y", FP32, &[64])]);
        let shared = Handle::over(FP32, &Shape::new(&[64]), &floats(&[64], &[0.5; 64]).data).expect("it fits");
        let mut module = Module::new("Model").expect("it is made");
        for name in ["one", "other"] {
            module.register(name, &shared, false).expect("the name is free");
        }
        module.define("def forward(self, x):\n    return x + self.one + self.other\n").expect("it compiles");
        module.save(&bench.folder.path().join("model.pt")).expect("the folder is writable");
        bench.parameter("torch.precision", precision)
    };
    let held = |precision| bench(precision).open().expect("it loads").footprint().bytes[&Device::Cpu];
    assert_eq!([held("fp32"), held("bf16")], [256, 128]);
    assert_eq!(values(&bench("bf16").run(vec![floats(&[64], &[1.0; 64])]).expect("it runs")[0]), [2.0; 64]);
}

#[test]
fn constants_of_the_graph_are_converted_with_the_weights() {
    let script = Script::new("def forward(self, x):\n    return torch.matmul(x * self.scale, self.weight)\n")
        .buffer("scale", floats(&[2], &[2.0, 4.0]))
        .parameter("weight", floats(&[2, 2], &[1.0, 0.0, 0.0, 1.0]));
    let bench = Bench::new(&script, &[("x", FP32, &[1, 2])], &[("y", FP32, &[1, 2])]);
    // Frozen, the buffer is a constant.
    let path = bench.folder.path().join("model.pt");
    Module::load(&path, Device::Cpu).and_then(|module| module.frozen()?.save(&path)).expect("it is frozen");
    let bench = bench.parameter("torch.precision", "bf16");
    assert_eq!(values(&bench.run(vec![floats(&[1, 2], &[1.0, 1.0])]).expect("it runs")[0]), [2.0, 4.0]);
}

#[test]
fn a_precision_that_a_model_cannot_have_is_refused_with_its_reason() {
    let script = Script::new("def forward(self, x):\n    return torch.matmul(x.to(dtype=6), self.weight)\n")
        .parameter("weight", floats(&[2, 2], &[1.0; 4]));
    let bench = Bench::new(&script, &[("x", FP32, &[1, 2])], &[("y", FP32, &[1, 2])]);
    let error = bench.parameter("torch.precision", "bf16").load_error();
    assert!(error.starts_with("model 'm' cannot be bf16: ") && error.contains("same dtype"), "{error}");
    let identity = Bench::new(&Script::new(IDENTITY), &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    let expected = "model 'm' cannot be int8: forward has no linear layer with fp32 weights of its own";
    assert_eq!(identity.parameter("torch.precision", "int8").load_error(), expected);
}
