//! Tensors that come and go by regions of shared memory, beside others in the body.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Served, request};
use crate::support::SharedObject;

const PAIR: &str = "/v2/models/pair/infer";

/// A server, and an object of 64 bytes that is its region `mine`; INT32 1, 2, 3, 4 lie at 16.
async fn sharing() -> (Served, SharedObject) {
    let (served, object) = (Served::start().await, SharedObject::new(64));
    object.write(16, &[1i32, 2, 3, 4].map(i32::to_le_bytes).concat());
    let body = json!({"key": object.key, "byte_size": 64}).to_string();
    let answer = served.post("/v2/systemsharedmemory/region/mine/register", &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    (served, object)
}

/// Parameters that put a tensor of 16 bytes into the region.
fn at(offset: u64) -> Value {
    json!({"shared_memory_region": "mine", "shared_memory_offset": offset, "shared_memory_byte_size": 16})
}

/// A request of one input in the body and one in the region; the second output goes to the region.
fn mixed(first: Value) -> Value {
    json!({
        "inputs": [first, {"name": "INPUT1", "datatype": "INT32", "shape": [1, 4], "parameters": at(16)}],
        "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT1", "parameters": at(48)}]
    })
}

#[tokio::test]
async fn an_output_in_a_region_is_described_and_not_sent() {
    let (served, object) = sharing().await;
    let asked = mixed(json!({"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [0.5, 1, 2, 3]}));
    let answer = served.post(PAIR, &asked.to_string()).await.json();
    let outputs = json!([
        {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 4], "data": [0.5, 1.0, 2.0, 3.0]},
        {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 4]}
    ]);
    assert_eq!(answer["outputs"], outputs);
    assert_eq!(object.read(48, 16), object.read(16, 16));
    served.stop().await;
}

#[tokio::test]
async fn binary_data_is_of_the_other_tensors_only() {
    let (served, object) = sharing().await;
    let mut asked =
        mixed(json!({"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}));
    asked["parameters"] = json!({"binary_data_output": true});
    let text = asked.to_string();
    let mut asked = request(Method::POST, PAIR, [text.as_bytes(), &[7; 16]].concat());
    asked.headers_mut().insert("inference-header-content-length", text.len().into());
    let answer = served.send(asked).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let length: usize =
        answer.headers["inference-header-content-length"].to_str().expect("a text").parse().expect("a number");
    assert_eq!(answer.body[length..], [7; 16], "nothing of the output in the region");
    let described: Value = serde_json::from_slice(&answer.body[..length]).expect("JSON");
    assert_eq!(described["outputs"][1], json!({"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 4]}));
    assert_eq!(object.read(48, 16), object.read(16, 16));
    served.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_or_is_not_there_is_refused_by_its_name() {
    let (served, _object) = sharing().await;
    let first = json!({"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]});
    let with = |path: &str, value: Value| {
        let mut asked = mixed(first.clone());
        *asked.pointer_mut(path).expect("it is there") = value;
        asked.to_string()
    };
    let unknown = json!({"shared_memory_region": "nobody", "shared_memory_byte_size": 16});
    let small = json!({"shared_memory_region": "mine", "shared_memory_byte_size": 8});
    for (asked, status, message) in [
        (with("/inputs/1/parameters", unknown), 404, "Unable to find shared memory region: 'nobody'"),
        (with("/inputs/1/parameters", at(64)), 400, "Invalid offset for shared memory region: 'mine'"),
        (with("/outputs/1/parameters", at(49)), 400, "Invalid offset + byte size for shared memory region: 'mine'"),
        (
            with("/outputs/1/parameters", small),
            500,
            "shared memory size specified with the request for output 'OUTPUT1' (8 bytes) should be at least 16 bytes \
             to hold the results",
        ),
    ] {
        let answer = served.post(PAIR, &asked).await;
        assert_eq!((answer.status.as_u16(), &*answer.error()), (status, message));
    }
    served.stop().await;
}
