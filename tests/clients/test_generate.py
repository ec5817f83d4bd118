"""The generate extension: plain values in, one object or a stream of events out."""

import http.client
import json

import pytest


@pytest.fixture
def connection(server):
    connected = http.client.HTTPConnection(server.http, timeout=30)
    yield connected
    connected.close()


def post(connection, model, route, body):
    """The status, content type and body of an answer."""
    connection.request("POST", f"/v2/models/{model}/{route}", json.dumps(body))
    response = connection.getresponse()
    return response.status, response.getheader("content-type"), response.read().decode()


def events(text):
    """What the events of a stream say."""
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


def test_a_text_goes_in_and_comes_out(connection):
    status, kind, body = post(connection, "batched_BYTES", "generate", {"INPUT0": "grüezi\n\u2028\"", "id": "7"})
    assert (status, kind) == (200, "application/json")
    expected = {"model_name": "batched_BYTES", "model_version": "1", "id": "7", "OUTPUT0": "grüezi\n\u2028\""}
    assert json.loads(body) == expected


@pytest.mark.parametrize(
    "dtype, values",
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("FP32", [0.5, -1e30]),
        ("FP64", [0.1, -1e300]),
        ("BYTES", ["", "two"]),
    ],
)
def test_every_type_of_json_comes_back_as_it_went(connection, dtype, values):
    status, _, body = post(connection, f"plain_{dtype}", "generate", {"INPUT0": values})
    assert status == 200, body
    assert json.loads(body)["OUTPUT0"] == pytest.approx(values) if dtype == "FP32" else values


def test_a_stream_gives_an_event_for_each_response_while_it_goes_on(connection):
    body = {"IN": [5, 6, 7], "DELAY": [0, 1, 1], "WAIT": 0}
    status, kind, text = post(connection, "repeat_int32", "generate_stream", body)
    assert (status, kind.split(";")[0]) == (200, "text/event-stream")
    assert [event["OUT"] for event in events(text)] == [5, 6, 7]


def test_generate_refuses_what_gives_more_than_one_response(connection):
    status, _, body = post(connection, "repeat_int32", "generate", {"IN": [5, 6], "DELAY": [0, 0], "WAIT": 0})
    assert status == 400
    assert json.loads(body)["error"].startswith("generate expects model to produce exactly 1 response")


def test_a_half_float_is_refused_by_name(connection):
    status, _, body = post(connection, "batched_FP16", "generate", {"INPUT0": [0.5]})
    assert status == 400
    assert "FP16" in json.loads(body)["error"] and "INPUT0" in json.loads(body)["error"]
