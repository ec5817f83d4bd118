"""Sequences of requests: order, state, and what becomes of a sequence when one of its requests is given up, over each protocol.

The model `slow` takes `SLOW_S` for each request and has one slot.
"""

import queue
import shutil
import time

import numpy as np
import pytest
from configs import countdown
from nereid import ROOT, Nereid, wait_until, write_model
from protocols import PROTOCOLS, connect
from tritonclient.utils import InferenceServerException

SLOW_S = 0.6
IDLE_S = 0.5
QUEUE_MAX = 4
EXAMPLES = ["accumulator", "simple_sequence", "simple_dyna_sequence", "simple_string_dyna_sequence"]

ONE_SLOT = f"""
backend: "identity"
max_batch_size: 1
input [ {{ name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }} ]
sequence_batching {{ max_sequence_idle_microseconds: {int(IDLE_S * 1e6)} }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "identity.delay_us" value {{ string_value: "{int(SLOW_S * 1e6)}" }} }}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    for example in EXAMPLES:
        shutil.copytree(ROOT / "model_repository" / example, folder / example)
    write_model(folder, "slow", ONE_SLOT)
    write_model(folder, "countdown", countdown())
    write_model(folder, "tokens", countdown() + "model_transaction_policy { decoupled: true }\n")
    return folder


@pytest.fixture(scope="module")
def server(models):
    with Nereid(models, "--queue-size-default", str(QUEUE_MAX)) as running:
        yield running


@pytest.fixture(params=PROTOCOLS)
def either(request, server):
    with connect(request.param, server) as connected:
        yield connected


@pytest.fixture
def grpc_client(server):
    with connect("grpc", server) as connected:
        yield connected


@pytest.fixture(autouse=True)
def settled(server):
    """No test finds what another one left: sequences that are over in the end, requests that still run."""
    yield
    with connect("grpc", server) as client:
        arrived(server, 0, 0)
        for sequence in (71, 72):
            client.infer("slow", [ints(client, [[0]])], sequence_id=sequence, sequence_start=True, sequence_end=True)


def ints(client, values, name="IN"):
    return client.tensor(name, "INT32", np.array(values, dtype=np.int32))


def pending(server):
    return server.metric("nv_inference_pending_request_count", model="slow")


def arrived(server, running, waiting):
    """Waits until so many requests are there, of which so many wait."""
    in_flight = lambda: server.metric("nereid_requests_in_flight")
    wait_until(lambda: in_flight() == running + waiting and pending(server) == waiting)


def refused(client, status, words, *arguments, **options):
    """An inference is refused with this status, and with these words in its message."""
    with pytest.raises(InferenceServerException) as error:
        client.infer(*arguments, **options)
    assert error.value.status() == client.status(status)
    assert words in error.value.message()


def assert_over(client, sequence):
    """A sequence of `slow` has ended: another request of it would have to begin one."""
    refused(client, "INVALID_ARGUMENT", "START", "slow", [ints(client, [[1]])], sequence_id=sequence)


def accumulate(client, sequence, values, start=True, end=True):
    sums = []
    for index, value in enumerate(values):
        inputs = [client.tensor("INPUT__0", "FP32", np.full([1, 4], value, dtype=np.float32))]
        flags = {"sequence_start": start and index == 0, "sequence_end": end and index + 1 == len(values)}
        result = client.infer("accumulator", inputs, sequence_id=sequence, **flags)
        assert [output.name for output in result.get_response().outputs] == ["OUTPUT__0"]
        sums.append(float(result.as_numpy("OUTPUT__0")[0, 3]))
    return sums


@pytest.mark.parametrize("sequence", [5, "a text"])
def test_state_is_kept_for_a_sequence_and_never_sent(either, sequence):
    assert accumulate(either, sequence, [1, 2, 3], end=False) == [1, 3, 6]
    assert accumulate(either, "another", [10, 20]) == [10, 30]
    assert accumulate(either, sequence, [4], start=False) == [10]
    assert accumulate(either, sequence, [1, 1]) == [1, 2]


def test_requests_of_many_sequences_on_one_stream_keep_their_order(server):
    answers = queue.Queue()
    values = list(range(1, 21))
    with connect("grpc", server) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)))
        expected = {}
        for number, value in enumerate(values):
            # No more than may wait.
            for sequence in (101, 102):
                inputs = [streaming.tensor("INPUT__0", "FP32", np.full([1, 4], value * sequence, dtype=np.float32))]
                flags = {"sequence_start": number == 0, "sequence_end": number + 1 == len(values)}
                streaming.async_stream_infer(
                    "accumulator", inputs, request_id=f"{sequence}", sequence_id=sequence, **flags
                )
            for _ in range(2):
                result, error = answers.get(timeout=30)
                assert error is None
                sequence = int(result.get_response().id)
                expected[sequence] = expected.get(sequence, 0) + value * sequence
                assert result.as_numpy("OUTPUT__0")[0, 0] == expected[sequence]
        streaming.stop_stream()


def test_what_is_wrong_is_said_in_the_words_that_clients_know(either):
    one, text = [ints(either, [[1]])], [ints(either, [[1]], "INPUT")]
    words = "inference request for sequence 9 to model 'slow' must specify the START flag on the first request of the sequence"
    refused(either, "INVALID_ARGUMENT", words, "slow", one, sequence_id=9)
    words = "inference request to model 'slow' must specify a non-zero or non-empty correlation ID"
    refused(either, "INVALID_ARGUMENT", words, "slow", one)
    words = "must specify batch-size 1 due to requirements of sequence batcher"
    two = [ints(either, [[1], [2]], "INPUT")]
    refused(either, "INVALID_ARGUMENT", words, "simple_sequence", two, sequence_id=1, sequence_start=True)
    words = "sequence batching control 'CORRID' data-type is 'BYTES', but model 'simple_dyna_sequence' expects 'INT64'"
    refused(either, "INVALID_ARGUMENT", words, "simple_dyna_sequence", text, sequence_id="x", sequence_start=True)


def test_an_idle_sequence_is_over(either):
    inputs = [ints(either, [[1]])]
    either.infer("slow", inputs, sequence_id=3, sequence_start=True)
    began = time.monotonic()
    # The next one waits until the slot is free.
    either.infer("slow", inputs, sequence_id=4, sequence_start=True, sequence_end=True)
    # Less than the default of a second.
    assert IDLE_S - 0.05 < time.monotonic() - began - SLOW_S < IDLE_S + 0.45
    assert_over(either, 3)


class Sender:
    """Sends requests to `slow` without waiting, and tells what became of them."""

    def __init__(self, client):
        self.client, self.answers = client, queue.Queue()
        self.sent = 0

    def send(self, **arguments):
        self.sent += 1
        note = lambda result, error, number=self.sent: self.answers.put((number, error))
        return self.client.async_infer("slow", [ints(self.client, [[1]])], note, **arguments)

    def outcomes(self):
        ended = dict(self.answers.get(timeout=30) for _ in range(self.sent))
        return [ended[number] and ended[number].status() for number in range(1, self.sent + 1)]


class Occupied(Sender):
    """The one slot of `slow` is taken by a sequence whose request runs, and another waits behind it."""

    def __init__(self, client, server):
        super().__init__(client)
        self.runs = self.send(sequence_id=1, sequence_start=True)
        arrived(server, 1, 0)
        self.behind = self.send(sequence_id=1)
        arrived(server, 1, 1)


@pytest.fixture
def occupied(grpc_client, server):
    return Occupied(grpc_client, server)


def test_cancelling_a_request_that_waits_ends_its_sequence_and_no_other(occupied, server):
    # Calls that are sent at once may arrive in any order.
    occupied.send(sequence_id=2, sequence_start=True)
    arrived(server, 1, 2)
    occupied.send(sequence_id=2, sequence_end=True)
    arrived(server, 1, 3)
    occupied.behind.cancel()
    outcomes = occupied.outcomes()
    assert outcomes == [None, "StatusCode.CANCELLED", None, None]
    assert_over(occupied.client, 1)


def test_cancelling_the_request_that_runs_fails_those_behind_it(occupied):
    occupied.runs.cancel()
    assert occupied.outcomes() == ["StatusCode.CANCELLED", "StatusCode.CANCELLED"]


def test_a_deadline_that_passes_ends_the_sequence_in_time(grpc_client, server):
    sender = Sender(grpc_client)
    # The slot is kept for a sequence that is idle, so nothing foretells that the next one will be late.
    grpc_client.infer("slow", [ints(grpc_client, [[1]])], sequence_id=1, sequence_start=True)
    began = time.monotonic()
    sender.send(sequence_id=2, sequence_start=True, client_timeout=1.5 * SLOW_S)
    arrived(server, 0, 1)
    sender.send(sequence_id=2)
    assert sender.outcomes() == ["StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED"]
    assert time.monotonic() - began < 2 * SLOW_S + 0.2


def test_a_queue_timeout_ends_the_sequence(occupied, either):
    began = time.monotonic()
    late = {"sequence_id": 2, "sequence_start": True, "timeout": 100_000}
    refused(either, "UNAVAILABLE", "Request timeout expired", "slow", [ints(either, [[1]])], **late)
    assert time.monotonic() - began < SLOW_S
    assert_over(either, 2)
    assert occupied.outcomes() == [None, None]


def test_a_request_of_an_iterative_model_is_executed_until_it_is_done(either):
    result = either.infer("countdown", [ints(either, [[7]])])
    assert result.as_numpy("OUT").tolist() == [[0]]
    (stats,) = either.get_inference_statistics("countdown").model_stats
    assert int(stats.execution_count) % 7 == 0
    assert int(stats.execution_count) == 7 * int(stats.inference_count)


def test_each_step_of_a_decoupled_iterative_model_is_a_response_and_requests_share_steps(server, grpc_client):
    answers = queue.Queue()
    with connect("grpc", server) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)))
        for name, steps in [("long", 30), ("short", 5)]:
            streaming.async_stream_infer("tokens", [ints(streaming, [[steps]])], request_id=name)
        got = {"long": [], "short": []}
        final = set()
        while len(final) < 2:
            result, error = answers.get(timeout=30)
            assert error is None
            response = result.get_response()
            if response.outputs:
                got[response.id].append(int(result.as_numpy("OUT")[0, 0]))
            if response.parameters["triton_final_response"].bool_param:
                final.add(response.id)
        streaming.stop_stream()
    assert got == {"long": list(range(29, -1, -1)), "short": list(range(4, -1, -1))}
    (stats,) = grpc_client.get_inference_statistics("tokens").model_stats
    assert stats.execution_count < 35, "steps are shared"


@pytest.mark.parametrize("dyna", [False, True])
def test_the_models_of_the_client_libraries_examples_answer_as_these_expect(either, dyna):
    model = "simple_dyna_sequence" if dyna else "simple_sequence"

    def ask(model, sequence, values):
        answered = []
        for index, value in enumerate(values):
            flags = {"sequence_start": index == 0, "sequence_end": index + 1 == len(values)}
            result = either.infer(model, [ints(either, [[value]], "INPUT")], sequence_id=sequence, **flags)
            answered.append(int(result.as_numpy("OUTPUT")[0, 0]))
        return answered

    assert ask(model, 1000, [0, 11, 7, 1]) == [1, 11, 7, 1001 if dyna else 1]
    if dyna:
        assert ask("simple_string_dyna_sequence", "1002", [20, -11, -7, -1]) == [20, 9, 2, 1 + 1002]
    else:
        assert ask(model, "4f7c-9d", [20, -11, -1]) == [21, -11, -1]
