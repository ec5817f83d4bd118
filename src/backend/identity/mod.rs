//! The `identity` backend: gives back what it gets, after an optional delay.
//!
//! For tests, demonstrations and measuring the server itself; pure Rust, no model file.
//!
//! | key | value | effect |
//! |---|---|---|
//! | `identity.mode` | `copy` (default), `repeat`, `countdown` | `copy`: each output is the input of the same position, as a model file sees it; see [`repeat`] and [`countdown`] |
//! | `identity.delay_us` | integer, default 0 | how much longer each execution takes, in microseconds |

mod countdown;
mod repeat;

use std::sync::Arc;
use std::time::Duration;

use self::countdown::Countdown;
use self::repeat::Repeat;
use super::{Backend, Instance, Model, Replies};
use crate::error::{Error, Result};
use crate::model::{Device, Footprint, ModelConfig, VersionFiles, schema};
use crate::tensor::{Batch, Tensor};

/// Registers as `identity`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

const DELAY: &str = "identity.delay_us";
const MODE: &str = "identity.mode";

impl Backend for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn parameter_keys(&self) -> &'static [&'static str] {
        &[DELAY, MODE]
    }

    fn check_parameters(&self, config: &schema::ModelConfig) -> Vec<(String, String)> {
        let value = |key: &str| config.parameters.get(key).map(|value| value.string_value.as_str());
        let mut wrong = Vec::new();
        if let Some(delay) = value(DELAY).filter(|delay| delay.parse::<u64>().is_err()) {
            wrong.push((DELAY.to_owned(), format!("expected microseconds as an integer, got '{delay}'")));
        }
        match value(MODE) {
            None | Some("copy") => {}
            Some("repeat") => wrong.extend(repeat::mistake(config).map(|mistake| (MODE.to_owned(), mistake))),
            Some("countdown") => {
                wrong.extend(countdown::mistake(config).map(|mistake| (MODE.to_owned(), mistake)));
            }
            Some(other) => {
                wrong.push((MODE.to_owned(), format!("expected copy, repeat or countdown, got '{other}'")));
            }
        }
        wrong
    }

    fn complete(&self, _files: &VersionFiles, _config: &mut schema::ModelConfig) -> Result<()> {
        Ok(())
    }

    fn estimate(&self, _files: &VersionFiles, _config: &ModelConfig) -> Result<Footprint> {
        Ok(Footprint::default())
    }

    fn open(&self, _files: &VersionFiles, config: &ModelConfig) -> Result<Arc<dyn Model>> {
        let mode = match config.parameters.get(MODE).map(String::as_str) {
            Some("repeat") => Mode::Repeat(Repeat::new(config)?),
            Some("countdown") => Mode::Countdown(Countdown::new(config)?),
            _ => Mode::Copy,
        };
        if matches!(mode, Mode::Copy) && config.inputs.len() != config.outputs.len() {
            return Err(Error::invalid(format!(
                "model '{}' has {} inputs and {} outputs, the identity backend needs as many of both",
                config.name,
                config.inputs.len(),
                config.outputs.len()
            )));
        }
        let delay = config.parameters.get(DELAY).and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Arc::new(IdentityModel { delay: Duration::from_micros(delay), mode }))
    }
}

#[derive(Clone)]
struct IdentityModel {
    delay: Duration,
    mode: Mode,
}

#[derive(Clone)]
enum Mode {
    Copy,
    Repeat(Repeat),
    Countdown(Countdown),
}

impl Model for IdentityModel {
    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn warms_up(&self) -> bool {
        false
    }

    fn lent(&self) -> Option<Box<dyn Instance + Send>> {
        let at_once = self.delay.is_zero() && matches!(self.mode, Mode::Copy);
        at_once.then(|| Box::new(self.clone()) as Box<dyn Instance + Send>)
    }

    fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
        Ok(Box::new(self.clone()))
    }
}

impl Instance for IdentityModel {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        replies.inputs_ready();
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        match &self.mode {
            Mode::Copy => {}
            Mode::Repeat(repeat) => return repeat.run(batch, replies),
            Mode::Countdown(countdown) => return countdown.run(batch, replies),
        }
        replies.outputs_ready();
        if batch.is_formed() {
            return copy_formed(batch, replies);
        }
        for (index, member) in batch.members.iter().enumerate() {
            replies.member(index, member.inputs.clone())?;
        }
        Ok(())
    }
}

/// The inputs as a model file would see them; an input that was left out is an output that is not there.
fn copy_formed(batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
    let input = |index| if batch.is_absent(index) { Tensor::absent() } else { batch.gathered(index) };
    replies.batch((0..batch.inputs()).map(input).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::schema::{ModelInput, ModelOutput, ModelParameter, ModelTransactionPolicy};

    /// A right configuration for mode `repeat`.
    fn repeating() -> schema::ModelConfig {
        let (int32, uint32) = (schema::DataType::TypeInt32.into(), schema::DataType::TypeUint32.into());
        let input = |name: &str, data_type, dim| ModelInput {
            name: name.to_owned(),
            data_type,
            dims: vec![dim],
            ..ModelInput::default()
        };
        let output = |name: &str, data_type| ModelOutput {
            name: name.to_owned(),
            data_type,
            dims: vec![1],
            ..Default::default()
        };
        schema::ModelConfig {
            input: vec![input("WAIT", uint32, 1), input("IN", int32, -1), input("DELAY", uint32, -1)],
            output: vec![output("IDX", uint32), output("OUT", int32)],
            model_transaction_policy: Some(ModelTransactionPolicy { decoupled: true }),
            parameters: [(MODE.to_owned(), ModelParameter { string_value: "repeat".to_owned() })].into(),
            ..schema::ModelConfig::default()
        }
    }

    #[test]
    fn mode_repeat_needs_its_tensors_and_a_decoupled_model() {
        let wrong = |change: fn(&mut schema::ModelConfig)| {
            let mut config = repeating();
            change(&mut config);
            Identity.check_parameters(&config).into_iter().map(|(key, message)| format!("{key}: {message}")).collect()
        };
        let nothing: Vec<String> = wrong(|_| {});
        assert_eq!(nothing, Vec::<String>::new());
        let not_decoupled: Vec<String> = wrong(|config| config.model_transaction_policy = None);
        assert_eq!(not_decoupled, ["identity.mode: mode repeat needs model_transaction_policy { decoupled: true }"]);
        let batching: Vec<String> = wrong(|config| config.max_batch_size = 4);
        assert_eq!(batching, ["identity.mode: mode repeat needs max_batch_size: 0"]);
        let changes: [fn(&mut schema::ModelConfig); 4] = [
            |config| config.input[0].dims = vec![2],
            |config| config.input[1].data_type = schema::DataType::TypeUint32.into(),
            |config| drop(config.output.pop()),
            |config| config.input.push(config.input[0].clone()),
        ];
        for change in changes {
            let tensors: Vec<String> = wrong(change);
            assert!(tensors[0].starts_with("identity.mode: mode repeat needs the inputs IN"), "{tensors:?}");
        }
        let mode: Vec<String> = wrong(|config| {
            config.parameters.insert(MODE.to_owned(), ModelParameter { string_value: "copies".to_owned() });
        });
        assert_eq!(mode, ["identity.mode: expected copy, repeat or countdown, got 'copies'"]);
    }
}
