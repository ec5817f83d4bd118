"""Loading and unloading in explicit mode, and the end of the process."""

import json
import re
import signal
import threading
import urllib.request
from pathlib import Path

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


IDENTITY = {"backend": "identity", "max_batch_size": 8}
for direction in ("input", "output"):
    IDENTITY[direction] = [{"name": f"{direction.upper()}0", "data_type": "TYPE_FP32", "dims": [-1]}]


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


def test_a_configuration_that_the_server_shows_can_be_loaded(controlled):
    with connect("http", controlled) as client:
        shown = client.get_model_config("early", as_json=True)["config"]
        client.load_model("early", config=json.dumps(shown))
        assert client.get_model_config("early", as_json=True)["config"] == shown


def test_files_without_a_configuration_are_refused(client):
    with pytest.raises(InferenceServerException) as refused:
        client.load_model("changing", files={"file:1/model.pt": b"x"})
    assert refused.value.status() == client.status("INVALID_ARGUMENT")


def test_files_may_be_beside_the_versions(client):
    override = {
        "backend": "identity",
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [2], "label_filename": "labels.txt"}],
        "model_warmup": [
            {"name": "w", "inputs": {"X": {"data_type": "TYPE_FP32", "dims": [2], "input_data_file": "x"}}}
        ],
    }
    files = {"file:1/weights": b"", "file:labels.txt": b"cat\ndog\n", "file:warmup/x": bytes(8)}
    client.load_model("changing", config=json.dumps(override), files=files)
    assert client.is_model_ready("changing")
    with pytest.raises(InferenceServerException, match="inside the model directory"):
        client.load_model("changing", config=json.dumps(override), files={**files, "file:../labels.txt": b""})


def test_reloading_under_load_fails_no_request(controlled, client):
    client.load_model("late")
    failures, answered, stop = [], [], threading.Event()

    def keep_asking():
        with grpcclient.InferenceServerClient(controlled.grpc) as asking:
            while not stop.is_set():
                try:
                    answered.append(asking.infer("late", fp32()))
                except InferenceServerException as error:
                    failures.append(error)

    asker = threading.Thread(target=keep_asking)
    asker.start()
    for rows in (4, 5, 6, 7):
        client.load_model("late", config=json.dumps({**IDENTITY, "max_batch_size": rows}))
    stop.set()
    asker.join(30)
    assert failures == [] and answered
    assert client.get_model_config("late").config.max_batch_size == 7


def test_a_model_that_never_ends_to_load_is_seen_while_the_rest_serves(tmp_path):
    warmup = (
        'parameters { key: "identity.delay_us" value { string_value: "3600000000" } }\n'
        'model_warmup { name: "w" batch_size: 1 inputs { key: "INPUT0" '
        "value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }"
    )
    write_model(tmp_path, "endless", identity_config(["FP32"], extra=warmup))
    write_model(tmp_path, "quick", identity_config(["FP32"]))
    with Nereid(tmp_path, "--exit-timeout-secs", "0", until="live") as server:
        for protocol in PROTOCOLS:
            with connect(protocol, server) as client:
                assert client.is_server_live()
                assert not client.is_server_ready()
                wait_until(lambda client=client: states(client).get("quick") == ("READY", ""))
                wait_until(lambda client=client: re.fullmatch(r"loading: \d+\.\d s", states(client)["endless"][1]))
                assert states(client)["endless"][0] == "LOADING"
                assert not client.is_server_ready()
                assert client.infer("quick", [ones(client)]).as_numpy("OUTPUT0").shape == (1, 2)
                with pytest.raises(InferenceServerException) as refused:
                    client.infer("endless", [ones(client)])
                assert refused.value.status() == client.status("UNAVAILABLE")
                assert "'endless' is not at ready state: loading: " in refused.value.message()


@pytest.mark.parametrize("fatal", [False, True])
def test_a_model_that_fails_at_the_start_ends_the_process_only_if_told(tmp_path, fatal):
    write_model(tmp_path, "good", identity_config(["FP32"]))
    write_model(tmp_path, "broken", identity_config(["FP32"]) + "\nmax_batch_sise: 3\n")
    with Nereid(tmp_path, f"--exit-on-error={fatal}", until="live") as server:
        if fatal:
            assert server.process.wait(30) == 1
            assert "failed to load all models: broken" in Path(server.log.name).read_text()
            return
        server.wait("ready")
        with connect("http", server) as client:
            assert client.is_server_live() and not client.is_server_ready()
            assert client.infer("good", [ones(client)]).as_numpy("OUTPUT0").shape == (1, 2)


def test_a_mistyped_name_is_no_model_that_the_server_waits_for(tmp_path):
    write_model(tmp_path / "here", "good", identity_config(["FP32"]))
    (tmp_path / "away").mkdir()
    explicit = ["--model-control-mode=explicit", "--load-model=good"]
    both = [tmp_path / "here", "--model-repository", tmp_path / "away"]
    with Nereid(*both, *explicit) as server, connect("grpc", server) as client:
        (tmp_path / "away").rmdir()
        with pytest.raises(InferenceServerException) as refused:
            client.load_model("godo")
        assert "failed to poll from model repository: cannot read model repository" in refused.value.message()
        assert client.is_server_ready() and set(states(client)) == {"good"}


def test_without_strict_readiness_the_server_is_ready_when_every_model_was_tried(tmp_path):
    write_model(tmp_path, "broken", "max_batch_sise: 3\n")
    with Nereid(tmp_path, "--strict-readiness=false") as server, connect("grpc", server) as client:
        wait_until(client.is_server_ready)
        assert states(client)["broken"][0] == "UNAVAILABLE"


def test_loads_and_unloads_of_one_model_at_the_same_time_have_one_answer_each(controlled, client):
    answers = []

    def ask(number):
        with connect_like(client, controlled) as own:
            try:
                if number % 3:
                    own.load_model("late", config=json.dumps({**IDENTITY, "max_batch_size": 1 + number % 4}))
                else:
                    own.unload_model("late")
                answers.append(None)
            except InferenceServerException as error:
                answers.append(error.message())

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    assert len(answers) == 24
    outdated = "operation is out-dated."
    assert all(answer is None or outdated in answer for answer in answers), answers
    client.load_model("late")
    assert client.infer("late", [ones(client)]).as_numpy("OUTPUT0").shape == (1, 2)


def connect_like(client, server):
    """Another connection by the same protocol."""
    return connect(client.protocol, server)


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
