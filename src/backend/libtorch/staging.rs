//! The host memory that inputs are gathered in, used again for the next batch.
//!
//! A model may give its input back, keep it, or leave it somewhere for another model. Then others hold that memory, and
//! the next batch gets new: libtorch's own count of who holds it decides. The memory is page-locked where the instance
//! runs on a device, so that nobody has to wait for copies there. Begin with [`Staging::fill`].

use std::ptr;

use super::ffi;
use super::handle::{Handle, type_number};
use crate::error::{Error, Result};
use crate::model::Device;
use crate::tensor::{DataType, Shape, Sink};

/// The most bytes on the host that one input keeps. Larger memory goes back to the allocator, which has some of it ready
/// for whoever is next: else each of many idle instances would hold the largest batch that it ever had.
const HOST_BYTES_MAX: usize = 4 << 20;

/// The buffers of one instance.
pub struct Staging {
    device: Device,
    /// One for each input that was gathered so far.
    buffers: Vec<Option<Buffer>>,
}

/// The memory of one input.
struct Buffer {
    memory: Handle,
    fit: Fit,
}

impl Staging {
    /// No buffers yet, for an instance that runs there.
    pub fn new(device: Device) -> Self {
        Self { device, buffers: Vec::new() }
    }

    /// Where the instance runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A tensor in host memory with the bytes that `write` gives, which are as many as it has. Its memory is what input
    /// `index` had before, if that is large enough and nobody holds it any more.
    pub fn fill(
        &mut self,
        index: usize,
        (dtype, shape): (DataType, &Shape),
        write: impl FnOnce(&mut Room),
    ) -> Result<Handle> {
        let bytes = bytes(dtype, shape)?;
        if self.buffers.len() <= index {
            self.buffers.resize_with(index + 1, || None);
        }
        let slot = &mut self.buffers[index];
        if self.device == Device::Cpu && bytes > HOST_BYTES_MAX {
            *slot = None;
            return fresh(dtype, shape, write);
        }
        if let Some(buffer) = slot
            && buffer.fit.takes(bytes)
            && let Some(room) = buffer.room(dtype, shape)?
        {
            return Ok(room.written(write));
        }
        let buffer = slot.insert(Buffer::new(bytes, self.device != Device::Cpu)?);
        let room = buffer.room(dtype, shape)?;
        Ok(room.ok_or_else(|| Error::internal("new memory is too small"))?.written(write))
    }
}

impl Buffer {
    fn new(bytes: usize, pinned: bool) -> Result<Self> {
        let length = i64::try_from(bytes).map_err(|_| Error::invalid(format!("a tensor of {bytes} bytes")))?;
        let memory = Place::empty(DataType::Uint8, &Shape::new(&[length]), pinned)?.tensor;
        Ok(Self { memory, fit: Fit { bytes, generous: 0 } })
    }

    /// The memory as an unwritten tensor; `None` if it is too small, or somebody else holds it.
    fn room(&self, dtype: DataType, shape: &Shape) -> Result<Option<Place>> {
        let api = ffi::api()?;
        let (number, bytes) = (type_number(dtype)?, bytes(dtype, shape)?);
        let (mut raw, mut target) = (ptr::null_mut(), ptr::null_mut::<u8>());
        // SAFETY: the memory's handle is live; the dimensions are read during the call only; both results are written
        // when it succeeds.
        api.check(unsafe {
            (api.tensor_reuse)(self.memory.raw(), number, shape.as_ptr(), shape.len(), &raw mut raw, &raw mut target)
        })?;
        // SAFETY: what is not null is a live handle that is ours.
        let tensor = (!raw.is_null()).then(|| unsafe { Handle::of(raw, api) });
        Ok(tensor.map(|tensor| Place { tensor, room: Room { target, left: bytes } }))
    }
}

/// A tensor in new memory with the bytes that `write` gives, which are as many as it has.
pub fn fresh(dtype: DataType, shape: &Shape, write: impl FnOnce(&mut Room)) -> Result<Handle> {
    Ok(Place::empty(dtype, shape, false)?.written(write))
}

fn bytes(dtype: DataType, shape: &Shape) -> Result<usize> {
    let bytes = shape.elements().zip(dtype.size()).and_then(|(elements, size)| elements.checked_mul(size));
    bytes.ok_or_else(|| Error::invalid(format!("no tensor of type {dtype} has shape {shape}")))
}

/// Whether memory is of the right size for what comes.
#[derive(Debug)]
struct Fit {
    bytes: usize,
    /// For how many batches in a row it has been far too large.
    generous: u32,
}

impl Fit {
    /// Memory of so many times what is needed is far too large,
    const GENEROUS: usize = 4;
    /// if there is at least so much of it,
    const BYTES_MIN: usize = 1 << 20;
    /// and is given back after so many batches.
    const BATCHES_MAX: u32 = 64;

    /// Whether `need` bytes go there.
    fn takes(&mut self, need: usize) -> bool {
        let generous = self.bytes >= Self::BYTES_MIN && need < self.bytes / Self::GENEROUS;
        self.generous = if generous { self.generous + 1 } else { 0 };
        need <= self.bytes && self.generous <= Self::BATCHES_MAX
    }
}

/// A tensor whose memory is not written yet.
struct Place {
    tensor: Handle,
    room: Room,
}

impl Place {
    fn empty(dtype: DataType, shape: &Shape, pinned: bool) -> Result<Self> {
        let api = ffi::api()?;
        let (number, bytes) = (type_number(dtype)?, bytes(dtype, shape)?);
        let (mut raw, mut target) = (ptr::null_mut(), ptr::null_mut::<u8>());
        // SAFETY: the dimensions are read during the call only; both results are written when it succeeds.
        api.check(unsafe {
            (api.tensor_empty)(number, shape.as_ptr(), shape.len(), i32::from(pinned), &raw mut raw, &raw mut target)
        })?;
        // SAFETY: the handle is live and ours.
        let tensor = unsafe { Handle::of(raw, api) };
        Ok(Self { tensor, room: Room { target, left: bytes } })
    }

    fn written(mut self, write: impl FnOnce(&mut Room)) -> Handle {
        write(&mut self.room);
        assert_eq!(self.room.left, 0, "all of the tensor is written");
        self.tensor
    }
}

/// The memory of a tensor that is not written yet: `left` bytes from `target` on, which nobody else sees.
pub struct Room {
    target: *mut u8,
    left: usize,
}

impl Sink for Room {
    fn bytes(&mut self, bytes: &[u8]) {
        self.left = self.left.checked_sub(bytes.len()).expect("the signature checked the sizes");
        // SAFETY: `target` has room for `left` more bytes and these, by the subtraction; nobody else holds this memory, so
        // the two do not overlap.
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

#[cfg(test)]
mod tests {
    use super::super::stream::Stream;
    use super::*;
    use crate::tensor::Tensor;

    /// Fills input 0 with so many bytes of this value, and says in which memory.
    fn fill(staging: &mut Staging, value: u8, bytes: usize) -> (Handle, *mut ffi::RawTensor) {
        let shape = Shape::new(&[bytes as i64]);
        let tensor = staging.fill(0, (DataType::Uint8, &shape), |room| room.repeat(&[value], bytes)).expect("it fits");
        let memory = staging.buffers[0].as_ref().expect("it was filled").memory.raw();
        (tensor, memory)
    }

    fn tensor(handle: Handle) -> Tensor {
        let stream = Stream::of_thread(Device::Cpu).expect("libtorch is there");
        let arriving = handle.into_host(false).expect("it is in host memory");
        stream.arrived(vec![arriving]).expect("no device fails").remove(0)
    }

    fn values(handle: Handle) -> Vec<u8> {
        tensor(handle).data.to_vec()
    }

    #[test]
    fn memory_is_used_again_once_nobody_holds_it() {
        let mut staging = Staging::new(Device::Cpu);
        let (first, memory) = fill(&mut staging, 1, 100);
        assert_eq!(values(first), [1; 100]);
        // New memory would come before the old one goes, so the same address means the same memory.
        let (second, same) = fill(&mut staging, 2, 100);
        assert_eq!(same, memory);
        let (third, other) = fill(&mut staging, 3, 100);
        assert_ne!(other, memory, "the second batch still holds it");
        assert_eq!((values(second), values(third)), (vec![2; 100], vec![3; 100]));
        let (fourth, same) = fill(&mut staging, 4, 50);
        assert_eq!(same, other, "a smaller batch fits, too");
        assert_eq!(values(fourth), [4; 50]);
        let (fifth, larger) = fill(&mut staging, 5, 101);
        assert_ne!(larger, other, "a larger one does not");
        assert_eq!(values(fifth), [5; 101]);
    }

    #[test]
    fn the_host_keeps_no_memory_of_large_batches() {
        let mut staging = Staging::new(Device::Cpu);
        fill(&mut staging, 1, HOST_BYTES_MAX);
        let shape = Shape::new(&[HOST_BYTES_MAX as i64 + 1]);
        let large = (DataType::Uint8, &shape);
        let filled = staging.fill(0, large, |room| room.repeat(&[2], HOST_BYTES_MAX + 1)).expect("it fits");
        assert!(staging.buffers[0].is_none());
        assert!(values(filled).into_iter().all(|value| value == 2));
    }

    #[test]
    fn whoever_holds_bytes_on_another_thread_holds_the_memory() {
        let mut staging = Staging::new(Device::Cpu);
        let (first, memory) = fill(&mut staging, 1, 100);
        let bytes = tensor(first).data;
        let (_, other) = fill(&mut staging, 2, 100);
        assert_ne!(other, memory);
        let seen = std::thread::spawn(move || bytes.to_vec()).join().expect("it reads");
        assert_eq!(seen, [1; 100]);
    }

    #[test]
    fn inputs_have_memory_of_their_own_whatever_their_type() {
        let mut staging = Staging::new(Device::Cpu);
        let shape = Shape::new(&[2, 2]);
        let one =
            staging.fill(1, (DataType::Fp32, &shape), |room| room.repeat(&[0, 0, 0x80, 0x3f], 4)).expect("it fits");
        let zero = staging.fill(0, (DataType::Int64, &shape), |room| room.repeat(&[0], 32)).expect("it fits");
        let [one, zero] = [one, zero].map(tensor);
        assert_eq!((one.dtype, &*one.shape, zero.dtype), (DataType::Fp32, &[2_i64, 2] as &[i64], DataType::Int64));
        assert_eq!((one.data.to_vec(), zero.data.to_vec()), ([0, 0, 0x80, 0x3f].repeat(4), vec![0; 32]));
        let empty = staging.fill(0, (DataType::Fp32, &Shape::new(&[0, 3])), |_| {}).expect("it fits");
        assert_eq!(values(empty), [0; 0]);
    }

    #[test]
    fn memory_that_is_far_too_large_for_long_is_given_back() {
        let mut fit = Fit { bytes: 8 << 20, generous: 0 };
        assert!(!fit.takes((8 << 20) + 1), "too small");
        let rarely_full = (0..1000).all(|batch| fit.takes(if batch % 60 == 0 { 8 << 20 } else { 1 }));
        assert!(rarely_full, "it is needed now and then");
        assert!(fit.takes(8 << 20));
        assert_eq!((0..1000).take_while(|_| fit.takes(1)).count(), Fit::BATCHES_MAX as usize);
        let mut small = Fit { bytes: 4096, generous: 0 };
        assert!((0..1000).all(|_| small.takes(1)), "what is small is not worth it");
    }
}
