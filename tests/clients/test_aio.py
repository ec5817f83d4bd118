"""The asynchronous client, for each kind of call."""

import asyncio

import pytest
import tritonclient.grpc.aio as aioclient
from arrays import DTYPES, sample, tensor
from tritonclient.utils import InferenceServerException


def run(server, use):
    """Runs `use(client)` to its end with a client of `server`."""

    async def connected():
        async with aioclient.InferenceServerClient(server.grpc) as client:
            return await use(client)

    return asyncio.run(asyncio.wait_for(connected(), 60))


def test_health_metadata_config_statistics_and_index(server):
    async def use(client):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("pair")
        assert "statistics" in (await client.get_server_metadata()).extensions
        assert (await client.get_model_metadata("pair")).name == "pair"
        assert (await client.get_model_config("pair")).config.max_batch_size == 8
        assert (await client.get_inference_statistics("pair")).model_stats[0].name == "pair"
        assert "pair" in {each.name for each in (await client.get_model_repository_index()).models}

    run(server, use)


def test_every_type_comes_back_as_it_went(server):
    async def use(client):
        async def one(dtype):
            sent = sample(dtype, [2, 3])
            result = await client.infer(f"batched_{dtype}", [tensor("INPUT0", dtype, sent)])
            received = result.as_numpy("OUTPUT0")
            assert (received == sent).all() if dtype == "BYTES" else received.tobytes() == sent.tobytes()

        await asyncio.gather(*(one(dtype) for dtype in DTYPES for _ in range(4)))

    run(server, use)


def test_a_stream_answers_each_request(server):
    async def use(client):
        async def requests():
            for number in range(20):
                inputs = [tensor("INPUT0", "FP32", sample("FP32", [1, 4]))]
                yield {"model_name": "batched_FP32", "inputs": inputs, "request_id": str(number)}

        ids = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            ids.append(result.get_response().id)
        assert ids == [str(number) for number in range(20)]

    run(server, use)


def test_an_error_has_its_status(server):
    async def use(client):
        with pytest.raises(InferenceServerException) as refused:
            await client.get_model_metadata("nobody")
        assert refused.value.status() == "StatusCode.NOT_FOUND"

    run(server, use)


def test_a_cancelled_call_ends(server):
    async def use(client):
        inputs = [tensor("INPUT0", "FP32", sample("FP32", [1, 2]))]
        waiting = [asyncio.ensure_future(client.infer("slow", inputs)) for _ in range(3)]
        await client.is_server_live()
        for each in waiting:
            each.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, (asyncio.CancelledError, InferenceServerException)) for each in ended)
        assert (await client.infer("slow", inputs)).as_numpy("OUTPUT0").shape == (1, 2)

    run(server, use)


def test_client_timeout_is_a_deadline(server):
    async def use(client):
        inputs = [tensor("INPUT0", "FP32", sample("FP32", [1, 2]))]
        with pytest.raises(InferenceServerException) as refused:
            await client.infer("slow", inputs, client_timeout=0.1)
        assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"

    run(server, use)
