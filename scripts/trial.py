"""What the long trials of a server share: which server that is, models made on the spot, the server's counters, and its
memory over time."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

# The options of every trial.
OPTIONS = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
OPTIONS.add_argument(
    "--server", type=Path, metavar="PATH", help="the server to try; otherwise that of NEREID_BIN, or target/debug/nereid"
)
chosen = OPTIONS.parse_known_args()[0].server
if chosen:
    # Whoever starts a server looks there.
    os.environ["NEREID_BIN"] = str(chosen.resolve())

import tritonclient.grpc as grpcclient  # noqa: E402
from nereid import BINARY, identity_config, parameter, write_model  # noqa: E402

# Our own load generator, built with the server.
LOAD = BINARY.parent / "examples" / "load"

SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def torch_model(repository, name, source, config, version=1):
    """Writes a TorchScript model from the source of its `forward`."""
    folder = Path(repository) / name
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    compile_torch(source, folder / str(version) / "model.pt")
    (folder / "config.pbtxt").write_text(config)
    return folder


def compile_torch(source, path):
    """Writes a TorchScript file all at once, as a careful operator would."""
    with tempfile.TemporaryDirectory(dir=Path(path).parent.parent, prefix=".") as scratch:
        (Path(scratch) / "source.py").write_text(source)
        made = Path(scratch) / "model.pt"
        subprocess.run([BINARY, "torchscript", Path(scratch) / "source.py", made], check=True, stdout=subprocess.DEVNULL)
        made.rename(path)


def identity_model(repository, name, extra="", max_batch_size=8):
    """Writes an identity model of 16 numbers."""
    return write_model(repository, name, identity_config(["FP32"], max_batch_size, dims="16", extra=extra))


def delay(microseconds):
    """The parameter that makes an identity model slow."""
    return parameter("identity.delay_us", microseconds)


def torch_config(inputs, outputs, dims=16, instances=1):
    """The configuration of a TorchScript model of numbers, but for its scheduling."""
    lines = ['backend: "pytorch"\nmax_batch_size: 8']
    for kind, names in (("input", inputs), ("output", outputs)):
        lines += [f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] }} ]' for name in names]
    return "\n".join([*lines, f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]\n"])


def grpc_client(server):
    """A client with a connection of its own: gRPC's Python would share one between all of a process."""
    return grpcclient.InferenceServerClient(server.grpc, channel_args=[("grpc.use_local_subchannel_pool", 1)])


class Counters:
    """The server's counters at one moment."""

    def __init__(self, url):
        with urllib.request.urlopen(url, timeout=30) as response:
            text = response.read().decode()
        self.samples = []
        for line in text.splitlines():
            found = SAMPLE.match(line)
            if found:
                labels = dict(LABEL.findall(found["labels"] or ""))
                self.samples.append((found["name"], labels, float(found["value"])))

    def total(self, name, **labels):
        """The sum of all series of this name that have these labels."""
        fits = [value for own, has, value in self.samples if own == name and labels.items() <= has.items()]
        return round(sum(fits))


class Memory:
    """Samples a process's resident memory until it is asked what came out."""

    def __init__(self, pid, interval_s=0.5):
        self.pid, self.interval_s = pid, interval_s
        self.samples, self.ended = [], threading.Event()
        self.began = time.monotonic()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.ended.wait(self.interval_s):
            self.samples.append((time.monotonic() - self.began, resident(self.pid)))

    def stop(self):
        self.ended.set()
        self.thread.join()


def resident(pid):
    """Resident bytes of a process; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def slope(samples):
    """The growth by least squares: units of the second value for each unit of the first."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def mib(bytes_):
    return f"{bytes_ / (1 << 20):.1f} MiB"
