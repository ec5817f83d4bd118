"""System shared memory by Triton's own client: registering, inputs and outputs by region, and refusals."""

import contextlib
import os
import uuid

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.utils.shared_memory as shm
from arrays import DTYPES, sample, tensor
from nereid import Nereid
from tritonclient.utils import InferenceServerException, serialize_byte_tensor


@pytest.fixture(scope="module")
def sharing(repository):
    """A server that lets its clients share memory."""
    with Nereid(repository, "--allow-client-shm=true") as running:
        yield running


@pytest.fixture
def connected(sharing):
    """A client of that server, which starts without regions."""
    with grpcclient.InferenceServerClient(sharing.grpc) as client:
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
        tensor_in = grpcclient.InferInput("INPUT0", [3, 5], dtype)
        tensor_in.set_shared_memory("in", size, offset=64)
        tensor_out = grpcclient.InferRequestedOutput("OUTPUT0")
        tensor_out.set_shared_memory("out", size, offset=128)
        result = connected.infer(f"batched_{dtype}", [tensor_in], outputs=[tensor_out])
        output = result.get_output("OUTPUT0")
        assert (output.datatype, list(output.shape)) == (dtype, [3, 5])
        assert list(result.get_response().raw_output_contents) == [b""]
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
            inputs.append(grpcclient.InferInput(into.name, shape, into.datatype))
            inputs[-1].set_shared_memory("in", a.nbytes, offset=index * a.nbytes)
            outputs.append(grpcclient.InferRequestedOutput(out.name))
            outputs[-1].set_shared_memory("out", a.nbytes, offset=index * a.nbytes)
        for _ in range(20):
            connected.infer("add_sub", inputs, outputs=outputs)
        np.testing.assert_allclose(contents(target, a), a + b)
        np.testing.assert_allclose(contents(target, a, offset=a.nbytes), a - b)


def test_one_input_by_region_and_the_other_in_the_message(connected):
    floats, integers = sample("FP32", [2, 4]), sample("INT32", [2, 4])
    with region(connected, "in", floats.nbytes) as (source, _):
        fill(source, "FP32", floats)
        by_region = grpcclient.InferInput("INPUT0", [2, 4], "FP32")
        by_region.set_shared_memory("in", floats.nbytes)
        result = connected.infer("pair", [by_region, tensor("INPUT1", "INT32", integers)])
        assert (result.as_numpy("OUTPUT0") == floats).all()
        assert (result.as_numpy("OUTPUT1") == integers).all()


def test_a_stream_takes_and_gives_by_region(connected):
    sent = sample("FP32", [2, 8])
    with region(connected, "in", sent.nbytes) as (source, _), region(connected, "out", sent.nbytes) as (target, _):
        fill(source, "FP32", sent)
        tensor_in = grpcclient.InferInput("INPUT0", [2, 8], "FP32")
        tensor_in.set_shared_memory("in", sent.nbytes)
        tensor_out = grpcclient.InferRequestedOutput("OUTPUT0")
        tensor_out.set_shared_memory("out", sent.nbytes)
        answers = []
        connected.start_stream(lambda result, error: answers.append((result, error)))
        connected.async_stream_infer("batched_FP32", [tensor_in], outputs=[tensor_out])
        connected.stop_stream()
        assert [error for _, error in answers] == [None]
        assert (contents(target, sent) == sent).all()


def test_the_status_tells_what_is_registered(connected):
    assert dict(connected.get_system_shared_memory_status().regions) == {}
    with region(connected, "one", 128) as (_, key), region(connected, "two", 256):
        everything = connected.get_system_shared_memory_status(as_json=True)["regions"]
        assert sorted(everything) == ["one", "two"]
        one = connected.get_system_shared_memory_status("one").regions["one"]
        assert (one.name, one.key, one.offset, one.byte_size) == ("one", key, 0, 128)
        connected.unregister_system_shared_memory()
        assert dict(connected.get_system_shared_memory_status().regions) == {}
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
            # New ones each time: the client keeps an old offset where the new one is 0.
            tensor_in = grpcclient.InferInput("INPUT0", [1, 4], "FP32")
            tensor_in.set_shared_memory(*into)
            tensor_out = grpcclient.InferRequestedOutput("OUTPUT0")
            tensor_out.set_shared_memory(*out)
            with pytest.raises(InferenceServerException, match=message):
                connected.infer("batched_FP32", [tensor_in], outputs=[tensor_out])


def test_an_object_that_is_truncated_does_not_end_the_server(connected):
    sent = sample("FP32", [1, 4])
    with region(connected, "in", 8192) as (source, key):
        fill(source, "FP32", sent)
        tensor_in = grpcclient.InferInput("INPUT0", [1, 4], "FP32")
        tensor_in.set_shared_memory("in", sent.nbytes)
        connected.infer("batched_FP32", [tensor_in])
        os.truncate(f"/dev/shm{key}", 0)
        with pytest.raises(InferenceServerException, match="memory of shared memory region 'in' is gone"):
            connected.infer("batched_FP32", [tensor_in])
    assert connected.is_server_ready()


def test_memory_of_a_device_cannot_be_registered(connected):
    handle = b"\x00" * 64
    with pytest.raises(InferenceServerException, match="does not open memory of CUDA devices"):
        connected.register_cuda_shared_memory("gpu", handle, 0, 64)
    assert dict(connected.get_cuda_shared_memory_status().regions) == {}
    connected.unregister_cuda_shared_memory()


def test_sharing_is_off_unless_the_operator_allows_it(client):
    disabled = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    tensor_in = grpcclient.InferInput("INPUT0", [1, 4], "FP32")
    tensor_in.set_shared_memory("in", 16)
    for call in (
        lambda: client.register_system_shared_memory("in", "/nereid_nothing", 64),
        lambda: client.infer("batched_FP32", [tensor_in]),
    ):
        with pytest.raises(InferenceServerException) as refused:
            call()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
        assert refused.value.message() == disabled
    client.unregister_system_shared_memory()
    assert dict(client.get_system_shared_memory_status().regions) == {}
