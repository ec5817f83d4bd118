//! Holds a configuration against the model file, and says how their tensors belong together: by name. Pure.

use std::ffi::CString;

use super::description::{Description, Outlet};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSpec};
use crate::tensor::{DataType, Shape};

/// The configuration's tensors in the file, in the configuration's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The inputs, those that the server makes included.
    pub inputs: Vec<Bound>,
    /// The outputs.
    pub outputs: Vec<Bound>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The name as the library takes it.
    pub name: CString,
    /// Whether it is a scalar in the file, and one dimension of size 1 in the configuration.
    pub scalar: bool,
}

impl Binding {
    /// `config` is what the model file sees.
    ///
    /// # Errors
    /// The first thing that does not fit: a name, an element type or a dimension.
    pub fn new(config: &ModelConfig, file: &Description) -> Result<Self> {
        if config.decoupled {
            let message = format!("model '{}' cannot be decoupled: a model in ONNX gives one response", config.name);
            return Err(Error::invalid(message));
        }
        let inputs = config.inputs.iter().map(|spec| {
            let outlet = find(config, spec, &file.inputs, "input")?;
            if spec.optional && !outlet.optional {
                return Err(Error::invalid(format!(
                    "unable to load model '{}', input '{}' is optional in the configuration, but has no default in the model",
                    config.name, spec.name
                )));
            }
            bind(config, spec, outlet, "input")
        });
        let inputs = inputs.collect::<Result<_>>()?;
        let configured = |outlet: &Outlet| config.inputs.iter().any(|spec| *spec.name == *outlet.name);
        if let Some(missing) = file.inputs.iter().find(|outlet| !outlet.optional && !configured(outlet)) {
            return Err(Error::invalid(format!(
                "unable to load model '{}', configuration expects {} inputs, model provides {}: '{}' is not configured",
                config.name,
                config.inputs.len(),
                file.inputs.iter().filter(|outlet| !outlet.optional).count(),
                missing.name
            )));
        }
        let outputs = config.outputs.iter().map(|spec| {
            let outlet = find(config, spec, &file.outputs, "output")?;
            bind(config, spec, outlet, "output")
        });
        Ok(Self { inputs, outputs: outputs.collect::<Result<_>>()? })
    }
}

fn find<'a>(config: &ModelConfig, spec: &TensorSpec, outlets: &'a [Outlet], what: &str) -> Result<&'a Outlet> {
    outlets.iter().find(|outlet| *outlet.name == *spec.name).ok_or_else(|| {
        let names: Vec<_> = outlets.iter().map(|outlet| outlet.name.as_str()).collect();
        let (name, names) = (&spec.name, names.join(", "));
        Error::invalid(format!(
            "unable to load model '{}', unexpected inference {what} '{name}', allowed {what}s are: {names}",
            config.name
        ))
    })
}

fn bind(config: &ModelConfig, spec: &TensorSpec, outlet: &Outlet, what: &str) -> Result<Bound> {
    let Some(dtype) = outlet.dtype else {
        return Err(Error::invalid(format!(
            "unable to load model '{}', {what} '{}' has type {}, which is not supported",
            config.name, spec.name, outlet.kind
        )));
    };
    if let Some(expected) = spec.dtype
        && expected != dtype
    {
        return Err(Error::invalid(format!(
            "unable to load model '{}', configuration expects datatype {} for {what} '{}', model provides {}",
            config.name,
            type_name(expected),
            spec.name,
            type_name(dtype)
        )));
    }
    let scalar =
        config.max_batch_rows == 0 && outlet.dims.is_empty() && spec.model_dims().is_some_and(|dims| **dims == [1]);
    dims(config, spec, outlet)?;
    let name = CString::new(outlet.name.as_str()).map_err(|_| {
        Error::invalid(format!("unable to load model '{}', a tensor's name has a zero in it", config.name))
    })?;
    Ok(Bound { name, scalar })
}

/// Whether the dimensions can be the same. What is put together from requests of different shapes is left to the model.
fn dims(config: &ModelConfig, spec: &TensorSpec, outlet: &Outlet) -> Result<()> {
    let by_batch = config.batch_outputs.iter().any(|output| output.targets.contains(&spec.name));
    let Some(dims) = spec.model_dims().filter(|_| !by_batch && !spec.ragged && !outlet.dims.is_empty()) else {
        return Ok(());
    };
    let batching = config.max_batch_rows > 0;
    let full = if batching { dims.with_rows(-1) } else { dims.clone() };
    let fits = |(configured, own): (&i64, &i64)| *configured == -1 || *own == -1 || configured == own;
    let batches = !batching || outlet.can_batch();
    if full.len() == outlet.dims.len() && batches && full.iter().zip(outlet.dims.iter()).all(fits) {
        return Ok(());
    }
    Err(misfit(config, spec, outlet, (dims, &full)))
}

fn misfit(config: &ModelConfig, spec: &TensorSpec, outlet: &Outlet, (dims, full): (&Shape, &Shape)) -> Error {
    let (name, tensor, own) = (&config.name, &spec.name, &outlet.dims);
    if config.max_batch_rows == 0 {
        return Error::invalid(format!(
            "model '{name}', tensor '{tensor}': the model expects shape {own} but the model configuration specifies shape \
             {dims}"
        ));
    }
    Error::invalid(format!(
        "model '{name}', tensor '{tensor}': the model expects shape {own} but the model configuration specifies shape \
         {full} (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape {dims})"
    ))
}

/// The configuration's spelling of an element type, such as `TYPE_FP32`.
pub fn type_name(dtype: DataType) -> String {
    match dtype {
        DataType::Bytes => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet(name: &str, dtype: Option<DataType>, dims: &[i64]) -> Outlet {
        let dims = Shape::new(dims);
        Outlet { name: name.to_owned(), dtype, dims, optional: false, kind: "Sequence<Tensor<f32>(dyn)>".to_owned() }
    }

    /// A file of one FP32 input `x` of these dimensions, an input `bias` with a default, and one output `y` like `x`.
    fn file(dims: &[i64]) -> Description {
        let bias = Outlet { optional: true, ..outlet("bias", Some(DataType::Fp32), &[-1, 3]) };
        let inputs = vec![outlet("x", Some(DataType::Fp32), dims), bias];
        Description { inputs, outputs: vec![outlet("y", Some(DataType::Fp32), dims)] }
    }

    fn config(rows: usize, inputs: &[(&str, DataType, &[i64])]) -> ModelConfig {
        let spec = |(name, dtype, dims): &(&str, DataType, &[i64])| {
            TensorSpec::new(*name, Some(*dtype), Some(Shape::new(dims)))
        };
        let mut config = ModelConfig::new("m", "onnxruntime");
        config.max_batch_rows = rows;
        config.inputs = inputs.iter().map(spec).collect();
        config
    }

    fn refused(config: &ModelConfig, file: &Description) -> String {
        Binding::new(config, file).expect_err("it does not fit").message().to_owned()
    }

    #[test]
    fn tensors_belong_together_by_name_in_the_configurations_order() {
        let config = config(4, &[("bias", DataType::Fp32, &[3]), ("x", DataType::Fp32, &[-1])]);
        let binding = Binding::new(&config, &file(&[-1, 3])).expect("it fits");
        let names: Vec<_> = binding.inputs.iter().map(|bound| bound.name.to_str().expect("text")).collect();
        assert_eq!((names, binding.outputs.len()), (vec!["bias", "x"], 0));
    }

    #[test]
    fn names_types_and_kinds_are_held_against_the_file() {
        let file = file(&[-1, 3]);
        let wrong = config(4, &[("X", DataType::Fp32, &[3])]);
        assert!(refused(&wrong, &file).contains("unexpected inference input 'X', allowed inputs are: x, bias"));
        let wrong = config(4, &[("bias", DataType::Fp32, &[3])]);
        assert!(refused(&wrong, &file).ends_with("expects 1 inputs, model provides 1: 'x' is not configured"));
        let wrong = config(4, &[("x", DataType::Bytes, &[3])]);
        assert!(
            refused(&wrong, &file).contains("expects datatype TYPE_STRING for input 'x', model provides TYPE_FP32")
        );
        let list = Description { inputs: vec![outlet("x", None, &[])], outputs: vec![] };
        assert!(refused(&config(0, &[("x", DataType::Fp32, &[3])]), &list).contains("'x' has type Sequence<"));
        let mut wrong = config(4, &[("x", DataType::Fp32, &[3])]);
        wrong.decoupled = true;
        assert!(refused(&wrong, &file).contains("cannot be decoupled"));
    }

    #[test]
    fn dimensions_must_be_able_to_be_the_same() {
        let fits = |rows, dims: &[i64], own: &[i64]| {
            Binding::new(&config(rows, &[("x", DataType::Fp32, dims)]), &file(own)).is_ok()
        };
        assert!(fits(4, &[3], &[-1, 3]) && fits(4, &[-1], &[-1, 3]) && fits(4, &[3], &[-1, -1]));
        assert!(!fits(4, &[4], &[-1, 3]), "another size");
        assert!(!fits(4, &[3, 1], &[-1, 3]), "another rank");
        assert!(!fits(4, &[3], &[1, 3]), "a batch of one only");
        assert!(fits(0, &[1, 3], &[1, 3]) && !fits(0, &[3], &[-1, 3]));
        assert!(fits(0, &[7, 7], &[]), "the file says nothing");
    }

    #[test]
    fn only_what_has_a_default_can_be_left_out() {
        let mut config = config(4, &[("x", DataType::Fp32, &[3]), ("bias", DataType::Fp32, &[3])]);
        config.inputs[1].optional = true;
        assert!(Binding::new(&config, &file(&[-1, 3])).is_ok());
        config.inputs[0].optional = true;
        assert!(refused(&config, &file(&[-1, 3])).contains("'x' is optional in the configuration"));
    }

    #[test]
    fn one_number_may_be_a_scalar_in_the_file() {
        let binding = Binding::new(&config(0, &[("x", DataType::Fp32, &[1])]), &file(&[])).expect("it fits");
        assert!(binding.inputs[0].scalar);
    }
}
