"""Deadlines, queue timeouts and cancellation, with a model that takes `SLOW_MS` for each request."""

import queue
import time

import pytest
import tritonclient.grpc as grpcclient
from arrays import sample, tensor
from conftest import SLOW_MS
from tritonclient.utils import InferenceServerException


@pytest.fixture
def busy(client):
    """Occupies the only instance of `slow`, and waits for its answer in the end."""
    answers = queue.Queue()
    before = executions(client)
    client.async_infer("slow", slow_input(), callback=lambda result, error: answers.put((result, error)))
    client.async_infer("slow", slow_input(), callback=lambda result, error: answers.put((result, error)))
    yield lambda: executions(client) - before
    for _ in range(2):
        result, error = answers.get(timeout=30)
        assert error is None and result is not None


def slow_input():
    return [tensor("INPUT0", "FP32", sample("FP32", [1, 2]))]


def executions(client):
    (stats,) = client.get_inference_statistics("slow").model_stats
    return stats.execution_count


def test_client_timeout_ends_the_call_in_time(client, busy):
    start = time.monotonic()
    with pytest.raises(InferenceServerException) as refused:
        client.infer("slow", slow_input(), client_timeout=0.1)
    assert time.monotonic() - start < 0.3
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_queue_timeout_ends_the_request_while_the_instance_is_busy(client, busy):
    start = time.monotonic()
    with pytest.raises(InferenceServerException) as refused:
        client.infer("slow", slow_input(), timeout=100_000)
    assert time.monotonic() - start < SLOW_MS / 1000
    assert refused.value.status() == "StatusCode.UNAVAILABLE"
    assert "Request timeout expired" in refused.value.message()


def test_a_cancelled_request_that_waits_is_never_executed(client):
    before = executions(client)
    answers = queue.Queue()

    def note(result, error):
        answers.put((result, error))

    client.async_infer("slow", slow_input(), callback=note, request_id="runs")
    calls = [client.async_infer("slow", slow_input(), callback=note) for _ in range(5)]
    for call in calls:
        call.cancel()
    ended = [answers.get(timeout=30) for _ in range(6)]
    cancelled = [error for _, error in ended if error is not None]
    assert len(cancelled) == 5
    assert {error.status() for error in cancelled} == {"StatusCode.CANCELLED"}
    # A request sent now is executed after any that still waits, so its answer bounds what was executed.
    client.infer("slow", slow_input())
    assert executions(client) - before <= 2 + 1


def test_cancelling_a_stream_leaves_the_server_well(server, client):
    with grpcclient.InferenceServerClient(server.grpc) as streaming:
        ended = queue.Queue()
        streaming.start_stream(lambda result, error: ended.put(error))
        for _ in range(10):
            streaming.async_stream_infer("slow", slow_input())
        streaming.stop_stream(cancel_requests=True)
    assert client.infer("slow", slow_input()).as_numpy("OUTPUT0").shape == (1, 2)
