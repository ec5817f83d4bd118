"""System shared memory by Triton's own clients: registering, inputs and outputs by region, and refusals."""

import base64
import contextlib
import os
import uuid

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import tritonclient.utils.shared_memory as shm
from arrays import DTYPES, sample
from nereid import Nereid
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

CLIENTS = {"grpc": grpcclient, "http": httpclient}


@pytest.fixture(scope="module")
def sharing(repository):
    """A server that lets its clients share memory."""
    with Nereid(repository, "--allow-client-shm=true") as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def connected(request, sharing):
    """A client of that server, which starts without regions; once for each protocol."""
    with connect(request.param, sharing) as client:
        client.unregister_system_shared_memory()
        yield client


@contextlib.contextmanager
def region(client, name, byte_size):
    """A new shared memory object of `byte_size`, registered under `name`; a handle to it, and its key."""
    key = f"/nereid_py_{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region(name, key, byte_size)
    try:
        client.register_system_shared_memory(name, key, byte_size)
        yield handle, key
    finally:
        client.unregister_system_shared_memory(name)
        shm.destroy_shared_memory_region(handle)


def fill(handle, dtype, array, offset=0):
    """Writes `array` as the protocol has it; returns its byte count."""
    if dtype == "BYTES":
        array = serialize_byte_tensor(array)
        size = len(array.item())
    else:
        size = array.nbytes
    shm.set_shared_memory_region(handle, [array], offset=offset)
    return size


def input_at(client, name, dtype, shape, place):
    """An input whose data is at `place`: the region, the byte count and the offset."""
    tensor = CLIENTS[client.protocol].InferInput(name, list(shape), dtype)
    tensor.set_shared_memory(*place)
    return tensor


def output_at(client, name, place):
    """A requested output that is to go to `place`."""
    output = CLIENTS[client.protocol].InferRequestedOutput(name)
    output.set_shared_memory(*place)
    return output


def check_placed(result, name, dtype, shape):
    """Checks that the response describes the output and does not hold its data."""
    output = result.get_output(name)
    if isinstance(output, dict):
        assert (output["datatype"], output["shape"]) == (dtype, shape)
        assert "data" not in output and "binary_data_size" not in output.get("parameters", {})
    else:
        assert (output.datatype, list(output.shape)) == (dtype, shape)
        assert list(result.get_response().raw_output_contents) == [b""]


def registered(client, name=""):
    """Key, offset and byte count of each region, by its name."""
    status = client.get_system_shared_memory_status(name)
    if isinstance(status, list):
        return {one["name"]: (one["key"], one["offset"], one["byte_size"]) for one in status}
    return {one.name: (one.key, one.offset, one.byte_size) for one in status.regions.values()}


def contents(handle, like, offset=0):
    """A copy of what is there, of the type and shape of `like`: a view would keep the object from being closed."""
    return np.array(shm.get_contents_as_numpy(handle, like.dtype, list(like.shape), offset=offset))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_goes_and_comes_by_region(connected, dtype):
    sent = sample(dtype, [3, 5])
    if dtype == "BF16" and sent.dtype.itemsize != 2:
        pytest.skip("this client has arrays of BF16 as FP32, and converts them in messages only")
    with region(connected, "in", 4096) as (source, _), region(connected, "out", 4096) as (target, _):
        size = fill(source, dtype, sent, offset=64)
        tensor_in = input_at(connected, "INPUT0", dtype, [3, 5], ("in", size, 64))
        tensor_out = output_at(connected, "OUTPUT0", ("out", size, 128))
        result = connected.infer(f"batched_{dtype}", [tensor_in], outputs=[tensor_out])
        check_placed(result, "OUTPUT0", dtype, [3, 5])
        received = contents(target, sent, offset=128)
        assert received.tobytes() == sent.tobytes() if dtype != "BYTES" else (received == sent).all()


def test_a_model_of_libtorch_computes_from_one_region_into_another(connected):
    metadata = connected.get_model_metadata("add_sub")
    shape = [2 if dim == -1 else dim for dim in metadata.inputs[0].shape]
    a, b = sample("FP32", shape), sample("FP32", shape) * 3 + 1
    with region(connected, "in", 2 * a.nbytes) as (source, _), region(connected, "out", 2 * a.nbytes) as (target, _):
        shm.set_shared_memory_region(source, [a, b])
        inputs, outputs = [], []
        for index, (into, out) in enumerate(zip(metadata.inputs, metadata.outputs, strict=True)):
            inputs.append(input_at(connected, into.name, into.datatype, shape, ("in", a.nbytes, index * a.nbytes)))
            outputs.append(output_at(connected, out.name, ("out", a.nbytes, index * a.nbytes)))
        for _ in range(20):
            connected.infer("add_sub", inputs, outputs=outputs)
        np.testing.assert_allclose(contents(target, a), a + b)
        np.testing.assert_allclose(contents(target, a, offset=a.nbytes), a - b)


def test_one_input_by_region_and_the_other_in_the_message(connected):
    floats, integers = sample("FP32", [2, 4]), sample("INT32", [2, 4])
    with region(connected, "in", floats.nbytes) as (source, _):
        fill(source, "FP32", floats)
        by_region = input_at(connected, "INPUT0", "FP32", [2, 4], ("in", floats.nbytes))
        result = connected.infer("pair", [by_region, connected.tensor("INPUT1", "INT32", integers)])
        assert (result.as_numpy("OUTPUT0") == floats).all()
        assert (result.as_numpy("OUTPUT1") == integers).all()


def test_a_stream_takes_and_gives_by_region(sharing):
    sent = sample("FP32", [2, 8])
    with (
        connect("grpc", sharing) as client,
        region(client, "in", sent.nbytes) as (source, _),
        region(client, "out", sent.nbytes) as (target, _),
    ):
        fill(source, "FP32", sent)
        tensor_in = input_at(client, "INPUT0", "FP32", [2, 8], ("in", sent.nbytes))
        answers = []
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer("batched_FP32", [tensor_in], outputs=[output_at(client, "OUTPUT0", ("out", 64))])
        client.stop_stream()
        assert [error for _, error in answers] == [None]
        assert (contents(target, sent) == sent).all()


def test_a_region_is_the_same_over_both_protocols(sharing):
    sent = sample("FP32", [1, 4])
    with connect("grpc", sharing) as one, connect(PROTOCOLS[-1], sharing) as other:
        with region(one, "in", 64) as (source, key):
            fill(source, "FP32", sent)
            assert registered(other)["in"] == (key, 0, 64)
            result = other.infer("batched_FP32", [input_at(other, "INPUT0", "FP32", [1, 4], ("in", 16))])
            assert (result.as_numpy("OUTPUT0") == sent).all()


def test_the_status_tells_what_is_registered(connected):
    assert registered(connected) == {}
    with region(connected, "one", 128) as (_, one), region(connected, "two", 256) as (_, two):
        assert registered(connected) == {"one": (one, 0, 128), "two": (two, 0, 256)}
        assert registered(connected, "one") == {"one": (one, 0, 128)}
        connected.unregister_system_shared_memory()
        assert registered(connected) == {}
    with pytest.raises(InferenceServerException, match="Unable to find system shared memory region: 'one'"):
        connected.get_system_shared_memory_status("one")


def test_what_cannot_be_registered_is_refused(connected):
    with region(connected, "one", 4096) as (_, key):
        for name, of, size, offset, message in [
            ("one", key, 64, 0, "shared memory region 'one' already in manager"),
            ("two", key, 4097, 0, "failed to register shared memory region 'two': invalid args"),
            ("two", key, 4096, 1, "failed to register shared memory region 'two': invalid args"),
            ("two", key, 2**64 - 1, 2, "failed to register shared memory region 'two': invalid args"),
            ("two", "/nereid_nothing", 64, 0, "Unable to open shared memory region: '/nereid_nothing'"),
            ("two", "/../etc/passwd", 64, 0, "is not the key of a shared memory object"),
            ("two", "triton_python_backend_shm_region_0", 64, 0, "contains the reserved prefix"),
        ]:
            with pytest.raises(InferenceServerException, match=message):
                connected.register_system_shared_memory(name, of, size, offset)


def test_what_does_not_fit_is_refused(connected):
    sent = sample("FP32", [1, 4])
    with region(connected, "in", 64) as (source, _), region(connected, "out", 64):
        fill(source, "FP32", sent)
        for into, out, message in [
            (("in", 16, 49), ("out", 16, 0), "Invalid offset . byte size for shared memory region: 'in'"),
            (("in", 16, 64), ("out", 16, 0), "Invalid offset for shared memory region: 'in'"),
            (("nobody", 16, 0), ("out", 16, 0), "Unable to find shared memory region: 'nobody'"),
            (("in", 12, 0), ("out", 16, 0), "Expected 16, got 12"),
            (("in", 16, 0), ("out", 65, 0), "Invalid offset . byte size for shared memory region: 'out'"),
            (("in", 16, 0), ("out", 8, 0), r"\(8 bytes\) should be at least 16 bytes to hold the results"),
        ]:
            tensor_in = input_at(connected, "INPUT0", "FP32", [1, 4], into)
            tensor_out = output_at(connected, "OUTPUT0", out)
            with pytest.raises(InferenceServerException, match=message):
                connected.infer("batched_FP32", [tensor_in], outputs=[tensor_out])


def test_an_object_that_is_truncated_does_not_end_the_server(connected):
    sent = sample("FP32", [1, 4])
    with region(connected, "in", 8192) as (source, key):
        fill(source, "FP32", sent)
        tensor_in = input_at(connected, "INPUT0", "FP32", [1, 4], ("in", sent.nbytes))
        connected.infer("batched_FP32", [tensor_in])
        os.truncate(f"/dev/shm{key}", 0)
        with pytest.raises(InferenceServerException, match="memory of shared memory region 'in' is gone"):
            connected.infer("batched_FP32", [tensor_in])
    assert connected.is_server_ready()


def test_memory_of_a_device_that_is_not_there_is_refused(connected):
    handle = base64.b64encode(b"\x00" * 64)
    expected = "failed to register CUDA shared memory region 'gpu': there is no CUDA device"
    with pytest.raises(InferenceServerException, match=expected) as refused:
        # No machine has that many.
        connected.register_cuda_shared_memory("gpu", handle, 2**31 - 1, 64)
    assert refused.value.status() == connected.status("INVALID_ARGUMENT")
    status = connected.get_cuda_shared_memory_status()
    assert not (status if isinstance(status, list) else status.regions)
    connected.unregister_cuda_shared_memory()


def test_sharing_is_off_unless_the_operator_allows_it(either):
    disabled = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    tensor_in = input_at(either, "INPUT0", "FP32", [1, 4], ("in", 16))
    for call in (
        lambda: either.register_system_shared_memory("in", "/nereid_nothing", 64),
        lambda: either.infer("batched_FP32", [tensor_in]),
    ):
        with pytest.raises(InferenceServerException) as refused:
            call()
        assert refused.value.status() == either.status("UNIMPLEMENTED")
        assert refused.value.message() == disabled
    either.unregister_system_shared_memory()
    assert registered(either) == {}
