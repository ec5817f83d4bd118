//! ONNX Runtime's tensors as safe Rust values, and the conversion to and from the server's tensors.
//!
//! Where memory is shared instead of copied: a [`Value`] made by [`Value::over`] keeps the request's [`Bytes`] alive and
//! is only read, since the library never writes to what it is given (its plan of memory counts inputs as used for the
//! whole execution); the [`Bytes`] made by [`Value::into_tensor`] keep the library's tensor alive, and with it the
//! allocator that it is of. An output may be an input as it is, and is then the request's bytes.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use bytes::Bytes;
use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::sys;

use super::description::{data_type, element_type};
use crate::error::{Error, Kind, Result};
use crate::tensor::{DataType, Shape, Tensor, strings};

/// A tensor of ONNX Runtime in host memory.
pub struct Value {
    raw: NonNull<sys::OrtValue>,
    /// What its elements lie in, if that is not its own memory.
    over: Bytes,
}

// SAFETY: a value belongs to no thread, and nothing writes through one after it is made.
unsafe impl Send for Value {}
// SAFETY: as above; all methods read.
unsafe impl Sync for Value {}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live value and released only here.
        unsafe { (ort::api().ReleaseValue)(self.raw.as_ptr()) };
    }
}

/// Turns a status of the library, which it takes over, into a result.
pub(super) fn check(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: every status passed here has just come from a function of the library, and is looked at only here.
    Ok(unsafe { ort::Error::result_from_status(status) }?)
}

impl Value {
    /// Takes over what an execution has written; `None` if it wrote nothing.
    ///
    /// # Safety
    /// `raw` is null, or a live value that nobody else releases.
    pub(super) unsafe fn of(raw: *mut sys::OrtValue) -> Option<Self> {
        Some(Self { raw: NonNull::new(raw)?, over: Bytes::new() })
    }

    /// The library's pointer, for calls that end before this is dropped.
    pub(super) fn raw(&self) -> *const sys::OrtValue {
        self.raw.as_ptr()
    }

    fn made(raw: *mut sys::OrtValue, over: Bytes) -> Result<Self> {
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("ONNX Runtime gave no tensor"))?;
        Ok(Self { raw, over })
    }

    /// Numbers, read where they are if they are aligned for their type, else from a copy.
    ///
    /// # Errors
    /// [`Kind::Internal`] if `data` is not as long as type and shape say.
    pub fn over(dtype: DataType, shape: &Shape, data: &Bytes) -> Result<Self> {
        let size = dtype.size().ok_or_else(|| Error::internal("strings are no numbers"))?;
        if shape.elements().and_then(|elements| elements.checked_mul(size)) != Some(data.len()) {
            let message = format!("{} bytes are not a tensor of {dtype} of shape {shape}", data.len());
            return Err(Error::internal(message));
        }
        let over = aligned(data, size);
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        let (element, mut raw) = (element_type(dtype).into(), ptr::null_mut());
        let elements = over.as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: the memory holds the elements that type and shape ask for (checked), is aligned, is never written to (see
        // the head of this file), and lives as long as the value; the dimensions are read during the call only.
        check(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                elements,
                over.len(),
                shape.as_ptr(),
                shape.len(),
                element,
                &raw mut raw,
            )
        })?;
        Self::made(raw, over)
    }

    /// Strings, copied.
    ///
    /// # Errors
    /// [`Kind::Internal`] if there are not as many as the shape says.
    pub fn strings(shape: &Shape, elements: &[&[u8]]) -> Result<Self> {
        if shape.elements() != Some(elements.len()) {
            return Err(Error::internal(format!("{} strings are not a tensor of shape {shape}", elements.len())));
        }
        let (allocator, mut raw) = (Allocator::default(), ptr::null_mut());
        let element = element_type(DataType::Bytes).into();
        // SAFETY: the default allocator lives as long as the process; the dimensions are read during the call only.
        check(unsafe {
            (ort::api().CreateTensorAsOrtValue)(
                allocator.ptr().cast_mut(),
                shape.as_ptr(),
                shape.len(),
                element,
                &raw mut raw,
            )
        })?;
        let value = Self::made(raw, Bytes::new())?;
        for (index, element) in elements.iter().enumerate() {
            let mut room = ptr::null_mut();
            // SAFETY: the value is a live tensor of strings that nobody else has yet, with an element of this index.
            check(unsafe {
                (ort::api().GetResizedStringTensorElementBuffer)(
                    value.raw.as_ptr(),
                    index,
                    element.len(),
                    &raw mut room,
                )
            })?;
            // SAFETY: the room is as long as the element, by the call before; it is new memory, so they do not overlap.
            unsafe { ptr::copy_nonoverlapping(element.as_ptr(), room.cast::<u8>(), element.len()) };
        }
        Ok(value)
    }

    /// The elements as a tensor of the server: numbers as a view of the library's memory, or of the input among `inputs`
    /// that they are.
    ///
    /// # Errors
    /// [`Kind::Backend`] if it is no tensor that can be sent.
    pub fn into_tensor(self, inputs: &[Value]) -> Result<Tensor> {
        let (element, shape) = self.kind()?;
        let Some(dtype) = data_type(element) else {
            return Err(Error::new(Kind::Backend, format!("it has elements of type {element}, which cannot be sent")));
        };
        let elements = shape.elements().ok_or_else(|| Error::new(Kind::Backend, format!("it has shape {shape}")))?;
        let data = match dtype.size() {
            None => self.read_strings(elements)?,
            Some(_) if elements == 0 => Bytes::new(),
            Some(size) => self.into_bytes(elements * size, inputs)?,
        };
        Ok(Tensor::new(dtype, shape, data))
    }

    fn kind(&self) -> Result<(ort::value::TensorElementType, Shape)> {
        let api = ort::api();
        let (mut is_tensor, mut info) = (0, ptr::null_mut());
        // SAFETY: the value is live; the result is written when the call succeeds.
        check(unsafe { (api.IsTensor)(self.raw(), &raw mut is_tensor) })?;
        if is_tensor == 0 {
            return Err(Error::new(Kind::Backend, "it is no tensor"));
        }
        // SAFETY: as above, and it is a tensor.
        check(unsafe { (api.GetTensorTypeAndShape)(self.raw(), &raw mut info) })?;
        let info = Info(info);
        let mut element = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let mut rank = 0;
        // SAFETY: `info` is live until the end of this function; the results are written when the calls succeed.
        check(unsafe { (api.GetTensorElementType)(info.0, &raw mut element) })?;
        // SAFETY: as above.
        check(unsafe { (api.GetDimensionsCount)(info.0, &raw mut rank) })?;
        let mut dims = vec![0; rank];
        // SAFETY: as above; there is room for as many dimensions as there are.
        check(unsafe { (api.GetDimensions)(info.0, dims.as_mut_ptr(), rank) })?;
        Ok((element.into(), Shape::new(&dims)))
    }

    fn read_strings(&self, elements: usize) -> Result<Bytes> {
        let (api, mut bytes) = (ort::api(), 0);
        // SAFETY: the value is a live tensor of strings; the result is written when the call succeeds.
        check(unsafe { (api.GetStringTensorDataLength)(self.raw(), &raw mut bytes) })?;
        let (mut text, mut starts) = (vec![0u8; bytes], vec![0usize; elements]);
        // SAFETY: as above; there is room for all bytes and for where each element begins.
        check(unsafe {
            (api.GetStringTensorContent)(
                self.raw(),
                text.as_mut_ptr().cast::<c_void>(),
                bytes,
                starts.as_mut_ptr(),
                elements,
            )
        })?;
        let ends = starts.iter().skip(1).copied().chain([bytes]);
        Ok(strings::encode(starts.iter().zip(ends).map(|(start, end)| &text[*start..end])))
    }

    /// The memory of numbers, which are `bytes` long.
    fn into_bytes(self, bytes: usize, inputs: &[Value]) -> Result<Bytes> {
        let mut data = ptr::null_mut();
        // SAFETY: the value is a live tensor of numbers; the result is written when the call succeeds.
        check(unsafe { (ort::api().GetTensorMutableData)(self.raw.as_ptr(), &raw mut data) })?;
        let Some(data) = NonNull::new(data.cast::<u8>()) else {
            return Err(Error::internal("ONNX Runtime gave a tensor without memory"));
        };
        // An input that is an output as it is: the library shares its memory without owning it.
        for input in inputs {
            let offset = (data.as_ptr() as usize).checked_sub(input.over.as_ptr() as usize);
            if let Some(offset) = offset.filter(|offset| *offset < input.over.len()) {
                let end = offset.checked_add(bytes).filter(|end| *end <= input.over.len());
                let end = end.ok_or_else(|| Error::internal("an output begins in an input and ends elsewhere"))?;
                return Ok(input.over.slice(offset..end));
            }
        }
        Ok(Bytes::from_owner(Elements { data, bytes, _value: self }))
    }
}

/// The library's description of a tensor's type.
struct Info(*mut sys::OrtTensorTypeAndShapeInfo);

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: it is live, or null, which the library takes for nothing; released only here.
        unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(self.0) };
    }
}

/// The memory of a value's numbers, which it keeps alive.
struct Elements {
    data: NonNull<u8>,
    bytes: usize,
    _value: Value,
}

// SAFETY: the memory is only read, and belongs to the value, which may move between threads.
unsafe impl Send for Elements {}

impl AsRef<[u8]> for Elements {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: a dense tensor of these many bytes, which the library wrote before it returned; its memory lives and stays
        // in place while the value does.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.bytes) }
    }
}

/// The same bytes, beginning at a multiple of `size`: in place if they do, else copied.
fn aligned(data: &Bytes, size: usize) -> Bytes {
    if data.as_ptr().align_offset(size) == 0 {
        return data.clone();
    }
    let mut copy: Vec<u8> = Vec::with_capacity(data.len() + size);
    let start = copy.as_ptr().align_offset(size);
    copy.resize(start, 0);
    copy.extend_from_slice(data);
    Bytes::from(copy).slice(start..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn aligned_bytes_are_the_same_and_begin_where_they_must(
            data in prop::collection::vec(any::<u8>(), 0..50),
            cut in 0usize..8,
            size in prop::sample::select(vec![1usize, 2, 4, 8]),
        ) {
            let data = Bytes::from(data);
            let data = data.slice(cut.min(data.len())..);
            let aligned = aligned(&data, size);
            prop_assert_eq!(&aligned, &data);
            prop_assert!(aligned.as_ptr().align_offset(size) == 0);
        }
    }
}
