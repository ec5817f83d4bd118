"""Inference over the synchronous clients of both protocols."""

from importlib.metadata import version

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from arrays import DTYPES, infer_at_once, sample, tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model, shape", [("batched", [3, 5]), ("batched", [1, 0]), ("plain", [4, 2])])
def test_every_type_comes_back_as_it_went(either, dtype, model, shape):
    if either.protocol == "http" and 0 in shape and version("tritonclient") < "2.73":
        pytest.skip("an older client gives an array without elements another type")
    sent = sample(dtype, shape)
    result = either.infer(f"{model}_{dtype}", [either.tensor("INPUT0", dtype, sent)], request_id="id of mine")
    received = result.as_numpy("OUTPUT0")
    assert received.dtype == sent.dtype and received.shape == sent.shape
    assert received.tobytes() == sent.tobytes() if dtype != "BYTES" else (received == sent).all()
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("id of mine", f"{model}_{dtype}", "1")
    assert response.outputs[0].datatype == dtype
    assert len(response.outputs) == 1
    if either.protocol == "grpc":
        assert len(response.raw_output_contents) == 1


TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "FP32": ("fp32_contents", [1.5, -0.25]),
    "FP64": ("fp64_contents", [1e300, -0.1]),
    "BYTES": ("bytes_contents", [b"", b"\x00\xff"]),
}


@pytest.mark.parametrize("dtype", TYPED)
def test_typed_contents_equal_raw_contents(server, dtype):
    field, values = TYPED[dtype]
    request = service_pb2.ModelInferRequest(model_name=f"batched_{dtype}")
    request.inputs.add(name="INPUT0", datatype=dtype, shape=[1, 2])
    getattr(request.inputs[0].contents, field).extend(values)
    with grpc.insecure_channel(server.grpc) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)
    assert list(grpcclient.InferResult(response).as_numpy("OUTPUT0").ravel()) == values


def test_inputs_may_come_in_any_order_and_outputs_be_chosen(either):
    floats, integers = sample("FP32", [2, 4]), sample("INT32", [2, 4])
    inputs = [either.tensor("INPUT1", "INT32", integers), either.tensor("INPUT0", "FP32", floats)]
    result = either.infer("pair", inputs, outputs=[either.wanted("OUTPUT1")])
    assert result.as_numpy("OUTPUT0") is None
    assert (result.as_numpy("OUTPUT1") == integers).all()


def test_outputs_come_in_the_order_in_which_they_were_asked_for(either):
    floats, integers = sample("FP32", [1, 4]), sample("INT32", [1, 4])
    inputs = [either.tensor("INPUT0", "FP32", floats), either.tensor("INPUT1", "INT32", integers)]
    wanted = [either.wanted(name) for name in ("OUTPUT1", "OUTPUT0")]
    response = either.infer("pair", inputs, outputs=wanted).get_response()
    assert [output.name for output in response.outputs] == ["OUTPUT1", "OUTPUT0"]


def test_a_version_can_be_named_and_the_newest_is_the_default(either):
    inputs = [either.tensor("INPUT0", "FP32", sample("FP32", [1, 4]))]
    assert either.infer("versioned", inputs, model_version="1").get_response().model_version == "1"
    assert either.infer("versioned", inputs).get_response().model_version == "3"


def test_torchscript_adds_and_subtracts(either):
    metadata = either.get_model_metadata("add_sub")
    shape = [2 if dim == -1 else dim for dim in metadata.inputs[0].shape]
    a, b = sample("FP32", shape), sample("FP32", shape) * 3 + 1
    pairs = zip(metadata.inputs, (a, b), strict=True)
    inputs = [either.tensor(each.name, each.datatype, array) for each, array in pairs]
    result = either.infer("add_sub", inputs)
    names = [output.name for output in metadata.outputs]
    np.testing.assert_allclose(result.as_numpy(names[0]), a + b)
    np.testing.assert_allclose(result.as_numpy(names[1]), a - b)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read(either, algorithm):
    sent = sample("FP32", [8, 1000])
    result = either.infer_compressed(algorithm, "batched_FP32", [either.tensor("INPUT0", "FP32", sent)])
    assert (result.as_numpy("OUTPUT0") == sent).all()


def test_a_tensor_of_many_megabytes_passes(either):
    sent = np.arange(8 * 1024 * 1024, dtype=np.float32).reshape(8, -1)
    assert (either.infer("batched_FP32", [either.tensor("INPUT0", "FP32", sent)]).as_numpy("OUTPUT0") == sent).all()


def test_the_parameters_of_a_request_are_accepted(either):
    result = either.infer(
        "batched_FP32",
        [either.tensor("INPUT0", "FP32", sample("FP32", [1, 2]))],
        priority=1,
        timeout=5_000_000,
        parameters={"text": "a", "number": 3, "truth": True, "real": 1.5},
    )
    assert result.as_numpy("OUTPUT0").shape == (1, 2)


def test_many_requests_at_once_get_their_own_answers(client):
    sent = [np.full([1, 3], number, dtype=np.int64) for number in range(64)]
    results = infer_at_once(client, "batched_INT64", [[tensor("INPUT0", "INT64", each)] for each in sent])
    for each, result in zip(sent, results, strict=True):
        assert (result.as_numpy("OUTPUT0") == each).all()
