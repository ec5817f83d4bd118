//! Convolutions whose weights are laid out for the processor.

use super::*;
use crate::backend::Spill;

/// Channels of the input, and of each convolution's output.
const CHANNELS: usize = 4;
const SIDE: usize = 9;

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 % 101) as f32 - 50.0) / 211.0).collect()
}

/// A model of this source with a `weight` of 3 x 3, a `point` of 1 x 1, one for two `groups`, and a `bias`.
fn script(source: &str) -> Script {
    let weight = |inputs: usize, side: usize| {
        let dims = [CHANNELS, inputs, side, side];
        floats(&dims.map(|dim| dim as i64), &numbers(dims.iter().product()))
    };
    Script::new(source)
        .parameter("weight", weight(CHANNELS, 3))
        .parameter("point", weight(CHANNELS, 1))
        .parameter("grouped", weight(CHANNELS / 2, 3))
        .parameter("single", floats(&[1, CHANNELS as i64, 3, 3], &numbers(CHANNELS * 9)))
        .parameter("bias", floats(&[CHANNELS as i64], &numbers(CHANNELS)))
}

fn bench(source: &str, optimize: &str) -> Bench {
    let inputs: [(&str, DataType, &[i64]); 1] = [("x", FP32, &[-1, -1, -1, -1])];
    Bench::new(&script(source), &inputs, &[("y", FP32, &[])]).parameter("torch.optimize", optimize)
}

fn image(rows: usize, channels: usize, side: usize) -> Tensor {
    let numbers: Vec<f32> =
        (0..rows * channels * side * side).map(|index| (index * 13 % 29) as f32 / 7.0 - 2.0).collect();
    floats(&[rows, channels, side, side].map(|dim| dim as i64), &numbers)
}

fn layers(source: &str) -> u64 {
    let folder = tempfile::tempdir().expect("a folder for the test");
    script(source).save(&folder.path().join("model.pt")).expect("the script compiles");
    let module = Module::load(&folder.path().join("model.pt"), Device::Cpu).expect("it loads");
    module.optimized().expect("it can be").1
}

fn source(body: &str) -> String {
    let convolved = "torch.conv2d(x, self.weight, self.bias, padding=[1, 1])";
    let pointwise = "torch.conv2d(x, self.point, padding=[0, 0])";
    let body = body.replace("CONV", convolved).replace("POINT", pointwise);
    format!("def forward(self, x):\n    {}\n", body.replace("; ", "\n    "))
}

/// What models do, and how many of their convolutions are replaced.
const BODIES: &[(&str, u64)] = &[
    ("return CONV", 1),
    ("return torch.relu(CONV)", 1),
    ("return torch.conv2d(x, self.weight, None, [2, 2], [1, 0], [1, 2])", 1),
    ("return torch.relu(torch.conv2d(x, self.grouped, self.bias, groups=2))", 1),
    (
        "return torch._convolution(x, self.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, \
         True, True)",
        1,
    ),
    ("return torch.conv2d(x, self.weight, self.bias, [1, 1], \"same\", [1, 2])", 1),
    ("return torch.conv2d(x, self.weight, self.bias, [2, 1], \"valid\")", 1),
    ("return torch.conv_transpose2d(x, self.weight, self.bias)", 0),
    // What follows.
    ("return torch.sigmoid(CONV)", 1),
    ("return torch.silu(CONV)", 1),
    ("return torch.hardswish(CONV)", 1),
    ("return torch.hardtanh(CONV, -0.1, 0.2)", 1),
    ("return torch.leaky_relu(CONV, 0.3)", 1),
    ("return torch.relu(CONV + x)", 1),
    ("return torch.relu(x + CONV)", 1),
    ("return torch.sigmoid(x + CONV)", 1),
    ("return torch.add(CONV, x, alpha=2)", 1),
    ("return CONV + 1.0", 1),
    ("y = CONV; return y + y", 1),
    ("y = CONV; return torch.relu(y) + y", 1),
    ("return torch.relu(CONV + POINT)", 2),
    ("y = torch.relu(CONV); x = y; return torch.relu(CONV + y)", 2),
    // Sums whose other part is needed afterwards, or seen otherwise.
    ("y = POINT; z = torch.relu(CONV + y); return torch.relu(z + y)", 2),
    ("y = POINT; v = torch.dropout(y, 0.5, False); z = CONV + y; return torch.cat([z, v, y])", 2),
    ("y = torch.relu(POINT); v = torch.flatten(y, 2); z = CONV + y; return torch.flatten(z, 2) + v", 2),
    ("y = torch.relu(CONV); return torch.relu(torch.conv2d(y, self.weight, padding=[1, 1]) + y)", 2),
    ("y = POINT; if x.size(0) > 1:; y = torch.relu(CONV + y); return y", 2),
    // Sums of different sizes.
    ("return torch.relu(CONV + x.mean([2, 3], True))", 1),
    ("return torch.relu(CONV[:, :, 0:1] + POINT)", 2),
    ("return torch.relu(CONV.mean([0], True) + POINT)", 2),
    ("return CONV + x.sum()", 1),
    ("return CONV + x.to_sparse()", 1),
    // Sums of one channel, and of one pixel.
    (
        "y = torch.conv2d(x, self.single); z = torch.conv2d(x * 2, self.single); \
         return (y + z).view(-1) + y.view(-1)",
        2,
    ),
    ("y = torch.relu(torch.conv2d(x, self.single)); return torch.relu(torch.conv2d(x * 2, self.single) + y)", 2),
    ("x = x[:, :, 0:1, 0:1]; return POINT + x", 1),
    ("x = x[:, :, 0:1, 0:1]; y = torch.relu(CONV); return torch.relu(POINT + y)", 2),
    ("x = x[:, :, 0:1]; return torch.relu(POINT + x).view(-1)", 1),
    (
        "x = x[:, :, 0:3, 0:3]; y = x.mean([2, 3]).t().contiguous().t().unsqueeze(2).unsqueeze(3); \
         return torch.relu(torch.conv2d(x * 2, self.weight) + y)",
        1,
    ),
    // Who looks at the layout.
    ("return CONV.view(-1, 3)", 1),
    ("return torch.max_pool2d(torch.relu(CONV), [3, 3], [2, 2]).view(x.size(0), -1)", 1),
    ("return torch.flatten(CONV, 2).view(-1)", 1),
    ("return torch.cat([CONV, x, POINT], 1).view(x.size(0), -1)", 2),
    ("parts = [CONV, POINT]; return parts[1].view(-1) + parts[0].view(-1)", 2),
    ("y = CONV; return torch.as_strided(y, [3, 5], [7, 2])", 1),
    ("y = CONV; return torch.relu(y).view(-1) + y.view(-1)", 1),
    ("y = x; if x.size(0) > 1:; y = CONV; return y.view(-1)", 1),
    ("return torch.zeros([2]) + CONV.stride(1)", 1),
    ("return torch.adaptive_avg_pool2d(CONV, [1, 1]).view(x.size(0), -1)", 1),
    // What is written to.
    ("parts = [x]; parts.append(CONV); return torch.cat(parts, 1).view(-1)", 1),
    ("y = CONV; y.relu_(); return y", 1),
    ("y = CONV; y += x; y.relu_(); return y.view(-1)", 1),
    ("y = x + 1; z = y.view(-1); y.add_(1); return z.sum() + CONV", 0),
    ("y = CONV; z = y.view(-1); y.add_(1); return z", 0),
    ("y = CONV; y[:, 0:2] = 7.0; return y", 0),
    // Without a batch.
    ("x = x[0]; return torch.relu(CONV + x)", 1),
    ("x = x[0]; return CONV.view(4, -1)", 1),
];

#[test]
fn they_give_the_same_numbers_as_before() {
    for &(body, expected) in BODIES {
        let source = source(&body.replace(":; y", ":\n        y"));
        let [mut plain, mut packed] = ["off", "full"].map(|optimize| bench(&source, optimize).instance());
        for rows in [1, 2, 5] {
            let [plain, packed] = [&mut plain, &mut packed].map(|instance| {
                let answers = run(&mut **instance, vec![Member::new(1, vec![image(rows, CHANNELS, SIDE)])]);
                answers.unwrap_or_else(|error| panic!("{body}: {error}")).remove(0).remove(0)
            });
            assert_eq!(plain.shape, packed.shape, "{body} {rows}");
            for (plain, packed) in values(&plain).into_iter().zip(values(&packed)) {
                assert!((plain - packed).abs() <= 1e-5 * (1.0 + plain.abs()), "{body} {rows}: {plain} {packed}");
            }
        }
        assert_eq!(layers(&source), expected, "{body}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    for body in ["return CONV", "return torch.relu(CONV + x)", "return torch.conv2d(x, self.grouped, groups=2)"] {
        for (rows, channels, side) in [(1, CHANNELS - 1, SIDE), (2, 2 * CHANNELS, SIDE), (2, CHANNELS, 0), (1, 0, SIDE)]
        {
            let refused = image(rows, channels, side);
            let [plain, packed] = ["off", "full"].map(|optimize| bench(&source(body), optimize));
            for bench in [plain, packed] {
                let mut instance = bench.instance();
                let refused = run(&mut *instance, vec![Member::new(1, vec![refused.clone()])]);
                assert!(refused.is_err(), "{body}");
                let right = run(&mut *instance, vec![Member::new(1, vec![image(1, CHANNELS, SIDE)])]);
                assert!(right.is_ok(), "{body}");
            }
        }
    }
    bench(&source("x = x.double(); return CONV.float()"), "full").failure(vec![image(1, CHANNELS, SIDE)]);
    bench(&source("return torch.conv2d(x, self.weight)"), "full").failure(vec![image(1, CHANNELS, 2)]);
    for body in ["return torch.conv2d(x, self.weight, padding=[2, 2])", "x = x[:, :, :, 0:0]; return CONV"] {
        bench(&source(body), "full").failure(vec![image(2, CHANNELS, 0)]);
    }
    let flat = bench(&source("x = x[0][0]; return CONV"), "full");
    flat.failure(vec![image(1, CHANNELS, SIDE)]);
}

#[test]
fn no_rows_give_no_rows() {
    for optimize in ["off", "full"] {
        let outputs = bench(&source("return torch.relu(CONV + x)"), optimize).run(vec![image(0, CHANNELS, SIDE)]);
        let shape = [0, CHANNELS, SIDE, SIDE].map(|dim| dim as i64);
        assert_eq!(outputs.expect("it runs")[0].shape, Shape::new(&shape), "{optimize}");
    }
}

#[test]
fn their_weights_leave_and_come_back() {
    let model = bench(&source("return torch.relu(CONV + torch.conv2d(x, self.grouped, groups=2, padding=1))"), "full");
    let model = model.open().expect("it loads");
    let answer = || {
        let mut instance = model.instance(Device::Cpu).expect("it starts");
        run(&mut *instance, vec![Member::new(1, vec![image(2, CHANNELS, SIDE)])]).expect("it runs")[0][0].data.clone()
    };
    let before = answer();
    let directory = tempfile::tempdir().expect("a folder for the test");
    let spill = Spill::new(directory.path().to_owned(), 1 << 20);
    let paged = model.paged().expect("nothing of it is with callers");
    model.page_out(Some(&spill)).expect("there is room");
    assert!(spill.used() > 0 && model.footprint() == paged.footprint, "{paged:?}");
    model.page_in().expect("it is there");
    assert_eq!((answer(), model.footprint()), (before, paged.resident));
}
