//! Weights that leave and come back.

use super::*;
use crate::backend::Spill;

/// Large enough for a layout of its own.
const SIDE: usize = 128;
const BYTES: u64 = (2 * SIDE * SIDE * 4) as u64;

/// A model with two large weights, and a constant in its graph.
fn layers() -> Bench {
    let weight = |from: usize| {
        let numbers: Vec<f32> = (from..from + SIDE * SIDE).map(|number| (number * 37 % 101) as f32 / 997.0).collect();
        floats(&[SIDE as i64, SIDE as i64], &numbers)
    };
    let source = "def forward(self, x):\n    return torch.tanh(torch.matmul(torch.matmul(x, self.up), self.down))\n";
    let script = Script::new(source).parameter("up", weight(1)).buffer("down", weight(7));
    Bench::new(&script, &[("x", FP32, &[1, SIDE as i64])], &[("y", FP32, &[1, SIDE as i64])])
}

fn answer(model: &Arc<dyn Model>) -> Bytes {
    let mut instance = model.instance(Device::Cpu).expect("it starts");
    let input: Vec<f32> = (0..SIDE).map(|number| number as f32 / 100.0).collect();
    let outputs = run(&mut *instance, vec![Member::new(1, vec![floats(&[1, SIDE as i64], &input)])]);
    outputs.expect("it runs")[0][0].data.clone()
}

struct Room {
    _directory: tempfile::TempDir,
    spill: Arc<Spill>,
}

fn room(bytes: u64) -> Room {
    let directory = tempfile::tempdir().expect("a folder for the test");
    Room { spill: Spill::new(directory.path().to_owned(), bytes), _directory: directory }
}

#[test]
fn they_come_back_the_same_to_the_bit_in_each_form_of_a_module() {
    for form in ["off", "freeze", "full"] {
        let (room, bench) = (room(10 * BYTES), layers().parameter("torch.optimize", form));
        let model = bench.open().expect("it loads");
        let before = answer(&model);
        assert_eq!(model.footprint().of(Device::Cpu), BYTES);
        for _ in 0..3 {
            let paged = model.paged().expect("nothing of it is with callers");
            assert!(paged.spilled >= BYTES, "{form}: {paged:?}");
            model.page_out(Some(&room.spill)).expect("there is room");
            assert_eq!((room.spill.used(), model.footprint()), (paged.spilled, paged.footprint), "{form}");
            model.page_in().expect("it is there");
            assert!(room.spill.has_room(10 * BYTES), "{form}: the file stays while nobody needs its room");
            assert_eq!((room.spill.used(), model.footprint()), (paged.spilled, paged.resident), "{form}");
            assert_eq!(answer(&model), before, "{form}");
        }
    }
}

#[test]
fn those_that_callers_may_have_a_part_of_stay() {
    let cases = [
        "def forward(self, x):\n    return self.weight\n",
        "def forward(self, x):\n    return self.weight.t().view(-1)\n",
        "def forward(self, x):\n    parts = [x, self.weight]\n    return parts[1]\n",
        "def forward(self, x):\n    y = x\n    if bool(x.sum() > 0):\n        y = self.weight\n    return y\n",
    ];
    for source in cases {
        for form in ["off", "freeze"] {
            let script = Script::new(source).parameter("weight", floats(&[4], &[1.0; 4]));
            let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[4])]);
            let model = bench.parameter("torch.optimize", form).open().expect("it loads");
            assert_eq!(model.paged(), None, "{form}: {source}");
        }
    }
}

#[test]
fn a_model_that_writes_to_its_weights_stays() {
    let script = Script::new("def forward(self, x):\n    self.total.add_(x)\n    return self.total + 0\n")
        .buffer("total", floats(&[1], &[0.0]));
    let bench = Bench::new(&script, &[("x", FP32, &[1])], &[("y", FP32, &[1])]);
    assert_eq!(bench.open().expect("it loads").paged(), None);
}

#[test]
fn where_there_is_no_room_they_are_where_they_were() {
    let (room, bench) = (room(BYTES - 1), layers());
    let model = bench.open().expect("it loads");
    let before = answer(&model);
    assert!(model.page_out(None).is_err());
    let full = model.page_out(Some(&room.spill)).expect_err("it does not fit");
    assert!(full.message().contains("have no room"), "{full}");
    assert_eq!((model.footprint().of(Device::Cpu), room.spill.used()), (BYTES, 0));
    assert_eq!(answer(&model), before);
}

#[test]
fn what_equal_models_share_leaves_with_the_last_and_comes_back_with_the_first() {
    let (backend, bench, room) = (LibTorch::default(), layers(), room(10 * BYTES));
    let [one, other] = [(); 2].map(|()| backend.open(&bench.files(), &bench.config).expect("it loads"));
    let held = || [&one, &other].map(|model| model.footprint().of(Device::Cpu));
    let before = answer(&one);
    assert_eq!(held(), [BYTES, 0]);
    one.page_out(Some(&room.spill)).expect("it can");
    assert_eq!((held(), room.spill.used()), ([0, BYTES], 0), "the other one needs it");
    assert_eq!(answer(&other), before);
    other.page_out(Some(&room.spill)).expect("there is room");
    assert!(room.spill.used() >= BYTES, "nobody needs it");
    other.page_in().expect("it is there");
    assert_eq!((held(), room.spill.has_room(10 * BYTES)), ([0, BYTES], true));
    assert_eq!(answer(&other), before);
    other.page_out(Some(&room.spill)).expect("there is room");
    let third = backend.open(&bench.files(), &bench.config).expect("it loads");
    assert_eq!((answer(&third), held()), (before.clone(), [0, 0]));
    one.page_in().expect("it is there");
    assert_eq!((answer(&one), held()), (before, [BYTES, 0]));
    drop((one, other, third));
    assert_eq!(room.spill.used(), 0);
}

#[test]
fn what_goes_while_it_is_out_leaves_nothing_behind() {
    let (room, bench) = (room(10 * BYTES), layers());
    let model = bench.open().expect("it loads");
    model.page_out(Some(&room.spill)).expect("there is room");
    assert!(!room.spill.has_room(10 * BYTES));
    drop(model);
    assert_eq!(room.spill.used(), 0);
}
