//! Regions of shared memory: what is registered, and registering and forgetting them.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use prost::Message;

use super::body::{self, Object};
use super::path::Named;
use super::reply::{Answer, done};
use super::{App, message};
use crate::error::{Error, Result};
use crate::protocol::v2::shared_memory;
use crate::protocol::v2::wire::*;

/// `GET /v2/systemsharedmemory/status`, of all regions or of one.
pub async fn system(State(app): State<Arc<App>>, at: Named) -> Answer {
    let request = SystemSharedMemoryStatusRequest { name: at.region };
    let found = shared_memory::system_status(&app.gateway, &request)?;
    Ok(listed("SystemSharedMemoryStatusResponse.RegionStatus", found.regions))
}

/// `GET /v2/cudasharedmemory/status`, of all regions or of one.
pub async fn cuda(State(app): State<Arc<App>>, at: Named) -> Answer {
    let request = CudaSharedMemoryStatusRequest { name: at.region };
    let found = shared_memory::cuda_status(&app.gateway, &request)?;
    Ok(listed("CudaSharedMemoryStatusResponse.RegionStatus", found.regions))
}

/// `POST /v2/systemsharedmemory/region/{region}/register`.
pub async fn register_system(State(app): State<Arc<App>>, at: Named, body: Body) -> Answer {
    let asked = body::object(&app.small_body(body).await?, "register")?;
    let request = SystemSharedMemoryRegisterRequest {
        name: at.region,
        key: body::text(&asked, "key")?.ok_or_else(|| missing("key"))?,
        offset: body::unsigned(&asked, "offset")?.unwrap_or(0),
        byte_size: body::unsigned(&asked, "byte_size")?.ok_or_else(|| missing("byte_size"))?,
    };
    shared_memory::system_register(&app.gateway, &request)?;
    Ok(done())
}

/// `POST /v2/cudasharedmemory/region/{region}/register`.
pub async fn register_cuda(State(app): State<Arc<App>>, at: Named, body: Body) -> Answer {
    let mut asked = body::object(&app.small_body(body).await?, "register")?;
    let device = body::unsigned(&asked, "device_id")?.ok_or_else(|| missing("device_id"))?;
    let request = CudaSharedMemoryRegisterRequest {
        name: at.region,
        raw_handle: handle(&mut asked)?,
        device_id: i64::try_from(device).map_err(|_| Error::invalid(format!("there is no device {device}")))?,
        byte_size: body::unsigned(&asked, "byte_size")?.ok_or_else(|| missing("byte_size"))?,
    };
    shared_memory::cuda_register(&app.gateway, request).await?;
    Ok(done())
}

/// `POST /v2/systemsharedmemory/unregister`, of all regions or of one.
pub async fn unregister_system(State(app): State<Arc<App>>, at: Named) -> Answer {
    shared_memory::system_unregister(&app.gateway, &SystemSharedMemoryUnregisterRequest { name: at.region })?;
    Ok(done())
}

/// `POST /v2/cudasharedmemory/unregister`, of all regions or of one.
pub async fn unregister_cuda(State(app): State<Arc<App>>, at: Named) -> Answer {
    shared_memory::cuda_unregister(&app.gateway, &CudaSharedMemoryUnregisterRequest { name: at.region })?;
    Ok(done())
}

/// The regions, which are messages of this type, as an array by name.
fn listed<M: Message>(name: &str, regions: HashMap<String, M>) -> Response {
    let mut regions: Vec<_> = regions.into_iter().collect();
    regions.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    message::reply_serde(&regions.iter().map(|(_, region)| message::value(name, region)).collect::<Vec<_>>())
}

/// The member `raw_handle`, `{"b64": "..."}`.
fn handle(asked: &mut Object) -> Result<Bytes> {
    if !asked.contains_key("raw_handle") {
        return Err(missing("raw_handle"));
    }
    let handle = body::take_object(asked, "raw_handle")?;
    let text = body::text(&handle, "b64")?.ok_or_else(|| missing("raw_handle.b64"))?;
    let decoded = BASE64_STANDARD.decode(text);
    decoded
        .map(Bytes::from)
        .map_err(|error| Error::invalid(format!("Unable to decode base64 of 'raw_handle': {error}")))
}

fn missing(field: &str) -> Error {
    Error::invalid(format!("Shared memory register request has no '{field}' field"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::request_memory::Portion;

    fn decoded(text: &str) -> std::result::Result<Bytes, String> {
        handle(&mut body::object(text.as_bytes(), "register").expect("an object")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_handle_is_base64() {
        assert_eq!(decoded(r#"{"raw_handle": {"b64": "AP8="}}"#), Ok(Bytes::from_static(&[0, 255])));
        for (text, expected) in [
            ("{}", "Shared memory register request has no 'raw_handle' field"),
            (r#"{"raw_handle": {}}"#, "Shared memory register request has no 'raw_handle.b64' field"),
            (r#"{"raw_handle": 1}"#, "Invalid value for 'raw_handle': expected an object, got a number"),
            (r#"{"raw_handle": {"b64": 1}}"#, "Invalid value for 'b64': expected a string, got a number"),
        ] {
            assert_eq!(decoded(text), Err(expected.to_owned()));
        }
        let refused = decoded(r#"{"raw_handle": {"b64": "?"}}"#).expect_err("no base64");
        assert!(refused.starts_with("Unable to decode base64 of 'raw_handle'"), "{refused}");
    }

    #[test]
    fn regions_are_listed_by_name() {
        let region = |name: &str| {
            let region = system_shared_memory_status_response::RegionStatus {
                name: name.to_owned(),
                key: format!("/{name}"),
                offset: 0,
                byte_size: 64,
            };
            (name.to_owned(), region)
        };
        let response =
            listed("SystemSharedMemoryStatusResponse.RegionStatus", HashMap::from([region("b"), region("a")]));
        let mut portion = Portion::default();
        let body = futures_util::FutureExt::now_or_never(body::read(response.into_body(), 1000, &mut portion));
        let expected =
            r#"[{"byte_size":64,"key":"/a","name":"a","offset":0},{"byte_size":64,"key":"/b","name":"b","offset":0}]"#;
        assert_eq!(body.expect("it is there").expect("short"), expected);
    }
}
