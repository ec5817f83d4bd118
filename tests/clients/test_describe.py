"""What the server says about itself and its models over both protocols: metadata, configuration, statistics, index."""

import urllib.request

import pytest
from arrays import sample
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

EXTENSIONS = """classification sequence model_repository model_repository(unload_dependents) schedule_policy
model_configuration system_shared_memory cuda_shared_memory binary_tensor_data parameters statistics trace
logging""".split()


@pytest.fixture
def client(either):
    return either


def test_server_metadata_has_the_extensions_that_clients_look_for(client):
    metadata = client.get_server_metadata()
    assert metadata.name and metadata.version
    assert list(metadata.extensions) == EXTENSIONS


def test_model_metadata_shows_the_batch_dimension(client):
    metadata = client.get_model_metadata("pair")
    assert (metadata.name, list(metadata.versions)) == ("pair", ["1"])
    inputs = [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs]
    outputs = [(each.name, each.datatype, list(each.shape)) for each in metadata.outputs]
    assert inputs == [("INPUT0", "FP32", [-1, 4]), ("INPUT1", "INT32", [-1, 4])]
    assert outputs == [("OUTPUT0", "FP32", [-1, 4]), ("OUTPUT1", "INT32", [-1, 4])]


def test_model_metadata_lists_ready_versions_or_the_one_asked_for(client):
    assert sorted(client.get_model_metadata("versioned").versions) == ["1", "3"]
    assert list(client.get_model_metadata("versioned", "1").versions) == ["1"]


def test_a_torchscript_model_says_its_platform(client):
    assert client.get_model_metadata("add_sub").platform == "pytorch_libtorch"
    assert client.get_model_config("add_sub").config.platform == "pytorch_libtorch"


def test_model_config_is_the_completed_one(client):
    config = client.get_model_config("pair").config
    assert (config.name, config.backend, config.max_batch_size) == ("pair", "identity", 8)
    assert [each.name for each in config.input] == ["INPUT0", "INPUT1"]
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert config.version_policy.latest.num_versions == 1
    assert config.instance_group[0].count == 1


def test_model_config_as_json_has_the_names_of_the_protocol(client):
    config = client.get_model_config("pair", as_json=True)["config"]
    assert config["max_batch_size"] == 8


def test_metadata_of_an_unknown_model_is_not_found(client):
    for call in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException) as refused:
            call("nobody")
        assert refused.value.status() == client.status("NOT_FOUND")
        assert "unknown model: 'nobody' is not found" in refused.value.message()


def statistics(client, model):
    """The statistics of a model's only version."""
    (found,) = client.get_inference_statistics(model).model_stats
    return found


def test_statistics_count_rows_requests_and_executions(client):
    before = statistics(client, "batched_INT16")
    for rows in (1, 3):
        client.infer("batched_INT16", [client.tensor("INPUT0", "INT16", sample("INT16", [rows, 2]))])
    after = statistics(client, "batched_INT16")
    assert after.inference_count - before.inference_count == 4
    assert after.execution_count - before.execution_count == 2
    stats, old = after.inference_stats, before.inference_stats
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(stats, name).count - getattr(old, name).count == 2, name
    assert stats.success.ns > old.success.ns
    assert stats.fail.count == old.fail.count
    assert after.last_inference > 1_600_000_000_000
    batches = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    assert batches[1] >= 1 and batches[3] >= 1


def test_statistics_without_a_name_are_of_every_ready_version(client):
    found = {(each.name, each.version) for each in client.get_inference_statistics().model_stats}
    assert {("pair", "1"), ("versioned", "1"), ("versioned", "3")} <= found


@pytest.mark.parametrize(
    "model, version, message",
    [
        ("nobody", "", "requested model 'nobody' is not available"),
        ("pair", "9", "requested model version is not available for model 'pair'"),
    ],
)
def test_statistics_of_what_does_not_exist_are_invalid(client, model, version, message):
    with pytest.raises(InferenceServerException) as refused:
        client.get_inference_statistics(model, version)
    assert refused.value.status() == client.status("INVALID_ARGUMENT")
    assert message in refused.value.message()


def test_index_lists_every_version_with_its_state(client):
    states = {(each.name, each.version): each.state for each in client.get_model_repository_index().models}
    assert states["pair", "1"] == "READY"
    assert states["versioned", "1"] == states["versioned", "3"] == "READY"


def test_metrics_count_the_requests_of_a_model(server, client):
    client.infer("batched_INT8", [client.tensor("INPUT0", "INT8", sample("INT8", [2, 2]))])
    with urllib.request.urlopen(server.metrics, timeout=10) as response:
        text = response.read().decode()
    lines = [line for line in text.splitlines() if 'model="batched_INT8"' in line]
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    stats = statistics(client, "batched_INT8")
    assert values["nv_inference_request_success"] == stats.inference_stats.success.count >= 1
    assert values["nv_inference_count"] == stats.inference_count
    assert values["nv_inference_exec_count"] == stats.execution_count
