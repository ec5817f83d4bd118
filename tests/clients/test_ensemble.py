"""Ensembles: the example of the project, and what a deadline, a full member, a reload and traces do to them."""

import json
import queue
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from arrays import sample
from configs import chain, ensemble, step
from conftest import copy_examples
from nereid import Nereid, identity_config, parameter, wait_until, write_model
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException

# How long one step of a slow model takes.
STEP_MS = 300
# Why requests fail, as the metrics have it.
REASONS = ["REJECTED", "CANCELED", "BACKEND", "OTHER"]


def slow_config(extra="dynamic_batching { }"):
    delay = parameter("identity.delay_us", STEP_MS * 1000)
    return identity_config(["FP32"], max_batch_size=1, extra=f"{delay}{extra}")


REPEATED = """
platform: "ensemble"
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
ensemble_scheduling {
  max_inflight_requests: 2
  step [
    {
      model_name: "repeat_int32" model_version: -1
      input_map [ { key: "IN" value: "IN" }, { key: "DELAY" value: "DELAY" }, { key: "WAIT" value: "WAIT" } ]
      output_map { key: "OUT" value: "each" }
    },
    {
      model_name: "pass" model_version: -1
      input_map { key: "INPUT0" value: "each" }
      output_map { key: "OUTPUT0" value: "OUT" }
    }
  ]
}
"""


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """A server of ensembles over identity models; each test has a chain of its own, so that its counts are its own."""
    folder = tmp_path_factory.mktemp("ensembles")
    copy_examples(folder, "tokenise_free", "byte_trigrams", "trigram_embedding", "repeat_int32", "accumulator")
    steps = [
        step("plain", {"INPUT0": "INPUT0"}, {"OUTPUT0": "between"}),
        step("accumulator", {"INPUT__0": "between"}, {"OUTPUT__0": "OUTPUT0"}),
    ]
    write_model(folder, "summed", ensemble(["INPUT0"], ["OUTPUT0"], steps, max_batch_size=8, dims="4"))
    write_model(folder, "plain", identity_config(["FP32"], dims="4"))
    for test in ("deadline", "full"):
        limit = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
        first = slow_config(limit) if test == "full" else slow_config()
        write_model(folder, f"{test}_first", first)
        write_model(folder, f"{test}_second", slow_config())
        write_model(folder, test, chain([f"{test}_first", f"{test}_second"]))
    write_model(folder, "pass", identity_config(["INT32"], max_batch_size=0, dims="1"))
    write_model(folder, "repeated", REPEATED)
    labelled = write_model(folder, "labelled", LABELLED)
    (labelled / "labels.txt").write_text("cat\ndog\nfish\n")
    write_model(folder, "classes", chain(["labelled", "labelled"], dims="3"))
    # An ensemble of an ensemble, with a step that has no batch dimension.
    write_model(folder, "flat", identity_config(["FP32"], max_batch_size=0, dims="-1, 3"))
    write_model(folder, "nested", chain(["classes", "flat"], dims="3"))
    with Nereid(folder) as running:
        yield running


LABELLED = """
backend: "identity"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
"""


@pytest.fixture(params=PROTOCOLS)
def client(request, chains):
    with connect(request.param, chains) as connected:
        yield connected


@pytest.fixture
def asking(chains):
    """Triton's gRPC client, which can send without waiting."""
    with grpcclient.InferenceServerClient(chains.grpc) as connected:
        yield connected


def row(client):
    return [client.tensor("INPUT0", "FP32", sample("FP32", [1, 2]))]


def grpc_row():
    return [grpcclient.InferInput("INPUT0", [1, 2], "FP32").set_data_from_numpy(sample("FP32", [1, 2]))]


def counts(server, model):
    """What the metrics count of a model: answered, and failed by reason."""
    failed = {reason: server.metric("nv_inference_request_failure", model=model, reason=reason) for reason in REASONS}
    return SimpleNamespace(
        answered=server.metric("nv_inference_request_success", model=model),
        failed={reason: count for reason, count in failed.items() if count},
    )


def wait_for_requests(server, count):
    """Waits until so many requests are in flight, those of members included."""
    wait_until(lambda: server.metric("nereid_requests_in_flight") == count)


def test_the_example_embeds_texts_without_a_tokeniser(client):
    texts = ["A cat sleeps on the sofa.", "The cat sleeps on a sofa", "Stocks fell on Monday."]
    array = np.array([[text.encode()] for text in texts], dtype=np.object_)
    together = client.infer("tokenise_free", [client.tensor("TEXT", "BYTES", array)]).as_numpy("EMBEDDING")
    assert together.shape == (3, 128)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    alike = together @ together.T
    assert alike[0, 1] > 0.5 > abs(alike[0, 2])
    for text, expected in zip(array, together):
        alone = client.infer("tokenise_free", [client.tensor("TEXT", "BYTES", text.reshape(1, 1))])
        np.testing.assert_allclose(alone.as_numpy("EMBEDDING")[0], expected, atol=1e-6)


def test_the_ensemble_and_its_members_each_count_a_request_once(client, chains):
    names = ("tokenise_free", "byte_trigrams", "trigram_embedding")
    before = {name: counts(chains, name).answered for name in names}
    client.infer("tokenise_free", [client.tensor("TEXT", "BYTES", np.array([[b"x"]], dtype=np.object_))])
    assert {name: counts(chains, name).answered - before[name] for name in names} == dict.fromkeys(names, 1)
    (stats,) = client.get_inference_statistics("tokenise_free").model_stats
    inference = stats.inference_stats
    assert int(inference.success.count) == int(inference.queue.count) == int(inference.compute_infer.count)
    assert 0 < int(inference.compute_infer.ns) <= int(inference.success.ns)


def test_the_configuration_says_that_it_is_an_ensemble(client):
    assert client.get_model_metadata("tokenise_free").platform == "ensemble"
    config = client.get_model_config("tokenise_free").config
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["byte_trigrams", "trigram_embedding"]
    assert client.get_model_config("repeated").config.model_transaction_policy.decoupled


@pytest.mark.parametrize("model", ["classes", "nested"])
def test_an_output_has_the_labels_of_the_member_that_makes_it(client, model):
    values = np.array([[0.5, 2.0, 1.0]], dtype=np.float32)
    result = client.infer(model, [client.tensor("INPUT0", "FP32", values)], outputs=[client.classes("OUTPUT0", 2)])
    # What comes from `flat` has no labels: it has none.
    expected = [[b"2.000000:1:dog", b"1.000000:2:fish"]] if model == "classes" else [[b"2.000000:1", b"1.000000:2"]]
    assert result.as_numpy("OUTPUT0").tolist() == expected


def test_a_sequence_goes_through_to_the_member_that_keeps_its_state(client):
    def add(sequence, value, **ends):
        inputs = [client.tensor("INPUT0", "FP32", np.full((1, 4), value, dtype=np.float32))]
        return float(client.infer("summed", inputs, sequence_id=sequence, **ends).as_numpy("OUTPUT0")[0][0])

    assert add(71, 1, sequence_start=True) == 1
    assert add(72, 10, sequence_start=True) == 10
    assert (add(71, 2), add(72, 20)) == (3, 30)
    assert (add(71, 3, sequence_end=True), add(72, 30, sequence_end=True)) == (6, 60)
    with pytest.raises(InferenceServerException, match="in ensemble 'summed'.*START flag"):
        add(71, 4)


def test_each_response_of_a_decoupled_member_goes_on(chains):
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(chains.grpc) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)))
        inputs = [
            grpcclient.InferInput(name, [len(values)], dtype).set_data_from_numpy(np.array(values, kind))
            for name, dtype, kind, values in (
                ("IN", "INT32", np.int32, list(range(20))),
                ("DELAY", "UINT32", np.uint32, [0] * 20),
                ("WAIT", "UINT32", np.uint32, [0]),
            )
        ]
        streaming.async_stream_infer("repeated", inputs, request_id="r", enable_empty_final_response=True)
        values, last = [], False
        while not last:
            result, error = answers.get(timeout=30)
            assert error is None
            response = result.get_response()
            assert response.id == "r"
            last = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                values.append(int(result.as_numpy("OUT")[0]))
        assert values == list(range(20))
        with pytest.raises(InferenceServerException, match="decoupled"):
            streaming.infer("repeated", inputs)


def test_a_deadline_in_the_second_step_is_kept(chains, asking):
    start = time.monotonic()
    with pytest.raises(InferenceServerException) as refused:
        asking.infer("deadline", grpc_row(), client_timeout=STEP_MS * 1.5 / 1000)
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert time.monotonic() - start < STEP_MS * 1.9 / 1000
    wait_until(lambda: sum(counts(chains, "deadline").failed.values()) == 1)
    assert counts(chains, "deadline").answered == 0
    assert (counts(chains, "deadline_first").answered, counts(chains, "deadline_second").answered) == (1, 0)


def test_a_member_that_refuses_fails_the_ensemble_for_the_same_reason(client, chains, asking):
    answers = queue.Queue()
    asking.async_infer("full", grpc_row(), callback=lambda result, error: answers.put(error))
    wait_for_requests(chains, 2)
    asking.async_infer("full_first", grpc_row(), callback=lambda result, error: answers.put(error))
    wait_for_requests(chains, 3)
    before = counts(chains, "full").failed.get("REJECTED", 0)
    with pytest.raises(InferenceServerException) as refused:
        client.infer("full", row(client))
    assert refused.value.status() == client.status("UNAVAILABLE")
    assert refused.value.message() == "in ensemble 'full', Exceeds maximum queue size"
    assert counts(chains, "full").failed == {"REJECTED": before + 1}
    assert [answers.get(timeout=30) for _ in range(2)] == [None, None]


def test_members_decide_whether_an_ensemble_is_there(tmp_path):
    write_model(tmp_path, "first", identity_config(["FP32"]))
    write_model(tmp_path, "second", identity_config(["FP32"]))
    write_model(tmp_path, "ensemble", chain(["first", "second"]))
    write_model(tmp_path, "lonely", chain(["first", "nobody"]))
    with Nereid(tmp_path, "--model-control-mode", "explicit") as server, connect("grpc", server) as client:
        client.load_model("ensemble")
        assert client.is_model_ready("first") and client.is_model_ready("ensemble")
        with pytest.raises(InferenceServerException) as refused:
            client.load_model("lonely")
        assert "ensemble 'lonely' contains models that are not available or ambiguous: nobody" in refused.value.message()

        client.unload_model("second")
        assert not client.is_model_ready("ensemble")
        client.load_model("second")
        wait_until(lambda: client.is_model_ready("ensemble"))
        assert client.infer("ensemble", row(client)).as_numpy("OUTPUT0").shape == (1, 2)

        # `second` was loaded by a command of its own and stays; `lonely` would still need `first`.
        client.unload_model("lonely")
        client.unload_model("ensemble", unload_dependents=True)
        wait_until(lambda: not client.is_model_ready("first"))
        assert client.is_model_ready("second")


def test_a_reload_of_a_member_under_load_fails_no_request(tmp_path):
    for name in ("first", "second"):
        write_model(tmp_path, name, identity_config(["FP32"], max_batch_size=1))
    write_model(tmp_path, "ensemble", chain(["first", "second"]))
    failures, answered, stop = [], [], threading.Event()
    with Nereid(tmp_path, "--model-control-mode", "explicit", "--load-model", "ensemble") as server:

        def keep_asking():
            with grpcclient.InferenceServerClient(server.grpc) as asking:
                while not stop.is_set():
                    try:
                        answered.append(asking.infer("ensemble", grpc_row()))
                    except InferenceServerException as error:
                        failures.append(error)

        asker = threading.Thread(target=keep_asking)
        asker.start()
        with grpcclient.InferenceServerClient(server.grpc) as control:
            for number in range(10):
                config = identity_config(["FP32"], max_batch_size=1, extra=parameter("seen", number))
                (tmp_path / "second" / "config.pbtxt").write_text(config)
                control.load_model("second")
        stop.set()
        asker.join()
    assert not failures and answered


def test_the_steps_have_traces_below_that_of_the_ensemble(tmp_path):
    folder, file = tmp_path / "models", tmp_path / "trace.json"
    for name in ("first", "second"):
        write_model(folder, name, identity_config(["FP32"]))
    write_model(folder, "ensemble", chain(["first", "second"]))
    flags = [f"--trace-config={flag}" for flag in ("level=TIMESTAMPS", "rate=1", f"triton,file={file}")]
    with Nereid(folder, *flags) as server, grpcclient.InferenceServerClient(server.grpc) as asking:
        asking.infer("ensemble", grpc_row(), request_id="mine")
    heads = [entry for entry in json.loads(file.read_text()) if "model_name" in entry]
    by_model = {head["model_name"]: head for head in heads}
    assert set(by_model) == {"ensemble", "first", "second"}
    assert "parent_id" not in by_model["ensemble"]
    assert {by_model[name]["parent_id"] for name in ("first", "second")} == {by_model["ensemble"]["id"]}
    assert {head["request_id"] for head in heads} == {"mine"}
