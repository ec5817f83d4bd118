"""What each scheduler promises when a request is given up, late, too much, or drained, by each way that requests take.

A cell is a scheduler, an event and a way (`queues.WAYS`). In each, the one instance of the model is made busy, others
wait behind it, the event happens, and then: every request had the outcome that its client was promised, the metrics
count each once and for the right reason, the model executed what was answered and nothing more, and it works on.
"""

import copy
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from configs import REPEAT, chain, countdown, repeated
from nereid import Nereid, identity_config, parameter, total, wait_until, write_model
from protocols import connect
from queues import WAYS, Flight

# How long a request is executed.
EXECUTION_S = 0.5
# The requests that may wait behind it.
WAITING_MAX = 1
FULL = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"
STATUS = {FULL: "UNAVAILABLE", EXPIRED: "UNAVAILABLE", "late": "DEADLINE_EXCEEDED", "cancelled": "CANCELLED"}
# Who has closed the connection sees none.
HTTP_STATUS = {None: 200, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504, "CANCELLED": None}


def slow(part=1.0):
    """The parameter with which an execution takes this part of the time."""
    return parameter("identity.delay_us", int(EXECUTION_S * part * 1e6))


# The executions of a request to the iterative model. They are told by their time, so each has to be long.
STEPS = 2
DELAYS_MS = [int(EXECUTION_S * 1000) // 2] * 2


@dataclass(frozen=True)
class Scheduler:
    """A model with this scheduler: its name, its configuration, and what its requests are."""

    name: str
    config: str
    inputs: dict | None = None
    options: dict = field(default_factory=dict)
    # Each request is a sequence of its own.
    sequence: bool = False
    # The models that execute for it, the first of them first, and how often each does for a request.
    executing: tuple = ()
    executions: int = 1
    # How often each may execute for a request that is cancelled in its first execution, or soon after.
    begun: tuple = (1,)

    @property
    def models(self):
        return self.executing or (self.name,)

    @property
    def execution_us(self):
        return EXECUTION_S * 1e6 / self.executions / len(self.models)


def identity(extra):
    return identity_config(["FP32"], max_batch_size=1, extra=f"{slow()}{extra}")


ITERATIVE = countdown(max_batch_size=1, candidates=1, delay_us=int(EXECUTION_S / STEPS * 1e6))
ENSEMBLE = chain(["first", "second"], extra=parameter("ensemble.requests_max", 1 + WAITING_MAX))
LEVELS = "dynamic_batching { priority_levels: 2 default_priority_level: 1 }"
SCHEDULERS = [
    Scheduler("single", identity("")),
    Scheduler("dynamic", identity("dynamic_batching { }")),
    Scheduler("priorities", identity(LEVELS), options={"priority": 2}),
    Scheduler("direct", identity("sequence_batching { direct { } }"), sequence=True),
    Scheduler("oldest", identity("sequence_batching { oldest { max_candidate_sequences: 4 } }"), sequence=True),
    Scheduler("iterative", ITERATIVE, {"IN": ("INT32", np.array([[STEPS]], np.int32))}, executions=STEPS, begun=(STEPS - 1,)),
    Scheduler("ensemble", ENSEMBLE, executing=("first", "second"), begun=(1, 0)),
    Scheduler("decoupled", REPEAT, repeated([1, 2], DELAYS_MS), {"decoupled": True}, begun=(0,)),
]
# What there cannot be, and what says so.
IMPOSSIBLE = {("decoupled", "grpc"): "ModelInfer RPC doesn't support models with decoupled transaction policy"}
CELLS = [
    pytest.param(scheduler, way, id=f"{scheduler.name}-{way}")
    for scheduler in SCHEDULERS
    for way in WAYS
    if (scheduler.name, way) not in IMPOSSIBLE
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    for scheduler in SCHEDULERS:
        write_model(folder, scheduler.name, scheduler.config)
    for member in ("first", "second"):
        write_model(folder, member, identity_config(["FP32"], max_batch_size=1, extra=slow(0.5)))
    return folder


def serve(models):
    flags = ["--queue-size-default", str(WAITING_MAX), "--model-control-mode", "explicit", "--load-model", "*"]
    return Nereid(models, *flags)


@pytest.fixture(scope="module")
def server(models):
    with serve(models) as running:
        yield running


@pytest.fixture
def cell(server, scheduler, way):
    with Cell(server, scheduler, way) as each:
        yield each


class Counts:
    """What the server has counted; `since` gives what it has from then on."""

    def __init__(self, server, scheduler):
        self.samples, self.scheduler = server.samples(), scheduler

    def since(self, before):
        grown = copy.copy(self)
        grown.samples = {series: value - before.samples.get(series, 0) for series, value in self.samples.items()}
        return grown

    def total(self, name, **labels):
        return total(self.samples, name, **labels)

    @property
    def answered(self):
        return self.total("nv_inference_request_success", model=self.scheduler.name)

    @property
    def failed(self):
        """By reason."""
        begin = f'nereid_request_failures_total{{model="{self.scheduler.name}"'
        failed = {series: count for series, count in self.samples.items() if series.startswith(begin) and count}
        return {re.search(r'reason="(\w+)"', series)[1]: count for series, count in failed.items()}

    @property
    def executed(self):
        """The executions of each model that somebody waited for to the end."""
        return [self.total("nv_inference_exec_count", model=model) for model in self.scheduler.models]

    @property
    def ran(self):
        """All executions of each model, by the time that they took."""
        busy_us = [self.total("nereid_instance_busy_us_total", model=model) for model in self.scheduler.models]
        return [each // self.scheduler.execution_us for each in busy_us]

    @property
    def ended(self):
        """The ends of all requests."""
        names = ("nv_inference_request_success", "nereid_request_failures_total", "nereid_unrouted_requests_total")
        return sum(map(self.total, names))


class Cell:
    """The requests of one test, and what the server counts from its begin on."""

    sequences = itertools.count(1)

    def __init__(self, server, scheduler, way):
        self.server, self.scheduler, self.way = server, scheduler, way
        self.flight = Flight(way, server)
        self.before = Counts(server, scheduler)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.flight.close()

    def send(self, name, **options):
        scheduler = self.scheduler
        if scheduler.sequence:
            options |= {"sequence_id": next(self.sequences), "sequence_start": True, "sequence_end": True}
        self.flight.send(name, scheduler.name, inputs=scheduler.inputs, **scheduler.options, **options)

    def occupy(self):
        """Lets a request run, which is called "busy"."""
        self.send("busy")
        wait_until(lambda: self.server.metric("nereid_requests_running", model=self.scheduler.models[0]) == 1)

    def queue_up(self, name):
        """Lets a request wait behind it."""
        self.send(name)
        self.flight.wait_for_pending(self.scheduler.models[0], 1)

    def ends(self, **outcomes):
        """Waits for these ends, in this order, and holds what each client saw against its outcome."""
        ends = self.flight.timed_ends(len(outcomes))
        assert {name: end.outcome for name, end in ends.items()} == outcomes
        assert list(ends) == list(outcomes)
        for end in ends.values():
            assert end.status in statuses(end.outcome, self.way)

    def refusal(self, words):
        """What a client reads: a step's refusal says whose it is."""
        return f"in ensemble 'ensemble', {words}" if self.scheduler.name == "ensemble" else words

    def settle(self, answered, failed, or_failed=None, ran_for_nothing=()):
        """Each request has one outcome, what was answered was executed and nothing more, and the model works on.

        `ran_for_nothing` is how often each model may have executed what nobody waited for to the end."""
        # What was given up while it ran is counted when its execution ends.
        left = ("nereid_requests_in_flight", "nereid_requests_running", "nv_inference_pending_request_count")
        wait_until(lambda: not any(map(Counts(self.server, self.scheduler).total, left)))
        counts = Counts(self.server, self.scheduler).since(self.before)
        assert counts.answered == answered
        assert counts.failed in (failed, or_failed)
        assert counts.total("nereid_requests_received_total") == counts.ended
        executed = [answered * self.scheduler.executions for _ in self.scheduler.models]
        assert counts.executed == executed
        for ran, wanted, more in itertools.zip_longest(counts.ran, executed, ran_for_nothing, fillvalue=0):
            assert wanted <= ran <= wanted + more
        self.send("next")
        self.ends(next="answered")


def statuses(outcome, way):
    """How a way may say it: an error in a stream has no status, unless it ends the stream."""
    name = next((status for words, status in STATUS.items() if outcome.endswith(words)), None)
    if way == "http":
        return [HTTP_STATUS[name]]
    called = [name and f"StatusCode.{name}"]
    return called if way == "grpc" else [None, *called]


every = pytest.mark.parametrize("scheduler,way", CELLS)


@every
def test_a_request_that_is_cancelled_while_it_waits_is_never_executed(cell):
    cell.occupy()
    cell.queue_up("gone")
    cell.flight.cancel("gone")
    cell.ends(gone="cancelled", busy="answered")
    cell.settle(1, {"cancelled": 1})


@every
def test_a_request_that_is_cancelled_while_it_runs_runs_no_longer_than_its_execution(cell):
    cell.occupy()
    cell.flight.cancel("busy")
    cell.ends(busy="cancelled")
    cell.settle(0, {"cancelled": 1}, ran_for_nothing=cell.scheduler.begun)


@every
def test_a_request_ends_at_its_callers_deadline(cell):
    cell.occupy()
    cell.send("late", seconds=EXECUTION_S / 2)
    cell.ends(late="late", busy="answered")
    # gRPC's client ends its call at the same moment, and the server may hear of that first.
    cell.settle(1, {"deadline": 1}, {"cancelled": 1} if cell.way != "http" else None)


@every
def test_a_request_ends_at_its_queue_timeout(cell):
    cell.occupy()
    cell.send("late", timeout=int(EXECUTION_S * 1e6 / 4))
    cell.ends(late=cell.refusal(EXPIRED), busy="answered")
    cell.settle(1, {"timeout": 1})


@every
def test_more_than_may_wait_is_refused_at_once(cell):
    cell.occupy()
    cell.queue_up("waits")
    cell.send("too_much")
    cell.ends(too_much=FULL, busy="answered", waits="answered")
    cell.settle(2, {"queue_full": 1})


@every
def test_an_unload_answers_what_was_accepted(cell):
    cell.occupy()
    cell.queue_up("waits")
    with ThreadPoolExecutor() as pool, connect("grpc", cell.server) as control:
        unloaded = pool.submit(control.unload_model, cell.scheduler.name)
        cell.ends(busy="answered", waits="answered")
        unloaded.result(30)
        assert not control.is_model_ready(cell.scheduler.name)
        control.load_model(cell.scheduler.name)
    cell.settle(2, {})


@every
def test_a_stop_answers_what_was_accepted(models, scheduler, way):
    with serve(models) as server, Cell(server, scheduler, way) as cell, ThreadPoolExecutor() as pool:
        cell.occupy()
        cell.queue_up("waits")
        stopped = pool.submit(server.stop)
        cell.ends(busy="answered", waits="answered")
        assert stopped.result(30) == 0
        counted = re.search(r"received=(\d+) answered=(\d+) refused=0", Path(server.log.name).read_text())
        # Each step of an ensemble is a request, too.
        requests = 2 if len(scheduler.models) == 1 else 6
        assert counted.groups() == (f"{requests}", f"{requests}")


@pytest.mark.parametrize("scheduler,way,words", [(*cell, words) for cell, words in IMPOSSIBLE.items()])
def test_what_is_no_cell_is_refused(server, scheduler, way, words):
    (scheduler,) = [each for each in SCHEDULERS if each.name == scheduler]
    with Cell(server, scheduler, way) as cell:
        cell.send("refused")
        (end,) = cell.flight.timed_ends(1).values()
        assert (end.outcome, end.status) == (words, "StatusCode.UNIMPLEMENTED")
