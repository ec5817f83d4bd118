"""Requests in flight: sent one after the other, cancelled, and noted in the order of their ends, by each way there is.

Begin at `Flight`. The HTTP requests are written by hand, because Triton's HTTP client cannot cancel one.
"""

import contextlib
import http.client
import json
import queue
import re
import threading
import time
from dataclasses import dataclass

import tritonclient.grpc as grpcclient
from arrays import sample, tensor
from nereid import wait_until
from tritonclient.utils import InferenceServerException

PATIENCE_S = 30
# A call of gRPC, a stream of gRPC for each request, a request of HTTP.
WAYS = ["grpc", "stream", "http"]
# The outcome of a request whose caller's deadline passed, whoever ended it first.
LATE = re.compile("deadline", re.IGNORECASE)


@dataclass(frozen=True)
class End:
    """What became of a request: "answered", "cancelled", "late", or why it failed."""

    outcome: str
    # gRPC's name of it or HTTP's number; None in an answer of a stream, whose errors have none.
    status: str | int | None
    # Seconds since the first request was sent.
    after: float


class Flight:
    """Requests to one server."""

    def __init__(self, way, server):
        self.way = way
        self.server = server
        self.ended = queue.Queue()
        self.calls = {}
        self.noted = set()
        self.began = None
        self.grpc = grpcclient.InferenceServerClient(server.grpc)

    def send(self, name, model, width=2, rows=1, inputs=None, seconds=None, decoupled=False, **options):
        """Sends a request that is called `name`; `inputs` are arrays with their types by name, `seconds` is the
        caller's deadline."""
        self.began = self.began or time.monotonic()
        inputs = inputs or {"INPUT0": ("FP32", sample("FP32", [rows, width]))}
        if self.way == "http":
            self._send_http(name, model, inputs, seconds, decoupled, options)
            return
        note = lambda result, error: self._note_grpc(name, result, error)  # noqa: E731
        tensors = [tensor(each, dtype, array) for each, (dtype, array) in inputs.items()]
        if self.way == "grpc":
            self.calls[name] = self.grpc.async_infer(model, tensors, note, client_timeout=seconds, **options)
            return
        self.calls[name] = grpcclient.InferenceServerClient(self.server.grpc)
        self.calls[name].start_stream(note, stream_timeout=seconds)
        # A stream whose time is over already takes no request; its end is noted all the same.
        with contextlib.suppress(InferenceServerException):
            self.calls[name].async_stream_infer(model, tensors, enable_empty_final_response=True, **options)

    def cancel(self, name):
        """Ends the call from the client's side, which is noted as "cancelled": over HTTP it closes the connection."""
        call = self.calls[name]
        if self.way == "grpc":
            call.cancel()
        elif self.way == "stream":
            call.stop_stream(cancel_requests=True)
        elif call.sock:
            # It may have been answered, and closed, at this moment.
            with contextlib.suppress(OSError):
                call.sock.shutdown(2)

    def timed_ends(self, count):
        """The next ends, by name in their order."""
        return dict(self.ended.get(timeout=PATIENCE_S) for _ in range(count))

    def ends(self, count):
        """The next ends: names with outcomes, in their order."""
        return [(name, end.outcome) for name, end in self.timed_ends(count).items()]

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
        if self.way != "grpc":
            for call in self.calls.values():
                call.close()

    def _send_http(self, name, model, inputs, seconds, decoupled, options):
        call = http.client.HTTPConnection(self.server.http, timeout=PATIENCE_S)
        if decoupled:
            path, body = "generate_stream", {each: array.tolist() for each, (_, array) in inputs.items()}
        else:
            tensors = [
                {"name": each, "datatype": dtype, "shape": array.shape, "data": array.flatten().tolist()}
                for each, (dtype, array) in inputs.items()
            ]
            path, body = "infer", {"inputs": tensors}
        headers = {} if seconds is None else {"x-envoy-expected-rq-timeout-ms": str(round(seconds * 1000))}
        call.request("POST", f"/v2/models/{model}/{path}", json.dumps(body | {"parameters": options}), headers)
        self.calls[name] = call
        threading.Thread(target=self._read, args=(name, call), daemon=True).start()

    def _read(self, name, call):
        try:
            response = call.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            self._note(name, "cancelled", None)
            return
        error = re.search(rb'(?<="error":")[^"]*', body)
        self._note(name, error[0].decode() if error else "answered", response.status)

    def _note_grpc(self, name, result, error):
        if error is None:
            final = result.get_response().parameters["triton_final_response"].bool_param
            if self.way == "grpc" or final:
                self._note(name, "answered", None)
        elif "CANCELLED" in str(error.status()):
            self._note(name, "cancelled", error.status())
        else:
            self._note(name, error.message(), error.status())

    def _note(self, name, outcome, status):
        if name in self.noted:
            # A stream ends once more when its time is over.
            return
        self.noted.add(name)
        outcome = "late" if LATE.search(outcome) else outcome
        self.ended.put((name, End(outcome, status, time.monotonic() - self.began)))
