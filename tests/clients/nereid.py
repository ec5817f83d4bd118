"""A server process for tests: started on free ports of the loopback address, ended by SIGTERM.

Begin at `Nereid`; `write_model` makes a repository for it.
"""

import json
import os
import re
import selectors
import signal
import struct
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("NEREID_BIN", ROOT / "target" / "debug" / "nereid"))
STATE = re.compile(r"^nereid (?P<state>live|ready): (?P<addresses>.+)$")
START_MAX_S = 60
STOP_MAX_S = 30


class Nereid:
    """A running server; a context manager. Its models are loaded, or only its ports open if `until` is "live"."""

    def __init__(self, repository, *flags, until="ready", environment=None):
        self.repository = Path(repository)
        self.log = tempfile.NamedTemporaryFile("w+", prefix="nereid-", suffix=".log")
        command = [BINARY, "serve", "--model-repository", repository]
        command += ["--grpc-address", "127.0.0.1", "--grpc-port", "0"]
        command += ["--http-address", "127.0.0.1", "--http-port", "0"]
        command += ["--metrics-address", "127.0.0.1", "--metrics-port", "0", *flags]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NEREID_")}
        variables = inherited | (environment or {})
        # Without a buffer: a line in it would be one that the selector does not see.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, bufsize=0, env=variables)
        try:
            self.addresses = self.wait(until)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def grpc(self):
        """The gRPC address, as clients take it."""
        return self.addresses["grpc"]

    @property
    def http(self):
        """The HTTP address, as clients take it."""
        return self.addresses["http"]

    @property
    def metrics(self):
        """The URL of the metrics."""
        return f"http://{self.addresses['metrics']}/metrics"

    def samples(self):
        """The value of each series of the metrics, by the series as it is written."""
        with urllib.request.urlopen(self.metrics, timeout=STOP_MAX_S) as page:
            lines = page.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")
        return {series: float(value) for series, value in pairs}

    def metric(self, name, **labels):
        """The sum of a metric's series that have these labels."""
        return total(self.samples(), name, **labels)

    def wait(self, state):
        """Waits until it is "live" or "ready"; returns its addresses by name."""
        selector = selectors.DefaultSelector()
        selector.register(self.process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + START_MAX_S
        while selector.select(max(0, deadline - time.monotonic())):
            line = self.process.stdout.readline().decode()
            if not line:
                raise AssertionError(f"the server ended with {self.process.wait()}\n{self._log_end()}")
            reached = STATE.match(line)
            if reached and reached["state"] == state:
                return dict(pair.split("=", 1) for pair in reached["addresses"].split())
        raise AssertionError(f"the server was not {state} in {START_MAX_S} s\n{self._log_end()}")

    def stop(self):
        """Asks the server to end, and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end in {STOP_MAX_S} s\n{self._log_end()}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _log_end(self):
        return "".join(Path(self.log.name).read_text().splitlines(keepends=True)[-30:])


def total(samples, name, **labels):
    """The sum of those samples of a metric that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    series = ((one, value) for one, value in samples.items() if one.split("{")[0] == name)
    return sum(value for one, value in series if all(each in one for each in wanted))


def write_model(repository, name, config, versions=(1,)):
    """Writes a model without a model file: a configuration and empty version folders."""
    folder = Path(repository) / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    return folder


def identity_config(dtypes, max_batch_size=8, dims="-1", extra=""):
    """The configuration of an identity model with one input and output of each of `dtypes`."""
    inputs, outputs = [], []
    for index, dtype in enumerate(dtypes):
        dtype = "STRING" if dtype == "BYTES" else dtype
        inputs.append(f'{{ name: "INPUT{index}" data_type: TYPE_{dtype} dims: [ {dims} ] }}')
        outputs.append(f'{{ name: "OUTPUT{index}" data_type: TYPE_{dtype} dims: [ {dims} ] }}')
    return (
        f'backend: "identity"\nmax_batch_size: {max_batch_size}\n'
        f"input [ {', '.join(inputs)} ]\noutput [ {', '.join(outputs)} ]\n"
        f"instance_group [ {{ count: 1 kind: KIND_CPU }} ]\n{extra}\n"
    )


def parameter(key, value):
    """A parameter of a configuration."""
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def torchscript(repository, name, source, config, weights=None):
    """Writes a model whose file is compiled from `source` by the server's own command; `weights` are lists by name."""
    folder = write_model(repository, name, f'platform: "pytorch_libtorch"\n{config}')
    (folder / "source").write_text(source)
    files = [folder / "source"]
    if weights:
        files.append(folder / "weights.safetensors")
        write_weights(files[-1], weights)
    subprocess.run([BINARY, "torchscript", *files, folder / "1" / "model.pt"], check=True)
    return folder


def write_weights(path, weights):
    """Writes vectors of FP32 in the format of safetensors."""
    header, data = {}, bytearray()
    for name, values in weights.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def wait_until(reached, limit_s=30):
    """Asks again and again until `reached`, without a pause: each question is a call to the server."""
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
