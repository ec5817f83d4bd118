"""What /metrics counts beside the models: connections, bytes, answers; and the ways in which times are counted."""

import queue
import re
import urllib.error
import urllib.request

import numpy as np
import pytest
from nereid import Nereid, identity_config, parameter, write_model
from protocols import connect
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metered")
    bounds = 'metric_identifier { family: "nereid_batch_rows" } histogram_options { buckets: [ 2, 6 ] }'
    control = f"metric_control [ {{ {bounds} }} ]"
    tags = 'metric_tags { key: "team" value: "search" }'
    write_model(folder, "tagged", identity_config(["FP32"], extra=f"model_metrics {{ {control} }}\n{tags}"))
    policy = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    slow = parameter("identity.delay_us", 400_000)
    write_model(folder, "full", identity_config(["FP32"], max_batch_size=1, extra=f"{policy}\n{slow}"))
    return folder


def infer(client, model="tagged", rows=1):
    return client.infer(model, [client.tensor("INPUT0", "FP32", np.ones((rows, 4), np.float32))])


@pytest.fixture(scope="module")
def server(repository):
    with Nereid(repository) as running:
        yield running


def test_calls_are_counted_by_method_and_code(server):
    with connect("grpc", server) as client:
        infer(client)
        with pytest.raises(InferenceServerException):
            infer(client, "nobody")
        with pytest.raises(InferenceServerException):
            client.get_model_config("nobody")
        client.get_server_metadata()
        found = server.samples()
        count = lambda method, code: found.get(f'nereid_grpc_responses_total{{method="{method}",code="{code}"}}')
        assert (count("ModelInfer", "OK"), count("ModelInfer", "NOT_FOUND")) == (1, 1)
        assert (count("ModelConfig", "NOT_FOUND"), count("ServerMetadata", "OK")) == (1, 1)
        assert found['nereid_connections{port="grpc"}'] == 1
    with connect("http", server) as client:
        infer(client)
        with pytest.raises(InferenceServerException):
            infer(client, "nobody")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://{server.http}/some/where", timeout=10)
        found = server.samples()
        count = lambda route, code: found.get(f'nereid_http_responses_total{{route="{route}",code="{code}"}}')
        assert (count("/v2/models/{model}/infer", 200), count("/v2/models/{model}/infer", 404)) == (1, 1)
        assert count("other", 404) == 1
    # Callers cannot invent series.
    assert not any("nobody" in series or "some/where" in series for series in server.samples())


def test_connections_and_bytes_are_counted_by_port(server):
    series = [f'nereid_network_bytes_total{{port="{port}",direction="{way}"}}' for port in ("grpc", "http") for way in ("in", "out")]
    before = server.samples()
    large = np.ones((1, 100_000), np.float32)
    for protocol in ("grpc", "http"):
        with connect(protocol, server) as client:
            client.infer("tagged", [client.tensor("INPUT0", "FP32", large)])
    after = server.samples()
    for each in series:
        assert large.nbytes < after[each] - before[each] < 2 * large.nbytes, each
    accepted = 'nereid_connections_total{port="metrics"}'
    assert after[accepted] > before[accepted]


def test_a_model_has_its_own_tags_and_bounds(server):
    with connect("grpc", server) as client:
        infer(client, rows=4)
    found = server.samples()
    rows = [series for series in found if series.startswith('nereid_batch_rows_bucket{model="tagged"')]
    assert [re.search(r'le="(.*?)"', series)[1] for series in rows] == ["2", "6", "+Inf"]
    assert all('_team="search"' in series for series in rows)
    others = [series for series in found if series.startswith('nereid_batch_rows_bucket{model="full"')]
    assert len(others) == 12
    assert any(series.startswith("nv_inference_request_success{") and '_team="search"' in series for series in found)


def test_refusals_are_counted_by_reason(server):
    with connect("grpc", server) as client, pytest.raises(InferenceServerException):
        infer(client, rows=1000)
    found = server.samples()
    of_model = 'model="tagged",version="1",_team="search"'
    assert found[f'nereid_request_failures_total{{{of_model},reason="invalid"}}'] == 1
    assert found[f'nv_inference_request_failure{{{of_model},reason="REJECTED"}}'] == 1


def test_refusals_of_a_full_queue_are_counted(server):
    answers = queue.Queue()
    with connect("grpc", server) as client:
        for _ in range(6):
            inputs = [client.tensor("INPUT0", "FP32", np.ones((1, 4), np.float32))]
            client.async_infer("full", inputs, callback=lambda result, error: answers.put(error))
        errors = [error for error in (answers.get(timeout=30) for _ in range(6)) if error]
    assert 4 <= len(errors) <= 5
    assert {error.message() for error in errors} == {"Exceeds maximum queue size"}
    found = server.samples()
    assert found['nereid_request_failures_total{model="full",version="1",reason="queue_full"}'] == len(errors)
    assert found['nv_inference_request_failure{model="full",version="1",reason="REJECTED"}'] == len(errors)


def test_times_can_be_summarised(repository):
    flags = ["--metrics-config", "summary_latencies=true", "--metrics-config", "counter_latencies=false"]
    flags += ["--metrics-config", "summary_quantiles=0.5:0.05,0.99:0.001"]
    with Nereid(repository, *flags) as server, connect("grpc", server) as client:
        for _ in range(20):
            infer(client)
        found = server.samples()
    of_model = 'model="tagged",version="1",_team="search"'
    for family in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        name = f"nv_inference_{family}_summary_us"
        assert found[f"{name}_count{{{of_model}}}"] == 20
        quantiles = [found[f'{name}{{{of_model},quantile="{quantile}"}}'] for quantile in ("0.5", "0.99")]
        assert quantiles == sorted(quantiles)
    assert found[f"nv_inference_request_success{{{of_model}}}"] == 20
    assert not any("duration_us" in series for series in found)
