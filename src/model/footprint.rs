//! The memory that a model version holds, and what an allocator has of a device.

use std::collections::BTreeMap;

use super::Device;

/// Bytes held on each device, host memory included as [`Device::Cpu`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes by device; a device that holds nothing is absent.
    pub bytes: BTreeMap<Device, u64>,
}

/// What an allocator has of a device, whoever asked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The device.
    pub device: Device,
    /// Bytes that are in use.
    pub used: u64,
    /// Bytes that the allocator has, these included.
    pub kept: u64,
}

impl Footprint {
    /// A footprint of `bytes` on one device.
    pub fn on(device: Device, bytes: u64) -> Self {
        Self { bytes: BTreeMap::from([(device, bytes)]) }
    }

    /// The bytes on one device.
    pub fn of(&self, device: Device) -> u64 {
        self.bytes.get(&device).copied().unwrap_or_default()
    }

    /// Adds another footprint, device by device.
    pub fn add(&mut self, other: &Footprint) {
        for (device, bytes) in &other.bytes {
            *self.bytes.entry(*device).or_default() += bytes;
        }
    }
}
