//! Metadata, configuration and statistics.

use nereid::protocol::v2::wire::{
    ModelConfigRequest, ModelMetadataRequest, ModelStatisticsRequest, ServerMetadataRequest,
};
use tonic::Code;

use super::{Served, pair, refusal, request};

#[tokio::test]
async fn the_server_lists_the_extensions_in_the_known_order() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let server = client.server_metadata(ServerMetadataRequest {}).await.expect("answered").into_inner();
    assert_eq!((server.name.as_str(), server.version.as_str()), ("nereid", env!("CARGO_PKG_VERSION")));
    assert_eq!(
        server.extensions.join(" "),
        "classification sequence model_repository model_repository(unload_dependents) schedule_policy \
         model_configuration system_shared_memory cuda_shared_memory binary_tensor_data parameters statistics trace \
         logging"
    );
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_models_metadata_has_its_versions_and_the_batch_dimension() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let ask = |name: &str, version: &str| ModelMetadataRequest { name: name.to_owned(), version: version.to_owned() };
    let model = client.model_metadata(ask("versions", "")).await.expect("answered").into_inner();
    assert_eq!((model.name.as_str(), model.platform.as_str()), ("versions", "identity"));
    assert_eq!(model.versions, ["1", "3"]);
    let one = client.model_metadata(ask("versions", "1")).await.expect("answered").into_inner();
    assert_eq!(one.versions, ["1"]);
    let text = client.model_metadata(ask("text", "")).await.expect("answered").into_inner();
    assert_eq!((text.inputs[0].datatype.as_str(), &text.inputs[0].shape[..]), ("BYTES", &[-1, -1][..]));
    let free = client.model_metadata(ask("free", "")).await.expect("answered").into_inner();
    assert_eq!(free.outputs[0].shape, [-1]);
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn a_models_configuration_is_the_normalised_one() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let ask = ModelConfigRequest { name: "pair".to_owned(), version: String::new() };
    let config = client.model_config(ask).await.expect("answered").into_inner().config.expect("always there");
    assert_eq!((config.name.as_str(), config.backend.as_str(), config.max_batch_size), ("pair", "identity", 8));
    assert!(!config.instance_group.is_empty(), "what was left out is filled in");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn statistics_count_every_answer_and_every_batch() {
    let served = Served::start().await;
    let mut client = served.client().await;
    for _ in 0..3 {
        client.model_infer(pair()).await.expect("answered");
    }
    let ask = |name: &str, version: &str| ModelStatisticsRequest { name: name.to_owned(), version: version.to_owned() };
    let stats = client.model_statistics(ask("pair", "1")).await.expect("answered").into_inner().model_stats;
    let [of_pair] = &stats[..] else { panic!("one version: {stats:?}") };
    assert_eq!((of_pair.name.as_str(), of_pair.version.as_str()), ("pair", "1"));
    assert_eq!((of_pair.inference_count, of_pair.execution_count), (3, 3));
    let inference = of_pair.inference_stats.as_ref().expect("always there");
    assert_eq!(inference.success.expect("always there").count, 3);
    assert_eq!(inference.queue.expect("always there").count, 3);
    assert_eq!(inference.cache_hit.expect("always there").count, 0);
    assert_eq!((of_pair.batch_stats.len(), of_pair.batch_stats[0].batch_size), (1, 1));
    assert!(of_pair.last_inference > 0);
    let all = client.model_statistics(ask("", "")).await.expect("answered").into_inner().model_stats;
    assert_eq!(all.len(), 7, "every version of every model");
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn statistics_of_what_is_not_there_are_invalid_arguments() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let ask = |name: &str, version: &str| ModelStatisticsRequest { name: name.to_owned(), version: version.to_owned() };
    assert_eq!(
        refusal(client.model_statistics(ask("nobody", "")).await),
        (Code::InvalidArgument, "requested model 'nobody' is not available".to_owned())
    );
    assert_eq!(
        refusal(client.model_statistics(ask("pair", "2")).await),
        (Code::InvalidArgument, "requested model version is not available for model 'pair'".to_owned())
    );
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn requests_refused_before_a_model_is_reached_are_counted() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let _ = client.model_infer(request("nobody", &[])).await;
    let mut unreadable = pair();
    unreadable.raw_input_contents.clear();
    let _ = client.model_infer(unreadable).await;
    client.model_infer(pair()).await.expect("answered");
    let metrics = served.engine.metrics().render();
    let received = metrics.lines().find(|line| line.starts_with("nereid_requests_received_total")).expect("counted");
    assert!(received.ends_with(" 3"), "{received}");
    drop(client);
    served.stop().await;
}
