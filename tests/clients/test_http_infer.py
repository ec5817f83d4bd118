"""Inference over Triton's HTTP clients: what is HTTP's own. Behaviour of both protocols is in test_infer.py."""

import asyncio
import gzip
import json
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
import tritonclient.http as httpclient
import tritonclient.http.aio as aioclient
from arrays import DTYPES, sample
from protocols import HTTP_STATUS
from tritonclient.utils import InferenceServerException

JSON_DTYPES = [dtype for dtype in DTYPES if dtype not in ("FP16", "BF16")]


@pytest.fixture(scope="module")
def http(server):
    """Triton's synchronous HTTP client, for many requests at once."""
    with httpclient.InferenceServerClient(server.http, concurrency=8) as connected:
        yield connected


def tensor(name, dtype, array, binary=True):
    """The client's input of `array`."""
    return httpclient.InferInput(name, list(array.shape), dtype).set_data_from_numpy(array, binary_data=binary)


def texts(shape):
    """Strings that are text, which JSON can hold."""
    count = int(np.prod(shape))
    return np.array([f'"{index}" ü\n' * (index % 3) for index in range(count)], dtype=np.object_).reshape(shape)


def same(received, sent):
    """Whether both hold the same, bit for bit; strings come back as text from JSON and as bytes otherwise."""
    if sent.dtype != np.object_:
        return received.dtype == sent.dtype and received.tobytes() == sent.tobytes()
    plain = np.vectorize(lambda each: each.encode() if isinstance(each, str) else each, otypes=[np.object_])
    return (plain(received) == plain(sent)).all()


def send(server, path, body, **headers):
    """The status, headers and body of the answer to a POST, without Triton's client."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{server.http}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers, refused.read()


@pytest.mark.parametrize("dtype", JSON_DTYPES)
@pytest.mark.parametrize("sends_binary", [False, True])
@pytest.mark.parametrize("wants_binary", [False, True])
def test_every_type_of_json_comes_back_as_it_went(http, dtype, sends_binary, wants_binary):
    sent = texts([2, 3]) if dtype == "BYTES" else sample(dtype, [2, 3])
    wanted = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=wants_binary)]
    result = http.infer(f"batched_{dtype}", [tensor("INPUT0", dtype, sent, sends_binary)], outputs=wanted)
    assert ("data" in result.get_output("OUTPUT0")) != wants_binary
    assert same(result.as_numpy("OUTPUT0"), sent)


@pytest.mark.parametrize("dtype", ["FP32", "FP64"])
def test_random_bits_survive_json(http, dtype):
    bits = np.random.default_rng(1).integers(0, 2**63, 500, dtype=np.int64)
    floats = bits.view(np.float64 if dtype == "FP64" else np.float32)
    sent = floats[np.isfinite(floats)][None, :]
    wanted = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=False)]
    result = http.infer(f"batched_{dtype}", [tensor("INPUT0", dtype, sent, binary=False)], outputs=wanted)
    assert same(result.as_numpy("OUTPUT0"), sent)


def test_what_is_no_number_is_a_word_that_clients_read(http):
    sent = np.array([[np.nan, np.inf, -np.inf, 1]], dtype=np.float32)
    wanted = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=False)]
    result = http.infer("batched_FP32", [tensor("INPUT0", "FP32", sent)], outputs=wanted)
    assert result.get_output("OUTPUT0")["data"] == ["NaN", "Infinity", "-Infinity", 1.0]
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), sent)


@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_half_floats_are_binary_only(http, dtype):
    sent = sample(dtype, [1, 4])
    assert same(http.infer(f"batched_{dtype}", [tensor("INPUT0", dtype, sent)]).as_numpy("OUTPUT0"), sent)
    wanted = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=False)]
    with pytest.raises(InferenceServerException) as refused:
        http.infer(f"batched_{dtype}", [tensor("INPUT0", dtype, sent)], outputs=wanted)
    assert f"sending {dtype} data via JSON is not supported" in refused.value.message()


def test_bytes_that_are_no_text_are_binary_only(http):
    sent = np.array([[b"\xff\x00"]], dtype=np.object_)
    assert same(http.infer("batched_BYTES", [tensor("INPUT0", "BYTES", sent)]).as_numpy("OUTPUT0"), sent)
    wanted = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=False)]
    with pytest.raises(InferenceServerException) as refused:
        http.infer("batched_BYTES", [tensor("INPUT0", "BYTES", sent)], outputs=wanted)
    assert refused.value.status() == "400" and "is not UTF-8" in refused.value.message()


@pytest.mark.parametrize("request_algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_both_ways_may_be_compressed(http, request_algorithm, response_algorithm, binary):
    sent = sample("FP32", [8, 1000])
    result = http.infer(
        "batched_FP32",
        [tensor("INPUT0", "FP32", sent, binary)],
        outputs=[httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary)],
        request_compression_algorithm=request_algorithm,
        response_compression_algorithm=response_algorithm,
    )
    assert same(result.as_numpy("OUTPUT0"), sent)


@pytest.mark.parametrize("encoding, undo", [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_the_body_is_what_its_encoding_says(server, encoding, undo):
    body = {"inputs": [{"name": "INPUT0", "shape": [1, 100], "datatype": "FP32", "data": [0.5] * 100}]}
    path = "/v2/models/batched_FP32/infer"
    status, headers, answer = send(server, path, json.dumps(body).encode(), Accept_Encoding=f"{encoding}, zstd;q=0.5")
    assert (status, headers["Content-Encoding"]) == (200, encoding)
    assert json.loads(undo(answer))["outputs"][0]["data"] == [0.5] * 100


@pytest.mark.parametrize("binary", [False, True])
def test_classes_are_asked_for_by_count(http, binary):
    scores = np.array([[0.1, 0.7, 0.2]], dtype=np.float32)
    wanted = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary, class_count=2)]
    received = http.infer("batched_FP32", [tensor("INPUT0", "FP32", scores)], outputs=wanted).as_numpy("OUTPUT0")
    assert same(received, np.array([[b"0.700000:1", b"0.200000:2"]], dtype=np.object_))


def test_a_raw_body_is_the_only_input(server, http):
    sent = sample("FP32", [1, 5])
    headers = {"Inference_Header_Content_Length": "0", "Content_Type": "application/octet-stream"}
    status, headers, body = send(server, "/v2/models/batched_FP32/infer", sent.tobytes(), **headers)
    length = int(headers["Inference-Header-Content-Length"])
    assert (status, json.loads(body[:length])["outputs"][0]["shape"]) == (200, [1, 5])
    assert body[length:] == sent.tobytes()


def test_id_and_times_come_back_in_headers(server):
    body = {"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [0.5]}]}
    path = "/v2/models/batched_FP32/infer"
    _, headers, _ = send(server, path, json.dumps(body).encode(), X_Request_Id="mine")
    assert headers["X-Request-Id"] == "mine"
    assert headers["Server-Timing"].startswith("queue;dur=")


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        ("nobody/infer", {}, "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        ("pair/versions/9/infer", {}, "NOT_FOUND", "'pair' version 9 is not found"),
        ("repeat_int32/infer", {"inputs": []}, "UNIMPLEMENTED", "HTTP end point doesn't support models with decoupled"),
        ("pair/infer", {}, "INVALID_ARGUMENT", "inputs"),
        ("pair/infer", {"inputs": []}, "INVALID_ARGUMENT", "expected 2 inputs but got 0 inputs for model 'pair'"),
    ],
)
def test_refusals_have_their_status(server, path, body, status, message):
    code, headers, answer = send(server, f"/v2/models/{path}", json.dumps(body).encode())
    assert (str(code), headers["Content-Type"]) == (HTTP_STATUS[status], "application/json")
    assert message in json.loads(answer)["error"]


def test_many_requests_at_once_get_their_own_answers(http):
    sent = [np.full([1, 3], number, dtype=np.int64) for number in range(64)]
    calls = [http.async_infer("batched_INT64", [tensor("INPUT0", "INT64", each)]) for each in sent]
    for each, call in zip(sent, calls, strict=True):
        assert same(call.get_result().as_numpy("OUTPUT0"), each)


def test_the_asynchronous_client_does_the_same(server):
    async def use():
        async with aioclient.InferenceServerClient(server.http) as client:

            async def one(dtype, binary):
                sent = texts([2, 3]) if dtype == "BYTES" and not binary else sample(dtype, [2, 3])
                wanted = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary)]
                inputs = [tensor("INPUT0", dtype, sent, binary)]
                result = await client.infer(f"batched_{dtype}", inputs, outputs=wanted, request_id=dtype)
                assert same(result.as_numpy("OUTPUT0"), sent)
                assert result.get_response()["id"] == dtype

            pairs = [(dtype, binary) for dtype in DTYPES for binary in (True, False)]
            halves = ("FP16", "BF16")
            await asyncio.gather(*(one(dtype, binary) for dtype, binary in pairs if binary or dtype not in halves))
            for algorithm in ("gzip", "deflate"):
                sent = sample("FP32", [2, 500])
                result = await client.infer(
                    "batched_FP32",
                    [tensor("INPUT0", "FP32", sent)],
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
                assert same(result.as_numpy("OUTPUT0"), sent)
            with pytest.raises(InferenceServerException) as refused:
                await client.infer("nobody", [tensor("INPUT0", "FP32", sample("FP32", [1, 1]))])
            assert refused.value.status() == "404"

    asyncio.run(asyncio.wait_for(use(), 60))
