//! What a configuration becomes by what a file says.

use super::*;
use crate::model::schema::model_sequence_batching::{ControlInput, State};
use crate::tensor::DataType;
use crate::tensor::Shape;

fn outlet(name: &str, dtype: Option<DataType>, dims: &[i64]) -> Outlet {
    Outlet { name: name.to_owned(), dtype, dims: Shape::new(dims), optional: false, kind: "Map<i64, f32>".to_owned() }
}

fn numbers(name: &str, dims: &[i64]) -> Outlet {
    outlet(name, Some(DataType::Fp32), dims)
}

fn file(inputs: Vec<Outlet>, outputs: Vec<Outlet>) -> Description {
    Description { inputs, outputs }
}

fn completed(file: &Description, mut config: ModelConfig) -> ModelConfig {
    config.name = "m".to_owned();
    complete(file, &mut config).expect("it fits");
    config
}

#[test]
fn a_free_first_dimension_everywhere_is_the_batch() {
    let config = completed(&file(vec![numbers("x", &[-1, 3])], vec![numbers("y", &[-1])]), ModelConfig::default());
    assert_eq!(config.max_batch_size, 4);
    assert!(matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_))));
    let (input, output) = (&config.input[0], &config.output[0]);
    assert_eq!((input.name.as_str(), input.dims.as_slice(), &input.reshape), ("x", &[3][..], &None));
    assert_eq!(input.data_type(), schema::DataType::TypeFp32);
    assert_eq!((output.dims.as_slice(), &output.reshape), (&[1][..], &Some(ModelTensorReshape::default())));
}

#[test]
fn one_fixed_first_dimension_means_no_batches() {
    let both = file(vec![numbers("x", &[-1, 3])], vec![numbers("y", &[1, 3])]);
    let config = completed(&both, ModelConfig::default());
    assert_eq!((config.max_batch_size, &config.scheduling_choice), (0, &None));
    assert_eq!((config.input[0].dims.as_slice(), config.output[0].dims.as_slice()), (&[-1, 3][..], &[1, 3][..]));
    let mut asked = ModelConfig { name: "m".to_owned(), max_batch_size: 8, ..Default::default() };
    let error = complete(&both, &mut asked).expect_err("it takes none");
    assert!(error.message().contains("does not support batching while non-zero max_batch_size"), "{error}");
}

#[test]
fn what_is_written_stays() {
    let written = ModelInput { name: "x".to_owned(), dims: vec![-1, 3], ..Default::default() };
    let config = ModelConfig { input: vec![written.clone()], ..Default::default() };
    let both = file(vec![numbers("x", &[-1, 3])], vec![numbers("y", &[-1, 3])]);
    let config = completed(&both, config);
    assert_eq!(config.input, [written], "its dimensions are the file's, so that there is no batch dimension");
    assert_eq!((config.max_batch_size, config.output[0].dims.as_slice()), (0, &[-1, 3][..]));
    let written = ModelInput { name: "x".to_owned(), dims: vec![3], ..Default::default() };
    let config = completed(&both, ModelConfig { input: vec![written], ..Default::default() });
    assert_eq!((config.max_batch_size, config.output[0].dims.as_slice()), (4, &[3][..]));
    let one = ModelConfig { max_batch_size: 1, ..Default::default() };
    assert_eq!(completed(&both, one).scheduling_choice, None, "there is nothing to batch");
}

#[test]
fn a_scalar_has_one_dimension_and_no_form_of_its_own_without_batches() {
    let config = completed(&file(vec![numbers("x", &[])], vec![numbers("y", &[2])]), ModelConfig::default());
    assert_eq!((config.input[0].dims.as_slice(), &config.input[0].reshape), (&[1][..], &None));
}

#[test]
fn what_callers_do_not_give_is_not_listed() {
    let mut weight = numbers("weight", &[3]);
    weight.optional = true;
    let inputs = ["x", "start", "state_in"].map(|name| numbers(name, &[-1, 1]));
    let outputs = ["y", "state_out"].map(|name| numbers(name, &[-1, 1]));
    let batching = schema::ModelSequenceBatching {
        control_input: vec![ControlInput { name: "start".to_owned(), ..Default::default() }],
        state: vec![State {
            input_name: "state_in".to_owned(),
            output_name: "state_out".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let choice = Some(SchedulingChoice::SequenceBatching(batching));
    let all = inputs.into_iter().chain([weight]).collect();
    let config = completed(&file(all, outputs.into()), ModelConfig { scheduling_choice: choice, ..Default::default() });
    assert_eq!(config.input.iter().map(|input| input.name.as_str()).collect::<Vec<_>>(), ["x"]);
    assert_eq!(config.output.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), ["y"]);
}

#[test]
fn a_type_that_cannot_be_sent_is_told() {
    let both = file(vec![outlet("scores", None, &[])], vec![]);
    let mut config = ModelConfig { name: "m".to_owned(), ..Default::default() };
    let error = complete(&both, &mut config).expect_err("a map is no tensor");
    assert_eq!(error.message(), "autofill failed for model 'm': 'scores' has type Map<i64, f32>");
}

#[test]
fn every_element_type_has_a_spelling_of_its_own() {
    let mut spellings: Vec<_> = DataType::ALL.into_iter().map(|dtype| written_type(dtype) as i32).collect();
    spellings.sort_unstable();
    spellings.dedup();
    assert_eq!(spellings.len(), DataType::ALL.len());
}
