//! What a package says about itself: its inputs and outputs, and what it was built for and by. Pure.
//!
//! The code in a package checks nothing: it reads as many elements as it expects, whatever it is given. So whoever builds
//! one (`scripts/torch-aoti`) writes a description into its metadata, and every execution is held against that by
//! [`Description::check`] first. Begin with [`Description::read`].

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::tensor::{DataType, Shape};

/// The metadata's key of the description.
const KEY: &str = "nereid";
/// The one form of description there is.
const FORM: u32 = 1;

/// How to build a package that can be served, for messages.
pub const BUILD: &str = "build it with `scripts/torch-aoti SOURCE.py model.pt2`";

/// A package's inputs and outputs, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What an execution is given.
    pub inputs: Vec<Outlet>,
    /// What it gives.
    pub outputs: Vec<Outlet>,
    /// The sizes that executions may choose.
    pub sizes: Vec<Range>,
    /// The version of torch that built it, such as `2.11.0`.
    pub torch: String,
    /// Threads of one operation, fixed when it was built.
    pub threads: usize,
    /// The kind of device that it was built for, such as `cpu`.
    pub device: String,
    /// The instruction sets that its code uses, such as `AVX512 AVX512_VNNI`.
    pub instructions: String,
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// The argument's name, or the result's.
    pub name: String,
    /// Where it stands among the arguments or results, such as `ARGS[0]` or `RESULT`.
    pub path: String,
    /// The element type.
    pub dtype: DataType,
    /// Its dimensions; at least one.
    pub dims: Vec<Size>,
}

/// A dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Always this size.
    Fixed(i64),
    /// The size of this number in [`Description::sizes`], the same wherever it stands.
    Free(usize),
    /// Computed from other sizes; of outputs only.
    Computed,
}

/// A size that an execution may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its name, such as `batch`.
    pub name: String,
    /// The smallest.
    pub min: i64,
    /// The largest.
    pub max: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    form: u32,
    torch: String,
    threads: usize,
    sizes: BTreeMap<String, (i64, i64)>,
    inputs: Vec<WrittenOutlet>,
    outputs: Vec<WrittenOutlet>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenOutlet {
    name: String,
    path: String,
    #[serde(rename = "type")]
    dtype: String,
    shape: Vec<WrittenSize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenSize {
    Fixed(i64),
    Named(String),
    Computed(()),
}

impl Description {
    /// The description in a package's metadata.
    ///
    /// # Errors
    /// If there is none, or it contradicts itself.
    pub fn read(metadata: &BTreeMap<String, String>) -> Result<Self> {
        let text = metadata.get(KEY).ok_or_else(|| {
            Error::invalid(format!(
                "the package does not say which types and shapes its inputs have, and its code does not check them: {BUILD}"
            ))
        })?;
        let wrong =
            |why: String| Error::invalid(format!("the package's description of itself is wrong: {why}: {BUILD}"));
        let written: Written = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let of_builder = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        written.meant(of_builder("AOTI_DEVICE_KEY"), of_builder("AOTI_CPU_ISA")).map_err(wrong)
    }

    /// Whether an execution may be given these inputs, in the package's order.
    ///
    /// # Errors
    /// The first that may not be, with what it should be.
    pub fn check(&self, given: &[(DataType, Shape)]) -> Result<()> {
        if given.len() != self.inputs.len() {
            let message = format!("the package takes {} inputs, not {}", self.inputs.len(), given.len());
            return Err(Error::internal(message));
        }
        let mut chosen: Vec<Option<i64>> = vec![None; self.sizes.len()];
        for (outlet, (dtype, shape)) in self.inputs.iter().zip(given) {
            if outlet.dtype != *dtype {
                let message = format!("input '{}' has type {dtype}, the package takes {}", outlet.name, outlet.dtype);
                return Err(Error::invalid(message));
            }
            let fits = outlet.dims.len() == shape.len()
                && outlet.dims.iter().zip(shape.iter()).all(|(size, &given)| match *size {
                    Size::Fixed(size) => size == given,
                    Size::Free(number) => {
                        let Range { min, max, .. } = self.sizes[number];
                        (min..=max).contains(&given) && *chosen[number].get_or_insert(given) == given
                    }
                    Size::Computed => false,
                });
            if !fits {
                let (name, taken, bound) = (&outlet.name, self.shape(outlet), self.bound(outlet, shape, &chosen));
                let message = format!("input '{name}' has shape {shape}, the package takes {taken}{bound}");
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }

    /// Which size of an input is another than before, for a message; empty if none is.
    fn bound(&self, outlet: &Outlet, shape: &Shape, chosen: &[Option<i64>]) -> String {
        let other = outlet.dims.iter().zip(shape.iter()).find_map(|(size, given)| match *size {
            Size::Free(number) => Some(number).zip(chosen[number].filter(|before| before != given)),
            Size::Fixed(_) | Size::Computed => None,
        });
        other.map_or_else(String::new, |(number, before)| format!(", with {before} as its {}", self.sizes[number].name))
    }

    /// An outlet's dimensions with the ranges of those that are free, for people.
    pub fn shape(&self, outlet: &Outlet) -> impl fmt::Display {
        let sizes = outlet.dims.iter().map(|size| match *size {
            Size::Fixed(size) => size.to_string(),
            Size::Free(number) => self.sizes[number].to_string(),
            Size::Computed => "?".to_owned(),
        });
        format!("[{}]", sizes.collect::<Vec<_>>().join(", "))
    }

    /// Whether this dimension can have this size, for itself.
    pub fn allows(&self, size: Size, wanted: i64) -> bool {
        match size {
            Size::Fixed(size) => size == wanted,
            Size::Free(number) => (self.sizes[number].min..=self.sizes[number].max).contains(&wanted),
            Size::Computed => true,
        }
    }

    /// The size by which its inputs and outputs all begin: that of its batches.
    pub fn batch(&self) -> Option<&Range> {
        let mut first = self.inputs.iter().chain(&self.outputs).map(|outlet| outlet.dims[0]);
        let size = first.next()?;
        match size {
            Size::Free(number) if first.all(|other| other == size) => Some(&self.sizes[number]),
            _ => None,
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} to {}", self.name, self.min, self.max)
    }
}

impl Written {
    fn meant(self, device: String, instructions: String) -> Result<Description, String> {
        if self.form != FORM {
            return Err(format!("form {} is unknown", self.form));
        }
        let range = |(name, (min, max)): (String, (i64, i64))| match 0 <= min && min <= max {
            true => Ok(Range { name, min, max }),
            false => Err(format!("size '{name}' is from {min} to {max}")),
        };
        let sizes: Vec<Range> = self.sizes.into_iter().map(range).collect::<Result<_, _>>()?;
        let outlets = |written: Vec<WrittenOutlet>, what: &str| {
            let outlets: Vec<Outlet> = written.into_iter().map(|each| each.meant(&sizes)).collect::<Result<_, _>>()?;
            for (index, outlet) in outlets.iter().enumerate() {
                if outlets[..index].iter().any(|other| other.name == outlet.name) {
                    return Err(format!("two {what} are named '{}'", outlet.name));
                }
            }
            if outlets.is_empty() { Err(format!("there are no {what}")) } else { Ok(outlets) }
        };
        let (inputs, outputs) = (outlets(self.inputs, "inputs")?, outlets(self.outputs, "outputs")?);
        if let Some(input) = inputs.iter().find(|input| input.dims.contains(&Size::Computed)) {
            return Err(format!("input '{}' has a dimension of unknown size", input.name));
        }
        let (torch, threads) = (self.torch, self.threads);
        Ok(Description { inputs, outputs, sizes, torch, threads, device, instructions })
    }
}

impl WrittenOutlet {
    fn meant(self, sizes: &[Range]) -> Result<Outlet, String> {
        let Self { name, path, dtype, shape } = self;
        let dtype = DataType::from_name(&dtype)
            .filter(|dtype| *dtype != DataType::Bytes)
            .ok_or_else(|| format!("'{name}' has type '{dtype}'"))?;
        if shape.is_empty() || name.is_empty() {
            return Err(format!("'{name}' is a scalar or has no name"));
        }
        let size = |written| match written {
            WrittenSize::Fixed(size) if size >= 0 => Ok(Size::Fixed(size)),
            WrittenSize::Fixed(size) => Err(format!("'{name}' has a dimension of {size}")),
            WrittenSize::Named(size) => match sizes.iter().position(|known| known.name == size) {
                Some(number) => Ok(Size::Free(number)),
                None => Err(format!("'{name}' has a dimension '{size}' of no range")),
            },
            WrittenSize::Computed(()) => Ok(Size::Computed),
        };
        let dims = shape.into_iter().map(size).collect::<Result<_, _>>()?;
        Ok(Outlet { name, path, dtype, dims })
    }
}

#[cfg(test)]
#[path = "description_tests.rs"]
pub mod tests;
