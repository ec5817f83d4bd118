//! Packages of AOTInductor, by a real one: what it answers, and what never gets to its code.

#[path = "built.rs"]
mod built;

use std::fs;
use std::path::Path;
use std::thread;

use super::super::aoti::{Aoti, archive};
use super::*;

const WEIGHT: [[f32; 4]; 3] = [[1.0, -2.0, 3.0, 0.5], [0.0, 1.0, -1.0, 2.0], [-1.0, 0.25, 0.0, 4.0]];
const BIAS: [f32; 3] = [0.5, -1.0, 2.0];

/// A configuration of the package, for so many rows.
fn linear(rows: usize) -> ModelConfig {
    ModelConfig { max_batch_rows: rows, ..config(&[("x", FP32, &[4])], &[("OUTPUT__0", FP32, &[3])]) }
}

fn files(package: &Path) -> VersionFiles {
    let folder = package.parent().expect("it is in a folder").to_owned();
    VersionFiles { model_dir: folder.clone(), version_dir: folder, model_file: Some(package.to_owned()) }
}

fn open(config: &ModelConfig) -> Result<Arc<dyn Model>> {
    Aoti::new(true).open(&files(&built::linear()), config)
}

fn refused(package: &Path, config: &ModelConfig) -> String {
    match Aoti::new(true).open(&files(package), config) {
        Ok(_) => panic!("it must not load"),
        Err(error) => error.message().to_owned(),
    }
}

fn instance() -> Box<dyn Instance> {
    open(&linear(16)).expect("it loads").instance(Device::Cpu).expect("an instance starts")
}

/// Rows that differ, from `first` on.
fn rows(first: usize, count: usize) -> Vec<f32> {
    (first * 4..(first + count) * 4).map(|number| number as f32 * 0.25 - 3.0).collect()
}

/// What the model computes, computed here.
fn computed(rows: &[f32]) -> Vec<f32> {
    let row = |row: &[f32; 4]| {
        let dot = |weight: &[f32; 4]| weight.iter().zip(row).map(|(weight, x)| weight * x).sum::<f32>();
        std::array::from_fn::<f32, 3, _>(|unit| (dot(&WEIGHT[unit]) + BIAS[unit]).max(0.0))
    };
    rows.as_chunks().0.iter().flat_map(row).collect()
}

fn assert_close(found: &Tensor, expected: &[f32]) {
    let found = values(found);
    assert_eq!(found.len(), expected.len());
    let far = found.iter().zip(expected).any(|(one, other)| (one - other).abs() > 1e-4);
    assert!(!far, "{found:?} is not {expected:?}");
}

#[test]
fn batches_of_every_size_are_answered_as_the_model_computes_them() {
    let mut instance = instance();
    for sizes in [&[1][..], &[2], &[1, 1], &[3, 1, 4], &[16], &[1; 16]] {
        let firsts = sizes.iter().scan(0, |first, &size| Some(std::mem::replace(first, *first + size)));
        let inputs: Vec<Vec<f32>> = firsts.zip(sizes).map(|(first, &size)| rows(first, size)).collect();
        let member = |(input, &size): (&Vec<f32>, &usize)| {
            Member::new(size, vec![floats(&[i64::try_from(size).expect("few"), 4], input)])
        };
        let answers = run(&mut *instance, inputs.iter().zip(sizes).map(member).collect()).expect("it runs");
        for (answer, input) in answers.iter().zip(&inputs) {
            assert_close(&answer[0], &computed(input));
        }
    }
}

#[test]
fn answers_outlive_the_package_whose_file_is_gone_before() {
    let mut instance = instance();
    // Other tests open packages meanwhile, whose files are there for a moment.
    let are_gone = || {
        let maps = fs::read_to_string("/proc/self/maps").expect("it is there");
        let mut libraries = maps.lines().filter(|line| line.contains("nereid-aoti-")).peekable();
        libraries.peek().is_some() && libraries.all(|line| line.ends_with("(deleted)"))
    };
    let in_a_moment = || {
        thread::yield_now();
        are_gone()
    };
    assert!((0..20_000).any(|_| in_a_moment()));
    let input = rows(0, 2);
    let answers = run(&mut *instance, vec![Member::new(2, vec![floats(&[2, 4], &input)])]).expect("it runs");
    drop(instance);
    assert_close(&answers[0][0], &computed(&input));
}

#[test]
fn what_the_package_does_not_take_never_gets_to_its_code() {
    let mut instance = instance();
    let mut refused = |tensor: Tensor| {
        let batch = Batch::new(vec![Member::new(1, vec![tensor])]);
        let mut collected = Collected::default();
        let error = instance.run(&batch, &mut collected).expect_err("it is refused");
        assert_eq!((error.kind(), collected.phases.len()), (Kind::InvalidArgument, 0), "{error}");
        error.message().to_owned()
    };
    let taken = "the package takes [batch from 1 to 16, 4]";
    for shape in [&[2, 2][..], &[17, 4], &[0, 4], &[4], &[2, 4, 1], &[2, 5]] {
        let count = usize::try_from(shape.iter().product::<i64>()).expect("small");
        let message = refused(floats(shape, &vec![1.0; count]));
        assert!(message.starts_with("input 'x' has shape [") && message.ends_with(taken), "{message}");
    }
    for dtype in [DataType::Int32, DataType::Fp16, DataType::Fp64, DataType::Bytes] {
        let message = refused(Tensor::new(dtype, Shape::new(&[2, 4]), vec![0; 64].into()));
        assert_eq!(message, format!("input 'x' has type {dtype}, the package takes FP32"));
    }
}

#[test]
fn a_configuration_that_does_not_agree_does_not_load() {
    let package = built::linear();
    let refused = |config: ModelConfig| refused(&package, &config);
    assert!(refused(linear(17)).ends_with("max_batch_size is 17, but the package takes batch from 1 to 16"));
    let mut wrong = linear(8);
    wrong.inputs = specs(&[("x", FP32, &[5])]);
    assert!(refused(wrong).contains("failed to load model 'm': input 'x' has dims [5], after one for the batch"));
    let mut wrong = linear(8);
    wrong.inputs = specs(&[("x", DataType::Fp16, &[4])]);
    assert!(refused(wrong).ends_with("input 'x' has type FP16 in the configuration and FP32 in the package"));
    let mut wrong = linear(8);
    wrong.outputs = specs(&[("y", FP32, &[3])]);
    assert!(refused(wrong).ends_with("unexpected output 'y', the package's outputs are: OUTPUT__0"));
    let mut wrong = linear(8);
    wrong.instances = vec![Instances::new("m", Device::Cuda(0), 1)];
    assert!(refused(wrong).contains("on the CPU only"));
}

#[test]
fn unless_that_is_allowed_no_package_is_loaded() {
    let package = built::linear();
    let Err(error) = Aoti::default().open(&files(&package), &linear(8)) else { panic!("it must not load") };
    assert!(error.message().ends_with("it is loaded only with --allow-aoti"), "{error}");
}

#[test]
fn a_package_that_was_cut_or_is_none_is_an_error() {
    let whole = fs::read(built::linear()).expect("it was built");
    let folder = tempfile::tempdir().expect("a folder for the test");
    let package = folder.path().join("model.pt2");
    assert!(refused(&package, &linear(8)).starts_with("unable to find '"));
    for part in [0, 1, 2, 3] {
        fs::write(&package, &whole[..whole.len() / 4 * part]).expect("the folder is writable");
        let message = refused(&package, &linear(8));
        assert!(message.starts_with("failed to load model 'm': the package cannot be read"), "{message}");
    }
    let inside = "m/data/aotinductor/model/a.wrapper";
    let metadata = archive::Archive::open(&built::linear()).and_then(|mut archive| archive.metadata());
    let metadata = serde_json::to_vec(&metadata.expect("they are there")).expect("they are text");
    let (library, described) = (format!("{inside}.so"), format!("{inside}_metadata.json"));
    archive::tests::write(&package, &[(&library, b"no library"), (&described, &metadata)]);
    let message = refused(&package, &linear(8));
    assert!(message.contains("failed to load model 'm'") && message.contains("wrapper.so"), "{message}");
}

#[test]
fn instances_on_threads_of_their_own_run_at_the_same_time() {
    let model = open(&ModelConfig { instances: vec![Instances::new("m", Device::Cpu, 2)], ..linear(16) });
    let model = model.expect("it loads");
    thread::scope(|scope| {
        for number in 0..2 {
            let model = &model;
            scope.spawn(move || {
                let mut instance = model.instance(Device::Cpu).expect("an instance starts");
                for round in 0..200 {
                    let input = rows(number * 1000 + round, 1 + round % 16);
                    let count = input.len() / 4;
                    let tensor = floats(&[i64::try_from(count).expect("few"), 4], &input);
                    let answers = run(&mut *instance, vec![Member::new(count, vec![tensor])]).expect("it runs");
                    assert_close(&answers[0][0], &computed(&input));
                }
            });
        }
    });
}

#[test]
fn a_package_has_as_many_instances_as_it_was_opened_for_and_no_more() {
    let instances = |count: usize| vec![Instances::new("m", Device::Cpu, count)];
    let model = open(&ModelConfig { instances: instances(2), ..linear(16) }).expect("it loads");
    assert_eq!([1, 2, 3].map(|count| model.can_have(&instances(count))), [true, true, false]);
}

#[test]
fn what_a_package_says_completes_a_configuration() {
    let mut config = schema::ModelConfig { name: "m".to_owned(), ..Default::default() };
    Aoti::default().complete(&files(&built::linear()), &mut config).expect("nothing of it is run");
    assert_eq!((config.backend.as_str(), config.platform.as_str()), ("torch_aoti", "torch_aoti"));
    assert_eq!((config.max_batch_size, config.input[0].name.as_str(), &config.input[0].dims[..]), (8, "x", &[4][..]));
    config.input[0].dims = vec![5];
    let error = Aoti::default().complete(&files(&built::linear()), &mut config).expect_err("it does not agree");
    assert!(error.message().starts_with("failed to load model 'm': input 'x' has dims [5]"), "{error}");
}
