//! Every RPC, as data: its path and what it is about, by which access is restricted.

use crate::protocol::category::Category::{self, *};

/// The path and the category of every RPC. A long table on purpose: one line each, the most frequent first.
#[rustfmt::skip]
pub const METHODS: &[(&str, Category)] = &[
    ("/inference.GRPCInferenceService/ModelInfer", Inference),
    ("/inference.GRPCInferenceService/ModelStreamInfer", Inference),
    ("/inference.GRPCInferenceService/ServerLive", Health),
    ("/inference.GRPCInferenceService/ServerReady", Health),
    ("/inference.GRPCInferenceService/ModelReady", Health),
    ("/inference.GRPCInferenceService/ServerMetadata", Metadata),
    ("/inference.GRPCInferenceService/ModelMetadata", Metadata),
    ("/inference.GRPCInferenceService/ModelConfig", ModelConfig),
    ("/inference.GRPCInferenceService/ModelStatistics", Statistics),
    ("/inference.GRPCInferenceService/RepositoryIndex", ModelRepository),
    ("/inference.GRPCInferenceService/RepositoryModelLoad", ModelRepository),
    ("/inference.GRPCInferenceService/RepositoryModelUnload", ModelRepository),
    ("/inference.GRPCInferenceService/SystemSharedMemoryStatus", SharedMemory),
    ("/inference.GRPCInferenceService/SystemSharedMemoryRegister", SharedMemory),
    ("/inference.GRPCInferenceService/SystemSharedMemoryUnregister", SharedMemory),
    ("/inference.GRPCInferenceService/CudaSharedMemoryStatus", SharedMemory),
    ("/inference.GRPCInferenceService/CudaSharedMemoryRegister", SharedMemory),
    ("/inference.GRPCInferenceService/CudaSharedMemoryUnregister", SharedMemory),
    ("/inference.GRPCInferenceService/TraceSetting", Trace),
    ("/inference.GRPCInferenceService/LogSettings", Logging),
    ("/grpc.health.v1.Health/Check", Health),
    ("/grpc.health.v1.Health/Watch", Health),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Metadata),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Metadata),
];

/// What the RPC of this path is about; `None` if there is none.
pub fn category(path: &str) -> Option<Category> {
    METHODS.iter().find(|(each, _)| *each == path).map(|(_, category)| *category)
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::model::schema;

    #[test]
    fn every_rpc_of_every_service_has_a_category() {
        let services = DescriptorPool::decode(schema::DESCRIPTORS).expect("our own descriptors");
        let mut paths: Vec<String> = services
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
            .collect();
        assert!(paths.len() >= 22, "{paths:?}");
        paths
            .extend(["v1", "v1alpha"].map(|it| format!("/grpc.reflection.{it}.ServerReflection/ServerReflectionInfo")));
        paths.sort_unstable();
        let mut known: Vec<&str> = METHODS.iter().map(|(path, _)| *path).collect();
        known.sort_unstable();
        assert_eq!(known, paths);
    }
}
