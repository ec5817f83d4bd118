//! What does not fit, is missing or fails, and what it says.

use super::*;

#[test]
fn what_a_model_raises_fails_the_execution_and_nothing_else() {
    let script = Script::new("def forward(self, x):\n    assert bool(x[0] <= 0), \"too large\"\n    return x\n");
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    let mut instance = bench.instance();
    let member = |value| vec![Member::new(1, vec![floats(&[1], &[value])])];
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

/// Libtorch tells which methods call the operation that fails, also where only another form of the module is left.
#[test]
fn what_fails_inside_of_a_method_is_told_in_every_form() {
    let sum = "def sum(self, a, b):\n    return a + b\n\n";
    let twice = "def twice(self, a, b):\n    if a.size(0) > 0:\n        a = self.sum(a, b)\n    return a * 2\n\n";
    let linear = "def linear(self, a):\n    return torch.gelu(torch.linear(a, self.weight))\n\n";
    let image = "def image(self, a):\n    a = torch.relu(torch.conv2d(a.view(1, 2, 2, 2), self.kernel))\n    return a.view(1, -1)\n\n";
    let forward = |result: &str| format!("def forward(self, a, b):\n    return {result}\n");
    let cases = [
        (format!("{sum}{}", forward("self.sum(a, b) * 2")), "tensor a (8) must match"),
        (format!("{sum}{twice}{}", forward("self.twice(a, b)")), "tensor a (8) must match"),
        (format!("{linear}{}", forward("self.linear(a) + b.sum()")), "RuntimeError"),
        (format!("{image}{}", forward("self.image(a) + b.sum()")), "RuntimeError"),
    ];
    let columns: [(&str, DataType, &[i64]); 2] = [("a", FP32, &[-1, -1]), ("b", FP32, &[-1, -1])];
    let forms = ["off", "freeze", "full", "auto"].map(|form| ("torch.optimize", form));
    for (source, message) in cases {
        let precisions = [("torch.precision", "bf16"), ("torch.precision", "int8")];
        let precisions = &precisions[..if source.contains("linear") { 2 } else { 1 }];
        let script = Script::new(&source)
            .parameter("weight", floats(&[160, 128], &[0.5; 160 * 128]))
            .parameter("kernel", floats(&[4, 3, 1, 1], &[0.5; 12]));
        for (key, form) in forms.iter().chain(precisions) {
            let bench = Bench::new(&script, &columns, &[("y", FP32, &[-1, -1])]).parameter(key, form);
            let mut instance = bench.instance();
            for _ in 0..3 {
                let inputs = vec![floats(&[1, 8], &[0.0; 8]), floats(&[1, 9], &[0.0; 9])];
                let error = run(&mut *instance, vec![Member::new(1, inputs)]).expect_err("the sizes differ");
                assert_eq!(error.kind(), Kind::Backend, "{source} {form}: {error}");
                assert!(key.contains("precision") || error.message().contains(message), "{source} {form}: {error}");
            }
        }
    }
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
    let member = || Member::new(1, vec![floats(&[1, 1], &[0.0])]);
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

#[test]
fn an_absurd_allocation_fails_its_execution_only() {
    let script = Script::new(
        "def forward(self, x):\n    n = int(x[0].item())\n    if n == 1:\n        return torch.empty([4611686018427])\n    \
         if n == 2:\n        return x.expand([4611686018427])\n    return x\n",
    );
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[-1])]);
    let mut instance = bench.instance();
    let mut run = |which: f32| {
        run(&mut *instance, vec![Member::new(1, vec![floats(&[1], &[which])])]).map(|outputs| values(&outputs[0][0]))
    };
    for which in [1.0, 2.0] {
        let error = run(which).expect_err("no machine has 18 TB");
        assert_eq!(error.kind(), Kind::OutOfMemory);
        let expected = "not enough memory: you tried to allocate 18446744073708 bytes of at most";
        assert!(error.message().contains(expected), "{error}");
        assert_eq!(run(0.0).expect("it runs on"), [0.0]);
    }
}
