"""ModelStreamInfer by Triton's streaming client."""

import queue

import grpc
import pytest
import tritonclient.grpc as grpcclient
from arrays import sample, tensor
from configs import repeated
from nereid import Nereid, identity_config, wait_until, write_model
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


@pytest.fixture
def stream(server):
    """A client with an open stream, and the queue of what comes back."""
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)))
        yield streaming, answers
        streaming.stop_stream()


def test_answers_of_a_stream_come_in_the_order_of_the_requests(stream):
    streaming, answers = stream
    for number in range(50):
        model, dtype = (("batched_FP32", "FP32"), ("plain_INT64", "INT64"))[number % 2]
        streaming.async_stream_infer(model, [tensor("INPUT0", dtype, sample(dtype, [2, 2]))], request_id=str(number))
    for number in range(50):
        result, error = answers.get(timeout=30)
        assert error is None
        response = result.get_response()
        assert response.id == str(number)
        assert response.parameters["triton_final_response"].bool_param is True
        assert len(response.raw_output_contents) == 1


def test_an_error_is_a_message_and_the_stream_goes_on(stream):
    streaming, answers = stream
    good = [tensor("INPUT0", "FP32", sample("FP32", [1, 2]))]
    streaming.async_stream_infer("nobody", good, request_id="first")
    streaming.async_stream_infer("batched_FP32", good, request_id="second")
    result, error = answers.get(timeout=30)
    assert result is None and "unknown model: 'nobody' is not found" in error.message()
    result, error = answers.get(timeout=30)
    assert error is None and result.get_response().id == "second"


def bad_request():
    return service_pb2.ModelInferRequest(model_name="nobody", id="mine")


def test_an_error_message_carries_the_id_of_its_request(server):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (answer,) = stub.ModelStreamInfer(iter([bad_request()]), timeout=10)
    assert answer.infer_response.id == "mine"
    assert "unknown model" in answer.error_message


def test_a_stream_can_ask_for_real_statuses(server):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(iter([bad_request()]), timeout=10, metadata=[("triton_grpc_error", "true")])
        with pytest.raises(grpc.RpcError) as ended:
            list(answers)
    assert ended.value.code() == grpc.StatusCode.NOT_FOUND


def test_requests_in_flight_are_answered_after_the_client_has_finished_sending(server):
    raw = bytes(8)
    sent = [service_pb2.ModelInferRequest(model_name="slow", id=str(number)) for number in range(3)]
    for each in sent:
        each.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 2])
        each.raw_input_contents.append(raw)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter(sent), timeout=30))
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2"]
    assert not any(answer.error_message for answer in answers)


def repeat_inputs(delays_ms):
    """Inputs of repeat_int32: one response for each delay, with the values 100, 101, ..."""
    arrays = repeated(range(100, 100 + len(delays_ms)), delays_ms)
    return [tensor(name, dtype, array) for name, (dtype, array) in arrays.items()]


def received(answers):
    """The id, the values and the mark of the end of the next message."""
    result, error = answers.get(timeout=30)
    assert error is None
    response = result.get_response()
    values = result.as_numpy("OUT")
    return response.id, None if values is None else values.tolist(), response.parameters["triton_final_response"].bool_param


@pytest.mark.parametrize("empty_final", [False, True])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_a_decoupled_model_gives_a_response_for_each_element(stream, count, empty_final):
    streaming, answers = stream
    streaming.async_stream_infer(
        "repeat_int32", repeat_inputs([0] * count), request_id="r", enable_empty_final_response=empty_final
    )
    for number in range(count):
        assert received(answers) == ("r", [100 + number], False)
    if empty_final:
        assert received(answers) == ("r", None, True)
    streaming.stop_stream()
    assert answers.empty()


def test_responses_of_two_requests_interleave(stream):
    streaming, answers = stream
    for name in ("one", "two"):
        streaming.async_stream_infer(
            "repeat_int32", repeat_inputs([0, 400, 400]), request_id=name, enable_empty_final_response=True
        )
    seen = [received(answers) for _ in range(8)]
    for name in ("one", "two"):
        mine = [(values, last) for each, values, last in seen if each == name]
        assert mine == [([100], False), ([101], False), ([102], False), (None, True)]
    assert {name for name, _, _ in seen[:2]} == {"one", "two"}, seen


LEVELED = """model_transaction_policy { decoupled: true }
dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 60000000
  priority_levels: 2 default_priority_level: 2 default_queue_policy { max_queue_size: 2 } }
parameters { key: "identity.delay_us" value { string_value: "500000" } }"""


def test_a_decoupled_model_with_dynamic_batching_has_levels_and_executes_one_request_at_a_time(tmp_path):
    write_model(tmp_path, "leveled", identity_config(["FP32"], 8, extra=LEVELED))
    answers = queue.Queue()
    with Nereid(tmp_path) as running, grpcclient.InferenceServerClient(running.grpc) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)))

        def send(name, priority):
            inputs = [tensor("INPUT0", "FP32", sample("FP32", [1, 2]))]
            streaming.async_stream_infer("leveled", inputs, request_id=name, priority=priority)

        send("busy", 2)
        wait_until(lambda: running.metric("nereid_requests_running", model="leveled") == 1)
        for name, priority in (("low", 2), ("second", 0), ("full", 2), ("high", 1)):
            send(name, priority)
        result, error = answers.get(timeout=30)
        assert result is None and "Exceeds maximum queue size" in error.message()
        assert [answers.get(timeout=30)[0].get_response().id for _ in range(4)] == ["busy", "high", "low", "second"]
        batches = streaming.get_inference_statistics("leveled").model_stats[0].batch_stats
        assert [(batch.batch_size, batch.compute_infer.count) for batch in batches] == [(1, 4)]


def test_a_cancelled_stream_frees_the_instance(server, client):
    def cancelled():
        stats = client.get_inference_statistics("repeat_int32").model_stats[0]
        return sum(each.cancel.count for each in stats.response_stats.values())

    before = cancelled()
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)))
        streaming.async_stream_infer("repeat_int32", repeat_inputs([0, 3_600_000]), request_id="long")
        assert received(answers) == ("long", [100], False)
        streaming.stop_stream(cancel_requests=True)
    wait_until(lambda: cancelled() == before + 1)


def test_a_decoupled_model_is_refused_by_a_call_for_one_response(client):
    with pytest.raises(InferenceServerException, match="doesn't support models with decoupled transaction policy"):
        client.infer("repeat_int32", repeat_inputs([0]))
