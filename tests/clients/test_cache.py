"""The response cache: hits, equal requests at the same time, reloads and refusals, over both protocols."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from nereid import Nereid, identity_config, parameter, wait_until, write_model
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException, shared_memory

# How long one execution of the model `slow` takes.
SLOW_MS = 300
CACHE = "response_cache { enable: true }"
ENSEMBLE = f"""
platform: "ensemble"
max_batch_size: 8
input [ {{ name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
ensemble_scheduling {{
  step [ {{
    model_name: "step"
    model_version: -1
    input_map {{ key: "INPUT0" value: "IN" }}
    output_map {{ key: "OUTPUT0" value: "OUT" }}
  }} ]
}}
{CACHE}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    slow = parameter("identity.delay_us", SLOW_MS * 1000)
    write_model(folder, "quick", identity_config(["FP32", "INT32"], extra=f"dynamic_batching {{ }}\n{CACHE}"))
    write_model(folder, "slow", identity_config(["FP32"], extra=f"{CACHE}\n{slow}"))
    short = parameter("cache.ttl_ms", 50)
    write_model(folder, "short", identity_config(["FP32"], extra=f"{CACHE}\n{short}"))
    write_model(folder, "uncached", identity_config(["FP32"]))
    write_model(folder, "step", identity_config(["FP32"], extra=CACHE))
    write_model(folder, "whole", ENSEMBLE)
    return folder


@pytest.fixture(scope="module")
def server(repository):
    flags = ["--model-control-mode=explicit", "--load-model=*", "--allow-client-shm=true"]
    flags += ["--cache-config", "local,size=65536"]
    with Nereid(repository, *flags) as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def client(request, server):
    with connect(request.param, server) as connected:
        yield connected


# No two tests ask the same.
numbers = iter(range(1, 1 << 20))


def unseen(rows=1):
    return np.full((rows, 4), next(numbers), dtype=np.float32)


def quick(client, floats, integers=None):
    """The inputs of the model `quick`."""
    integers = floats.astype(np.int32) if integers is None else integers
    return [client.tensor("INPUT0", "FP32", floats), client.tensor("INPUT1", "INT32", integers)]


def changed(parameters):
    """A configuration of a model with one tensor, as none was before: a load that changes nothing keeps what is served."""
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    ttl = {"cache.ttl_ms": {"string_value": str(3_600_000 + next(numbers))}}
    config = {"backend": "identity", "max_batch_size": 8, "response_cache": {"enable": True}}
    config |= {"input": [tensor | {"name": "INPUT0"}], "output": [tensor | {"name": "OUTPUT0"}]}
    return json.dumps(config | {"parameters": parameters | ttl})


def stats(client, model):
    (found,) = client.get_inference_statistics(model).model_stats
    counts = found.inference_stats
    return {
        "executions": int(getattr(found, "execution_count", 0)),
        "inferences": int(getattr(found, "inference_count", 0)),
        "success": int(counts.success.count),
        "hits": int(counts.cache_hit.count),
        "misses": int(counts.cache_miss.count),
        "computed": int(counts.compute_infer.count),
        "fail": int(counts.fail.count),
    }


def change(client, model, work):
    """What `work` adds to the statistics."""
    before = stats(client, model)
    work()
    return {name: value - before[name] for name, value in stats(client, model).items() if value != before[name]}


def test_a_request_that_was_answered_is_not_executed_again(client):
    array = unseen()

    def twice():
        for number in "ab":
            result = client.infer("slow", [client.tensor("INPUT0", "FP32", array)], request_id=number)
            assert result.get_response().id == number
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)

    expected = {"executions": 1, "inferences": 1, "success": 2, "hits": 1, "misses": 1, "computed": 1}
    assert change(client, "slow", twice) == expected
    began = time.monotonic()
    client.infer("slow", [client.tensor("INPUT0", "FP32", array)])
    assert time.monotonic() - began < SLOW_MS / 1000


def test_what_differs_in_anything_that_matters_is_executed(client):
    floats, integers = unseen(), np.arange(4, dtype=np.int32).reshape(1, 4)

    def each_once():
        for inputs, outputs in [
            ((floats, integers), None),
            ((floats, integers + 1), None),
            ((floats, integers), ["OUTPUT0"]),
            ((floats, integers), ["OUTPUT1"]),
            ((floats.repeat(2, axis=0), integers.repeat(2, axis=0)), None),
        ]:
            wanted = outputs and [client.wanted(name) for name in outputs]
            result = client.infer("quick", quick(client, *inputs), outputs=wanted)
            if outputs != ["OUTPUT1"]:
                np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), inputs[0])
            if outputs != ["OUTPUT0"]:
                np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), inputs[1])
            # Not only by name: what was not asked for is not there.
            assert len(result.get_response().outputs) == (1 if outputs else 2)

    assert change(client, "quick", each_once)["misses"] == 5
    assert change(client, "quick", each_once) == {"success": 5, "hits": 5}


def test_equal_requests_at_the_same_time_are_executed_once(client, server):
    array = unseen()

    def call(number):
        with connect(client.protocol, server) as own:
            return own.infer("slow", [own.tensor("INPUT0", "FP32", array)], request_id=str(number))

    def at_once():
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(call, range(8)))
        for number, result in enumerate(results):
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)

    shared = server.metric("nereid_cache_shared_total", model="slow")
    counts = change(client, "slow", at_once)
    assert (counts["executions"], counts["success"], counts["hits"], counts["misses"]) == (1, 8, 7, 1)
    assert server.metric("nereid_cache_shared_total", model="slow") > shared


def test_who_waits_for_another_has_a_deadline_of_its_own(server):
    array = unseen()
    with connect("grpc", server) as client, ThreadPoolExecutor(1) as pool:
        leader = pool.submit(client.infer, "slow", [client.tensor("INPUT0", "FP32", array)])
        wait_until(lambda: server.metric("nereid_requests_in_flight") >= 1)
        began = time.monotonic()
        with pytest.raises(InferenceServerException) as refused:
            client.infer("slow", [client.tensor("INPUT0", "FP32", array)], client_timeout=0.05)
        assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert time.monotonic() - began < SLOW_MS / 1000
        np.testing.assert_array_equal(leader.result().as_numpy("OUTPUT0"), array)


def test_a_leader_that_is_cancelled_takes_nobody_with_it(server):
    array = unseen()
    with connect("grpc", server) as leader, connect("grpc", server) as other, ThreadPoolExecutor(1) as pool:
        call = leader.async_infer("slow", [leader.tensor("INPUT0", "FP32", array)], callback=lambda result, error: None)
        misses = stats(other, "slow")
        wait_until(lambda: server.metric("nereid_requests_in_flight") >= 1)
        follower = pool.submit(other.infer, "slow", [other.tensor("INPUT0", "FP32", array)])
        wait_until(lambda: server.metric("nereid_requests_in_flight") >= 2)
        call.cancel()
        np.testing.assert_array_equal(follower.result().as_numpy("OUTPUT0"), array)
        after = stats(other, "slow")
        assert after["misses"] - misses["misses"] == 2
        assert after["hits"] == misses["hits"]


def test_an_answer_that_is_too_old_is_not_given(client, server):
    array = unseen()
    infer = lambda: client.infer("short", [client.tensor("INPUT0", "FP32", array)])
    infer()
    expired = server.metric("nereid_cache_evictions_total", reason="expired")
    wait_until(lambda: (infer(), server.metric("nereid_cache_evictions_total", reason="expired"))[1] > expired)


def test_a_reload_forgets(client):
    array = unseen()
    infer = lambda: client.infer("quick", quick(client, array))
    infer()
    assert change(client, "quick", infer)["hits"] == 1
    client.unload_model("quick")
    client.load_model("quick")
    infer()
    assert stats(client, "quick")["misses"] == 1


def test_a_reload_waits_for_those_who_wait_for_others(server, repository):
    """The leader of the old copy goes away while the model is reloaded; who waited for it is answered all the same."""
    array = unseen()
    config = changed({"identity.delay_us": {"string_value": str(SLOW_MS * 1000)}})
    with connect("grpc", server) as leader, connect("grpc", server) as other, ThreadPoolExecutor(2) as pool:
        call = leader.async_infer("slow", [leader.tensor("INPUT0", "FP32", array)], callback=lambda result, error: None)
        wait_until(lambda: server.metric("nereid_requests_in_flight") >= 1)
        follower = pool.submit(other.infer, "slow", [other.tensor("INPUT0", "FP32", array)])
        wait_until(lambda: server.metric("nereid_requests_in_flight") >= 2)
        loads = server.metric("nereid_model_loads_total", result="success")
        reload = pool.submit(other.load_model, "slow", config=config)
        wait_until(lambda: server.metric("nereid_model_loads_total", result="success") > loads)
        call.cancel()
        np.testing.assert_array_equal(follower.result().as_numpy("OUTPUT0"), array)
        reload.result()
        other.load_model("slow")


def test_classes_are_made_of_what_is_kept(client):
    array = unseen()
    array[0, 2] += 1
    infer = lambda wanted: client.infer("slow", [client.tensor("INPUT0", "FP32", array)], outputs=[wanted])
    infer(client.wanted("OUTPUT0"))
    texts = lambda count: infer(client.classes("OUTPUT0", count)).as_numpy("OUTPUT0").tolist()
    counts = change(client, "slow", lambda: (texts(1), texts(2)))
    assert counts["hits"] == 2 and "misses" not in counts
    (best,) = texts(1)[0]
    assert best.decode().endswith(":2")


def test_the_cache_stays_within_its_bytes(client, server):
    few = np.zeros((1, 4), np.int32)
    for _ in range(40):
        client.infer("quick", quick(client, np.full((1, 1024), next(numbers), np.float32), few))
    assert server.metric("nereid_cache_limit_bytes") == 65536
    assert 40_000 < server.metric("nereid_cache_bytes") <= 65536
    assert 0 < server.metric("nereid_cache_entries") < 16
    assert server.metric("nereid_cache_evictions_total", reason="full") > 0
    huge = np.zeros((1, 65536), np.float32) + next(numbers)
    result = client.infer("quick", quick(client, huge, few))
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), huge)


def test_inputs_in_shared_memory_are_what_they_were_when_they_came(server):
    array = unseen()
    # The keys are the machine's: another run of these tests may be beside this one.
    key = f"/nereid_cache_{uuid.uuid4().hex}"
    region = shared_memory.create_shared_memory_region("in", key, array.nbytes)
    try:
        with connect("grpc", server) as client:
            client.register_system_shared_memory("in", key, array.nbytes)
            place = client.tensor("INPUT0", "FP32", array)
            place.set_shared_memory("in", array.nbytes)

            def infer(values):
                shared_memory.set_shared_memory_region(region, [values])
                return client.infer("slow", [place]).as_numpy("OUTPUT0")

            first = array + 0
            counts = change(client, "slow", lambda: np.testing.assert_array_equal(infer(first), first))
            assert counts["misses"] == 1
            second = unseen()
            np.testing.assert_array_equal(infer(second), second)
            counts = change(client, "slow", lambda: np.testing.assert_array_equal(infer(first), first))
            assert counts["hits"] == 1
            client.unregister_system_shared_memory("in")
    finally:
        shared_memory.destroy_shared_memory_region(region)


def test_metrics_agree_with_the_statistics(client, server):
    names = {
        "hits": "nv_cache_num_hits_per_model",
        "misses": "nv_cache_num_misses_per_model",
        "success": "nv_inference_request_success",
        "executions": "nv_inference_exec_count",
    }
    counted = lambda: {name: server.metric(family, model="slow") for name, family in names.items()}
    array, before = unseen(), counted()
    infer = lambda: client.infer("slow", [client.tensor("INPUT0", "FP32", array)])
    # Statistics begin again with a reload, which metrics do not.
    changed = change(client, "slow", lambda: (infer(), infer(), infer()))
    assert {name: counted()[name] - before[name] for name in names} == {name: changed[name] for name in names}
    assert server.metric("nv_cache_miss_duration_per_model", model="slow") > 0


def test_an_ensemble_is_kept_as_a_whole_and_so_are_its_members(client):
    array = unseen()
    whole = lambda: client.infer("whole", [client.tensor("IN", "FP32", array)]).as_numpy("OUT")
    member = lambda: client.infer("step", [client.tensor("INPUT0", "FP32", array)]).as_numpy("OUTPUT0")
    before = stats(client, "step")
    counts = change(client, "whole", lambda: (np.testing.assert_array_equal(whole(), array), whole()))
    assert (counts["hits"], counts["misses"], counts["success"]) == (1, 1, 2)
    np.testing.assert_array_equal(member(), array)
    after = stats(client, "step")
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 1)
    # What was made with a member that is replaced is not given any more, once the ensemble has the new one.
    client.load_model("step", config=changed({}))
    wait_until(lambda: (whole(), stats(client, "step"))[1]["misses"] == 1)
    # Until then it keeps nothing.
    wait_until(lambda: change(client, "whole", whole).get("hits") == 1)


def test_a_model_that_does_not_ask_is_not_cached(client, server):
    array = unseen()
    infer = lambda: client.infer("uncached", [client.tensor("INPUT0", "FP32", array)])
    infer()
    assert change(client, "uncached", infer) == {"executions": 1, "inferences": 1, "success": 1, "computed": 1}
    assert server.metric("nv_cache_num_hits_per_model", model="uncached") == 0


def test_without_a_cache_the_model_is_served(repository):
    with Nereid(repository) as plain, connect("grpc", plain) as client:
        array = unseen()
        infer = lambda: client.infer("quick", quick(client, array))
        infer()
        assert change(client, "quick", infer)["executions"] == 1
        plain.log.flush()
        assert "--cache-config" in open(plain.log.name).read()
