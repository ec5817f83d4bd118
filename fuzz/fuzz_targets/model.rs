//! The model that targets send requests to: what it is, and what it makes of them.

use nereid::error::Result;
use nereid::gateway::regions::Regions;
use nereid::gateway::request_memory::Portion;
use nereid::infer::{Instant, Request};
use nereid::model::{ModelConfig, TensorSpec};
use nereid::protocol::v2::context::Context;
use nereid::protocol::v2::decode::{self, Arrival};
use nereid::protocol::v2::wire::ModelInferRequest;

/// A model of these tensors.
pub fn config(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>, max_batch_rows: usize) -> ModelConfig {
    ModelConfig { inputs, outputs, max_batch_rows, ..ModelConfig::new("m", "identity") }
}

/// What the decoder makes of a message.
pub fn decoded(message: ModelInferRequest, config: &ModelConfig) -> Result<Request> {
    let arrival =
        Arrival { at: Instant::now(), deadline: None, context: Context::default(), portion: Portion::default() };
    decode::request(message, config, arrival, &Regions::off()).map(|decoded| decoded.request)
}
