"""Requests in flight over either protocol: sent one after the other, cancelled, and noted in the order of their ends.

Begin at `Flight`. The HTTP requests are written by hand, because Triton's HTTP client cannot cancel one.
"""

import http.client
import json
import queue
import threading
import time

import tritonclient.grpc as grpcclient
from arrays import sample, tensor
from nereid import wait_until

PATIENCE_S = 30


class Flight:
    """Requests to one server."""

    def __init__(self, protocol, server):
        self.protocol = protocol
        self.server = server
        self.ended = queue.Queue()
        self.calls = {}
        self.began = None
        self.grpc = grpcclient.InferenceServerClient(server.grpc)

    def send(self, name, model, width=2, rows=1, seconds=None, **options):
        """Sends a request that is called `name`; `seconds` is the caller's deadline, which only gRPC has."""
        self.began = self.began or time.monotonic()
        if self.protocol == "grpc":
            inputs = [tensor("INPUT0", "FP32", sample("FP32", [rows, width]))]
            note = lambda result, error: self._note(name, grpc_outcome(error))  # noqa: E731
            self.calls[name] = self.grpc.async_infer(model, inputs, note, client_timeout=seconds, **options)
            return
        call = http.client.HTTPConnection(self.server.http, timeout=PATIENCE_S)
        data = [0.0] * (rows * width)
        body = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [rows, width], "data": data}]}
        call.request("POST", f"/v2/models/{model}/infer", json.dumps(body | {"parameters": options}))
        self.calls[name] = call
        threading.Thread(target=self._read, args=(name, call), daemon=True).start()

    def cancel(self, name):
        """Ends the call from the client's side; its end is noted as "cancelled"."""
        call = self.calls[name]
        if self.protocol == "grpc":
            call.cancel()
        else:
            call.sock.shutdown(2)

    def ends(self, count):
        """The next ends: names with outcomes, in their order."""
        return [self.ended.get(timeout=PATIENCE_S)[:2] for _ in range(count)]

    def timed_ends(self, count):
        """The next ends with their times since the first was sent, by name."""
        ended = [self.ended.get(timeout=PATIENCE_S) for _ in range(count)]
        return {name: (outcome, after) for name, outcome, after in ended}

    def wait_for_pending(self, model, count):
        """Waits until so many requests of a model wait in its queue."""
        wait_until(lambda: self.server.metric("nv_inference_pending_request_count", model=model) == count)

    def stats(self, model):
        """The statistics of a model's only version."""
        (stats,) = self.grpc.get_inference_statistics(model).model_stats
        return stats

    def close(self):
        """Gives the connections back."""
        self.grpc.close()
        if self.protocol == "http":
            for call in self.calls.values():
                call.close()

    def _read(self, name, call):
        try:
            response = call.getresponse()
            body = response.read()
            outcome = "answered" if response.status == 200 else json.loads(body)["error"]
        except (OSError, http.client.HTTPException):
            outcome = "cancelled"
        self._note(name, outcome)

    def _note(self, name, outcome):
        self.ended.put((name, outcome, time.monotonic() - self.began))


def grpc_outcome(error):
    """What a call led to, as over HTTP."""
    if error is None:
        return "answered"
    if "CANCELLED" in str(error.status()):
        return "cancelled"
    return "late" if "DEADLINE_EXCEEDED" in str(error.status()) else error.message()
