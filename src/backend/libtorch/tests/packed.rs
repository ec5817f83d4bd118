//! Linear layers whose weights are laid out for the processor.

use super::*;

const IN: usize = 128;
const OUT: usize = 160;

/// A model of this source with a `weight` of OUT x IN, its transpose `turned`, and a `bias`.
fn script(source: &str) -> Script {
    let number = |index: usize| ((index * 37 % 101) as f32 - 50.0) / 211.0;
    let weight: Vec<f32> = (0..OUT * IN).map(number).collect();
    let turned: Vec<f32> = (0..IN * OUT).map(|index| weight[index % OUT * IN + index / OUT]).collect();
    let bias: Vec<f32> = (0..OUT).map(number).collect();
    Script::new(source)
        .parameter("weight", floats(&[OUT as i64, IN as i64], &weight))
        .parameter("turned", floats(&[IN as i64, OUT as i64], &turned))
        .parameter("bias", floats(&[OUT as i64], &bias))
}

fn bench(source: &str, optimize: &str) -> Bench {
    let inputs: [(&str, DataType, &[i64]); 1] = [("x", FP32, &[-1, -1])];
    Bench::new(&script(source), &inputs, &[("y", FP32, &[-1, -1])]).parameter("torch.optimize", optimize)
}

fn input(rows: usize, columns: usize) -> Tensor {
    let numbers: Vec<f32> = (0..rows * columns).map(|index| (index * 13 % 29) as f32 / 7.0 - 2.0).collect();
    floats(&[rows as i64, columns as i64], &numbers)
}

fn layers(source: &str) -> u64 {
    let folder = tempfile::tempdir().expect("a folder for the test");
    script(source).save(&folder.path().join("model.pt")).expect("the script compiles");
    let module = Module::load(&folder.path().join("model.pt"), Device::Cpu).expect("it loads");
    module.optimized().expect("it can be").1
}

#[test]
fn they_give_the_same_numbers_for_every_number_of_rows() {
    let bodies = [
        ("return torch.linear(x, self.weight, self.bias)", 1),
        ("return torch.linear(x, self.weight)", 1),
        ("return torch.gelu(torch.linear(x, self.weight, self.bias))", 1),
        ("return torch.gelu(torch.linear(x, self.weight), approximate='tanh')", 1),
        ("h = torch.linear(x, self.weight)\n    return torch.gelu(h) + h", 1),
        ("return torch.relu(torch.linear(x, self.weight, self.bias))", 1),
        ("return torch.matmul(x, self.turned)", 1),
        ("return torch.addmm(self.bias, x, self.turned)", 1),
        ("return torch.linear(torch.linear(x, self.weight)[:, 0:128] * 0.1, self.weight, self.bias)", 2),
        ("y = torch.linear(x, self.weight)\n    y.add_(1.0)\n    return y", 1),
        (
            "y = x[:, 0:1] * 0.0\n    if x.size(0) > 1:\n        y = torch.gelu(torch.linear(x, self.weight))\n    return y",
            1,
        ),
        ("return torch.linear(x, self.weight[0:64], self.bias[0:64]) + x[:, 0:64]", 0),
    ];
    for (body, expected) in bodies {
        let source = format!("def forward(self, x):\n    {body}\n");
        assert_eq!(layers(&source), expected, "{body}");
        let [plain, packed] = ["off", "full"].map(|optimize| bench(&source, optimize).instance());
        let mut instances = [plain, packed];
        for rows in [1, 2, 17, 0, 64, 3] {
            let [plain, packed] = instances.each_mut().map(|instance| {
                run(&mut **instance, vec![Member::new(1, vec![input(rows, IN)])]).expect("it runs").remove(0).remove(0)
            });
            assert_eq!(plain.shape, packed.shape, "{body} {rows}");
            for (plain, packed) in values(&plain).into_iter().zip(values(&packed)) {
                assert!((plain - packed).abs() <= 1e-4 * (1.0 + plain.abs()), "{body} {rows}: {plain} {packed}");
            }
        }
    }
}

#[test]
fn inputs_of_another_size_or_type_are_refused() {
    let source = "def forward(self, x):\n    return torch.gelu(torch.linear(x, self.weight, self.bias))\n";
    for columns in [0, 1, IN - 1, IN + 1, 2 * IN] {
        for rows in [1, 4] {
            let mut instance = bench(source, "full").instance();
            let refused = run(&mut *instance, vec![Member::new(1, vec![input(rows, columns)])]);
            assert!(refused.is_err(), "{rows} {columns}");
            let right = run(&mut *instance, vec![Member::new(1, vec![input(rows, IN)])]);
            assert_eq!(right.expect("it is").remove(0)[0].shape, Shape::new(&[rows as i64, OUT as i64]));
        }
    }
    let wide = "def forward(self, x):\n    return torch.linear(x.double(), self.weight, self.bias).float()\n";
    bench(wide, "full").failure(vec![input(2, IN)]);
}

#[test]
fn what_is_not_a_number_stays_so() {
    let source = "def forward(self, x):\n    return torch.gelu(torch.linear(x, self.weight, self.bias))\n";
    let bench = bench(source, "full");
    let outputs = bench.run(vec![floats(&[1, IN as i64], &[f32::NAN; IN])]).expect("it runs");
    assert!(values(&outputs[0]).iter().all(|value| value.is_nan()));
}

#[test]
fn small_layers_stay_as_they_are() {
    let source = "def forward(self, x):\n    return torch.linear(x, self.small)\n";
    let small = Script::new(source).parameter("small", floats(&[2, 2], &[1.0; 4]));
    let folder = tempfile::tempdir().expect("a folder for the test");
    small.save(&folder.path().join("model.pt")).expect("the script compiles");
    let module = Module::load(&folder.path().join("model.pt"), Device::Cpu).expect("it loads");
    assert_eq!(module.optimized().expect("it can be").1, 0);
}
