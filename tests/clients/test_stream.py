"""ModelStreamInfer by Triton's streaming client."""

import queue

import grpc
import pytest
import tritonclient.grpc as grpcclient
from arrays import sample, tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc


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
