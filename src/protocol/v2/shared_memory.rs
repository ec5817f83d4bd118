//! Shared memory with clients: the calls about regions, and the tensors of a request that are there.
//!
//! Regions themselves are [`crate::gateway::regions`]. Memory of CUDA devices is not supported: the calls about it
//! answer that there is none, and that none can be registered. Begin with [`Exchange`].

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::parameters::Placement;
use super::wire::system_shared_memory_status_response::RegionStatus;
use super::wire::{
    CudaSharedMemoryRegisterRequest, CudaSharedMemoryRegisterResponse, CudaSharedMemoryStatusRequest,
    CudaSharedMemoryStatusResponse, CudaSharedMemoryUnregisterRequest, CudaSharedMemoryUnregisterResponse,
    SystemSharedMemoryRegisterRequest, SystemSharedMemoryRegisterResponse, SystemSharedMemoryStatusRequest,
    SystemSharedMemoryStatusResponse, SystemSharedMemoryUnregisterRequest, SystemSharedMemoryUnregisterResponse,
};
use crate::error::{Error, Kind, Result};
use crate::gateway::Gateway;
use crate::gateway::regions::{Region, Regions, Registration, Window};
use crate::infer::{Response, Responses};
use crate::tensor::DataType;

/// The region of a name, or all for an empty name.
///
/// # Errors
/// [`Kind::NotFound`] if it is not registered.
pub fn system_status(
    gateway: &Gateway,
    request: &SystemSharedMemoryStatusRequest,
) -> Result<SystemSharedMemoryStatusResponse> {
    let status = |region: &Region| RegionStatus {
        name: region.name.clone(),
        key: region.key.clone(),
        offset: region.offset,
        byte_size: region.byte_size(),
    };
    let regions = gateway.regions().list(&request.name)?;
    let regions = regions.into_iter().map(|region| (region.name.clone(), status(&region)));
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

/// Forgets the region of a name, or all for an empty name; one that is not there is forgotten already.
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

/// All regions of CUDA memory, of which there are none.
///
/// # Errors
/// [`Kind::NotFound`] for a name.
pub fn cuda_status(_: &Gateway, request: &CudaSharedMemoryStatusRequest) -> Result<CudaSharedMemoryStatusResponse> {
    match request.name.as_str() {
        "" => Ok(CudaSharedMemoryStatusResponse::default()),
        name => Err(Error::not_found(format!("Unable to find cuda shared memory region: '{name}'"))),
    }
}

/// Refuses: memory of CUDA devices is not supported.
///
/// # Errors
/// [`Kind::Unimplemented`].
pub fn cuda_register(
    gateway: &Gateway,
    request: &CudaSharedMemoryRegisterRequest,
) -> Result<CudaSharedMemoryRegisterResponse> {
    gateway.regions().check_enabled()?;
    Err(Error::new(
        Kind::Unimplemented,
        format!(
            "failed to register CUDA shared memory region: '{}', this server does not open memory of CUDA devices; use \
             system shared memory",
            request.name
        ),
    ))
}

/// Forgets regions of CUDA memory, of which there are none.
///
/// # Errors
/// None.
pub fn cuda_unregister(
    _: &Gateway,
    _: &CudaSharedMemoryUnregisterRequest,
) -> Result<CudaSharedMemoryUnregisterResponse> {
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
    /// The data of an input: numbers in place, strings as a copy, because their framing is checked only once.
    ///
    /// # Errors
    /// Those of [`Regions::window`].
    pub fn input(&mut self, regions: &Regions, placement: &Placement, dtype: DataType) -> Result<Bytes> {
        let window = regions.window(&placement.region, placement.offset, placement.byte_size)?;
        if dtype == DataType::Bytes {
            return window.copy();
        }
        let data = window.view();
        self.inputs.push(window);
        Ok(data)
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

    /// The responses with their outputs put where they are to go; without shared memory as they are.
    pub fn deliver(self, responses: Responses) -> Responses {
        if self.inputs.is_empty() && self.outputs.is_empty() {
            return responses;
        }
        Box::pin(responses.map(move |response| self.place(response?)))
    }

    fn place(&self, mut response: Response) -> Result<Response> {
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
