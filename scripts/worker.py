"""One thread of the soak: it sends requests of one kind until it is told to end, and keeps what became of them.

Begin at `Worker`; the kinds of work stand in `workers.py`.
"""

import collections
import random
import threading
import traceback

import trial

import numpy as np  # noqa: E402
import tritonclient.grpc as grpcclient  # noqa: E402
import tritonclient.http as httpclient  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

# Nobody waits longer than this for an outcome; whoever has to has lost a request.
LOST_AFTER_S = 60


class Tally:
    """What became of the requests of one worker."""

    def __init__(self):
        self.sent = self.answered = self.unsure = self.lost = 0
        self.refused = collections.Counter()
        self.wrong = []

    def add(self, other):
        self.sent += other.sent
        self.answered += other.answered
        self.unsure += other.unsure
        self.lost += other.lost
        self.refused.update(other.refused)
        self.wrong += other.wrong


class Worker(threading.Thread):
    """Does one kind of work until it is told to end; a subclass says what."""

    model = ""
    # Models that answer for it what it asks, each request once.
    members = ()
    protocols = ("grpc", "http")
    # Refusals that belong to the work; any other makes the run fail.
    expected = ()

    def __init__(self, server, protocol, seed, seconds):
        super().__init__(daemon=True, name=f"{self.model}-{protocol}")
        self.server, self.protocol, self.seconds, self.tally = server, protocol, seconds, Tally()
        self.random, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.ended = threading.Event()
        self.module = grpcclient if protocol == "grpc" else httpclient

    @classmethod
    def write(cls, folder):
        """Writes the models into a repository."""
        raise NotImplementedError

    def run(self):
        try:
            with self.connect() as self.client:
                self.begin()
                while not self.ended.is_set():
                    self.work()
                self.end()
        except Exception:  # noqa: BLE001 (whatever it is, the run has failed)
            self.tally.wrong.append(traceback.format_exc(limit=3))

    def connect(self):
        if self.protocol == "grpc":
            return trial.grpc_client(self.server)
        return httpclient.InferenceServerClient(
            self.server.http, network_timeout=LOST_AFTER_S, connection_timeout=LOST_AFTER_S
        )

    def begin(self):
        pass

    def work(self):
        """One request or a few."""
        raise NotImplementedError

    def end(self):
        pass

    def array(self):
        return self.numbers.random((1, 16), dtype=np.float32)

    def tensor(self, name, array, dtype="FP32"):
        return self.module.InferInput(name, list(array.shape), dtype).set_data_from_numpy(array)

    def ask(self, inputs, expected, **options):
        """One request, whose outputs must be `expected`. Whether it was answered."""
        self.tally.sent += 1
        if self.protocol == "grpc":
            options.setdefault("client_timeout", LOST_AFTER_S)
        try:
            result = self.client.infer(self.model, inputs, **options)
        except InferenceServerException as error:
            if "DEADLINE_EXCEEDED" in str(error.status()):
                self.tally.lost += 1
            self.refused(error.message())
            return False
        except TimeoutError:
            self.tally.lost += 1
            return False
        self.tally.answered += 1
        for name, array in expected.items():
            self.check(result.as_numpy(name), array)
        return True

    def check(self, found, *expected):
        """Whatever it is, it must be one of these."""
        if not any(np.array_equal(found, each) for each in expected):
            self.tally.wrong.append(f"{self.name}: {found} instead of {expected}"[:300])

    def refused(self, text):
        known = next((words for words in self.expected if words in text), None)
        self.tally.refused[known or text[:80]] += 1
        if known is None:
            self.tally.wrong.append(f"{self.name}: refused: {text}"[:300])
