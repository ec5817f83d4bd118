//! Fills what a configuration leaves out from a package's description, and holds what it says against that. Pure.

use super::binding::{Binding, Wanted};
use super::description::{Description, Outlet, Size};
use crate::error::Result;
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::schema::{self, ModelConfig, ModelInput, ModelOutput, ModelTensorReshape};
use crate::model::{data_type, written_type};

/// The most rows of one execution where only the package says that it takes batches, if it takes so many.
const ROWS_MAX: i64 = 8;

/// Fills in inputs, outputs and rows, and checks that what is written agrees with the package.
///
/// A configuration without inputs and outputs takes batches if the package does; one that lists some says so itself.
///
/// # Errors
/// The first thing that does not agree.
pub fn complete(package: &Description, config: &mut ModelConfig) -> Result<()> {
    let says_nothing = config.max_batch_size == 0 && config.input.is_empty() && config.output.is_empty();
    if let Some(batch) = package.batch().filter(|batch| says_nothing && batch.min <= 1 && batch.max >= 1) {
        config.max_batch_size = i32::try_from(batch.max.min(ROWS_MAX)).unwrap_or(i32::MAX);
    }
    let batching = config.max_batch_size > 0;
    if says_nothing && config.max_batch_size > 1 && config.scheduling_choice.is_none() {
        config.scheduling_choice = Some(SchedulingChoice::DynamicBatching(schema::ModelDynamicBatching::default()));
    }
    if config.input.is_empty() {
        let input = |outlet: &Outlet| {
            let (name, data_type, (dims, reshape)) =
                (outlet.name.clone(), written_type(outlet.dtype).into(), dims(outlet, batching));
            ModelInput { name, data_type, dims, reshape, ..Default::default() }
        };
        config.input = package.inputs.iter().map(input).collect();
    }
    if config.output.is_empty() {
        let output = |outlet: &Outlet| {
            let (name, data_type, (dims, reshape)) =
                (outlet.name.clone(), written_type(outlet.dtype).into(), dims(outlet, batching));
            ModelOutput { name, data_type, dims, reshape, ..Default::default() }
        };
        config.output = package.outputs.iter().map(output).collect();
    }
    // Only when it is open is it known what the server itself gives to a model of sequences, or makes for its batches.
    let makes_inputs = matches!(config.scheduling_choice, Some(SchedulingChoice::SequenceBatching(_)));
    if makes_inputs || !config.batch_input.is_empty() {
        return Ok(());
    }
    Binding::new(&inputs(config), &outputs(config), config.max_batch_size.into(), package).map(|_| ())
}

fn inputs(config: &ModelConfig) -> Vec<Wanted> {
    let wanted = |input: &ModelInput| Wanted {
        name: input.name.clone(),
        dtype: data_type(input.data_type()),
        dims: (!input.allow_ragged_batch).then(|| seen(&input.dims, input.reshape.as_ref())),
    };
    config.input.iter().map(wanted).collect()
}

fn outputs(config: &ModelConfig) -> Vec<Wanted> {
    let by_batch = |name: &String| config.batch_output.iter().any(|output| output.target_name.contains(name));
    let wanted = |output: &ModelOutput| Wanted {
        name: output.name.clone(),
        dtype: data_type(output.data_type()),
        dims: (!by_batch(&output.name)).then(|| seen(&output.dims, output.reshape.as_ref())),
    };
    config.output.iter().map(wanted).collect()
}

/// The dimensions that the package sees.
fn seen(dims: &[i64], reshape: Option<&ModelTensorReshape>) -> Vec<i64> {
    reshape.map_or(dims, |reshape| &reshape.shape).to_vec()
}

/// An outlet's dimensions without that of the batch. None at all are one of size 1 in a configuration.
fn dims(outlet: &Outlet, batching: bool) -> (Vec<i64>, Option<ModelTensorReshape>) {
    let dims = outlet.dims[usize::from(batching)..].iter().map(|size| match *size {
        Size::Fixed(size) => size,
        Size::Free(_) | Size::Computed => -1,
    });
    let dims: Vec<i64> = dims.collect();
    if dims.is_empty() { (vec![1], Some(ModelTensorReshape::default())) } else { (dims, None) }
}

#[cfg(test)]
mod tests {
    use super::super::description::tests::encoder;
    use super::*;

    #[test]
    fn a_configuration_that_says_nothing_gets_the_packages_tensors_and_batches() {
        let mut config = ModelConfig::default();
        complete(&encoder(), &mut config).expect("nothing contradicts it");
        assert_eq!(config.max_batch_size, 8);
        assert!(matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_))));
        let inputs: Vec<_> =
            config.input.iter().map(|input| (input.name.as_str(), input.data_type(), input.dims.clone())).collect();
        assert_eq!(inputs[0], ("ids", schema::DataType::TypeInt64, vec![-1]));
        assert_eq!(inputs[1], ("mask", schema::DataType::TypeFp32, vec![-1, 3]));
        assert_eq!((config.output.len(), &config.output[0].dims[..]), (1, &[-1, 4][..]));
        let written = config.clone();
        complete(&encoder(), &mut config).expect("it agrees with itself");
        assert_eq!(config, written);
    }

    #[test]
    fn what_is_written_is_left_and_held_against_the_package() {
        let mut config = ModelConfig { max_batch_size: 16, ..Default::default() };
        complete(&encoder(), &mut config).expect("it takes so many");
        assert_eq!((config.max_batch_size, config.scheduling_choice.is_some()), (16, false));
        let refused = |config: &ModelConfig| complete(&encoder(), &mut config.clone()).expect_err("it does not agree");
        let too_many = ModelConfig { max_batch_size: 17, ..Default::default() };
        assert_eq!(refused(&too_many).message(), "max_batch_size is 17, but the package takes batch from 1 to 16");
        let mut wrong = config.clone();
        wrong.input[0].set_data_type(schema::DataType::TypeInt32);
        assert!(refused(&wrong).message().starts_with("input 'ids' has type INT32"));
        let mut wrong = config.clone();
        wrong.input[1].dims = vec![3];
        assert!(refused(&wrong).message().starts_with("input 'mask' has dims [3]"));
        let mut wrong = config;
        wrong.input.pop();
        assert!(refused(&wrong).message().ends_with("'mask' is not configured"));
    }

    #[test]
    fn a_configuration_without_batches_has_all_dimensions() {
        let mut package = encoder();
        package.sizes[0].min = 2;
        let mut config = ModelConfig::default();
        complete(&package, &mut config).expect("nothing contradicts it");
        assert_eq!((config.max_batch_size, &config.input[0].dims[..]), (0, &[-1, -1][..]));
    }
}
