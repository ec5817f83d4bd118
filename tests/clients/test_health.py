"""Liveness, readiness and the standard health service."""

import grpc
import pytest
from tritonclient.utils import InferenceServerException

SERVING = b"\x08\x01"


def test_server_is_live_and_ready(either):
    assert either.is_server_live()
    assert either.is_server_ready()


def test_model_is_ready_with_and_without_version(either):
    assert either.is_model_ready("versioned")
    assert either.is_model_ready("versioned", "1")


@pytest.mark.parametrize(
    "model, version, status, message",
    [
        ("nobody", "", "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        ("pair", "9", "NOT_FOUND", "'pair' version 9 is not found"),
        ("pair", "x", "INVALID_ARGUMENT", "failed to get model version from specified version string 'x'"),
        ("pair", "0", "INVALID_ARGUMENT", "invalid model version specified '0'"),
        ("pair", "-2", "INVALID_ARGUMENT", "invalid model version specified '-2'"),
    ],
)
def test_readiness_of_what_does_not_exist_says_why(client, model, version, status, message):
    with pytest.raises(InferenceServerException) as refused:
        client.is_model_ready(model, version)
    assert refused.value.status() == f"StatusCode.{status}"
    assert message in refused.value.message()


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "of.nobody"])
def test_standard_health_check_says_serving_for_any_service(server, service):
    request = b"\x0a" + bytes([len(service)]) + service.encode()
    with grpc.insecure_channel(server.grpc) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=10) == SERVING


def test_standard_health_watch_begins_with_the_present_state(server):
    with grpc.insecure_channel(server.grpc) as channel:
        states = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=10)
        assert next(iter(states)) == SERVING
        states.cancel()
