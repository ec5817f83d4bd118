//! What an instance has started on its device and not waited for: copies and computations, one after the other.
//!
//! An execution starts the copies of its inputs, the computation, and the copies of its outputs into page-locked memory,
//! and waits once, for its own stream only. So the copies of one instance and the computations of another go on at the
//! same time. On the host all has ended when a call returns, there is no stream, and nothing here takes time.
//!
//! Written from libtorch's headers, and run on the host only so far: `scripts/gpu-check` is the first thing to run on a
//! machine with a device.

use std::ptr;

use super::device::device_number;
use super::ffi::{self, Api, RawStream};
use super::handle::Handle;
use crate::error::Result;
use crate::model::Device;
use crate::tensor::Tensor;

/// The stream of one thread, with a mark in it.
pub struct Stream {
    raw: *mut RawStream,
    api: &'static Api,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live handle of the shim and freed only here.
        unsafe { (self.api.stream_free)(self.raw) };
    }
}

impl Stream {
    /// The stream on which the calling thread, which has begun to run models there, starts everything.
    pub fn of_thread(device: Device) -> Result<Self> {
        let api = ffi::api()?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is written when the call succeeds.
        api.check(unsafe { (api.stream_of_thread)(device_number(device), &raw mut raw) })?;
        Ok(Self { raw, api })
    }

    /// Moves the mark behind all that was started.
    pub fn mark(&self) -> Result<()> {
        // SAFETY: `raw` is live, and this thread's alone.
        self.api.check(unsafe { (self.api.stream_mark)(self.raw) })
    }

    /// Whether all in front of the mark has ended.
    pub fn is_past_mark(&self) -> Result<bool> {
        let mut passed = 0;
        // SAFETY: as above; `passed` is written when the call succeeds.
        self.api.check(unsafe { (self.api.stream_passed)(self.raw, &raw mut passed) })?;
        Ok(passed != 0)
    }

    /// Waits until all in front of the mark has ended.
    pub fn wait_for_mark(&self) -> Result<()> {
        // SAFETY: as above.
        self.api.check(unsafe { (self.api.stream_wait)(self.raw, 1) })
    }

    /// Waits until all that was started has ended.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: as above.
        self.api.check(unsafe { (self.api.stream_wait)(self.raw, 0) })
    }

    /// Waits for these tensors, and whatever else was started.
    pub fn arrived(&self, tensors: Vec<Arriving>) -> Result<Vec<Tensor>> {
        self.wait()?;
        tensors.into_iter().map(Arriving::arrived).collect()
    }
}

/// A tensor of the server whose elements may still be on their way to host memory.
pub struct Arriving {
    /// Without its elements if these are on their way.
    tensor: Tensor,
    /// Where they go.
    host: Option<Handle>,
}

impl Arriving {
    /// A tensor without elements, which go to the memory of `host`, if they go anywhere.
    pub fn new(tensor: Tensor, host: Option<Handle>) -> Self {
        Self { tensor, host }
    }

    fn arrived(self) -> Result<Tensor> {
        let Some(host) = self.host else { return Ok(self.tensor) };
        Ok(Tensor { data: host.into_bytes()?, ..self.tensor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DataType, Shape};

    #[test]
    fn on_the_host_nothing_is_ever_under_way() {
        let stream = Stream::of_thread(Device::Cpu).expect("libtorch is there");
        assert!(stream.is_past_mark().expect("no device fails"));
        for _ in 0..2 {
            stream.mark().expect("no device fails");
            assert!(stream.is_past_mark().expect("no device fails"));
            stream.wait_for_mark().expect("no device fails");
            stream.wait().expect("no device fails");
        }
    }

    #[test]
    fn a_tensor_arrives_with_its_elements() {
        let stream = Stream::of_thread(Device::Cpu).expect("libtorch is there");
        let (shape, data) = (Shape::new(&[2]), bytes::Bytes::from_static(&[1, 2]));
        let sent = Tensor::new(DataType::Uint8, shape.clone(), data.clone());
        let over = || Handle::over(DataType::Uint8, &shape, &data).expect("it fits");
        let resident = over().into_resident(false, false, true).expect("it is kept");
        let tensors =
            vec![over().into_host(true).expect("it can be sent"), Arriving::new(sent.clone(), None), resident];
        let arrived = stream.arrived(tensors).expect("no device fails");
        assert_eq!(arrived[..2], [sent.clone(), sent]);
        assert_eq!((arrived[2].data.as_ptr(), arrived[2].bytes()), (data.as_ptr(), 2));
        assert_ne!(arrived[0].data.as_ptr(), data.as_ptr(), "a copy was asked for");
    }

    #[test]
    fn a_device_that_is_not_there_has_no_stream() {
        if super::super::devices().expect("libtorch is there").len() == 1 {
            assert!(Stream::of_thread(Device::Cuda(0)).is_err());
        }
    }
}
