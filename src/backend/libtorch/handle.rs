//! libtorch's tensors and modules as safe Rust values, and the conversion to and from the server's tensors.
//!
//! Where memory is shared instead of copied: a [`Handle`] made by [`Handle::over`] keeps the request's [`Bytes`] alive
//! until libtorch drops the last use; the [`Bytes`] made by [`Handle::into_tensor`] keep libtorch's tensor alive.
//! Both ends only ever read such memory: a module that writes into its inputs gets copies, and one that writes into its
//! own state has its outputs copied (see [`Effects`]).
//!
//! One of the two files of the backend with `unsafe`; the other is `ffi`.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::Path;
use std::ptr;

use bytes::Bytes;

use super::ffi::{
    self, Api, RawArgument, RawInput, RawModule, RawOutput, RawRun, RawTensor, RawValue, RawWeight, Text, View,
};
use crate::error::{Error, Kind, Result};
use crate::model::Device;
use crate::tensor::{Batch, DataType, Shape, Sink, Tensor};

/// The element types and libtorch's numbers for them.
const TYPES: [(DataType, i32); 13] = [
    (DataType::Uint8, 0),
    (DataType::Int8, 1),
    (DataType::Int16, 2),
    (DataType::Int32, 3),
    (DataType::Int64, 4),
    (DataType::Fp16, 5),
    (DataType::Fp32, 6),
    (DataType::Fp64, 7),
    (DataType::Bool, 11),
    (DataType::Bf16, 15),
    (DataType::Uint16, 27),
    (DataType::Uint32, 28),
    (DataType::Uint64, 29),
];

fn type_number(dtype: DataType) -> Result<i32> {
    let found = TYPES.iter().find(|(each, _)| *each == dtype);
    found.map(|(_, number)| *number).ok_or_else(|| Error::internal(format!("{dtype} is not a tensor type of libtorch")))
}

fn data_type(number: i32) -> Option<DataType> {
    TYPES.iter().find(|(_, each)| *each == number).map(|(dtype, _)| *dtype)
}

fn device_number(device: Device) -> i32 {
    match device {
        Device::Cpu => -1,
        Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
    }
}

fn device_of(number: i32) -> Device {
    u32::try_from(number).map_or(Device::Cpu, Device::Cuda)
}

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

/// Prepares the calling thread for running models on `device` with `threads` cores for each operation.
pub fn begin_thread(device: Device, threads: usize) -> Result<()> {
    let api = ffi::api()?;
    let threads = i32::try_from(threads.max(1)).unwrap_or(i32::MAX);
    // SAFETY: takes only numbers.
    api.check(unsafe { (api.thread_begin)(device_number(device), threads) })
}

/// The devices that models can run on: the host, and each CUDA device.
pub fn devices() -> Result<Vec<Device>> {
    let loaded = ffi::loaded()?;
    let mut count = 0;
    if loaded.cuda {
        // SAFETY: `count` is written before the call returns; the CUDA part was loaded before.
        loaded.api.check(unsafe { (loaded.api.cuda_count)(&raw mut count) })?;
    }
    let cuda = (0..u32::try_from(count).unwrap_or(0)).map(Device::Cuda);
    Ok(std::iter::once(Device::Cpu).chain(cuda).collect())
}

/// The free and all memory of a CUDA device, in bytes.
pub fn cuda_memory(index: u32) -> Result<(u64, u64)> {
    let loaded = ffi::loaded()?;
    if !loaded.cuda {
        return Err(Error::unavailable(format!("there is no device cuda:{index}")));
    }
    let (mut free, mut total) = (0, 0);
    let device = device_number(Device::Cuda(index));
    // SAFETY: both are written before the call returns.
    loaded.api.check(unsafe { (loaded.api.cuda_memory)(device, &raw mut free, &raw mut total) })?;
    Ok((free, total))
}

/// Gives unused memory of libtorch's CUDA allocator back.
pub fn empty_cuda_cache() -> Result<()> {
    match ffi::if_loaded() {
        // SAFETY: takes nothing; the CUDA part was loaded before.
        Some(loaded) if loaded.cuda => loaded.api.check(unsafe { (loaded.api.cuda_empty_cache)() }),
        _ => Ok(()),
    }
}

/// A libtorch tensor.
pub struct Handle {
    raw: *mut RawTensor,
    api: &'static Api,
}

// SAFETY: a tensor's reference count is atomic, and nothing writes through a handle after it is made.
unsafe impl Send for Handle {}
// SAFETY: as above; all methods read.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live handle of the shim and freed only here.
        unsafe { (self.api.tensor_free)(self.raw) };
    }
}

extern "C" fn release_bytes(context: *mut c_void) {
    // SAFETY: `context` is the box that `Handle::over` leaked, and libtorch releases it once.
    drop(unsafe { Box::from_raw(context.cast::<Bytes>()) });
}

impl Handle {
    /// The tensor's elements, read in place if they are aligned for their type, else from a copy.
    ///
    /// The caller has checked that `data` has the size that `dtype` and `shape` ask for.
    pub fn over(dtype: DataType, shape: &Shape, data: &Bytes) -> Result<Self> {
        let number = type_number(dtype)?;
        let size = dtype.size().unwrap_or(1);
        assert_eq!(shape.elements().and_then(|n| n.checked_mul(size)), Some(data.len()), "checked by the signature");
        if data.as_ptr().align_offset(size) != 0 {
            return Self::copied(dtype, shape, false, |room| room.bytes(data));
        }
        let api = ffi::api()?;
        let mut raw = ptr::null_mut();
        let context = Box::into_raw(Box::new(data.clone())).cast();
        // SAFETY: the memory holds the elements that type and shape ask for (asserted), is aligned, and is kept alive by
        // `context` until libtorch calls `release_bytes`, which it does once on every path.
        api.check(unsafe {
            (api.tensor_over)(number, shape.as_ptr(), shape.len(), data.as_ptr(), context, release_bytes, &raw mut raw)
        })?;
        Ok(Self { raw, api })
    }

    /// One input of all members in one tensor: in place if there is one member and `in_place` allows it, else copied
    /// once, into page-locked memory if it goes to a device.
    pub fn gathered(batch: &Batch, index: usize, in_place: bool, device: Device) -> Result<Self> {
        let (dtype, shape) = (batch.dtype(index), batch.shape(index));
        match batch.single(index) {
            Some(data) if in_place => Self::over(dtype, &shape, data),
            _ => Self::copied(dtype, &shape, device != Device::Cpu, |room| batch.gather(index, room)),
        }
    }

    /// A new tensor with the bytes that `write` gives, which are as many as it has.
    fn copied(dtype: DataType, shape: &Shape, pinned: bool, write: impl FnOnce(&mut Room)) -> Result<Self> {
        let api = ffi::api()?;
        let number = type_number(dtype)?;
        let (mut raw, mut target) = (ptr::null_mut(), ptr::null_mut::<u8>());
        // SAFETY: the dimensions are read during the call only; both results are written when it succeeds.
        api.check(unsafe {
            (api.tensor_empty)(number, shape.as_ptr(), shape.len(), i32::from(pinned), &raw mut raw, &raw mut target)
        })?;
        let handle = Self { raw, api };
        let mut room = Room { target, left: handle.view()?.bytes };
        write(&mut room);
        assert_eq!(room.left, 0, "all of the tensor is written");
        Ok(handle)
    }

    fn view(&self) -> Result<View> {
        let mut view = std::mem::MaybeUninit::<View>::zeroed();
        // SAFETY: `raw` is live; all fields are written when the call succeeds, and zeros are valid values of them.
        unsafe {
            self.api.check((self.api.tensor_view)(self.raw, view.as_mut_ptr()))?;
            Ok(view.assume_init())
        }
    }

    /// This tensor on a device; the copy may still be under way, in order with what follows on the same thread.
    pub fn to(&self, device: Device) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `self.raw` is live; `raw` is written when the call succeeds.
        self.api.check(unsafe { (self.api.tensor_to)(self.raw, device_number(device), &raw mut raw) })?;
        Ok(Self { raw, api: self.api })
    }

    /// The elements as a tensor of the server: a view of libtorch's memory if that is dense and on the host.
    ///
    /// `copy`: never a view, for memory that a later execution may write to.
    pub fn into_tensor(self, copy: bool) -> Result<Tensor> {
        let mut raw = ptr::null_mut();
        // SAFETY: `self.raw` is live; `raw` is written when the call succeeds.
        self.api.check(unsafe { (self.api.tensor_host)(self.raw, i32::from(copy), &raw mut raw) })?;
        let handle = Self { raw, api: self.api };
        let view = handle.view()?;
        let dtype = data_type(view.dtype).ok_or_else(|| {
            Error::new(
                Kind::Backend,
                format!("an output has element type {} of libtorch, which cannot be sent", view.dtype),
            )
        })?;
        let rank = usize::try_from(view.ndim).unwrap_or(0);
        // SAFETY: the dimensions live as long as `handle`.
        let shape = Shape::new(if rank == 0 { &[] } else { unsafe { std::slice::from_raw_parts(view.dims, rank) } });
        let data = match view.bytes {
            0 => Bytes::new(),
            bytes => Bytes::from_owner(Elements { data: view.data, bytes, _tensor: handle }),
        };
        Ok(Tensor { dtype, shape, data })
    }
}

/// The memory of a new tensor that is not written yet: `left` bytes from `target` on, which nobody else sees.
struct Room {
    target: *mut u8,
    left: usize,
}

impl Sink for Room {
    fn bytes(&mut self, bytes: &[u8]) {
        self.left = self.left.checked_sub(bytes.len()).expect("the signature checked the sizes");
        // SAFETY: `target` has room for `left` more bytes and these, by the subtraction; it is new memory, so the two do
        // not overlap.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.target, bytes.len());
            self.target = self.target.add(bytes.len());
        }
    }

    fn repeat(&mut self, element: &[u8], count: usize) {
        let Some((&first, rest)) = element.split_first() else { return };
        if rest.iter().any(|byte| *byte != first) {
            return (0..count).for_each(|_| self.bytes(element));
        }
        let bytes = element.len() * count;
        self.left = self.left.checked_sub(bytes).expect("the signature checked the sizes");
        // SAFETY: as above.
        unsafe {
            ptr::write_bytes(self.target, first, bytes);
            self.target = self.target.add(bytes);
        }
    }
}

/// The dense host memory of a tensor, which it keeps alive.
struct Elements {
    data: *const u8,
    bytes: usize,
    _tensor: Handle,
}

// SAFETY: the memory is only read, and belongs to the tensor, which may move between threads.
unsafe impl Send for Elements {}

impl AsRef<[u8]> for Elements {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: a dense host tensor's memory is `bytes` long, and lives and stays in place while the tensor does.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }
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

    /// This module frozen, with operations fused and weights laid out for its device.
    pub fn optimized(&self) -> Result<Self> {
        // SAFETY: `self.raw` is live.
        Self::made(|api, out| unsafe { (api.module_optimize)(self.raw, out) })
    }

    /// Adds an attribute that is a list of one tensor.
    #[cfg(test)]
    pub fn register_list(&mut self, name: &str, tensor: &Handle) -> Result<()> {
        // SAFETY: both handles are live; the name is read during the call only.
        self.api.check(unsafe { (self.api.module_register)(self.raw, text(name.as_bytes()), tensor.raw, 2) })
    }

    /// Adds a parameter or buffer.
    pub fn register(&mut self, name: &str, tensor: &Handle, buffer: bool) -> Result<()> {
        // SAFETY: both handles are live; the name is read during the call only.
        self.api.check(unsafe {
            (self.api.module_register)(self.raw, text(name.as_bytes()), tensor.raw, i32::from(buffer))
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

    /// Runs `forward` and waits for the device.
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
                tensor: if let Input::Tensor(handle) = input { handle.raw } else { ptr::null() },
                strings: if let Input::Nothing = input { ptr::null() } else { strings.as_ptr() },
                strings_len: strings.len(),
            })
            .collect();
        let raw_run = RawRun {
            device: device_number(how.device),
            inference_mode: i32::from(how.inference_mode),
            optimized_executor: i32::from(how.optimized_executor),
            as_dictionary: i32::from(how.as_dictionary),
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
                OutputValue::Tensor(Handle { raw: raw.tensor, api })
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
