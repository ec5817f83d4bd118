"""The asynchronous HTTP client, for each kind of call."""

import asyncio

import numpy as np
import pytest
import tritonclient.http as httpclient
import tritonclient.http.aio as aioclient
from tritonclient.utils import InferenceServerException


def run(server, use):
    """Runs `use(client)` to its end with a client of `server`."""

    async def connected():
        async with aioclient.InferenceServerClient(server.http) as client:
            return await use(client)

    return asyncio.run(asyncio.wait_for(connected(), 60))


def pair():
    """The inputs of the model `pair`."""
    first = np.array([[1, 2, 3, 4]], dtype=np.float32)
    second = np.array([[5, 6, 7, 8]], dtype=np.int32)
    inputs = []
    for name, dtype, array in (("INPUT0", "FP32", first), ("INPUT1", "INT32", second)):
        inputs.append(httpclient.InferInput(name, list(array.shape), dtype).set_data_from_numpy(array))
    return inputs, first, second


def test_health_metadata_config_statistics_and_index(server):
    async def use(client):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("pair") and not await client.is_model_ready("nobody")
        assert "statistics" in (await client.get_server_metadata())["extensions"]
        assert (await client.get_model_metadata("versioned", "3"))["versions"] == ["3"]
        assert (await client.get_model_config("pair"))["max_batch_size"] == 8
        assert (await client.get_inference_statistics("pair"))["model_stats"][0]["name"] == "pair"
        index = await client.get_model_repository_index()
        assert {"name": "pair", "version": "1", "state": "READY"} in index

    run(server, use)


def test_many_requests_at_once_are_all_answered(server):
    async def use(client):
        async def one():
            inputs, first, second = pair()
            result = await client.infer("pair", inputs)
            assert (result.as_numpy("OUTPUT0") == first).all() and (result.as_numpy("OUTPUT1") == second).all()

        await asyncio.gather(*(one() for _ in range(32)))

    run(server, use)


def test_an_error_has_its_status_and_message(server):
    async def use(client):
        with pytest.raises(InferenceServerException) as refused:
            await client.get_model_metadata("nobody")
        assert refused.value.status() == "404"
        assert "unknown model: 'nobody'" in refused.value.message()
        with pytest.raises(InferenceServerException) as refused:
            await client.infer("nobody", pair()[0])
        assert "unknown model: 'nobody'" in refused.value.message()
        with pytest.raises(InferenceServerException) as refused:
            await client.load_model("pair")
        assert refused.value.status() == "503"

    run(server, use)
