"""A TorchScript model that never returns for some inputs: it is given up, and everything else serves on."""

import time

import numpy
import pytest
from nereid import Nereid, identity_config, torchscript, wait_until, write_model
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException

# Never ends for an input whose sum is negative; warm-up runs with zeros, and the choice of optimisations with ones.
SOURCE = """
def forward(self, INPUT0: Tensor) -> Tensor:
    while bool(torch.lt(INPUT0.sum(), 0.0)):
        INPUT0 = INPUT0 * 1.0
    return INPUT0
"""

CONFIG = """
input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }
instance_group { count: 2 kind: KIND_CPU }
parameters { key: "execution.timeout_us" value { string_value: "500000" } }
parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }
"""


@pytest.fixture
def repository(tmp_path):
    torchscript(tmp_path, "loop", SOURCE, CONFIG)
    write_model(tmp_path, "good", identity_config(["FP32"]))
    return tmp_path


def values(filled):
    return numpy.full([4], filled, dtype=numpy.float32)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_model_that_never_returns_is_given_up_and_the_rest_serves_on(repository, protocol):
    server = Nereid(repository, "--lost-instances-max", "1")
    with server, connect(protocol, server) as client:
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(InferenceServerException) as given_up:
                client.infer("loop", [client.tensor("INPUT0", "FP32", values(-1))])
            assert "the execution did not end within 0.5 s" in given_up.value.message()
            assert 0.4 < time.monotonic() - start < 5
            answer = client.infer("loop", [client.tensor("INPUT0", "FP32", values(0))])
            assert (answer.as_numpy("OUTPUT__0") == values(0)).all()
            client.infer("good", [client.tensor("INPUT0", "FP32", values(1).reshape(1, 4))])
        # One instance is left; after it the version is not there any more.
        with pytest.raises(InferenceServerException):
            client.infer("loop", [client.tensor("INPUT0", "FP32", values(-1))])
        wait_until(lambda: not client.is_model_ready("loop"))
        states = {each.name: (each.state, each.reason) for each in client.get_model_repository_index().models}
        assert states["loop"][0] == "UNAVAILABLE"
        assert states["loop"][1].startswith("3 instances were given up because the execution did not end within")
        assert states["good"][0] == "READY"
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 10
