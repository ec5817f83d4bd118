//! The `identity` backend: each output is the input of the same position, after an optional delay.
//!
//! For tests, demonstrations and measuring the server itself; pure Rust, no model file.
//! Parameter `identity.delay_us`: how long each execution takes, in microseconds (default 0).

use std::sync::Arc;
use std::time::Duration;

use super::{Backend, Instance, Model, Replies};
use crate::error::{Error, Result};
use crate::model::{Device, Footprint, ModelConfig, VersionFiles, schema};
use crate::tensor::Batch;

/// Registers as `identity`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

const DELAY: &str = "identity.delay_us";

impl Backend for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        None
    }

    fn parameter_keys(&self) -> &'static [&'static str] {
        &[DELAY]
    }

    fn check_parameters(&self, config: &schema::ModelConfig) -> Vec<(String, String)> {
        let Some(delay) = config.parameters.get(DELAY) else { return Vec::new() };
        match delay.string_value.parse::<u64>() {
            Ok(_) => Vec::new(),
            Err(_) => {
                vec![(DELAY.to_owned(), format!("expected microseconds as an integer, got '{}'", delay.string_value))]
            }
        }
    }

    fn complete(&self, _files: &VersionFiles, _config: &mut schema::ModelConfig) -> Result<()> {
        Ok(())
    }

    fn estimate(&self, _files: &VersionFiles, _config: &ModelConfig) -> Result<Footprint> {
        Ok(Footprint::default())
    }

    fn open(&self, _files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>> {
        if config.inputs.len() != config.outputs.len() {
            return Err(Error::invalid(format!(
                "model '{}' has {} inputs and {} outputs, the identity backend needs as many of both",
                config.name,
                config.inputs.len(),
                config.outputs.len()
            )));
        }
        let delay = config.parameters.get(DELAY).and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Arc::new(IdentityModel { delay: Duration::from_micros(delay) }))
    }
}

struct IdentityModel {
    delay: Duration,
}

impl Model for IdentityModel {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn warms_up(&self) -> bool {
        false
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        Ok(Box::new(IdentityInstance { delay: self.delay }))
    }
}

struct IdentityInstance {
    delay: Duration,
}

impl Instance for IdentityInstance {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        replies.inputs_ready();
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        replies.outputs_ready();
        for (index, member) in batch.members.iter().enumerate() {
            replies.member(index, member.inputs.clone());
        }
        Ok(())
    }
}
