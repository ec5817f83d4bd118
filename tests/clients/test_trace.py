"""Trace and log settings, and request ids, by Triton's clients of both protocols."""

import json

import pytest
from arrays import sample
from nereid import Nereid, identity_config, write_model
from protocols import connect
from tritonclient.utils import InferenceServerException

STAGES = """REQUEST_START QUEUE_START COMPUTE_START COMPUTE_INPUT_END COMPUTE_OUTPUT_START COMPUTE_END
INFER_RESPONSE_COMPLETE REQUEST_END""".split()
OUTER_STAGES = {
    "grpc": ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"],
    "http": ["HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    for name in ("one", "other"):
        write_model(folder, name, identity_config(["FP32"]))
    return folder


@pytest.fixture
def traced(models, tmp_path):
    """A server that may trace to `trace_file`, and does not yet; a new one for each test."""
    with Nereid(models, "--trace-config", f"triton,file={tmp_path / 'trace.json'}") as running:
        running.trace_file = tmp_path / "trace.json"
        yield running


@pytest.fixture(params=["grpc", "http"])
def client(request, traced):
    with connect(request.param, traced) as connected:
        yield connected


def infer(client, model, **more):
    return client.infer(model, [client.tensor("INPUT0", "FP32", sample("FP32", [1, 2]))], **more)


def test_the_settings_at_the_start_are_tritons(client, traced):
    assert client.trace_settings() == {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_mode": "triton",
        "trace_file": str(traced.trace_file),
    }
    assert client.trace_settings("one") == client.trace_settings()


def test_a_model_keeps_its_own_settings_until_it_gives_them_back(client):
    own = client.trace_settings("one", {"trace_level": ["TIMESTAMPS"], "trace_rate": "7"})
    assert (own["trace_level"], own["trace_rate"]) == (["TIMESTAMPS"], "7")
    client.trace_settings(None, {"trace_rate": "3", "trace_level": ["TENSORS", "TIMESTAMPS"]})
    assert client.trace_settings("one")["trace_rate"] == "7"
    assert client.trace_settings("other")["trace_rate"] == "3"
    assert client.trace_settings("other")["trace_level"] == ["TIMESTAMPS", "TENSORS"]
    assert client.trace_settings("one", {"trace_rate": None, "trace_level": None}) == client.trace_settings()
    assert client.trace_settings(None, {"trace_rate": None})["trace_rate"] == "1000"


@pytest.mark.parametrize(
    "change, status, message",
    [
        ({"trace_file": "elsewhere"}, "UNIMPLEMENTED", "trace file location can not be updated"),
        ({"trace_level": ["OFF", "TENSORS"]}, "INVALID_ARGUMENT", "Expect only one trace level 'OFF' is specified"),
        ({"trace_rate": "often"}, "INVALID_ARGUMENT", "Unable to parse 'trace_rate', got: often"),
        ({"trace_rate": ["1", "2"]}, "INVALID_ARGUMENT", "expect only 1 value for 'trace_rate'"),
        ({"trace_count": "-2"}, "INVALID_ARGUMENT", "value is out of range [ -1, 2147483647 ], got: -2"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(client, change, status, message):
    before = client.trace_settings()
    with pytest.raises(InferenceServerException) as refused:
        client.trace_settings(None, {"log_frequency": "9", **change})
    assert refused.value.status() == client.status(status)
    assert message in refused.value.message()
    assert client.trace_settings() == before


def test_a_model_that_is_not_there_has_no_settings(client):
    with pytest.raises(InferenceServerException, match="Request for unknown model : nobody"):
        client.trace_settings("nobody")


def test_requests_are_traced_from_the_call_on_that_says_so(client, traced):
    infer(client, "one", request_id="before")
    client.trace_settings(None, {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "2"})
    for request_id in ("first", "second", "third"):
        infer(client, "one", request_id=request_id)
    assert client.trace_settings()["trace_count"] == "0"
    assert traced.stop() == 0
    entries = json.loads(traced.trace_file.read_text())
    heads = [entry for entry in entries if "model_name" in entry]
    assert [(head["id"], head["request_id"]) for head in heads] == [(1, "first"), (2, "second")]
    assert all((head["model_name"], head["model_version"]) == ("one", 1) for head in heads)
    stamps = [stamp for entry in entries if entry["id"] == 2 for stamp in entry.get("timestamps", [])]
    assert sorted(stamp["name"] for stamp in stamps) == sorted(STAGES + OUTER_STAGES[client.protocol])
    assert [stamp["ns"] for stamp in stamps] == sorted(stamp["ns"] for stamp in stamps)


def test_log_settings_change_what_is_logged(client, traced):
    told = client.log_settings()
    assert (told["log_info"], told["log_verbose_level"], told["log_format"]) == (True, 0, "default")
    told = client.log_settings({"log_verbose_level": 1, "log_format": "ISO8601"})
    assert (told["log_verbose_level"], told["log_format"]) == (1, "ISO8601")
    infer(client, "one", headers={"x-request-id": "seen-in-the-log"})
    client.log_settings({"log_verbose_level": 0, "log_info": False})
    infer(client, "one", headers={"x-request-id": "not-seen"})
    with open(traced.log.name) as log:
        lines = log.read().splitlines()
    of_request = [line for line in lines if "request_id=seen-in-the-log" in line]
    assert len(of_request) == 1
    assert of_request[0][10] == "T" and '"request answered"' in of_request[0]
    assert not any("not-seen" in line for line in lines)


@pytest.mark.parametrize(
    "change, status, message",
    [
        ({"log_file": "elsewhere"}, "UNIMPLEMENTED", "log file location can not be updated"),
        ({"log_format": "sonnets"}, "INVALID_ARGUMENT", "invalid argument for log_format, got: sonnets"),
    ],
)
def test_wrong_log_settings_are_refused(client, change, status, message):
    with pytest.raises(InferenceServerException) as refused:
        client.log_settings(change)
    assert refused.value.status() == client.status(status)
    assert message in refused.value.message()
