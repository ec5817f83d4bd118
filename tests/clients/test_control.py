"""Loading and unloading in explicit mode, and the end of the process."""

import json
import signal
import threading
import urllib.request

import pytest
import tritonclient.grpc as grpcclient
from arrays import sample, tensor
from nereid import Nereid, identity_config, wait_until, write_model
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """A server in explicit mode with one model loaded at start, one not, and one that is broken."""
    folder = tmp_path_factory.mktemp("controlled")
    for name in ("early", "late", "changing"):
        write_model(folder, name, identity_config(["FP32"]))
    write_model(folder, "broken", identity_config(["FP32"]) + "\nmax_batch_sise: 3\n")
    with Nereid(folder, "--model-control-mode", "explicit", "--load-model", "early") as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def client(request, controlled):
    with connect(request.param, controlled) as connected:
        yield connected


def ones(client):
    """A right input of each model."""
    return client.tensor("INPUT0", "FP32", sample("FP32", [1, 2]))


def fp32():
    return [tensor("INPUT0", "FP32", sample("FP32", [1, 2]))]


def states(client):
    return {each.name: (each.state, each.reason) for each in client.get_model_repository_index().models}


def test_only_what_was_asked_for_is_loaded_at_start(client):
    assert client.is_model_ready("early")
    found = states(client)
    assert found["early"][0] == "READY"
    assert set(found) == {"early", "late", "changing", "broken"}


def test_a_model_is_loaded_served_and_unloaded(client):
    client.load_model("late")
    assert client.is_model_ready("late")
    assert client.infer("late", [ones(client)]).as_numpy("OUTPUT0").shape == (1, 2)
    client.unload_model("late")
    wait_until(lambda: states(client)["late"] == ("UNAVAILABLE", "unloaded"))
    assert not client.is_model_ready("late")
    with pytest.raises(InferenceServerException):
        client.infer("late", [ones(client)])
    client.load_model("late")
    assert client.infer("late", [ones(client)]).as_numpy("OUTPUT0").shape == (1, 2)


def test_loading_a_broken_model_says_what_is_wrong_and_touches_no_other(client):
    with pytest.raises(InferenceServerException) as refused:
        client.load_model("broken")
    assert refused.value.status() == client.status("INVALID_ARGUMENT")
    assert "max_batch_sise" in refused.value.message() and "max_batch_size" in refused.value.message()
    assert states(client)["broken"][0] != "READY"
    assert client.infer("early", [ones(client)]).as_numpy("OUTPUT0").shape == (1, 2)


def test_loading_what_is_in_no_repository_fails(client):
    with pytest.raises(InferenceServerException) as refused:
        client.load_model("nobody")
    assert refused.value.status() == client.status("INTERNAL")
    assert "failed to load 'nobody', failed to poll from model repository" in refused.value.message()


def test_unloading_what_is_unknown_is_no_error(client):
    client.unload_model("nobody")


def test_a_load_can_bring_its_own_configuration(client):
    override = {
        "backend": "identity",
        "max_batch_size": 3,
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [-1]}],
    }
    client.load_model("changing", config=json.dumps(override))
    assert client.get_model_config("changing").config.max_batch_size == 3
    result = client.infer("changing", [client.tensor("X", "FP32", sample("FP32", [3, 2]))])
    assert result.as_numpy("Y").shape == (3, 2)


def test_files_without_a_configuration_are_refused(client):
    with pytest.raises(InferenceServerException) as refused:
        client.load_model("changing", files={"file:1/model.pt": b"x"})
    assert refused.value.status() == client.status("INVALID_ARGUMENT")


def test_reloading_under_load_fails_no_request(controlled, client):
    client.load_model("late")
    failures, stop = [], threading.Event()

    def keep_asking():
        with grpcclient.InferenceServerClient(controlled.grpc) as asking:
            while not stop.is_set():
                try:
                    asking.infer("late", fp32())
                except InferenceServerException as error:
                    failures.append(error)

    asker = threading.Thread(target=keep_asking)
    asker.start()
    config = {"backend": "identity", "input": [], "output": []}
    for way in ("input", "output"):
        config[way] = [{"name": f"{way.upper()}0", "data_type": "TYPE_FP32", "dims": [-1]}]
    for rows in (4, 5, 6, 7):
        client.load_model("late", config=json.dumps({**config, "max_batch_size": rows}))
    stop.set()
    asker.join(30)
    assert failures == []
    assert client.get_model_config("late").config.max_batch_size == 7


def test_termination_waits_for_accepted_requests(tmp_path):
    delay = 'parameters { key: "identity.delay_us" value { string_value: "300000" } }'
    write_model(tmp_path, "slow", identity_config(["FP32"], max_batch_size=1, extra=delay))
    with Nereid(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc) as client:
        done = threading.Semaphore(0)
        answers = []

        def note(result, error):
            answers.append(error)
            done.release()

        for _ in range(4):
            client.async_infer("slow", fp32(), callback=note)
        wait_until(lambda: executions(client) >= 1)
        assert server.stop() == 0
        for _ in range(4):
            assert done.acquire(timeout=30)
    # What was accepted is answered; what had not arrived at that moment is refused, and told so.
    assert answers.count(None) >= 1
    assert {error.status() for error in answers if error} <= {"StatusCode.UNAVAILABLE"}


def executions(client):
    """The executions of `slow` so far."""
    (stats,) = client.get_inference_statistics("slow").model_stats
    return stats.execution_count


def test_a_second_signal_ends_at_once(tmp_path):
    delay = 'parameters { key: "identity.delay_us" value { string_value: "60000000" } }'
    write_model(tmp_path, "slow", identity_config(["FP32"], max_batch_size=1, extra=delay))
    with Nereid(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc) as client:
        client.async_infer("slow", fp32(), callback=lambda result, error: None)
        wait_until(lambda: in_flight(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not live(client))
        assert server.process.poll() is None
        assert server.stop() == 1


def in_flight(server):
    """The inference requests that have no answer yet."""
    with urllib.request.urlopen(server.metrics, timeout=5) as response:
        lines = response.read().decode().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("nereid_requests_in_flight "))


def live(client):
    """Whether new calls are still answered."""
    try:
        return client.is_server_live(client_timeout=1)
    except InferenceServerException:
        return False
