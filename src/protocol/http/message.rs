//! The protocol's messages as JSON, field by field after their descriptors.
//!
//! Names are those of the `.proto` files, numbers are numbers whatever their width, enum values are names, and fields
//! without presence are there even when they hold their default, as clients of the reference server expect.

use std::sync::OnceLock;

use axum::response::Response;
use http::StatusCode;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde::Serialize;

use super::reply;
use crate::model::schema;

/// The body of a response that is `message`, whose type is `inference.<name>`.
pub fn reply(name: &str, message: &impl Message) -> Response {
    reply::json(StatusCode::OK, value(name, message).to_string())
}

/// `message` as JSON.
pub fn value(name: &str, message: &impl Message) -> serde_json::Value {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let pool =
        POOL.get_or_init(|| DescriptorPool::decode(schema::DESCRIPTORS).expect("the build script wrote a valid set"));
    let descriptor = pool.get_message_by_name(&format!("inference.{name}")).expect("proto/ defines every name used");
    let encoded = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor, &encoded[..]).expect("it was encoded from this very type");
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options())
        .expect("a message has nothing that JSON cannot say")
}

/// As [`reply`], of anything that serde can write.
pub fn reply_serde(body: &impl Serialize) -> Response {
    let text = serde_json::to_string(body).expect("keys are strings and values have a form in JSON");
    reply::json(StatusCode::OK, text)
}

fn options() -> SerializeOptions {
    SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::v2::wire::{ModelMetadataResponse, StatisticDuration};

    #[test]
    fn long_integers_are_numbers_and_defaults_are_there() {
        let duration = StatisticDuration { count: 0, ns: u64::MAX };
        assert_eq!(value("StatisticDuration", &duration), json!({ "count": 0, "ns": u64::MAX }));
        let empty = json!({ "name": "", "versions": [], "platform": "", "inputs": [], "outputs": [] });
        assert_eq!(value("ModelMetadataResponse", &ModelMetadataResponse::default()), empty);
    }

    #[test]
    fn a_configuration_has_the_names_of_its_file() {
        let config = schema::ModelConfig {
            max_batch_size: 8,
            input: vec![schema::ModelInput { data_type: schema::DataType::TypeFp32.into(), ..Default::default() }],
            ..Default::default()
        };
        let json = value("ModelConfig", &config);
        assert_eq!((&json["max_batch_size"], &json["input"][0]["data_type"]), (&json!(8), &json!("TYPE_FP32")));
        assert_eq!(json["parameters"], json!({}));
        assert!(json.get("dynamic_batching").is_none(), "a message that is not set is not there");
    }
}
