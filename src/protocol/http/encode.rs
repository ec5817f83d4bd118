//! Makes the HTTP response out of the server's own: JSON, and behind it the outputs that are wanted as binary data.
//!
//! The bytes of a tensor are handed over, not copied.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response as HttpResponse;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};

use super::chunks::Chunks;
use super::decode::BinaryOutputs;
use super::{binary, json};
use crate::error::Result;
use crate::infer::{Output, Response, Times};
use crate::protocol::v2::context::Context;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The HTTP response that is `response`; `context` is kept until it was sent.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if an output that is not wanted as binary data has no form in JSON.
pub fn response(response: Response, binary: &BinaryOutputs, context: Context) -> Result<HttpResponse> {
    let times = response.times;
    let (text, blobs) = body(response, binary)?;
    let (length, is_binary) = (text.len(), blobs.is_some());
    let mut answer = HttpResponse::new(Body::new(Chunks::new(text, blobs.unwrap_or_default(), context)));
    let headers = answer.headers_mut();
    let kind = if is_binary { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if is_binary {
        headers.insert(HeaderName::from_static(binary::HEADER), HeaderValue::from(length));
    }
    if let Some(timing) = times.and_then(|times| HeaderValue::try_from(timing(&times)).ok()) {
        headers.insert(SERVER_TIMING, timing);
    }
    Ok(answer)
}

/// The bytes of the tensors that become JSON.
pub fn text_bytes(response: &Response, binary: &BinaryOutputs) -> usize {
    let texts = response.outputs.iter().filter(|output| !binary.has(&output.name));
    texts.map(|output| output.tensor.data.len()).sum()
}

/// The JSON, and the binary data of those outputs that are; `None` if no output is.
fn body(response: Response, binary: &BinaryOutputs) -> Result<(Vec<u8>, Option<Vec<Bytes>>)> {
    let mut text = Vec::with_capacity(256);
    text.push(b'{');
    for (key, value) in [("id", response.id.as_str()), ("model_name", &response.model)] {
        if !value.is_empty() {
            member(&mut text, key);
            json::string(&mut text, value);
        }
    }
    member(&mut text, "model_version");
    json::string(&mut text, &response.version.to_string());
    if !response.parameters.is_empty() {
        member(&mut text, "parameters");
        text.push(b'{');
        for (key, value) in &response.parameters {
            member(&mut text, key);
            json::value(&mut text, value);
        }
        text.push(b'}');
    }
    member(&mut text, "outputs");
    text.push(b'[');
    let mut blobs = None;
    for (index, output) in response.outputs.into_iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        self::output(&mut text, &output, binary.has(&output.name))?;
        if binary.has(&output.name) && !output.placed {
            blobs.get_or_insert_with(Vec::new).push(output.tensor.data);
        }
    }
    text.extend(b"]}");
    Ok((text, blobs))
}

/// Appends an output. One that went to shared memory has no data here.
fn output(text: &mut Vec<u8>, output: &Output, is_binary: bool) -> Result<()> {
    let Output { name, tensor, placed } = output;
    text.push(b'{');
    member(text, "name");
    json::string(text, name);
    member(text, "datatype");
    json::string(text, tensor.dtype.name());
    member(text, "shape");
    text.push(b'[');
    for (index, dimension) in tensor.shape.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        text.extend(format!("{comma}{dimension}").bytes());
    }
    text.push(b']');
    match (placed, is_binary) {
        (true, _) => {}
        (false, true) => {
            member(text, "parameters");
            text.extend(format!("{{\"binary_data_size\":{}}}", tensor.data.len()).bytes());
        }
        (false, false) => {
            member(text, "data");
            json::tensor(text, tensor, name)?;
        }
    }
    text.push(b'}');
    Ok(())
}

/// Appends the key of the next member of an object.
fn member(text: &mut Vec<u8>, key: &str) {
    if text.last() != Some(&b'{') {
        text.push(b',');
    }
    json::string(text, key);
    text.push(b':');
}

/// How long the request waited and how long it was executed, in milliseconds.
fn timing(times: &Times) -> String {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let queue = milliseconds(times.began.saturating_duration_since(times.queued));
    let compute = milliseconds(times.ended.saturating_duration_since(times.began));
    format!("queue;dur={queue:.3}, compute;dur={compute:.3}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::infer::{Instant, ParameterValue, Parameters};
    use crate::tensor::{DataType, Shape, Tensor};

    fn two_outputs() -> Response {
        let output = |name: &str, data: &'static [u8]| Output {
            name: Arc::from(name),
            tensor: Tensor::new(DataType::Uint8, Shape::new(&[1, data.len() as i64]), Bytes::from_static(data)),
            placed: false,
        };
        Response {
            model: Arc::from("m"),
            version: 3,
            id: "a\"b".to_owned(),
            outputs: vec![output("x", &[1, 2]), output("y", &[9])],
            parameters: Parameters::from([("p".to_owned(), ParameterValue::Int(5))]),
            last: true,
            times: None,
        }
    }

    fn written(response: Response, binary: &BinaryOutputs) -> (String, Option<Vec<Bytes>>) {
        let (text, blobs) = body(response, binary).expect("it has a form");
        (String::from_utf8(text).expect("JSON is UTF-8"), blobs)
    }

    #[test]
    fn outputs_are_json_unless_binary_is_wanted() {
        let (text, blobs) = written(two_outputs(), &BinaryOutputs::default());
        assert_eq!(
            text,
            r#"{"id":"a\"b","model_name":"m","model_version":"3","parameters":{"p":5},"outputs":[{"name":"x","datatype":"UINT8","shape":[1,2],"data":[1,2]},{"name":"y","datatype":"UINT8","shape":[1,1],"data":[9]}]}"#
        );
        assert_eq!(blobs, None);
    }

    #[test]
    fn binary_outputs_say_their_size_and_follow_in_order() {
        let (text, blobs) = written(two_outputs(), &BinaryOutputs::all());
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 2);
        assert!(json["outputs"][0].get("data").is_none());
        assert_eq!(blobs, Some(vec![Bytes::from_static(&[1, 2]), Bytes::from_static(&[9])]));
    }

    #[test]
    fn an_output_in_shared_memory_has_no_data() {
        let mut response = two_outputs();
        for output in &mut response.outputs {
            output.placed = true;
        }
        let (text, blobs) = written(response, &BinaryOutputs::all());
        assert!(!text.contains("data\"") && !text.contains("binary"), "{text}");
        assert_eq!(blobs, None);
    }

    #[test]
    fn the_stages_are_in_milliseconds() {
        let start = Instant::now();
        let after = |us: u64| start + Duration::from_micros(us);
        let times = Times {
            queued: start,
            began: after(1500),
            inputs_ready: after(1600),
            outputs_ready: after(1700),
            ended: after(1750),
        };
        assert_eq!(timing(&times), "queue;dur=1.500, compute;dur=0.250");
    }
}
