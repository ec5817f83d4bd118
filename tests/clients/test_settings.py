"""Trace and log settings over both protocols."""

import pytest
from nereid import Nereid, identity_config, write_model
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def changeable(tmp_path_factory):
    """A server whose settings the tests change."""
    folder = tmp_path_factory.mktemp("changeable")
    write_model(folder, "model", identity_config(["FP32"]))
    with Nereid(folder) as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def client(request, changeable):
    with connect(request.param, changeable) as connected:
        yield connected


def test_trace_settings_of_a_model_go_before_those_of_the_server(client):
    before = client.trace_settings()
    assert (before["trace_level"], before["trace_rate"], before["trace_count"]) == (["OFF"], "1000", "-1")
    changed = client.trace_settings("model", {"trace_rate": "7", "trace_level": ["TIMESTAMPS"]})
    assert (changed["trace_rate"], changed["trace_level"]) == ("7", ["TIMESTAMPS"])
    assert client.trace_settings() == before
    assert client.trace_settings("model", {"trace_rate": None, "trace_level": None}) == before


@pytest.mark.parametrize(
    "settings, status, message",
    [
        ({"trace_rate": "often"}, "INVALID_ARGUMENT", "trace_rate"),
        ({"trace_level": ["LOUD"]}, "INVALID_ARGUMENT", "LOUD"),
        ({"trace_file": "elsewhere"}, "UNIMPLEMENTED", "trace file location can not be updated"),
    ],
)
def test_wrong_trace_settings_are_refused(client, settings, status, message):
    with pytest.raises(InferenceServerException) as refused:
        client.trace_settings(None, settings)
    assert refused.value.status() == client.status(status)
    assert message in refused.value.message()


def test_trace_settings_of_an_unknown_model_are_refused(client):
    with pytest.raises(InferenceServerException) as refused:
        client.trace_settings("nobody")
    assert refused.value.status() == client.status("INVALID_ARGUMENT")


def test_log_settings_are_changed_and_shown(client):
    before = client.log_settings()
    assert (before["log_info"], before["log_format"], before["log_verbose_level"]) == (True, "default", 0)
    changed = client.log_settings({"log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"})
    assert changed == before | {"log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"}
    assert client.log_settings() == changed
    assert client.log_settings({"log_info": True, "log_verbose_level": 0, "log_format": "default"}) == before


@pytest.mark.parametrize(
    "settings, status, message",
    [
        ({"log_format": "loud"}, "INVALID_ARGUMENT", "log_format"),
        ({"log_file": "elsewhere"}, "UNIMPLEMENTED", "log file location can not be updated"),
    ],
)
def test_wrong_log_settings_are_refused(client, settings, status, message):
    if client.protocol == "grpc" and "log_file" not in settings:
        pytest.skip("the messages of this protocol have no place for a value of another type")
    with pytest.raises(InferenceServerException) as refused:
        client.log_settings(settings)
    assert refused.value.status() == client.status(status)
    assert message in refused.value.message()
