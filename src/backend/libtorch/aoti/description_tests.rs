//! A description alone: what is read, and which executions it lets through.

use proptest::prelude::*;

use super::*;

/// The metadata of a package that is described so, for a processor of any kind.
pub fn metadata(description: &str) -> BTreeMap<String, String> {
    let pairs = [("AOTI_DEVICE_KEY", "cpu"), ("AOTI_CPU_ISA", "INVALID_VEC_ISA"), (KEY, description)];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The description of an encoder: two inputs of one batch and length, one output.
pub fn encoder() -> Description {
    let text = r#"{
        "form": 1, "torch": "2.11.0", "threads": 1,
        "sizes": {"batch": [1, 16], "length": [2, 128]},
        "inputs": [
            {"name": "ids", "path": "ARGS[0]", "type": "INT64", "shape": ["batch", "length"]},
            {"name": "mask", "path": "KWARGS[mask]", "type": "FP32", "shape": ["batch", "length", 3]}
        ],
        "outputs": [{"name": "OUTPUT__0", "path": "RESULT", "type": "FP32", "shape": ["batch", null, 4]}]
    }"#;
    Description::read(&metadata(text)).expect("it is right")
}

fn refused(text: &str) -> String {
    Description::read(&metadata(text)).expect_err("it is wrong").message().to_owned()
}

fn given(ids: &[i64], mask: &[i64]) -> [(DataType, Shape); 2] {
    [(DataType::Int64, Shape::new(ids)), (DataType::Fp32, Shape::new(mask))]
}

#[test]
fn a_package_without_a_description_is_refused_with_what_helps() {
    let error = Description::read(&BTreeMap::new()).expect_err("there is none");
    assert!(error.message().ends_with("build it with `scripts/torch-aoti SOURCE.py model.pt2`"), "{error}");
}

#[test]
fn a_description_that_contradicts_itself_is_refused() {
    let text = |sizes: &str, inputs: &str| {
        let outputs = r#"[{"name": "y", "path": "RESULT", "type": "FP32", "shape": [4]}]"#;
        format!(
            r#"{{"form": 1, "torch": "2.11.0", "threads": 1, "sizes": {sizes}, "inputs": {inputs}, "outputs": {outputs}}}"#
        )
    };
    let input = |dtype: &str, shape: &str| {
        format!(r#"[{{"name": "x", "path": "ARGS[0]", "type": "{dtype}", "shape": {shape}}}]"#)
    };
    assert!(Description::read(&metadata(&text("{}", &input("FP32", "[4]")))).is_ok());
    for (sizes, inputs, why) in [
        ("{}", input("FP32", r#"["n"]"#), "'x' has a dimension 'n' of no range"),
        (r#"{"n": [4, 3]}"#, input("FP32", r#"["n"]"#), "size 'n' is from 4 to 3"),
        ("{}", input("FP32", "[null]"), "input 'x' has a dimension of unknown size"),
        ("{}", input("FP32", "[-1]"), "'x' has a dimension of -1"),
        ("{}", input("FP32", "[]"), "'x' is a scalar or has no name"),
        ("{}", input("BYTES", "[4]"), "'x' has type 'BYTES'"),
        ("{}", input("float", "[4]"), "'x' has type 'float'"),
        ("{}", "[]".to_owned(), "there are no inputs"),
        ("{}", "{}".to_owned(), "invalid type"),
    ] {
        let message = refused(&text(sizes, &inputs));
        assert!(message.contains(why), "{message}");
    }
    assert!(refused(&text("{}", &input("FP32", "[4]")).replace("\"form\": 1", "\"form\": 2")).contains("form 2"));
}

#[test]
fn a_wrong_input_is_named_with_what_the_package_takes() {
    let package = encoder();
    assert!(package.check(&given(&[16, 2], &[16, 2, 3])).is_ok());
    let refused = |given: &[(DataType, Shape)]| package.check(given).expect_err("it is wrong").message().to_owned();
    let ids = "the package takes [batch from 1 to 16, length from 2 to 128]";
    assert_eq!(refused(&given(&[17, 2], &[17, 2, 3])), format!("input 'ids' has shape [17,2], {ids}"));
    assert_eq!(refused(&given(&[2], &[2, 2, 3])), format!("input 'ids' has shape [2], {ids}"));
    let mask = "the package takes [batch from 1 to 16, length from 2 to 128, 3]";
    assert_eq!(
        refused(&given(&[4, 5], &[4, 6, 3])),
        format!("input 'mask' has shape [4,6,3], {mask}, with 5 as its length")
    );
    assert_eq!(refused(&given(&[4, 5], &[4, 5, 4])), format!("input 'mask' has shape [4,5,4], {mask}"));
    let mut wrong = given(&[4, 5], &[4, 5, 3]);
    wrong[0].0 = DataType::Int32;
    assert_eq!(refused(&wrong), "input 'ids' has type INT32, the package takes INT64");
    assert_eq!(refused(&wrong[..1]), "the package takes 2 inputs, not 1");
}

#[test]
fn only_a_size_that_everything_begins_with_is_that_of_batches() {
    let mut package = encoder();
    assert_eq!(package.batch().map(ToString::to_string).as_deref(), Some("batch from 1 to 16"));
    package.outputs[0].dims[0] = Size::Free(1);
    assert_eq!(package.batch(), None);
    package.outputs[0].dims[0] = Size::Computed;
    assert_eq!(package.batch(), None);
}

proptest! {
    /// Nothing passes but what is written out here by hand.
    #[test]
    fn exactly_what_is_described_passes(
        ids in prop::collection::vec(-1i64..20, 0..4),
        mask in prop::collection::vec(-1i64..20, 0..5),
        same in any::<bool>(),
    ) {
        let mask = if same { ids.iter().copied().chain([3]).collect() } else { mask };
        let fits = ids.len() == 2 && (1..=16).contains(&ids[0]) && (2..=128).contains(&ids[1])
            && mask == [ids[0], ids[1], 3];
        prop_assert_eq!(encoder().check(&given(&ids, &mask)).is_ok(), fits);
    }
}
