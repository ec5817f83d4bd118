"""A server that speaks S3, for tests: moto's, with a record of requests, and with faults on demand.

Runs in the environment that scripts/setup-remote makes. Prints its port; ends with its standard input.
`GET /_requests` gives what was asked since the last time, `POST /_faults` says what goes wrong from then on:
[{"path": part of a path, "times": number, "how": "status", "cut", "garble" or "stall"}].
"""

import json
import sys
import threading
from urllib.parse import quote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response


ANYBODY = "AWS4-HMAC-SHA256 Credential=x/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x"


class Recording:
    """The application of moto, its requests recorded, some of them answered wrongly."""

    def __init__(self, application):
        self.application = application
        self.lock = threading.Lock()
        self.requests, self.faults = [], []

    def __call__(self, environment, start_response):
        request = Request(environment)
        if request.path == "/_requests":
            with self.lock:
                text, self.requests = json.dumps(self.requests), []
            return Response(text)(environment, start_response)
        if request.path == "/_faults":
            with self.lock:
                self.faults = json.loads(request.get_data())
            return Response("")(environment, start_response)
        fault = self.next_fault(request)
        if "Authorization" not in request.headers:
            # As Google's clients ask for what is public: escaped through and through, which moto does not undo.
            environment["HTTP_AUTHORIZATION"] = ANYBODY
            raw = quote(environment["PATH_INFO"]) + "?" + environment["QUERY_STRING"]
            environment["RAW_URI"] = environment["REQUEST_URI"] = raw
        if fault == "status":
            return Response("<Error><Code>SlowDown</Code></Error>", status=503)(environment, start_response)
        if fault is None:
            return self.application(environment, start_response)
        return self.wrong(fault, environment, start_response)

    def next_fault(self, request):
        listing = "list-type" in request.args
        with self.lock:
            if request.method in ("GET", "HEAD") and not request.path.startswith("/moto-api"):
                self.requests.append(("LIST" if listing else request.method, request.path))
            for fault in self.faults:
                if fault["path"] in request.path and request.method == "GET" and not listing and fault["times"] > 0:
                    fault["times"] -= 1
                    return fault["how"]
        return None

    def wrong(self, fault, environment, start_response):
        response = Response.from_app(self.application, environment)
        body = response.get_data()
        if fault == "garble":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault in ("cut", "stall"):
            # The length is promised and not kept: the connection ends in the middle, or never.
            start_response(response.status, list(response.headers))
            return half(body, threading.Event() if fault == "stall" else None)
        response.data = body
        return response(environment, start_response)


def half(body, ended):
    """The first half of `body`, and then nothing until `ended`."""
    yield body[: len(body) // 2]
    if ended:
        ended.wait()


def main():
    application = Recording(DomainDispatcherApplication(create_backend_app))
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)
    print(server.port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
