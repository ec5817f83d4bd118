//! The repository's RPCs.

use std::collections::HashMap;

use bytes::Bytes;
use nereid::engine::Control;
use nereid::protocol::grpc::Settings;
use nereid::protocol::v2::wire::model_repository_parameter::ParameterChoice;
use nereid::protocol::v2::wire::{
    CudaSharedMemoryUnregisterRequest, ModelRepositoryParameter, RepositoryIndexRequest, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest, SystemSharedMemoryRegisterRequest, SystemSharedMemoryStatusRequest,
    SystemSharedMemoryUnregisterRequest,
};
use tonic::Code;

use super::{Client, Served, identity, pair, refusal};

async fn explicit() -> Served {
    Served::with(Control::Explicit(None), Settings::default()).await
}

fn load(model: &str, parameters: &[(&str, ParameterChoice)]) -> RepositoryModelLoadRequest {
    let of = |choice: &ParameterChoice| ModelRepositoryParameter { parameter_choice: Some(choice.clone()) };
    RepositoryModelLoadRequest {
        repository_name: String::new(),
        model_name: model.to_owned(),
        parameters: parameters.iter().map(|(key, choice)| ((*key).to_owned(), of(choice))).collect(),
    }
}

fn unload(model: &str) -> RepositoryModelUnloadRequest {
    RepositoryModelUnloadRequest { model_name: model.to_owned(), ..RepositoryModelUnloadRequest::default() }
}

async fn index(client: &mut Client, ready: bool) -> HashMap<(String, String), (String, String)> {
    let asked = RepositoryIndexRequest { repository_name: String::new(), ready };
    let answer = client.repository_index(asked).await.expect("answered").into_inner();
    answer.models.into_iter().map(|model| ((model.name, model.version), (model.state, model.reason))).collect()
}

#[tokio::test]
async fn an_unloaded_model_is_unavailable_until_it_is_loaded_again() {
    let served = explicit().await;
    let mut client = served.client().await;
    let key = ("pair".to_owned(), "1".to_owned());
    assert_eq!(index(&mut client, false).await[&key], ("READY".to_owned(), String::new()));
    client.repository_model_unload(unload("pair")).await.expect("unloaded");
    let (code, _) = refusal(client.model_infer(pair()).await);
    assert!(matches!(code, Code::NotFound | Code::Unavailable), "{code:?}");
    assert!(!index(&mut client, true).await.contains_key(&key));
    client.repository_model_load(load("pair", &[])).await.expect("loaded");
    client.model_infer(pair()).await.expect("answered");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_model_can_be_loaded_with_another_configuration() {
    let served = explicit().await;
    let mut client = served.client().await;
    let config = r#"{"backend": "identity", "max_batch_size": 0,
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [1]}]}"#;
    let changed = load("pair", &[("config", ParameterChoice::StringParam(config.to_owned()))]);
    client.repository_model_load(changed).await.expect("loaded");
    let answer = client.model_infer(super::request("pair", &[("IN", "FP32", &[1], &[7; 4])])).await.expect("answered");
    assert_eq!(answer.into_inner().outputs[0].name, "OUT");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn calls_that_are_wrong_in_themselves_are_refused() {
    let served = explicit().await;
    let mut client = served.client().await;
    let named = RepositoryIndexRequest { repository_name: "other".to_owned(), ready: false };
    let expected = (Code::Unimplemented, "'repository_name' specification is not supported".to_owned());
    assert_eq!(refusal(client.repository_index(named).await), expected);
    let data = ParameterChoice::BytesParam(Bytes::from_static(b"x"));
    assert_eq!(
        refusal(client.repository_model_load(load("pair", &[("config", data)])).await),
        (Code::InvalidArgument, "invalid value type for load parameter 'config', expected string_param.".to_owned())
    );
    let (code, _) = refusal(client.repository_model_load(load("../pair", &[])).await);
    assert_eq!(code, Code::InvalidArgument);
    let (code, message) = refusal(client.repository_model_load(load("nobody", &[])).await);
    assert_eq!(
        (code, message.as_str()),
        (Code::Internal, "failed to load 'nobody', failed to poll from model repository")
    );
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn models_cannot_be_loaded_by_call_unless_the_server_says_so() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let expected = "explicit model load / unload is not allowed if polling is enabled";
    let refused = refusal(client.repository_model_load(load("pair", &[])).await);
    assert_eq!(refused, (Code::Unavailable, expected.to_owned()));
    let refused = refusal(client.repository_model_unload(unload("pair")).await);
    assert_eq!(refused, (Code::Unavailable, expected.to_owned()));
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_model_that_appears_can_be_loaded() {
    let served = explicit().await;
    let mut client = served.client().await;
    let config = identity("max_batch_size: 8", &[("FP32", "4"), ("INT32", "4")]);
    crate::support::write_model(served.root.path(), "late", &config, &[1]);
    let entry = index(&mut client, false).await.remove(&("late".to_owned(), String::new()));
    assert_eq!(entry, Some((String::new(), String::new())), "listed without version and state");
    client.repository_model_load(load("late", &[])).await.expect("loaded");
    assert!(index(&mut client, true).await.contains_key(&("late".to_owned(), "1".to_owned())));
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn without_shared_memory_there_is_nothing_to_list_or_to_unregister() {
    let served = Served::start().await;
    let mut client = served.client().await;
    client
        .system_shared_memory_unregister(SystemSharedMemoryUnregisterRequest::default())
        .await
        .expect("nothing to do");
    client.cuda_shared_memory_unregister(CudaSharedMemoryUnregisterRequest::default()).await.expect("nothing to do");
    let all = client.system_shared_memory_status(SystemSharedMemoryStatusRequest::default()).await.expect("answered");
    assert!(all.into_inner().regions.is_empty());
    let one = SystemSharedMemoryStatusRequest { name: "mine".to_owned() };
    assert_eq!(
        refusal(client.system_shared_memory_status(one).await),
        (Code::NotFound, "Unable to find system shared memory region: 'mine'".to_owned())
    );
    let (code, message) =
        refusal(client.system_shared_memory_register(SystemSharedMemoryRegisterRequest::default()).await);
    assert_eq!(code, Code::Unimplemented);
    assert!(message.starts_with("Client shared memory is disabled."), "{message}");
    drop(client);
    served.stop().await;
}
