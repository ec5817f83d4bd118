"""Priority levels, queue policies, delay and order over both protocols, and what is particular to them when requests
are given up, late, too much or drained; what is promised everywhere stands in test_matrix.py. One execution takes `EXECUTION_MS`, so that what waits can be arranged behind one that runs."""

import time
from threading import Thread

import pytest
from nereid import Nereid, identity_config, parameter, wait_until, write_model
from protocols import PROTOCOLS
from queues import Flight

EXECUTION_MS = 600
FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"

SLOW = parameter("identity.delay_us", EXECUTION_MS * 1000)
LEVELED = """dynamic_batching {
  priority_levels: 3 default_priority_level: 2
  default_queue_policy { allow_timeout_override: true }
  priority_queue_policy { key: 3 value {
    max_queue_size: 2 default_timeout_microseconds: 20000000 allow_timeout_override: true } }
}"""
DELAYING = """dynamic_batching { default_queue_policy {
  timeout_action: DELAY default_timeout_microseconds: 300000 max_queue_size: 3 } }"""
# The first request waits for others while batches of another shape, which are full, run.
ORDERED = """dynamic_batching {
  preserve_ordering: true max_queue_delay_microseconds: 600000
  default_queue_policy { max_queue_size: 4 allow_timeout_override: true } }"""
GROW_S = 0.6
SHARED = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }\n" + parameter("priority.weights", "3,1")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queues")
    write_model(folder, "leveled", identity_config(["FP32"], 1, extra=f"{LEVELED} {SLOW}"))
    write_model(folder, "delaying", identity_config(["FP32"], 1, extra=f"{DELAYING} {SLOW}"))
    write_model(folder, "ordered", identity_config(["FP32"], 2, extra=ORDERED))
    write_model(folder, "shared", identity_config(["FP32"], 4, extra=SHARED))
    write_model(folder, "plain", identity_config(["FP32"], 8, extra="dynamic_batching { }"))
    return folder


@pytest.fixture
def serving(models):
    with Nereid(models) as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def flight(request, serving):
    flown = Flight(request.param, serving)
    yield flown
    flown.close()


def occupy(flight, model):
    """Lets the model's only instance run a request, which is called "busy"."""
    flight.send("busy", model)
    wait_until(lambda: flight.server.metric("nereid_requests_received_total") == 1)
    # Between its arrival and the queue are microseconds, and a look takes longer.
    flight.wait_for_pending(model, 0)
    flight.wait_for_pending(model, 0)


def queue_up(flight, model, *requests):
    """Sends requests, each a name and its options, so that they arrive in this order."""
    before = int(flight.server.metric("nv_inference_pending_request_count", model=model))
    for number, (name, options) in enumerate(requests):
        flight.send(name, model, **options)
        flight.wait_for_pending(model, before + number + 1)


def let_timeouts_pass():
    """Waits until what has arrived at the model `delaying` is delayed."""
    since = time.monotonic()
    wait_until(lambda: time.monotonic() - since > 0.35)


def check_counters(flight, model, answered, failed):
    """Every request has one outcome, and nothing is left over."""
    wait_until(lambda: flight.server.metric("nereid_requests_in_flight") == 0)
    assert flight.server.metric("nv_inference_request_success", model=model) == answered
    assert flight.server.metric("nereid_request_failures_total", model=model) == failed
    assert flight.server.metric("nereid_requests_received_total") == answered + failed
    assert flight.server.metric("nv_inference_pending_request_count", model=model) == 0
    assert flight.stats(model).inference_stats.success.count == answered


def drain(flight, serving, names):
    """Stops the server; all of these are answered, in this order if it is a list."""
    ended = []
    stop = Thread(target=lambda: ended.append(serving.stop()))
    stop.start()
    ends = flight.ends(len(names))
    stop.join()
    assert {outcome for _, outcome in ends} == {"answered"}
    assert isinstance(names, set) or [name for name, _ in ends] == names
    assert ended == [0]


def test_higher_levels_are_served_first(flight):
    occupy(flight, "leveled")
    wanted = [("low", 3), ("default", 0), ("unknown", 9), ("high", 1)]
    queue_up(flight, "leveled", *((name, {"priority": level}) for name, level in wanted))
    answered = [(name, "answered") for name in ("busy", "high", "default", "unknown", "low")]
    assert flight.ends(5) == answered
    check_counters(flight, "leveled", 5, 0)


def test_a_level_has_a_bound_of_its_own_and_who_is_cancelled_makes_room(flight):
    occupy(flight, "leveled")
    queue_up(flight, "leveled", ("gone", {"priority": 3}), ("low", {"priority": 3}))
    flight.send("too much", "leveled", priority=3)
    assert flight.ends(1) == [("too much", FULL)]
    flight.cancel("gone")
    flight.wait_for_pending("leveled", 1)
    queue_up(flight, "leveled", ("high", {"priority": 1}), ("again", {"priority": 3}))
    ends = [("gone", "cancelled"), *((name, "answered") for name in ("busy", "high", "low", "again"))]
    assert flight.ends(5) == ends
    check_counters(flight, "leveled", 4, 2)


def test_levels_drain(flight, serving):
    occupy(flight, "leveled")
    queue_up(flight, "leveled", ("low", {"priority": 3}), ("high", {"priority": 1}))
    drain(flight, serving, ["busy", "high", "low"])


def test_a_delayed_request_is_answered_behind_those_that_are_in_time(flight):
    occupy(flight, "delaying")
    queue_up(flight, "delaying", ("delayed", {}))
    let_timeouts_pass()
    queue_up(flight, "delaying", ("in time", {}))
    assert flight.ends(3) == [(name, "answered") for name in ("busy", "in time", "delayed")]
    check_counters(flight, "delaying", 3, 0)


def test_delayed_requests_are_cancelled_and_take_room(flight):
    occupy(flight, "delaying")
    queue_up(flight, "delaying", ("gone", {}), ("late", {"seconds": 0.5}), ("delayed", {}))
    let_timeouts_pass()
    flight.send("too much", "delaying")
    assert flight.ends(1) == [("too much", FULL)]
    flight.cancel("gone")
    assert flight.ends(1) == [("gone", "cancelled")]
    assert flight.ends(3) == [("late", "late"), ("busy", "answered"), ("delayed", "answered")]
    check_counters(flight, "delaying", 2, 3)


def test_delayed_requests_drain(flight, serving):
    occupy(flight, "delaying")
    queue_up(flight, "delaying", ("delayed", {}), ("other", {}))
    let_timeouts_pass()
    drain(flight, serving, ["busy", "delayed", "other"])


def send_ordered(flight, first=None, others=None):
    """A request that waits to grow, and behind it two full batches that run at once."""
    flight.send("first", "ordered", width=2, **(first or {}))
    flight.wait_for_pending("ordered", 1)
    for name in ("second", "third"):
        executed = flight.stats("ordered").execution_count
        flight.send(name, "ordered", width=3, rows=2, **(others or {}))
        wait_until(lambda: flight.stats("ordered").execution_count == executed + 1)


def test_answers_leave_in_the_order_of_arrival(flight):
    send_ordered(flight)
    ends = flight.timed_ends(3)
    assert {name: end.outcome for name, end in ends.items()} == dict.fromkeys(("first", "second", "third"), "answered")
    # They leave one behind the other at the same moment, so that the client's threads may note them in any order.
    assert min(end.after for end in ends.values()) >= GROW_S * 0.9, "none before the first"
    check_counters(flight, "ordered", 3, 0)


def test_a_cancelled_request_holds_no_answer_back(flight):
    send_ordered(flight)
    flight.cancel("first")
    ends = flight.timed_ends(3)
    assert {name: end.outcome for name, end in ends.items()} == {
        "first": "cancelled",
        "second": "answered",
        "third": "answered",
    }
    assert max(end.after for end in ends.values()) < GROW_S
    check_counters(flight, "ordered", 2, 1)


def test_a_late_request_holds_no_answer_back(flight):
    send_ordered(flight, {"timeout": 200_000})
    ends = flight.timed_ends(3)
    assert {name: end.outcome for name, end in ends.items()} == {
        "first": EXPIRED,
        "second": "answered",
        "third": "answered",
    }
    assert max(end.after for end in ends.values()) < GROW_S
    check_counters(flight, "ordered", 2, 1)


def test_a_deadline_is_kept_while_the_answer_waits_for_its_turn(flight):
    send_ordered(flight, others={"seconds": 0.3})
    ends = flight.timed_ends(3)
    assert {name: end.outcome for name, end in ends.items()} == {"second": "late", "third": "late", "first": "answered"}
    assert max(ends["second"].after, ends["third"].after) < GROW_S <= ends["first"].after + 0.05
    check_counters(flight, "ordered", 1, 2)


def test_answers_that_wait_for_their_turn_take_room(flight):
    send_ordered(flight)
    flight.send("fourth", "ordered", width=3, rows=2)
    wait_until(lambda: flight.stats("ordered").execution_count == 3)
    flight.send("too much", "ordered", width=3, rows=2)
    assert flight.ends(1) == [("too much", FULL)]
    assert dict(flight.ends(4)) == dict.fromkeys(("first", "second", "third", "fourth"), "answered")
    check_counters(flight, "ordered", 4, 1)


def test_order_is_kept_by_a_drain(flight, serving):
    send_ordered(flight)
    drain(flight, serving, {"first", "second", "third"})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_held_scheduler_makes_batches_repeatable(models, protocol):
    with Nereid(models, environment={"TRITONSERVER_DELAY_SCHEDULER": "4"}) as serving:
        flight = Flight(protocol, serving)
        queue_up(flight, "plain", ("gone", {}), ("late", {"seconds": 0.2}))
        flight.cancel("gone")
        assert dict(flight.ends(2)) == {"gone": "cancelled", "late": "late"}
        # The server may hear of it after the client has.
        flight.wait_for_pending("plain", 0)
        queue_up(flight, "plain", ("1", {}), ("2", {}), ("3", {}))
        flight.send("4", "plain")
        assert {outcome for _, outcome in flight.ends(4)} == {"answered"}
        assert [(batch.batch_size, batch.compute_infer.count) for batch in flight.stats("plain").batch_stats] == [(4, 1)]
        flight.send("free", "plain")
        assert flight.ends(1) == [("free", "answered")]
        flight.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_held_scheduler_lets_go_when_the_server_stops(models, protocol):
    with Nereid(models, environment={"TRITONSERVER_DELAY_SCHEDULER": "4"}) as serving:
        flight = Flight(protocol, serving)
        queue_up(flight, "plain", ("1", {}), ("2", {}))
        drain(flight, serving, {"1", "2"})


def test_levels_with_shares_fill_batches_by_them(models):
    with Nereid(models, environment={"TRITONSERVER_DELAY_SCHEDULER": "8"}) as serving:
        flight = Flight("grpc", serving)
        waiting = [(f"{level}-{number}", {"priority": level}) for level in (2, 1) for number in range(4)]
        for name, options in waiting:
            flight.send(name, "shared", **options)
        assert {outcome for _, outcome in flight.ends(8)} == {"answered"}
        batches = {batch.batch_size: batch.compute_infer.count for batch in flight.stats("shared").batch_stats}
        assert batches == {4: 2}
        flight.close()
