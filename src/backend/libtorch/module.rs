//! libtorch's modules as safe Rust values: made, described, run; and what an execution takes and returns.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::Path;
use std::ptr;

use super::device::{device_number, device_of};
use super::ffi::{self, Api, RawArgument, RawInput, RawModule, RawOutput, RawRun, RawValue, RawWeight, Text};
use super::handle::{Handle, data_type, type_number};
use crate::error::Result;
use crate::model::Device;
use crate::tensor::DataType;

fn text(text: &[u8]) -> Text {
    Text { data: text.as_ptr(), len: text.len() }
}

/// The bytes of a text that the shim passes to a callback; empty for an absent one.
fn bytes_of(text: &Text) -> &[u8] {
    if text.data.is_null() {
        return &[];
    }
    // SAFETY: the shim's texts are valid for the callback that they are passed to, which the borrow of `text` is in.
    unsafe { std::slice::from_raw_parts(text.data, text.len) }
}

fn string_of(text: &Text) -> String {
    String::from_utf8_lossy(bytes_of(text)).into_owned()
}

/// One value for `forward`.
pub enum Input<'a> {
    /// A tensor.
    Tensor(Handle),
    /// A list of strings.
    Strings(Vec<&'a [u8]>),
    /// `None`.
    Nothing,
}

/// The values for `forward`, each with its name.
pub struct Inputs<'a> {
    /// The values.
    pub list: Vec<(&'a str, Input<'a>)>,
    /// How many of them are given in order; the others by their names.
    pub in_order: usize,
}

/// One value that `forward` returned, taken out of its containers.
pub struct Output {
    /// The dictionary key or tuple field; empty if it has none.
    pub name: String,
    /// The value.
    pub value: OutputValue,
}

/// What an output is.
pub enum OutputValue {
    /// A tensor.
    Tensor(Handle),
    /// A list of strings.
    Strings(Vec<Vec<u8>>),
    /// Something that cannot be sent, by the name of its type.
    Other(String),
}

/// How to run a module.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Where the module's weights are.
    pub device: Device,
    /// Without any bookkeeping for gradients, instead of merely without gradients.
    pub inference_mode: bool,
    /// Whether the graph is optimised before it runs.
    pub optimized_executor: bool,
    /// `forward` takes one dictionary of tensors.
    pub as_dictionary: bool,
    /// The type that inputs of floating point are converted to.
    pub float_type: Option<DataType>,
}

/// One argument of `forward`, or one element of what it returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// The name; empty if it has none.
    pub name: String,
    /// The type as TorchScript writes it, such as `Tensor` or `Dict[str, Tensor]`.
    pub kind: String,
    /// The default's text, if it has one.
    pub fallback: Option<String>,
}

/// What `forward` takes and returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema {
    /// The arguments in order, without the module itself.
    pub arguments: Vec<Argument>,
    /// The elements of a returned tuple, or the one value returned.
    pub returns: Vec<Argument>,
}

/// A parameter or buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its path in the module.
    pub name: String,
    /// Where its memory starts; the same for weights that share it.
    pub address: usize,
    /// The bytes of its memory.
    pub bytes: u64,
    /// The element type, if the protocol has it.
    pub dtype: Option<DataType>,
    /// Where it is.
    pub device: Device,
    /// A buffer, not a parameter.
    pub buffer: bool,
}

/// What `forward` may write to, besides its own intermediate values. Yes when in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effects {
    /// Its inputs: they must be copies.
    pub inputs: bool,
    /// The module's attributes: outputs must be copies, and instances must not share the module.
    pub state: bool,
}

/// A TorchScript module with a `forward`.
pub struct Module {
    raw: *mut RawModule,
    api: &'static Api,
}

// SAFETY: libtorch allows a module to be used and dropped on any thread.
unsafe impl Send for Module {}
// SAFETY: libtorch allows `forward` on several threads at once; what changes a module takes `&mut self`.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live handle of the shim and freed only here.
        unsafe { (self.api.module_free)(self.raw) };
    }
}

impl Module {
    fn made(make: impl FnOnce(&'static Api, *mut *mut RawModule) -> *mut std::ffi::c_char) -> Result<Self> {
        let api = ffi::api()?;
        let mut raw = ptr::null_mut();
        api.check(make(api, &raw mut raw))?;
        Ok(Self { raw, api })
    }

    /// The shim's handle, for calls that end before this is dropped.
    pub(super) fn raw(&self) -> *const RawModule {
        self.raw
    }

    /// An empty module.
    pub fn new(name: &str) -> Result<Self> {
        // SAFETY: the name is read during the call only.
        Self::made(|api, out| unsafe { (api.module_new)(text(name.as_bytes()), out) })
    }

    /// A module from a file, its weights on `device`.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let path = path.as_os_str().as_encoded_bytes();
        // SAFETY: the path is read during the call only.
        Self::made(|api, out| unsafe { (api.module_load)(text(path), device_number(device), out) })
    }

    /// A copy that shares nothing.
    pub fn copy(&self) -> Result<Self> {
        // SAFETY: `self.raw` is live.
        Self::made(|api, out| unsafe { (api.module_copy)(self.raw, out) })
    }

    /// This module with its attributes as constants of its graph.
    pub fn frozen(&self) -> Result<Self> {
        // SAFETY: `self.raw` is live.
        Self::made(|api, out| unsafe { (api.module_freeze)(self.raw, out) })
    }

    /// This module frozen, with operations fused and weights laid out for its device; and how many linear layers and
    /// convolutions in two dimensions oneDNN does then.
    pub fn optimized(&self) -> Result<(Self, u64)> {
        let mut layers = 0;
        // SAFETY: `self.raw` is live; the number is written when the call succeeds.
        let module = Self::made(|api, out| unsafe { (api.module_optimize)(self.raw, out, &raw mut layers) })?;
        Ok((module, layers))
    }

    /// Converts the weights and constants of floating point to this type; all else stays as it is.
    pub fn convert(&mut self, dtype: DataType) -> Result<()> {
        let number = type_number(dtype)?;
        // SAFETY: `raw` is live, and nobody else has the module.
        self.api.check(unsafe { (self.api.module_convert)(self.raw, number) })
    }

    /// This module frozen, with int8 weights in its linear layers; how many these are, and the bytes of all weights.
    pub fn quantized(&self) -> Result<(Self, u64, u64)> {
        let (mut layers, mut bytes) = (0, 0);
        // SAFETY: `self.raw` is live; both numbers are written when the call succeeds.
        let module =
            Self::made(|api, out| unsafe { (api.module_quantize)(self.raw, out, &raw mut layers, &raw mut bytes) })?;
        Ok((module, layers, bytes))
    }

    /// Adds an attribute that is a list of one tensor.
    #[cfg(test)]
    pub fn register_list(&mut self, name: &str, tensor: &Handle) -> Result<()> {
        // SAFETY: both handles are live; the name is read during the call only.
        self.api.check(unsafe { (self.api.module_register)(self.raw, text(name.as_bytes()), tensor.raw(), 2) })
    }

    /// Adds a parameter or buffer.
    pub fn register(&mut self, name: &str, tensor: &Handle, buffer: bool) -> Result<()> {
        // SAFETY: both handles are live; the name is read during the call only.
        self.api.check(unsafe {
            (self.api.module_register)(self.raw, text(name.as_bytes()), tensor.raw(), i32::from(buffer))
        })
    }

    /// Adds the methods of a TorchScript source text.
    pub fn define(&mut self, source: &str) -> Result<()> {
        // SAFETY: `raw` is live; the text is read during the call only.
        self.api.check(unsafe { (self.api.module_define)(self.raw, text(source.as_bytes())) })
    }

    /// Writes the module to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        // SAFETY: `raw` is live; the path is read during the call only.
        self.api.check(unsafe { (self.api.module_save)(self.raw, text(path.as_os_str().as_encoded_bytes())) })
    }

    /// What `forward` takes and returns.
    pub fn schema(&self) -> Result<Schema> {
        extern "C" fn each(context: *mut c_void, raw: *const RawArgument) {
            // SAFETY: `context` is the schema below, borrowed by nobody else during the call; `raw` is valid in it.
            let (schema, raw) = unsafe { (&mut *context.cast::<Schema>(), &*raw) };
            let fallback = (!raw.fallback.data.is_null()).then(|| string_of(&raw.fallback));
            let argument = Argument { name: string_of(&raw.name), kind: string_of(&raw.kind), fallback };
            if raw.returned == 0 { schema.arguments.push(argument) } else { schema.returns.push(argument) }
        }
        let mut schema = Schema::default();
        // SAFETY: `raw` is live; `each` is called during the call only.
        self.api.check(unsafe { (self.api.module_schema)(self.raw, (&raw mut schema).cast(), each) })?;
        Ok(schema)
    }

    /// The parameters and buffers.
    pub fn weights(&self) -> Result<Vec<Weight>> {
        extern "C" fn each(context: *mut c_void, raw: *const RawWeight) {
            // SAFETY: `context` is the vector below, borrowed by nobody else during the call; `raw` is valid in it.
            let (weights, raw) = unsafe { (&mut *context.cast::<Vec<Weight>>(), &*raw) };
            weights.push(Weight {
                name: string_of(&raw.name),
                address: raw.data.addr(),
                bytes: raw.bytes as u64,
                dtype: data_type(raw.dtype),
                device: device_of(raw.device),
                buffer: raw.buffer != 0,
            });
        }
        let mut weights: Vec<Weight> = Vec::new();
        // SAFETY: `raw` is live; `each` is called during the call only.
        self.api.check(unsafe { (self.api.module_weights)(self.raw, (&raw mut weights).cast(), each) })?;
        Ok(weights)
    }

    /// What `forward` may write to.
    pub fn effects(&self) -> Result<Effects> {
        let (mut inputs, mut state) = (1, 1);
        // SAFETY: `raw` is live; both are written before the call returns.
        self.api.check(unsafe { (self.api.module_effects)(self.raw, &raw mut inputs, &raw mut state) })?;
        Ok(Effects { inputs: inputs != 0, state: state != 0 })
    }

    /// Runs `forward`; on a device, what it returns is there when this thread's stream was waited for.
    pub fn run(&self, how: &Run, inputs: &Inputs<'_>) -> Result<Returned> {
        let strings: Vec<Vec<Text>> = inputs
            .list
            .iter()
            .map(|(_, input)| match input {
                Input::Tensor(_) | Input::Nothing => Vec::new(),
                Input::Strings(strings) => strings.iter().map(|each| text(each)).collect(),
            })
            .collect();
        let raw_inputs: Vec<RawInput> = inputs
            .list
            .iter()
            .zip(&strings)
            .map(|((name, input), strings)| RawInput {
                name: text(name.as_bytes()),
                tensor: if let Input::Tensor(handle) = input { handle.raw() } else { ptr::null() },
                strings: if let Input::Nothing = input { ptr::null() } else { strings.as_ptr() },
                strings_len: strings.len(),
            })
            .collect();
        let raw_run = RawRun {
            device: device_number(how.device),
            inference_mode: i32::from(how.inference_mode),
            optimized_executor: i32::from(how.optimized_executor),
            as_dictionary: i32::from(how.as_dictionary),
            float_type: how.float_type.map_or(Ok(-1), type_number)?,
            in_order: inputs.in_order,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: all handles are live, all texts are read during the call only, the lengths are those of the vectors.
        self.api.check(unsafe {
            (self.api.run)(self.raw, &raw const raw_run, raw_inputs.as_ptr(), raw_inputs.len(), &raw mut raw)
        })?;
        Ok(Returned { raw, api: self.api, _thread: PhantomData })
    }
}

/// What `forward` returned, as it is.
pub struct Returned {
    raw: *mut RawValue,
    api: &'static Api,
    _thread: PhantomData<*mut ()>,
}

impl Drop for Returned {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live handle of the shim and freed only here.
        unsafe { (self.api.value_free)(self.raw) };
    }
}

impl Returned {
    /// The elements of a list, in order.
    ///
    /// # Errors
    /// If it is no list.
    pub fn items(&self) -> Result<Vec<Self>> {
        struct Items(Vec<Returned>, &'static Api);
        extern "C" fn each(context: *mut c_void, raw: *mut RawValue) {
            // SAFETY: `context` is the value below, borrowed by nobody else during the call.
            let Items(items, api) = unsafe { &mut *context.cast::<Items>() };
            items.push(Returned { raw, api, _thread: PhantomData });
        }
        let mut items = Items(Vec::new(), self.api);
        // SAFETY: `raw` is live; `each` is called during the call only, with handles that are ours from then on.
        self.api.check(unsafe { (self.api.value_items)(self.raw, (&raw mut items).cast(), each) })?;
        Ok(items.0)
    }

    /// The values, taken out of tuples, lists and dictionaries that are nested at most one in the other.
    pub fn outputs(&self) -> Result<Vec<Output>> {
        struct Collected(Vec<Output>, &'static Api);
        extern "C" fn each(context: *mut c_void, raw: *const RawOutput) {
            // SAFETY: `context` is the value below, borrowed by nobody else during the call; `raw` is valid in it.
            let (Collected(outputs, api), raw) = unsafe { (&mut *context.cast::<Collected>(), &*raw) };
            let value = if !raw.tensor.is_null() {
                // SAFETY: the tensor is ours from here on.
                OutputValue::Tensor(unsafe { Handle::of(raw.tensor, api) })
            } else if !raw.kind.data.is_null() {
                OutputValue::Other(string_of(&raw.kind))
            } else if raw.strings_len == 0 {
                OutputValue::Strings(Vec::new())
            } else {
                // SAFETY: the shim passes that many texts, valid during this callback.
                let strings = unsafe { std::slice::from_raw_parts(raw.strings, raw.strings_len) };
                OutputValue::Strings(strings.iter().map(|each| bytes_of(each).to_vec()).collect())
            };
            outputs.push(Output { name: string_of(&raw.name), value });
        }
        let mut collected = Collected(Vec::new(), self.api);
        // SAFETY: `raw` is live; `each` is called during the call only.
        self.api.check(unsafe { (self.api.value_outputs)(self.raw, (&raw mut collected).cast(), each) })?;
        Ok(collected.0)
    }
}
