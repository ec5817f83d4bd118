//! Which configured tensor is which of the package's, and whether the two agree. Pure.
//!
//! Names are the reference server's: an argument's or result's own, its path such as `ARGS[0]` or `RESULT`, else a number
//! at the end as in `INPUT__0`. What the package fixes must be configured so, and what is configured must be among what
//! the package takes; so only sizes that both leave open are left to each execution.

use super::description::{Description, Outlet, Size};
use crate::error::{Error, Result};
use crate::tensor::DataType;

/// What a configuration says about a tensor that the package sees.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its element type, if that is said.
    pub dtype: Option<DataType>,
    /// Its dimensions without that of the batch, -1 for any; `None` where nothing is said.
    pub dims: Option<Vec<i64>>,
}

/// The configuration's tensors in the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// For each of the package's inputs, its number in the configuration.
    pub inputs: Vec<usize>,
    /// For each configured output, its number in the package.
    pub outputs: Vec<usize>,
}

impl Binding {
    /// Fits a configuration to a package. `rows` is the most of one execution, 0 without a batch dimension.
    ///
    /// # Errors
    /// The first thing that does not agree: a name, a type, a size, or the rows.
    pub fn new(inputs: &[Wanted], outputs: &[Wanted], rows: i64, package: &Description) -> Result<Self> {
        batch(rows, package)?;
        let mut bound = vec![None; package.inputs.len()];
        let numbers = locate(inputs, &package.inputs, "input")?;
        for (index, (wanted, number)) in inputs.iter().zip(numbers).enumerate() {
            agree(wanted, &package.inputs[number], rows, package, true)?;
            bound[number] = Some(index);
        }
        let unbound = |number: usize| {
            let count = package.inputs.len();
            let name = &package.inputs[number].name;
            Error::invalid(format!(
                "the configuration has {} inputs and the package {count}: '{name}' is not configured",
                inputs.len()
            ))
        };
        let inputs = bound.into_iter().enumerate().map(|(number, index)| index.ok_or_else(|| unbound(number)));
        let inputs = inputs.collect::<Result<_>>()?;
        let numbers = locate(outputs, &package.outputs, "output")?;
        for (wanted, &number) in outputs.iter().zip(&numbers) {
            agree(wanted, &package.outputs[number], rows, package, false)?;
        }
        Ok(Self { inputs, outputs: numbers })
    }
}

/// Whether the package takes every number of rows up to the most.
fn batch(rows: i64, package: &Description) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let Some(batch) = package.batch() else {
        let message = "max_batch_size must be 0: the package's inputs and outputs do not all begin with one free size";
        return Err(Error::invalid(message));
    };
    if batch.min <= 1 && rows <= batch.max {
        return Ok(());
    }
    Err(Error::invalid(format!("max_batch_size is {rows}, but the package takes {batch}")))
}

/// The number of each configured tensor in the package, no two the same.
fn locate(wanted: &[Wanted], outlets: &[Outlet], what: &str) -> Result<Vec<usize>> {
    let mut numbers: Vec<usize> = Vec::with_capacity(wanted.len());
    for Wanted { name, .. } in wanted {
        let named = outlets.iter().position(|outlet| outlet.name == *name || outlet.path == *name);
        let number = named.or_else(|| numbered(name).filter(|number| *number < outlets.len())).ok_or_else(|| {
            let names: Vec<_> = outlets.iter().map(|outlet| outlet.name.as_str()).collect();
            Error::invalid(format!("unexpected {what} '{name}', the package's {what}s are: {}", names.join(", ")))
        })?;
        if let Some(other) = numbers.iter().position(|other| *other == number) {
            let (other, own) = (&wanted[other].name, &outlets[number].name);
            return Err(Error::invalid(format!("{what}s '{other}' and '{name}' are the same {what} '{own}'")));
        }
        numbers.push(number);
    }
    Ok(numbers)
}

/// The number that a name ends with, as in `INPUT__1`.
fn numbered(name: &str) -> Option<usize> {
    let (_, number) = name.rsplit_once("__")?;
    number.parse().ok()
}

/// Whether type and dimensions of a configured tensor are the package's. An input must be so, an output may be looser.
fn agree(wanted: &Wanted, outlet: &Outlet, rows: i64, package: &Description, input: bool) -> Result<()> {
    let (name, what) = (&wanted.name, if input { "input" } else { "output" });
    if let Some(dtype) = wanted.dtype.filter(|dtype| *dtype != outlet.dtype) {
        let message =
            format!("{what} '{name}' has type {dtype} in the configuration and {} in the package", outlet.dtype);
        return Err(Error::invalid(message));
    }
    let Some(dims) = &wanted.dims else { return Ok(()) };
    let own = if rows > 0 { &outlet.dims[1..] } else { &outlet.dims[..] };
    let fits = |(&configured, &size): (&i64, &Size)| match configured {
        -1 => !input || !matches!(size, Size::Fixed(_)),
        configured => package.allows(size, configured),
    };
    if dims.len() == own.len() && dims.iter().zip(own).all(fits) {
        return Ok(());
    }
    let after = if rows > 0 { ", after one for the batch" } else { "" };
    Err(Error::invalid(format!(
        "{what} '{name}' has dims {dims:?}{after} in the configuration, and shape {} in the package",
        package.shape(outlet)
    )))
}

#[cfg(test)]
mod tests {
    use super::super::description::tests::encoder;
    use super::*;

    fn wanted(name: &str, dtype: DataType, dims: &[i64]) -> Wanted {
        Wanted { name: name.to_owned(), dtype: Some(dtype), dims: Some(dims.to_vec()) }
    }

    fn ids() -> Wanted {
        wanted("ids", DataType::Int64, &[-1])
    }

    fn mask() -> Wanted {
        wanted("mask", DataType::Fp32, &[-1, 3])
    }

    fn out() -> Wanted {
        wanted("OUTPUT__0", DataType::Fp32, &[-1, 4])
    }

    fn refused(inputs: &[Wanted], outputs: &[Wanted], rows: i64) -> String {
        Binding::new(inputs, outputs, rows, &encoder()).expect_err("it does not agree").message().to_owned()
    }

    #[test]
    fn names_are_the_arguments_their_paths_or_numbers() {
        for names in [["mask", "ids"], ["KWARGS[mask]", "ARGS[0]"], ["INPUT__1", "INPUT__0"]] {
            let inputs =
                [Wanted { name: names[0].to_owned(), ..mask() }, Wanted { name: names[1].to_owned(), ..ids() }];
            let result = Wanted { name: "RESULT".to_owned(), ..out() };
            let binding = Binding::new(&inputs, &[result], 8, &encoder());
            assert_eq!(binding.expect("it agrees"), Binding { inputs: vec![1, 0], outputs: vec![0] }, "{names:?}");
        }
        let wrong = wanted("x", DataType::Int64, &[-1]);
        assert!(
            refused(&[wrong, mask()], &[], 8).starts_with("unexpected input 'x', the package's inputs are: ids, mask")
        );
        assert!(refused(&[ids(), mask()], &[wanted("OUTPUT__1", DataType::Fp32, &[4])], 8).contains("'OUTPUT__1'"));
        assert!(refused(&[ids()], &[out()], 8).ends_with("1 inputs and the package 2: 'mask' is not configured"));
        assert!(
            refused(&[ids(), Wanted { name: "ARGS[0]".to_owned(), ..ids() }], &[], 8).contains("are the same input")
        );
    }

    #[test]
    fn every_number_of_rows_up_to_the_most_must_be_taken() {
        let fits = |rows| Binding::new(&[ids(), mask()], &[out()], rows, &encoder()).is_ok();
        assert!(fits(1) && fits(16) && !fits(17));
        let mut package = encoder();
        package.sizes[0].min = 2;
        let error = Binding::new(&[ids(), mask()], &[out()], 8, &package).expect_err("no batch of one");
        assert_eq!(error.message(), "max_batch_size is 8, but the package takes batch from 2 to 16");
        package.outputs[0].dims[0] = Size::Computed;
        let error = Binding::new(&[ids(), mask()], &[out()], 8, &package).expect_err("no batches");
        assert!(error.message().starts_with("max_batch_size must be 0"), "{error}");
    }

    #[test]
    fn without_a_batch_dimension_all_dimensions_are_configured() {
        let ids = wanted("ids", DataType::Int64, &[-1, -1]);
        let mask = wanted("mask", DataType::Fp32, &[2, -1, 3]);
        let outputs = [wanted("OUTPUT__0", DataType::Fp32, &[-1, -1, 4])];
        assert!(Binding::new(&[ids, mask], &outputs, 0, &encoder()).is_ok());
        assert!(refused(&[self::ids(), self::mask()], &[out()], 0).starts_with("input 'ids' has dims [-1] in the"));
    }

    #[test]
    fn types_and_sizes_must_be_the_packages() {
        let with = |ids: Wanted, mask: Wanted| refused(&[ids, mask], &[out()], 8);
        let message = with(wanted("ids", DataType::Int32, &[-1]), mask());
        assert_eq!(message, "input 'ids' has type INT32 in the configuration and INT64 in the package");
        let message = with(ids(), wanted("mask", DataType::Fp32, &[-1, 4]));
        let expected = "input 'mask' has dims [-1, 4], after one for the batch in the configuration, and shape \
                        [batch from 1 to 16, length from 2 to 128, 3] in the package";
        assert_eq!(message, expected);
        for dims in [&[-1, -1][..], &[1, 3], &[129, 3], &[3], &[-1, 3, 1]] {
            assert!(with(ids(), wanted("mask", DataType::Fp32, dims)).starts_with("input 'mask' has dims"), "{dims:?}");
        }
        let fits = |dims: &[i64]| {
            let mask = wanted("mask", DataType::Fp32, dims);
            Binding::new(&[ids(), mask], &[wanted("RESULT", DataType::Fp32, &[-1, -1])], 8, &encoder()).is_ok()
        };
        assert!(fits(&[2, 3]) && fits(&[128, 3]) && fits(&[-1, 3]));
        assert!(Binding::new(&[ids(), Wanted { dims: None, dtype: None, ..mask() }], &[out()], 8, &encoder()).is_ok());
    }
}
