//! libtorch's tensors as safe Rust values, and the conversion to and from the server's tensors.
//!
//! Where memory is shared instead of copied: a [`Handle`] made by [`Handle::over`] keeps the request's [`Bytes`] alive
//! until libtorch drops the last use; the [`Bytes`] made from [`Handle::into_host`] keep libtorch's tensor alive, and so
//! does what [`Handle::into_resident`] makes. All ends only ever read such memory: a module that writes into its inputs
//! gets copies, and one that writes into its own state has its outputs copied (see [`super::module::Effects`]). Memory
//! that batches are gathered in is written again only when nobody else holds it (see [`super::staging`]).

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use bytes::Bytes;

use super::device::device_number;
use super::ffi::{self, Api, RawTensor, View};
use super::staging::{self, Staging};
use super::stream::Arriving;
use crate::error::{Error, Kind, Result};
use crate::model::Device;
use crate::tensor::{Batch, DataType, Resident, Shape, Sink as _, Tensor};

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

/// libtorch's number for an element type.
pub(super) fn type_number(dtype: DataType) -> Result<i32> {
    let found = TYPES.iter().find(|(each, _)| *each == dtype);
    found.map(|(_, number)| *number).ok_or_else(|| Error::internal(format!("{dtype} is not a tensor type of libtorch")))
}

/// The element type of libtorch's number, if the protocol has it.
pub(super) fn data_type(number: i32) -> Option<DataType> {
    TYPES.iter().find(|(_, each)| *each == number).map(|(dtype, _)| *dtype)
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
    /// Takes a tensor over from the shim.
    ///
    /// # Safety
    /// `raw` is a live handle of the shim's that nobody else frees.
    pub(super) unsafe fn of(raw: *mut RawTensor, api: &'static Api) -> Self {
        Self { raw, api }
    }

    /// The shim's handle, for calls that end before this is dropped.
    pub(super) fn raw(&self) -> *mut RawTensor {
        self.raw
    }

    /// The tensor's elements, read in place if they are aligned for their type, else from a copy.
    ///
    /// The caller has checked that `data` has the size that `dtype` and `shape` ask for.
    pub fn over(dtype: DataType, shape: &Shape, data: &Bytes) -> Result<Self> {
        let number = type_number(dtype)?;
        let size = dtype.size().unwrap_or(1);
        assert_eq!(shape.elements().and_then(|n| n.checked_mul(size)), Some(data.len()), "checked by the signature");
        if data.as_ptr().align_offset(size) != 0 {
            return staging::fresh(dtype, shape, |room| room.bytes(data));
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

    /// One input of all members in one tensor where `staging`'s instance runs: on the host in place if there is one member
    /// and `in_place` allows it, else copied once into memory of `staging`, and from there to the device.
    pub fn gathered(batch: &Batch, index: usize, in_place: bool, staging: &mut Staging) -> Result<Self> {
        let device = staging.device();
        if batch.is_resident(index) {
            return Self::joined(batch, index, in_place, device);
        }
        let (dtype, shape) = (batch.dtype(index), batch.shape(index));
        let host = match batch.single(index) {
            Some(data) if in_place && device == Device::Cpu => Self::over(dtype, &shape, data)?,
            _ => staging.fill(index, (dtype, &shape), |room| batch.gather(index, room))?,
        };
        if device == Device::Cpu { Ok(host) } else { host.to(device) }
    }

    /// The same where members' tensors are this backend's already.
    fn joined(batch: &Batch, index: usize, in_place: bool, device: Device) -> Result<Self> {
        let mut of_host = Vec::new();
        let mut parts = Vec::with_capacity(batch.members.len());
        for tensor in batch.members.iter().map(|member| &member.inputs[index]) {
            let part = match tensor.resident.as_deref().and_then(|kept| <dyn Any>::downcast_ref::<Kept>(kept)) {
                Some(kept) => kept.handle.raw,
                None => {
                    let host = Self::over(tensor.dtype, &tensor.shape, &tensor.host_data()?)?;
                    let raw = host.raw;
                    of_host.push(host);
                    raw
                }
            };
            parts.push(part.cast_const());
        }
        let (shape, api) = (batch.shape(index), ffi::api()?);
        let mut raw = ptr::null_mut();
        let (number, copy) = (device_number(device), i32::from(!in_place));
        // SAFETY: `of_host` and the batch keep all parts alive, there is one at least, and the length is that of the vector; the
        // dimensions are read during the call only; `raw` is written when it succeeds.
        api.check(unsafe {
            (api.tensor_join)(parts.as_ptr(), parts.len(), number, copy, shape.as_ptr(), shape.len(), &raw mut raw)
        })?;
        Ok(Self { raw, api })
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

    /// The same elements in another type; on a device, in order with what follows on the same thread.
    pub fn cast(&self, dtype: DataType) -> Result<Self> {
        let number = type_number(dtype)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `self.raw` is live; `raw` is written when the call succeeds.
        self.api.check(unsafe { (self.api.tensor_cast)(self.raw, number, &raw mut raw) })?;
        Ok(Self { raw, api: self.api })
    }

    /// The element type, if the protocol has it.
    pub fn dtype(&self) -> Result<Option<DataType>> {
        Ok(data_type(self.view()?.dtype))
    }

    /// The elements as a tensor of the server: a view of libtorch's memory if that is dense and on the host. From a device
    /// they come when this thread's stream is waited for.
    ///
    /// `copy`: never a view, for memory that a later execution may write to.
    pub fn into_host(self, copy: bool) -> Result<Arriving> {
        let host = self.host(copy, true)?;
        let (dtype, shape) = host.kind()?;
        Ok(Arriving::new(Tensor::new(dtype, shape, Bytes::new()), Some(host)))
    }

    /// The elements as a tensor of the server that stays where it is, and is there when this thread's stream was waited
    /// for. `copy`: never in the same memory; `own`: in memory that nothing else has a part of; `read`: its bytes are
    /// wanted, too.
    pub fn into_resident(self, copy: bool, own: bool, read: bool) -> Result<Arriving> {
        let mut raw = ptr::null_mut();
        // SAFETY: `self.raw` is live; `raw` is written when the call succeeds.
        self.api.check(unsafe { (self.api.tensor_keep)(self.raw, i32::from(copy), i32::from(own), &raw mut raw) })?;
        let kept = Kept::new(Self { raw, api: self.api })?;
        let (dtype, shape) = kept.handle.kind()?;
        let host = if read { Some(kept.handle.host(false, true)?) } else { None };
        let tensor = Tensor { resident: Some(Arc::new(kept)), ..Tensor::new(dtype, shape, Bytes::new()) };
        Ok(Arriving::new(tensor, host))
    }

    /// The same elements, dense and in host memory; `copy`: not in the same memory; `later`: a copy from a device may be
    /// waited for later, with this thread's stream.
    fn host(&self, copy: bool, later: bool) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `self.raw` is live; `raw` is written when the call succeeds.
        self.api.check(unsafe { (self.api.tensor_host)(self.raw, i32::from(copy), i32::from(later), &raw mut raw) })?;
        Ok(Self { raw, api: self.api })
    }

    /// The element type and shape.
    fn kind(&self) -> Result<(DataType, Shape)> {
        let view = self.view()?;
        let dtype = data_type(view.dtype).ok_or_else(|| {
            Error::new(
                Kind::Backend,
                format!("an output has element type {} of libtorch, which cannot be sent", view.dtype),
            )
        })?;
        let rank = usize::try_from(view.ndim).unwrap_or(0);
        // SAFETY: the dimensions live as long as the handle.
        let shape = Shape::new(if rank == 0 { &[] } else { unsafe { std::slice::from_raw_parts(view.dims, rank) } });
        Ok((dtype, shape))
    }

    /// A view of the elements, which must be dense, in host memory, and all there.
    pub(super) fn into_bytes(self) -> Result<Bytes> {
        let view = self.view()?;
        assert_eq!(view.device, device_number(Device::Cpu), "only host memory can be read");
        Ok(match view.bytes {
            0 => Bytes::new(),
            bytes => Bytes::from_owner(Elements { data: view.data, bytes, _tensor: self }),
        })
    }
}

/// A dense tensor that stays where it is; nothing writes to it.
struct Kept {
    handle: Handle,
    bytes: usize,
}

impl Kept {
    fn new(handle: Handle) -> Result<Self> {
        let bytes = handle.view()?.bytes;
        Ok(Self { handle, bytes })
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Resident for Kept {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn to_host(&self) -> Result<Bytes> {
        self.handle.host(false, false)?.into_bytes()
    }

    fn parts(&self, elements: &[Range<usize>], own: bool) -> Result<Vec<Arc<dyn Resident>>> {
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let ranges: Vec<i64> = elements.iter().flat_map(|range| [number(range.start), number(range.len())]).collect();
        let mut raw = vec![ptr::null_mut(); elements.len()];
        let (handle, api) = (&self.handle, self.handle.api);
        // SAFETY: `handle` is live; there are two numbers and a place for each range; all places are written when the call
        // succeeds, and none when it fails.
        api.check(unsafe {
            (api.tensor_parts)(handle.raw, ranges.as_ptr(), elements.len(), i32::from(own), raw.as_mut_ptr())
        })?;
        let parts: Vec<Handle> = raw.into_iter().map(|raw| Handle { raw, api }).collect();
        parts.into_iter().map(|part| Ok(Arc::new(Self::new(part)?) as Arc<dyn Resident>)).collect()
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
