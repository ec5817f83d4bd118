//! Shared memory with clients: the calls about regions, and the tensors of a request that are there.
//!
//! Regions themselves are [`crate::gateway::regions`], of the system and of CUDA devices alike. Begin with
//! [`Exchange`].

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::parameters::Placement;
use super::wire::{
    CudaSharedMemoryRegisterRequest, CudaSharedMemoryRegisterResponse, CudaSharedMemoryStatusRequest,
    CudaSharedMemoryStatusResponse, CudaSharedMemoryUnregisterRequest, CudaSharedMemoryUnregisterResponse,
    SystemSharedMemoryRegisterRequest, SystemSharedMemoryRegisterResponse, SystemSharedMemoryStatusRequest,
    SystemSharedMemoryStatusResponse, SystemSharedMemoryUnregisterRequest, SystemSharedMemoryUnregisterResponse,
    cuda_shared_memory_status_response, system_shared_memory_status_response,
};
use crate::error::{Error, Result};
use crate::gateway::Gateway;
use crate::gateway::regions::{DeviceRegistration, Regions, Registration, Window};
use crate::infer::{Response, Responses};

/// The region of the system of a name, or all for an empty name.
///
/// # Errors
/// [`crate::error::Kind::NotFound`] if it is not registered.
pub fn system_status(
    gateway: &Gateway,
    request: &SystemSharedMemoryStatusRequest,
) -> Result<SystemSharedMemoryStatusResponse> {
    let regions = gateway.regions().list(&request.name)?.into_iter().map(|region| {
        let status = system_shared_memory_status_response::RegionStatus {
            name: region.name.clone(),
            key: region.key,
            offset: region.offset,
            byte_size: region.byte_size,
        };
        (region.name, status)
    });
    Ok(SystemSharedMemoryStatusResponse { regions: regions.collect() })
}

/// Makes a part of a POSIX shared memory object known under a name.
///
/// # Errors
/// Those of [`Regions::register`].
pub fn system_register(
    gateway: &Gateway,
    request: &SystemSharedMemoryRegisterRequest,
) -> Result<SystemSharedMemoryRegisterResponse> {
    let SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = request;
    gateway.regions().register(Registration { name, key, offset: *offset, byte_size: *byte_size })?;
    Ok(SystemSharedMemoryRegisterResponse {})
}

/// Forgets the region of the system of a name, or all for an empty name; one that is not there is forgotten already.
///
/// # Errors
/// None.
pub fn system_unregister(
    gateway: &Gateway,
    request: &SystemSharedMemoryUnregisterRequest,
) -> Result<SystemSharedMemoryUnregisterResponse> {
    gateway.regions().unregister(&request.name);
    Ok(SystemSharedMemoryUnregisterResponse {})
}

/// The region of a CUDA device of a name, or all for an empty name. Handles are not told.
///
/// # Errors
/// [`crate::error::Kind::NotFound`] if it is not registered.
pub fn cuda_status(
    gateway: &Gateway,
    request: &CudaSharedMemoryStatusRequest,
) -> Result<CudaSharedMemoryStatusResponse> {
    let regions = gateway.regions().list_devices(&request.name)?.into_iter().map(|region| {
        let status = cuda_shared_memory_status_response::RegionStatus {
            name: region.name.clone(),
            device_id: region.device as u64,
            byte_size: region.byte_size,
        };
        (region.name, status)
    });
    Ok(CudaSharedMemoryStatusResponse { regions: regions.collect() })
}

/// Makes memory of a CUDA device known under a name.
///
/// # Errors
/// Those of [`Regions::register_device`].
pub async fn cuda_register(
    gateway: &Arc<Gateway>,
    request: CudaSharedMemoryRegisterRequest,
) -> Result<CudaSharedMemoryRegisterResponse> {
    let gateway = gateway.clone();
    // CUDA takes seconds to begin, the first time.
    let registered = tokio::task::spawn_blocking(move || {
        let CudaSharedMemoryRegisterRequest { name, raw_handle, device_id, byte_size } = &request;
        let wanted = DeviceRegistration { name, handle: raw_handle, device: *device_id, byte_size: *byte_size };
        gateway.regions().register_device(wanted)
    });
    registered.await.map_err(|error| Error::internal(format!("registering was given up: {error}")))??;
    Ok(CudaSharedMemoryRegisterResponse {})
}

/// Forgets the region of a CUDA device of a name, or all for an empty name; one that is not there is forgotten already.
///
/// # Errors
/// None.
pub fn cuda_unregister(
    gateway: &Gateway,
    request: &CudaSharedMemoryUnregisterRequest,
) -> Result<CudaSharedMemoryUnregisterResponse> {
    gateway.regions().unregister_device(&request.name);
    Ok(CudaSharedMemoryUnregisterResponse {})
}

/// The shared memory that one request uses.
#[derive(Debug, Default)]
pub struct Exchange {
    inputs: Vec<Window>,
    /// Each with the name of its output.
    outputs: Vec<(String, Window)>,
}

impl Exchange {
    /// Notes that an input is read in place.
    pub fn reads(&mut self, window: Window) {
        self.inputs.push(window);
    }

    /// Whether inputs are read where the client can still write them.
    pub fn reads_in_place(&self) -> bool {
        !self.inputs.is_empty()
    }

    /// Notes where an output is to go.
    ///
    /// # Errors
    /// Those of [`Regions::window`].
    pub fn output(&mut self, regions: &Regions, placement: &Placement, name: &str) -> Result<()> {
        let window = regions.window(&placement.region, placement.offset, placement.byte_size)?;
        self.outputs.push((name.to_owned(), window));
        Ok(())
    }

    /// Whether the output of that name goes to a region.
    fn places(&self, output: &str) -> bool {
        self.outputs.iter().any(|(name, _)| name == output)
    }

    /// The responses with their outputs put where they are to go; without shared memory as they are.
    pub fn deliver(self, responses: Responses) -> Responses {
        if self.inputs.is_empty() && self.outputs.is_empty() {
            return responses;
        }
        Box::pin(responses.map(move |response| self.place(response?)))
    }

    fn place(&self, mut response: Response) -> Result<Response> {
        // An output that is an input as it was would be sent after the last look at its memory.
        for output in response.outputs.iter_mut().filter(|output| !self.places(&output.name)) {
            if self.inputs.iter().any(|window| window.holds(&output.tensor.data)) {
                output.tensor.data = Bytes::copy_from_slice(&output.tensor.data);
            }
        }
        // An input whose memory went away was computed with as zeros.
        self.inputs.iter().try_for_each(Window::check)?;
        for (name, window) in &self.outputs {
            let Some(output) = response.outputs.iter_mut().find(|output| *output.name == **name) else { continue };
            let data = std::mem::take(&mut output.tensor.data);
            if data.len() > window.len() {
                return Err(Error::internal(format!(
                    "shared memory size specified with the request for output '{name}' ({} bytes) should be at least \
                     {} bytes to hold the results",
                    window.len(),
                    data.len()
                )));
            }
            window.place(&data)?;
            output.placed = true;
        }
        Ok(response)
    }
}
