//! Makes a request that a model accepts, from its metadata and configuration.

use bytes::Bytes;
use nereid::protocol::v2::wire::grpc_inference_service_client::GrpcInferenceServiceClient as Client;
use nereid::protocol::v2::wire::model_infer_request::InferInputTensor;
use nereid::protocol::v2::wire::{ModelConfigRequest, ModelInferRequest, ModelMetadataRequest};
use tonic::transport::Channel;

use crate::{Failure, Options};

/// One request; dimensions of any size become `--size`, or `--rows` for the batch dimension.
pub async fn request(client: &mut Client<Channel>, options: &Options) -> Result<ModelInferRequest, Failure> {
    let name = options.model.clone();
    let metadata = ModelMetadataRequest { name: name.clone(), version: String::new() };
    let metadata = client.model_metadata(metadata).await?.into_inner();
    let config = client.model_config(ModelConfigRequest { name: name.clone(), version: String::new() }).await?;
    let batches = config.into_inner().config.is_some_and(|config| config.max_batch_size > 0);

    let mut request = ModelInferRequest { model_name: name, ..ModelInferRequest::default() };
    for input in metadata.inputs {
        let mut shape: Vec<i64> =
            input.shape.iter().map(|dim| if *dim < 0 { options.size as i64 } else { *dim }).collect();
        if let Some(rows) = shape.first_mut().filter(|_| batches) {
            *rows = options.rows as i64;
        }
        let count = shape.iter().product::<i64>() as usize;
        request.raw_input_contents.push(contents(&input.name, &input.datatype, count)?);
        request.inputs.push(InferInputTensor {
            name: input.name,
            datatype: input.datatype,
            shape,
            ..InferInputTensor::default()
        });
    }
    Ok(request)
}

/// `count` harmless elements: ones for a mask, small numbers that are also valid token ids for the rest.
fn contents(name: &str, datatype: &str, count: usize) -> Result<Bytes, Failure> {
    let number = |at: usize| if name.contains("mask") { 1 } else { 1000 + (at * 37 % 1000) as i64 };
    let numbers = (0..count).map(number);
    let bytes: Vec<u8> = match datatype {
        "INT64" | "UINT64" => numbers.flat_map(i64::to_le_bytes).collect(),
        "INT32" | "UINT32" => numbers.flat_map(|each| (each as i32).to_le_bytes()).collect(),
        "INT16" | "UINT16" => numbers.flat_map(|each| (each as i16).to_le_bytes()).collect(),
        "FP64" => numbers.flat_map(|each| (each as f64).to_le_bytes()).collect(),
        "FP32" => numbers.flat_map(|each| (each as f32).to_le_bytes()).collect(),
        "FP16" | "BF16" => vec![0; count * 2],
        "BOOL" | "INT8" | "UINT8" => vec![1; count],
        "BYTES" => (0..count).flat_map(|_| [4, 0, 0, 0, b't', b'e', b'x', b't']).collect(),
        other => return Err(format!("input {name} has the unknown type {other}").into()),
    };
    Ok(bytes.into())
}
