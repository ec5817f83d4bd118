//! What kind of failure libtorch's error texts tell of.
//!
//! The interpreter wraps what an operator throws, so mostly only the text is left to tell. What a model raises itself
//! is never more than its own error: callers may have a say in that text.

use super::message;
use crate::error::{Error, Kind};

/// What allocators and libraries say when there is no memory left.
const MEMORY: [&str; 7] = [
    "not enough memory: you tried to allocate",
    "can't allocate memory: you tried to allocate",
    "out of memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
];
/// Errors after which CUDA gives the same one for every call of this process.
const STICKY: [&str; 10] = [
    "device-side assert triggered",
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "hardware stack error",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
];

/// The error of a text of the shim, whose first byte says what was thrown.
pub fn of(text: &str) -> Error {
    let (origin, text) = text.split_at_checked(1).unwrap_or(("E", text));
    Error::new(kind(origin, text), message::one_line(text))
}

fn kind(origin: &str, text: &str) -> Kind {
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    match origin {
        "R" => Kind::Backend,
        "M" => Kind::OutOfMemory,
        _ if text.contains("CUDA") && says(&STICKY) => Kind::DeviceLost,
        _ if says(&MEMORY) => Kind::OutOfMemory,
        _ => Kind::Backend,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_memory_is_told_by_type_or_text() {
        let interpreted = "EThe following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most \
                           recent call last):\nRuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB.";
        for text in [
            interpreted,
            "Mstd::bad_alloc",
            "E[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
             allocate 1 bytes. Error code 12",
            "ECUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ] {
            assert_eq!(of(text).kind(), Kind::OutOfMemory, "{text}");
        }
        assert_eq!(of(interpreted).message(), "RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB.");
    }

    #[test]
    fn only_errors_that_stay_make_a_device_lost() {
        for text in [
            "ECUDA error: device-side assert triggered",
            "ERuntimeError: CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be \
             asynchronously reported",
        ] {
            assert_eq!(of(text).kind(), Kind::DeviceLost, "{text}");
        }
        for text in ["ECUDA error: invalid device ordinal", "Emisaligned address", "Eshapes do not fit"] {
            assert_eq!(of(text).kind(), Kind::Backend, "{text}");
        }
    }

    #[test]
    fn what_a_model_raises_is_its_own_whatever_it_says() {
        for text in ["RCUDA error: device-side assert triggered", "RRuntimeError: out of memory", ""] {
            assert_eq!(of(text).kind(), Kind::Backend, "{text}");
        }
    }
}
