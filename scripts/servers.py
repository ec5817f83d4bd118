"""A server as its measurements see it: its addresses, its health, its counts, and what its processes take.

Begin at `start`, or at `Server` for one that somebody else has started. It knows no kind of server: whatever answers by
Triton's HTTP protocol can be measured.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
LOOPBACK = "127.0.0.1"
START_MAX_S = 120
STOP_MAX_S = 60
POLL_S = 0.001


@dataclass
class Server:
    """A server that answers at `grpc` and `http`, both HOST:PORT; without `pid` its CPU time and memory are unknown."""

    name: str
    grpc: str
    http: str
    pid: int | None = None
    process: subprocess.Popen | None = None
    live_s: float | None = None
    ready_s: float | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def request(self, path, body=None):
        """The status and the body that a GET, or a POST of `body`, brings; None while nobody listens."""
        connection = http.client.HTTPConnection(self.http, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return None, b""
        finally:
            connection.close()

    def is_up(self, what):
        """Whether it is `live` or `ready`."""
        return self.request(f"/v2/health/{what}")[0] == 200

    def counts(self, model):
        """Requests that were answered, rows and executions of all versions of `model` so far."""
        status, body = self.request(f"/v2/models/{urllib.parse.quote(model)}/stats")
        if status != 200:
            raise RuntimeError(f"{self.name} has no statistics of {model}: {body.decode(errors='replace')[:200]}")
        stats = json.loads(body)["model_stats"]
        return (
            sum(int(version["inference_stats"]["success"].get("count", 0)) for version in stats),
            sum(int(version.get("inference_count", 0)) for version in stats),
            sum(int(version.get("execution_count", 0)) for version in stats),
        )

    def cpu_s(self):
        """User and system time so far of its process and of those below it, such as a backend's; None if unknown."""
        return self.pid and sum(cpu_s(pid) for pid in family(self.pid))

    def memory(self):
        """Bytes that its processes hold; a page that several of them share counts once. None if unknown."""
        return self.pid and sum(proportional(pid) for pid in family(self.pid))

    def stop(self):
        """Ends the server, if it was started here."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(name, command, log, environment=None):
    """Starts what `command(grpc_port, http_port, metrics_port)` says, and waits until it is ready."""
    grpc_port, http_port, metrics_port = free_ports(3)
    with open(log, "w") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [str(each) for each in command(grpc_port, http_port, metrics_port)],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})},
        )
    server = Server(name, f"{LOOPBACK}:{grpc_port}", f"{LOOPBACK}:{http_port}", process.pid, process)
    try:
        server.live_s = wait_until(server, "live", began, log)
        server.ready_s = wait_until(server, "ready", began, log)
    except BaseException:
        server.stop()
        raise
    return server


def wait_until(server, what, began, log):
    """Seconds from `began` until it is `live` or `ready`."""
    while not server.is_up(what):
        if server.process.poll() is not None or time.monotonic() - began > START_MAX_S:
            raise RuntimeError(f"{server.name} did not become {what}:\n{Path(log).read_text()[-4000:]}")
        time.sleep(POLL_S)
    return time.monotonic() - began


def nereid(binary, repository, flags, grpc_port, http_port, metrics_port):
    """The command of Nereid, on the loopback address."""
    addresses = [f"--{each}-address={LOOPBACK}" for each in ("grpc", "http", "metrics")]
    ports = ["--grpc-port", grpc_port, "--http-port", http_port, "--metrics-port", metrics_port]
    return [binary, "serve", "--model-repository", repository, *addresses, *ports, *flags]


def free_ports(count):
    """Ports that nobody listens on at the moment."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def family(pid):
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def cpu_s(pid):
    """User and system time of one process; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def proportional(pid):
    """Bytes of one process, of a page that n processes share the nth part; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
